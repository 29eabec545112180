"""Mined negatives are no answers, hold to the filters and are the nearest; what was embedded is not embedded again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from udever import Embedder
from udever.errors import ExamplesError, OptionError
from udever.training.data.examples import ExampleStore
from udever.training.data.importing import tokenizer_of
from udever.training.data.store_writer import TextExample, new_store
from udever.training.mining import mine as mining
from udever.training.mining import vector_files, vector_search
from udever.training.mining.mine import MiningOptions, mine, work_folder
from udever.training.mining.vector_files import Reader, embed_texts
from udever.training.mining.vector_search import NOTHING, Exact, Ivf, nearest

ANIMALS = ["fox", "dog", "wolf", "cat", "mountain", "river", "zorro", "perro", "山", "狐狸"]
ALL = MiningOptions(margin=-2, negatives=100, top=100)
"""Everything that is no answer."""


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Embedder:
    return Embedder.load(str(tiny_checkpoint), precision="fp32", device="cpu")


@pytest.fixture
def make_store(tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., ExampleStore]:
    def make(examples: list[TextExample], name: str = "store") -> ExampleStore:
        with new_store(tmp_path / name, tokenizer=tokenizer_of(str(tiny_checkpoint)), max_tokens=32) as writer:
            writer.add(examples)
        return ExampleStore.open(tmp_path / name)

    return make


@pytest.fixture
def store(make_store: Callable[..., ExampleStore]) -> ExampleStore:
    """Asked for twice, symmetric or not, two tasks; "what is a dog" has answers in two examples."""
    plain = [
        TextExample(f"what is a {name}", (f"the {name} is here", f"a {name}"), (f"no {name}",), task="plain")
        for name in ANIMALS
    ]
    more = TextExample("what is a dog", ("an animal that barks",), ("the fox is here",), (2.0, 1.0), task="plain")
    pairs = [
        TextExample(f"{name} one", (f"{name} two",), (f"{name} three",), (1.0, 0.5), task="pairs", symmetric=True)
        for name in ANIMALS[:6]
    ]
    return make_store([*plain[:5], *pairs[:3], more, *plain[5:], *pairs[3:]])


class Row:
    """An example in words."""

    def __init__(self, store: ExampleStore, index: int) -> None:
        example = store.example(index)
        self.query, self.task, self.symmetric = store.text(example.query), example.task, example.symmetric
        self.positives, self.negatives = (list(map(store.text, ids)) for ids in (example.positives, example.negatives))
        self.scores = example.scores

    def expected_scores(self, model: Embedder, texts: list[str]) -> np.ndarray:
        role = "query" if self.symmetric else "document"
        return model.embed(texts, role) @ model.embed([self.query])[0]


def rows(store: ExampleStore) -> list[Row]:
    return [Row(store, index) for index in range(len(store))]


def answers(of: list[Row]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in of:
        for positive in row.positives:
            found.setdefault(row.query, {row.query}).add(positive)
            if row.symmetric:
                found.setdefault(positive, {positive}).add(row.query)
    return found


def mined(store: ExampleStore, output: Path, model: Embedder, **options: Any) -> list[Row]:
    mine(store, output, model=model, options=MiningOptions(**options))
    return rows(ExampleStore.open(output))


# ---- the search ----


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 60),
    q=st.integers(1, 5),
    count=st.integers(1, 20),
    block=st.integers(1, 17),
    seed=st.integers(0, 9),
    ivf=st.booleans(),
)
def test_search_finds_what_brute_force_finds(n: int, q: int, count: int, block: int, seed: int, ivf: bool) -> None:
    drawn = np.random.default_rng(seed)
    vectors, queries = drawn.normal(size=(n, 8)).astype(np.float16), drawn.normal(size=(q, 8)).astype(np.float32)
    pool = np.flatnonzero(drawn.random(n) < 0.7)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(vector_search, "BLOCK_ROWS", block)
        plan = Ivf(vectors, pool, probes=n) if ivf and len(pool) else Exact(pool)
        scores, found = nearest(queries, vectors, plan, count=count)
    brute = queries @ vectors[pool].astype(np.float32).T
    order = np.argsort(-brute, axis=1, kind="stable")[:, :count]
    missing = count - order.shape[1]
    np.testing.assert_allclose(scores[:, : order.shape[1]], np.take_along_axis(brute, order, 1), atol=1e-5)
    np.testing.assert_array_equal(found, np.pad(pool[order], ((0, 0), (0, missing)), constant_values=NOTHING))
    assert np.isneginf(scores[:, order.shape[1] :]).all()


def test_ivf_finds_nearly_all_in_clustered_data_by_looking_at_little() -> None:
    drawn = np.random.default_rng(1)
    centres = drawn.normal(size=(60, 24))
    vectors = (centres[drawn.integers(0, 60, 6000)] + 0.3 * drawn.normal(size=(6000, 24))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries, everything = vectors[:200] + 0.02 * drawn.normal(size=(200, 24)).astype(np.float32), np.arange(6000)
    _, exact = nearest(queries, vectors, Exact(everything), count=10)
    ivf = Ivf(vectors, everything, lists=80, probes=6)
    _, found = nearest(queries, vectors, ivf, count=10)
    recall = np.mean([np.isin(exact[i], found[i]).mean() for i in range(200)])
    assert recall > 0.95
    asked = torch.from_numpy(queries)
    assert sum(len(places) * len(members) for places, members in ivf.parts(asked)) < 0.25 * 200 * 6000
    again = nearest(queries, vectors, Ivf(vectors, everything, lists=80, probes=6), count=10)[1]
    np.testing.assert_array_equal(again, found)


# ---- what is picked ----


@pytest.mark.parametrize("search", ["exact", "ivf"])
def test_all_that_is_no_answer_can_be_mined_and_nothing_else(
    store: ExampleStore, tmp_path: Path, model: Embedder, search: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mining, "BLOCK_EXAMPLES", 7)
    before = rows(store)
    pools = {kind: {t for r in before if r.symmetric == kind for t in r.positives + r.negatives} for kind in (0, 1)}
    after = mined(store, tmp_path / "out", model, margin=-2, negatives=100, search=search, **{"probes": 99} if search == "ivf" else {})  # fmt: skip  # noqa: E501
    known = answers(before)
    assert [(r.query, r.positives, r.task, r.symmetric) for r in after] == [
        (r.query, r.positives, r.task, r.symmetric) for r in before
    ]
    for row in after:
        assert set(row.negatives) == pools[row.symmetric] - known[row.query]
        scores = row.expected_scores(model, row.negatives)
        assert (np.diff(scores) < 1e-3).all(), "the hardest first"
        assert row.scores is None
    assert "an animal that barks" not in next(r for r in after if r.query == "what is a dog").negatives


@pytest.mark.parametrize(
    "filters",
    [{}, {"margin": 0.02}, {"percentile": 0.9}, {"max_score": 0.6}, {"margin": 0.01, "max_score": 0.7}],
    ids=str,
)
def test_filters_hold_for_every_negative_and_leave_out_no_other(
    store: ExampleStore, tmp_path: Path, model: Embedder, filters: dict[str, float]
) -> None:
    everything = mined(store, tmp_path / "all", model, margin=-2, negatives=100)
    after = mined(store, tmp_path / "out", model, negatives=100, **filters)
    filters = filters or {"margin": 0.05}
    refused = 0
    for row, whole in zip(after, everything, strict=True):
        lowest = row.expected_scores(model, row.positives).min()
        limit = min(
            lowest - filters.get("margin", -9),
            lowest * filters["percentile"] if "percentile" in filters else 9,
            filters.get("max_score", 9),
        )
        scores = row.expected_scores(model, whole.negatives)
        for text, score in zip(whole.negatives, scores, strict=True):
            if abs(score - limit) > 2e-3:  # vectors lie on disk in half precision
                assert (text in row.negatives) == (score < limit)
                refused += score > limit
    assert refused


def test_a_share_of_a_negative_score_lets_nothing_above_the_positive_through() -> None:
    assert MiningOptions(percentile=0.5).limit(-0.4) == -0.4
    assert MiningOptions(percentile=0.5).limit(0.4) == 0.2


def test_top_and_skip_top_count_what_is_no_answer(store: ExampleStore, tmp_path: Path, model: Embedder) -> None:
    whole = mined(store, tmp_path / "a", model, margin=-2, negatives=100)
    part = mined(store, tmp_path / "b", model, margin=-2, negatives=3, top=4, skip_top=2)
    short = mined(store, tmp_path / "c", model, margin=-2, negatives=3)
    assert [row.negatives for row in part] == [row.negatives[2:4] for row in whole]
    assert [row.negatives for row in short] == [row.negatives[:3] for row in whole]


def test_other_tasks_stay_as_they_are(store: ExampleStore, tmp_path: Path, model: Embedder) -> None:
    after = mined(store, tmp_path / "out", model, margin=-2, negatives=2, tasks=("plain",))
    for old, new in zip(rows(store), after, strict=True):
        if old.task == "pairs":
            assert (new.negatives, new.scores) == (old.negatives, old.scores)
        else:
            assert len(new.negatives) == 2


def test_append_keeps_what_is_there(store: ExampleStore, tmp_path: Path, model: Embedder) -> None:
    after = mined(store, tmp_path / "out", model, margin=-2, negatives=2, append=True)
    for old, new in zip(rows(store), after, strict=True):
        assert new.negatives[: len(old.negatives)] == old.negatives
        assert len(set(new.negatives)) == len(old.negatives) + 2


def test_a_teacher_scores_positives_and_negatives(
    store: ExampleStore, tmp_path: Path, model: Embedder, make_checkpoint: Callable[..., Path]
) -> None:
    teacher = Embedder.load(str(make_checkpoint(seed=5, width=32)), precision="fp32", device="cpu")
    about = mine(store, tmp_path / "out", model=model, teacher=teacher, options=MiningOptions(margin=-2, negatives=3))
    for row in rows(ExampleStore.open(tmp_path / "out")):
        expected = row.expected_scores(teacher, row.positives + row.negatives)
        np.testing.assert_allclose(row.scores, expected, atol=3e-3)
    assert about["options"]["teacher_fingerprint"] == teacher.fingerprint


def test_the_new_store_has_the_tokens_of_the_old(store: ExampleStore, tmp_path: Path, model: Embedder) -> None:
    mine(store, tmp_path / "out", model=model, options=ALL)
    new = ExampleStore.open(tmp_path / "out")
    of_old = {store.text(i): store.token_ids(i) for i in range(store.text_count)}
    assert all(new.token_ids(i) == of_old[new.text(i)] for i in range(new.text_count))
    assert (new.tokenizer_digest, new.max_tokens) == (store.tokenizer_digest, store.max_tokens)
    assert new.about["sources"] == [{"file": "store", "sha256": store.digest}]
    assert new.about["mined"]["negatives"] == sum(len(row.negatives) for row in rows(new))


# ---- going on after an interrupt ----


class Counting:
    """A model that counts what it embeds, and is interrupted before its `last`-th call."""

    def __init__(self, model: Embedder, last: int | None = None) -> None:
        self._model, self._left, self.texts = model, last, list[tuple[str, str]]()
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def embed(self, texts: list[str], role: str, **options: Any) -> Any:
        if self.calls == self._left:
            raise KeyboardInterrupt
        self.calls += 1
        self.texts += [(role, text) for text in texts]
        return self._model.embed(texts, role, **options)


@pytest.mark.parametrize("last", [1, 4, 6], ids=["among queries", "between queries and documents", "among documents"])
def test_an_interrupted_run_embeds_only_what_is_missing(
    store: ExampleStore, tmp_path: Path, model: Embedder, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    monkeypatch.setattr(vector_files, "BLOCK_TEXTS", 8)
    output = tmp_path / "out"
    whole, first, second = Counting(model), Counting(model, last=last), Counting(model)
    mine(store, tmp_path / "whole", model=whole, options=ALL)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        mine(store, output, model=first, options=ALL)  # type: ignore[arg-type]
    assert not output.exists()
    assert work_folder(output).is_dir()
    mine(store, output, model=second, options=ALL)  # type: ignore[arg-type]
    assert (first.calls, second.calls) == (last, whole.calls - last)
    assert sorted(first.texts + second.texts) == sorted(whole.texts)
    assert not work_folder(output).exists()
    assert ExampleStore.open(output).digest == ExampleStore.open(tmp_path / "whole").digest


def test_an_interrupted_run_searches_only_what_is_missing(
    store: ExampleStore, tmp_path: Path, model: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched, search = list[list[int]](), mining.nearest

    def run(output: str, *, searches: int | None = None) -> list[list[int]]:
        """How many queries each search had; the run is interrupted before the one after `searches`."""
        searched.append([])
        monkeypatch.setattr(mining, "nearest", lambda *args, **options: counted(searches, *args, **options))
        mine(store, tmp_path / output, model=model, options=ALL)
        return searched[-1]

    def counted(searches: int | None, queries: np.ndarray, *args: Any, **options: Any) -> Any:
        if len(searched[-1]) == searches:
            raise KeyboardInterrupt
        searched[-1].append(len(queries))
        return search(queries, *args, **options)

    monkeypatch.setattr(mining, "BLOCK_EXAMPLES", 4)
    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("out", searches=3)
    assert searched[-1] + run("out") == whole
    assert ExampleStore.open(tmp_path / "out").digest == ExampleStore.open(tmp_path / "whole").digest


def test_other_options_find_no_negatives_of_an_interrupted_run(
    store: ExampleStore, tmp_path: Path, model: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mining, "new_store", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mine(store, tmp_path / "out", model=model, options=ALL)
    monkeypatch.undo()
    found = mined(store, tmp_path / "out", model, max_score=-1.0)
    assert not any(row.negatives for row in found)


def interrupted(*_args: Any, **_options: Any) -> Any:
    raise KeyboardInterrupt


def test_another_model_role_length_or_store_shares_no_vectors(
    store: ExampleStore, tmp_path: Path, model: Embedder, make_checkpoint: Callable[..., Path]
) -> None:
    other = Embedder.load(str(make_checkpoint(seed=3)), precision="fp32", device="cpu")
    ids = np.arange(5)
    for reader, role in (
        (Reader(model=model, max_tokens=32), "query"),
        (Reader(model=model, max_tokens=32), "document"),
        (Reader(model=model, max_tokens=4), "query"),
        (Reader(model=other, max_tokens=32), "query"),
    ):
        found = embed_texts(store, ids, reader=reader, role=role, folder=tmp_path)  # type: ignore[arg-type]
        texts = [store.text(i) for i in range(5)]
        expected = reader.model.embed(texts, role, max_tokens=reader.max_tokens, truncate="end")  # type: ignore[arg-type]
        np.testing.assert_allclose(found.take(ids[::-1]), expected[::-1], atol=1e-3)


# ---- errors ----


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"top": 0}, "top is 0"),
        ({"skip_top": 100}, "skip_top is 100"),
        ({"negatives": 0}, "negatives is 0"),
        ({"percentile": 1.5}, "percentile is 1.5"),
        ({"margin": float("nan")}, "margin is nan"),
        ({"probes": 3}, "no probes"),
        ({"search": "ivf", "lists": 0}, "lists is 0"),
        ({"max_tokens": 9999999}, "max_tokens is 9999999"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused_before_any_work(
    store: ExampleStore, tmp_path: Path, model: Embedder, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(OptionError, match=told):
        mine(store, tmp_path / "out", model=model, options=MiningOptions(**options))
    assert not work_folder(tmp_path / "out").exists()


def test_an_unknown_task_and_a_store_in_the_way_are_named(store: ExampleStore, tmp_path: Path, model: Embedder) -> None:
    with pytest.raises(ExamplesError, match=r"no task 'pears' \(its tasks: 'plain', 'pairs'\)"):
        mine(store, tmp_path / "out", model=model, options=MiningOptions(tasks=("pears",)))
    with pytest.raises(OptionError, match="is the store that is read"):
        mine(store, store.folder, model=model, options=ALL, overwrite=True)
    mine(store, tmp_path / "out", model=model, options=ALL)
    with pytest.raises(ExamplesError, match="exists"):
        mine(store, tmp_path / "out", model=model, options=ALL)
