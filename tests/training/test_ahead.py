"""Batches that other processes make are those that this one would."""

from pathlib import Path

import numpy as np
import pytest

from udever.tokenizer import UdeverTokenizer
from udever.training.ahead import Ahead
from udever.training.batches import Batches, StepBatch
from udever.training.data.examples import ExampleStore
from udever.training.data.sampler import Mixture
from udever.training.data.store_writer import TextExample, new_store
from udever.training.distill import Targets
from udever.training.recipe import BatchPart, DataPart, DistillPart, Recipe

ORDER = (0, 1, 2, 5, 6, 1, 2, 7)
"""On from the start, a leap, back, another leap to the last one."""


@pytest.fixture
def batches(tiny_tokenizer_path: Path, tmp_path: Path) -> Batches:
    tokenizer = UdeverTokenizer.from_folder(tiny_tokenizer_path.parent)
    with new_store(tmp_path / "pairs", tokenizer=tokenizer, max_tokens=24) as writer:
        writer.add([TextExample(f"question {i}", (f"answer {i}",), (), None, "t", False) for i in range(16)])
    store = ExampleStore.open(tmp_path / "pairs")
    vectors = np.random.default_rng(0).normal(size=(store.text_count, 8)).astype(np.float16)
    targets = Targets(vectors=vectors, rows=(np.arange(store.text_count),))
    recipe = Recipe(
        name="n", base="b", data=(DataPart(path="pairs"),), batch=BatchPart(size=4, epochs=2), max_tokens=24,
        objective="distill", distill=DistillPart(targets="targets", bank=5),
    )  # fmt: skip
    return Batches(Mixture([store]), recipe, markers=tokenizer.markers, targets=targets)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # two, on a machine of one core
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_made_ahead_are_those_of_their_steps(batches: Batches, workers: int) -> None:
    ahead = Ahead(batches, workers=workers)
    assert batches.steps == 8
    for step in ORDER:
        _require_equal(ahead.of(step), batches.of(step))


def test_an_error_of_a_worker_is_the_callers(batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(step: int) -> StepBatch:
        raise ValueError(f"step {step} cannot be made")

    monkeypatch.setattr(batches, "of", broken)
    with pytest.raises(ValueError, match="step 3 cannot be made"):
        Ahead(batches, workers=1).of(3)


def _require_equal(found: StepBatch, expected: StepBatch) -> None:
    assert found.sequences == expected.sequences
    assert (found.texts, found.queries) == (expected.texts, expected.queries)
    np.testing.assert_array_equal(found.pairing.positive, expected.pairing.positive)
    np.testing.assert_array_equal(found.pairing.excluded, expected.pairing.excluded)
    assert found.lesson is not None
    assert expected.lesson is not None
    np.testing.assert_array_equal(found.lesson.targets, expected.lesson.targets)
    np.testing.assert_array_equal(found.lesson.bank, expected.lesson.bank)
