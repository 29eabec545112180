"""Small work runs on one thread where cores are busy, and leaves the number of threads as it found it."""

import os
from collections.abc import Iterator

import pytest
import torch

from udever import Embedder
from udever.engine.batcher import Batcher
from udever.engine.threads import SMALL_FLOPS, cores_are_busy, fitting_threads


@pytest.fixture(autouse=True)
def three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PyTorch has three, and so much wants to run that they would wait for each other."""
    monkeypatch.setattr(os, "getloadavg", lambda: ((os.cpu_count() or 1) + 1.0, 0.0, 0.0))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_small_work_gets_one_thread_and_large_work_all() -> None:
    with fitting_threads(SMALL_FLOPS):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    with fitting_threads(SMALL_FLOPS + 1):
        assert torch.get_num_threads() == 3


def test_on_idle_cores_small_work_gets_all_threads_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cores_are_busy()
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 9.0, 9.0))
    with fitting_threads(1):
        assert torch.get_num_threads() == 3


def test_a_failure_inside_gives_the_threads_back() -> None:
    with pytest.raises(RuntimeError, match="inside"), fitting_threads(1):
        raise RuntimeError("inside")
    assert torch.get_num_threads() == 3


def test_the_service_computes_a_short_text_on_one_thread_and_a_full_batch_on_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Embedder.load("udever-nano", precision="fp32", device="cpu")
    forward, seen = model.forward, dict[int, int]()

    def watched(sequences: list[list[int]], **options: int) -> object:
        seen[len(sequences)] = torch.get_num_threads()
        return forward(sequences, **options)

    batcher = Batcher(model)
    batcher.start()
    try:
        monkeypatch.setattr(model, "forward", watched)
        for texts in (["one short query"], [f"one of many documents, number {i}" for i in range(60)]):
            batcher.submit(model.tokenize(texts)).result(60)
    finally:
        batcher.close()
    assert (seen[1], seen[60]) == (1, 3)
