"""A store gives back what was put in: each text once, each example as it was, what answers what exactly."""

import json
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from udever.errors import ExamplesError
from udever.tokenizer import UdeverTokenizer
from udever.training.data import columns, known, text_index
from udever.training.data.examples import ExampleStore
from udever.training.data.store_writer import StoreWriter, TextExample, new_store
from udever.training.data.text_index import TextIndex, digest_of


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_path: Path) -> UdeverTokenizer:
    return UdeverTokenizer.from_folder(tiny_tokenizer_path.parent)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (columns, known):
        monkeypatch.setattr(module, "BLOCK_ROWS", 3)


def write(
    folder: Path, tokenizer: UdeverTokenizer, *blocks: Sequence[TextExample], max_tokens: int = 20
) -> StoreWriter:
    with new_store(folder, tokenizer=tokenizer, max_tokens=max_tokens, overwrite=True) as writer:
        for block in blocks:
            writer.add(block)
    return writer


def words(store: ExampleStore) -> Iterator[TextExample]:
    """The store's examples as texts."""
    for index in range(len(store)):
        example = store.example(index)
        yield TextExample(
            store.text(example.query),
            tuple(map(store.text, example.positives)),
            tuple(map(store.text, example.negatives)),
            example.scores,
            example.task,
            example.symmetric,
        )


TEXTS = st.sampled_from(["fox", "dog ", "Fox", "el zorro", "山", "x = 1\n", "a" * 300, "\u2028", "\0", "é", "e\u0301"])
DISTINCT = st.lists(TEXTS, min_size=2, max_size=6, unique=True)


@st.composite
def text_examples(draw: st.DrawFn) -> TextExample:
    query, *others = draw(DISTINCT)
    positives = draw(st.integers(1, len(others)))
    scores = draw(
        st.none() | st.lists(st.floats(width=32, allow_nan=False), min_size=len(others), max_size=len(others))
    )
    return TextExample(
        query,
        tuple(others[:positives]),
        tuple(others[positives:]),
        tuple(scores) if scores else None,
        draw(st.sampled_from(["a", "b", "多"])),
        draw(st.booleans()),
    )


def visible(example: TextExample) -> bool:
    return all(text.strip() for text in (example.query, *example.positives, *example.negatives))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(examples=st.lists(text_examples().filter(visible), min_size=1, max_size=12), data=st.data())
def test_what_goes_in_comes_out(
    examples: list[TextExample], data: st.DataObject, tokenizer: UdeverTokenizer, tmp_path: Path, small_blocks: None
) -> None:
    cut = data.draw(st.integers(0, len(examples)))
    write(tmp_path / "s", tokenizer, examples[:cut], examples[cut:])
    store = ExampleStore.open(tmp_path / "s")
    expected = list(dict.fromkeys(examples))
    assert list(words(store)) == expected
    texts = [store.text(text_id) for text_id in range(store.text_count)]
    distinct = dict.fromkeys(chain.from_iterable((e.query, *e.positives, *e.negatives) for e in expected))
    assert texts == list(distinct)
    bodies = tokenizer.encode(texts, role="query", max_tokens=20, truncate="end")
    assert [store.token_ids(text_id) for text_id in range(len(texts))] == [ids[1:-1] for ids in bodies]
    assert {task: list(map(int, indices)) for task, indices in store.tasks.items()} == {
        task: [index for index, example in enumerate(expected) if example.task == task]
        for task in dict.fromkeys(example.task for example in expected)
    }
    for index, example in enumerate(expected):
        answers = {p for other in expected if other.query == example.query for p in other.positives}
        answers |= {other.query for other in expected if other.symmetric and example.query in other.positives}
        found = store.known_positives(index)
        assert len(found) == len(answers)
        assert set(found) == {store.key(texts.index(answer)) for answer in answers}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(examples=st.lists(text_examples(), min_size=2, max_size=12, unique=True), data=st.data())
def test_the_digest_is_of_what_was_written_not_how(
    examples: list[TextExample], data: st.DataObject, tokenizer: UdeverTokenizer, tmp_path: Path
) -> None:
    if not all(map(visible, examples)):
        return
    cut = data.draw(st.integers(0, len(examples)))
    whole = write(tmp_path / "whole", tokenizer, examples).about
    parts = write(tmp_path / "parts", tokenizer, examples[:cut], [], examples[cut:], examples[:2]).about
    assert parts["digest"] == whole["digest"]
    turned = write(tmp_path / "turned", tokenizer, examples[::-1]).about["digest"]
    shorter = write(tmp_path / "less", tokenizer, examples[:-1]).about["digest"]
    cut_off = write(tmp_path / "cut", tokenizer, examples, max_tokens=19).about["digest"]
    assert len({whole["digest"], turned, shorter, cut_off}) == 4


def one(query: str = "q", *positives: str, **rest: object) -> TextExample:
    return TextExample(query, positives or ("p",), **rest)  # type: ignore[arg-type]


def test_each_field_of_an_example_changes_the_digest(tokenizer: UdeverTokenizer, tmp_path: Path) -> None:
    variants = [
        one(),
        one("p", "q"),
        one("q", "p", "n"),
        one(negatives=("n",)),
        one(negatives=("n",), scores=(1.0, 0.5)),
        one(negatives=("n",), scores=(1.0, 0.25)),
        one(task="other"),
        one(symmetric=True),
    ]
    digests = [write(tmp_path / "s", tokenizer, [variant]).about["digest"] for variant in variants]
    assert len(set(digests)) == len(variants)
    assert write(tmp_path / "all", tokenizer, variants).examples == len(variants), "none is another's duplicate"


def test_equal_scores_make_equal_examples(tokenizer: UdeverTokenizer, tmp_path: Path) -> None:
    alike = [one(negatives=("n",), scores=scores) for scores in ((0.0, 1.0), (-0.0, 1.0), (0, 1))]
    assert write(tmp_path / "s", tokenizer, alike).examples == 1
    digests = {write(tmp_path / "s", tokenizer, [each]).about["digest"] for each in alike}
    assert len(digests) == 1


def test_keys_are_of_the_text_alone(tokenizer: UdeverTokenizer, tmp_path: Path) -> None:
    write(tmp_path / "a", tokenizer, [one("q", "p"), one("r", "q")])
    write(tmp_path / "b", tokenizer, [one("x", "q")])
    a, b = ExampleStore.open(tmp_path / "a"), ExampleStore.open(tmp_path / "b")
    assert a.key(0) == b.key(1)
    assert len({a.key(text_id) for text_id in range(3)}) == 3


@pytest.mark.parametrize(
    ("example", "kept", "dropped"),
    [
        (one(" \n"), None, "empty query"),
        (one("q", "", "\t"), None, "empty positive"),
        (one("q", "q"), None, "positive that is the query or stands beside it twice"),
        (one("q", "q", "p", "p"), one("q", "p"), "positive that is the query or stands beside it twice"),
        (one(negatives=("p", "q", "n", " ")), one(negatives=("n",)), "negative that is"),
        (
            one("q", "q", "p", negatives=("p", "n"), scores=(1, 2, 3, 4)),
            one(negatives=("n",), scores=(2, 4)),
            "negative",
        ),
    ],
)
def test_what_no_example_may_hold_is_left_out_and_counted(
    example: TextExample, kept: TextExample | None, dropped: str, tokenizer: UdeverTokenizer, tmp_path: Path
) -> None:
    other = one("another", "answer")
    about = write(tmp_path / "s", tokenizer, [example, other]).about
    assert list(words(ExampleStore.open(tmp_path / "s"))) == ([kept] if kept else []) + [other]
    assert any(why.startswith(dropped) for why in about["dropped"])


def test_a_limit_keeps_no_text_of_what_it_cuts_off(tokenizer: UdeverTokenizer, tmp_path: Path) -> None:
    with new_store(tmp_path / "s", tokenizer=tokenizer, max_tokens=20, max_negatives=1) as writer:
        writer.add([one("q"), one("q"), one("r", negatives=("m", "n")), one("s", "t")], limit=2)
    store = ExampleStore.open(tmp_path / "s")
    assert [store.text(text_id) for text_id in range(store.text_count)] == ["q", "p", "r", "m"]
    assert store.about["dropped"] == {"duplicate": 1}


def test_the_store_says_what_it_is(tokenizer: UdeverTokenizer, tmp_path: Path) -> None:
    write(tmp_path / "s", tokenizer, [one("fox " * 50), one(task="b", negatives=("n",))])
    store = ExampleStore.open(tmp_path / "s")
    assert (store.max_tokens, store.tokenizer_digest, len(store)) == (20, tokenizer.digest, 2)
    assert store.about["tasks"] == {"default": 1, "b": 1}
    assert (store.about["cut_texts"], store.about["without_negatives"]) == (1, 1)
    assert store.about["tokens"] == sum(len(store.token_ids(i)) for i in range(store.text_count))
    assert max(len(store.token_ids(i)) for i in range(store.text_count)) == 18
    assert json.loads((tmp_path / "s" / "store.json").read_text("utf-8")) == store.about
    with pytest.raises(IndexError):
        store.example(2)
    with pytest.raises(IndexError):
        store.example(-1)


def test_a_store_of_many_blocks_is_mapped_and_quick(tokenizer: UdeverTokenizer, tmp_path: Path) -> None:
    count = 2 * columns.BLOCK_ROWS + 5
    blocks = [[one(f"q{i}", f"p{i}", f"p{i // 2}") for i in range(k, k + 4096)] for k in range(0, count, 4096)]
    write(tmp_path / "s", tokenizer, *blocks)
    store = ExampleStore.open(tmp_path / "s")
    assert len(store) >= count
    for index in (0, columns.BLOCK_ROWS - 1, columns.BLOCK_ROWS, count - 1):
        example = store.example(index)
        assert store.text(example.query) == f"q{index}"
        assert {store.text(text_id) for text_id in example.positives} == {f"p{index}", f"p{index // 2}"}
    picked = np.random.default_rng(0).integers(0, count, 1024).tolist()
    began = time.perf_counter()
    for index in picked:
        store.known_positives(index)
    assert time.perf_counter() - began < 0.2, "a few milliseconds a batch"


def test_nothing_is_left_of_a_store_that_failed(tokenizer: UdeverTokenizer, tmp_path: Path) -> None:
    def fail(*, with_error: type[BaseException]) -> None:
        with new_store(tmp_path / "s", tokenizer=tokenizer, max_tokens=20) as writer:
            writer.add([one()])
            raise with_error

    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error):
            fail(with_error=error)
        assert list(tmp_path.iterdir()) == []
    with (
        pytest.raises(ExamplesError, match="not one example"),
        new_store(tmp_path / "s", tokenizer=tokenizer, max_tokens=20) as writer,
    ):
        writer.add([one("")])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_only_if_it_is_a_store_and_that_is_wanted(
    tokenizer: UdeverTokenizer, tmp_path: Path
) -> None:
    target = tmp_path / "s"
    target.mkdir()
    options = {"tokenizer": tokenizer, "max_tokens": 20}
    with new_store(target, **options) as writer:  # type: ignore[arg-type]
        writer.add([one("first")])
    with pytest.raises(ExamplesError, match="--overwrite"), new_store(target, **options):  # type: ignore[arg-type]
        pass
    with new_store(target, **options, overwrite=True) as writer:  # type: ignore[arg-type]
        writer.add([one("second")])
    assert ExampleStore.open(target).text(0) == "second"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ExamplesError, match="holds no examples"):
        write(tmp_path / "mine", tokenizer, [one()])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "s"]


def test_damage_is_found_when_the_store_is_opened(tokenizer: UdeverTokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    write(folder, tokenizer, [one()])
    whole = (folder / "texts.arrow").read_bytes()
    for content, said in ((whole[:-40], "bytes instead of"), (b"\0" * len(whole), "cannot read"), (None, "is missing")):
        (folder / "texts.arrow").unlink()
        if content is not None:
            (folder / "texts.arrow").write_bytes(content)
        with pytest.raises(ExamplesError) as caught:
            ExampleStore.open(folder)
        assert "texts.arrow" in str(caught.value)
        assert said in str(caught.value)


def test_what_is_no_store_is_refused(tokenizer: UdeverTokenizer, tmp_path: Path) -> None:
    for content, said in ((None, "holds no examples"), ("[]", "cannot read"), ('{"format": 99}', "format 99")):
        if content is not None:
            (tmp_path / "store.json").write_text(content)
        with pytest.raises(ExamplesError, match=said):
            ExampleStore.open(tmp_path)
    with pytest.raises(ExamplesError, match="does not exist"):
        ExampleStore.open(tmp_path / "nowhere")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(blocks=st.lists(st.lists(st.integers(0, 60), max_size=40), max_size=8))
def test_the_index_numbers_texts_as_a_dict_would(blocks: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_index, "FIRST_SLOTS", 8)
    index, expected = TextIndex(), {}
    for block in blocks:
        before = len(expected)
        numbers, new = index.add([digest_of(str(value).encode()) for value in block])
        assert numbers.tolist() == [expected.setdefault(value, len(expected)) for value in block]
        firsts = {value: place for place, value in reversed(list(enumerate(block)))}
        assert [expected[block[place]] for place in new] == list(range(before, len(expected)))
        assert all(firsts[block[place]] == place for place in new)
        assert len(index) == len(expected)


def test_the_index_compares_whole_digests() -> None:
    halves = [b"a" * 8, b"b" * 8]
    digests = [first + second for first in halves for second in halves]
    numbers, new = TextIndex().add(digests)
    assert (numbers.tolist(), new) == ([0, 1, 2, 3], [0, 1, 2, 3])
    index = TextIndex()
    for number, digest in enumerate(digests):
        assert index.add([digest])[0].tolist() == [number]
