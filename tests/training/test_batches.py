"""What a step compares with what."""

from pathlib import Path

import pytest

from udever.tokenizer import UdeverTokenizer
from udever.training.batches import Batches
from udever.training.data.examples import ExampleStore
from udever.training.data.sampler import Mixture
from udever.training.data.store_writer import TextExample, new_store
from udever.training.recipe import BatchPart, ContrastPart, DataPart, Recipe


@pytest.fixture
def tokenizer(tiny_tokenizer_path: Path) -> UdeverTokenizer:
    return UdeverTokenizer.from_folder(tiny_tokenizer_path.parent)


def test_answers_from_two_stores_are_no_negatives_of_their_common_query(
    tokenizer: UdeverTokenizer, tmp_path: Path
) -> None:
    stores = []
    for name, answer in (("one", "the fox"), ("other", "the dog")):
        with new_store(tmp_path / name, tokenizer=tokenizer, max_tokens=24) as writer:
            own = TextExample(f"how tall, {name}?", (f"{name} metres",), (), None, "t", False)
            writer.add([TextExample("who jumps?", (answer,), ("the mountain",), None, "t", False), own])
        stores.append(ExampleStore.open(tmp_path / name))
    recipe = Recipe(
        name="n", base="b", data=(DataPart(path="one"), DataPart(path="other")), batch=BatchPart(size=4),
        contrast=ContrastPart(negatives=1), max_tokens=24,
    )  # fmt: skip
    batches = Batches(Mixture(stores), recipe, markers=tokenizer.markers)
    batch = batches.of(0)
    texts = [batches.text(store, text_id) for store, text_id in batch.texts]
    queries, documents = texts[: batch.queries], texts[batch.queries :]
    excluded = {(queries[row], documents[column]) for row, column in batch.pairing.excluded}
    assert queries.count("who jumps?") == 2
    assert excluded == {("who jumps?", "the fox"), ("who jumps?", "the dog")}
