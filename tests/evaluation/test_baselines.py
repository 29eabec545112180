"""BM25 equals its formula in every script and ranks ties by index; chance is fair and repeatable."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udever.errors import EvaluationError
from udever.evaluation import baselines
from udever.evaluation.baselines import bm25, random_ranking, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cats' mat, don't!", ["the", "cats", "mat", "don", "t"]),
        ("Straße ＡＢＣ ﬁle ÉTÉ", ["strasse", "abc", "file", "été"]),
        ("e\u0301te\u0301", ["été"]),  # NFKC composes
        ("parseHTTPResponse read_file __init__ x2", ["parse", "http", "response", "read", "file", "init", "x2"]),
        ("हिन्दी में", ["हिन्दी", "में"]),  # vowel signs belong to their word
        ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        ("مَرْحَبًا بالعالم", ["مَرْحَبًا", "بالعالم"]),
        ("我喜欢猫。", ["我喜", "喜欢", "欢猫"]),
        ("東 A東京B", ["東", "a", "東京", "b"]),
        ("ひらがなカナ", ["ひら", "らが", "がな", "なカ", "カナ"]),
        ("한국어 단어", ["한국어", "단어"]),  # Korean parts words by blanks
        ("ภาษา", ["ภา", "าษ", "ษา"]),
        ("𠀀𠀁", ["𠀀𠀁"]),
        ("… --- ‽", []),
        ("", []),
    ],
)
def test_words_in_every_script(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(text=st.text())
def test_a_word_is_never_empty_and_holds_no_blank(text: str) -> None:
    for word in words(text):
        assert word
        assert not any(character.isspace() for character in word)


def formula(corpus: list[str], query: str) -> list[float]:
    """Lucene's BM25 without its constant factor k1 + 1, written down plainly."""
    documents = [words(text) for text in corpus]
    average = sum(map(len, documents)) / len(documents)
    scores = [0.0] * len(documents)
    for word in words(query):
        holding = sum(word in document for document in documents)
        idf = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
        for index, document in enumerate(documents):
            count = document.count(word)
            if count:
                scores[index] += idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(document) / average))
    return scores


some_texts = st.lists(st.sampled_from(["cat", "dog", "the", "猫が好き", "readFile", "…"]), max_size=6).map(" ".join)


@given(
    corpus=st.lists(some_texts, min_size=1, max_size=8), queries=st.lists(some_texts, max_size=4), k=st.integers(1, 9)
)
def test_bm25_equals_its_formula(corpus: list[str], queries: list[str], k: int) -> None:
    indices, scores = bm25(corpus, queries, k=k)
    k = min(k, len(corpus))
    assert indices.shape == scores.shape == (len(queries), k)
    for query, of_query, scored in zip(queries, indices, scores, strict=True):
        expected = np.array(formula(corpus, query))
        np.testing.assert_allclose(scored, expected[of_query], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(scored, -np.sort(-expected)[:k], rtol=1e-5, atol=1e-7)
        assert len(set(of_query.tolist())) == k


def test_equal_scores_and_documents_without_a_common_word_go_by_index() -> None:
    indices, scores = bm25(["x", "cat", "y", "cat", "cat"], ["cat", "zebra", "", "…"], k=4)
    assert indices.tolist() == [[1, 3, 4, 0], [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert scores[0, 3] == 0
    assert not scores[1:].any()


def test_a_corpus_without_words_finds_nothing() -> None:
    indices, scores = bm25(["…", ""], ["cat"], k=5)
    assert indices.tolist() == [[0, 1]]
    assert not scores.any()


def test_batches_of_queries_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = [f"{'cat ' * (i % 4)}{'dog ' * (i % 3)}{i}" for i in range(50)]
    queries = ["cat dog", "dog", "7", "cat cat 9"]
    whole = bm25(corpus, queries, k=10)
    monkeypatch.setattr(baselines, "TILE_SCORES", 1)
    assert [part.tolist() for part in bm25(corpus, queries, k=10)] == [part.tolist() for part in whole]


def test_the_same_on_every_machine() -> None:
    """Python hashes strings differently in every process; nothing may depend on it."""
    script = (
        "from udever.evaluation.baselines import bm25\n"
        "corpus = [f'cat dog {i % 7} {i % 5} {i % 3}' for i in range(60)]\n"
        "indices, scores = bm25(corpus, ['3 cat 2 1', '4 dog'], k=20); print(indices.tolist(), scores.tolist())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", script],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


def test_wrong_input_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EvaluationError, match="no documents"):
        bm25([], ["cat"], k=1)
    with pytest.raises(EvaluationError, match="best 0"):
        bm25(["cat"], ["cat"], k=0)
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(EvaluationError, match=r"bm25s.*pip install 'udever\[eval\]'"):
        bm25(["cat"], ["cat"], k=1)


# ---- chance ----


@given(documents=st.integers(1, 40), queries=st.integers(0, 5), k=st.integers(1, 50), seed=st.integers(0, 9))
def test_a_random_ranking_draws_no_document_twice(documents: int, queries: int, k: int, seed: int) -> None:
    indices, scores = random_ranking(documents, queries, k=k, seed=seed)
    assert indices.shape == scores.shape == (queries, min(k, documents))
    for row in indices.tolist():
        assert len(set(row)) == len(row)
        assert set(row) <= set(range(documents))
    assert (np.diff(scores, axis=1) < 0).all()
    assert (indices == random_ranking(documents, queries, k=k, seed=seed)[0]).all()


def test_every_document_is_as_likely_at_every_rank() -> None:
    indices, _ = random_ranking(5, 20_000, k=3, seed=1)
    for rank in range(3):
        assert np.abs(np.bincount(indices[:, rank], minlength=5) / 20_000 - 0.2).max() < 0.015
    assert (random_ranking(5, 100, k=3, seed=2)[0] != indices[:100]).any()


@pytest.mark.parametrize(("documents", "k"), [(0, 1), (5, 0)])
def test_nothing_cannot_be_drawn(documents: int, k: int) -> None:
    with pytest.raises(EvaluationError, match=f"{k} of {documents} documents"):
        random_ranking(documents, 1, k=k, seed=0)
