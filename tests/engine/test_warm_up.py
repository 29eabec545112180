"""Weights are laid out for much work once it shows, or when asked; until then a large model answers as it lies."""

import gc
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from udever import Embedder
from udever.engine.embedder import WARM_UP_TOKENS
from udever.model.half import has_half_weights
from udever.model.linear import PACKED_AT_ONCE, native_bf16, prepacking_pays

PRECISION, STORED = ("bf16", torch.bfloat16) if native_bf16() else ("fp32", torch.float16)
"""Where large weights wait to be laid out: as they are stored."""
WAITS = native_bf16() or (has_half_weights() and not prepacking_pays())

pytestmark = [
    pytest.mark.skipif(not WAITS, reason="this machine lays out weights at once"),
    pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc/self/maps"),
]
QUERY = "How tall is the mountain?"
WIDTH = 576


@pytest.fixture(autouse=True)
def no_models_of_other_tests() -> None:
    gc.collect()


@pytest.fixture(scope="module")
def folder(make_checkpoint: Callable[..., Path]) -> Path:
    assert 4 * WIDTH**2 > PACKED_AT_ONCE
    return make_checkpoint(width=WIDTH, dtype=STORED)


def mapped_tensors(folder: Path) -> int:
    """How many of the weights lie in memory as in the file: all that wait, and the token table."""
    return Path("/proc/self/maps").read_text("utf-8").count(str(folder))


def vectors_until_warm(model: Embedder, folder: Path, batches: Iterable[list[str]]) -> list[np.ndarray]:
    cold, found = mapped_tensors(folder), []
    for batch in batches:
        found.append(model.embed(batch, role="query"))
        if mapped_tensors(folder) < cold:
            return found
    raise AssertionError("never warm")


def test_sixteen_short_queries_warm_it_and_their_vectors_stay(folder: Path) -> None:
    model = Embedder.load(str(folder), precision=PRECISION, device="cpu")
    found = vectors_until_warm(model, folder, ([QUERY] for _ in range(99)))
    assert len(found) == 16
    assert np.abs(model.embed([QUERY], role="query") - found[0]).max() <= 1e-6
    assert model.fingerprint == Embedder.load(str(folder), precision=PRECISION, device="cpu").fingerprint


def test_a_long_batch_warms_it_first(folder: Path) -> None:
    model = Embedder.load(str(folder), precision=PRECISION, device="cpu")
    texts = [f"{QUERY} {number}" for number in range(WARM_UP_TOKENS // 8)]
    assert sum(model.count_tokens(texts)) > WARM_UP_TOKENS
    assert len(vectors_until_warm(model, folder, [texts])) == 1


def test_warm_up_does_it_at_once_and_once(folder: Path) -> None:
    model = Embedder.load(str(folder), precision=PRECISION, device="cpu")
    cold = mapped_tensors(folder)
    model.warm_up()
    warm, first = mapped_tensors(folder), model.embed([QUERY], role="query")
    assert warm < cold
    model.warm_up()
    assert mapped_tensors(folder) == warm
    assert np.array_equal(model.embed([QUERY], role="query"), first)
