"""What needs no model: BM25 and chance. A retrieval score means little without them beside it.

Invariant: the same corpus, queries and seed give the same ranking on every machine.
Does not know: relevance, or how the model ranks.

BM25 reads every language and code with one rule, `words`; it knows no stop words, stems or dictionaries.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udever.errors import EvaluationError
from udever.evaluation.packages import require_package
from udever.evaluation.retrieval import TILE_SCORES, Indices, Vectors, top_k_of_scores

K1, B = 1.5, 0.75
"""How soon a repeated word stops to count, and how much long documents are held back: the usual values."""

_UNSPACED = re.compile(
    "([\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Han, Kana
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff]+)"  # Thai, Lao, Tibetan, Burmese, Khmer
)
"""Scripts written without a blank between words."""
_CAMEL = re.compile("(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def words(text: str) -> list[str]:
    """The words of a text in any language, or of code, as BM25 sees them.

    NFKC and case-folded runs of letters, digits and their marks. `camelCase` and `snake_case` are parted; a run in a
    script without blanks (Han, Kana, Thai, Lao, Tibetan, Burmese, Khmer) gives its overlapping pairs of characters.
    """
    plain = _CAMEL.sub(" ", unicodedata.normalize("NFKC", text)).casefold().replace("_", " ")
    return [word for run in _word_pattern().findall(plain) for word in _parted(run)]


def bm25(corpus: Sequence[str], queries: Sequence[str], *, k: int) -> tuple[Indices, Vectors]:
    """The k best documents of each query by BM25 (Lucene's formula, k1 1.5, b 0.75) over `words`.

    A word that stands twice in a query counts twice. Equal scores: lower index first. A document that shares no word
    with the query scores 0 and fills up the k; a search engine would not have found it.

    Returns:
        indices int64 [queries, min(k, documents)], best first, and scores float32 of the same shape, 0 or above.

    Raises:
        EvaluationError: no documents, k below 1, or the package bm25s is not installed.
    """
    if not corpus:
        raise EvaluationError("there are no documents to search")
    index, code_of = _index(corpus)
    batch = max(1, TILE_SCORES // len(corpus))
    found = [
        top_k_of_scores(_scores(index, code_of, queries[first : first + batch], len(corpus)), k=k)
        for first in range(0, max(1, len(queries)), batch)
    ]
    indices, scores = zip(*found, strict=True)
    return np.concatenate(indices), np.concatenate(scores)


def random_ranking(n_documents: int, n_queries: int, *, k: int, seed: int) -> tuple[Indices, Vectors]:
    """k documents drawn for each query, every order equally likely.

    Returns:
        indices int64 [n_queries, min(k, n_documents)], no document twice in a row, and scores float32 that fall from 1.

    Raises:
        EvaluationError: no documents, or k below 1.
    """
    if n_documents < 1 or k < 1:
        raise EvaluationError(f"{k} of {n_documents} documents cannot be drawn")
    k = min(k, n_documents)
    generator = np.random.default_rng(seed)
    indices = np.empty((n_queries, k), np.int64)
    for row in indices:
        row[:] = generator.choice(n_documents, k, replace=False)
    return indices, np.tile(np.linspace(1, 0, k, endpoint=False, dtype=np.float32), (n_queries, 1))


@cache
def _word_pattern() -> re.Pattern[str]:
    r"""Runs of letters, digits and marks: without the marks, \w+ would cut Hindi, Tamil or Thai at every vowel sign."""
    marks = [code for code in range(0x110000) if unicodedata.category(chr(code)).startswith("M")]
    starts = [code for before, code in pairwise([-2, *marks]) if code != before + 1]
    ends = [code for code, after in pairwise([*marks, -2]) if after != code + 1]
    return re.compile(
        "[\\w" + "".join(f"{chr(first)}-{chr(last)}" for first, last in zip(starts, ends, strict=True)) + "]+"
    )


def _parted(run: str) -> Iterable[str]:
    for place, part in enumerate(_UNSPACED.split(run)):
        if place % 2 and len(part) > 1:
            yield from map("".join, pairwise(part))
        elif part:
            yield part


def _index(corpus: Sequence[str]) -> tuple[Any, dict[str, int]]:
    require_package("bm25s")
    import bm25s

    code_of: dict[str, int] = {}
    codes = [[code_of.setdefault(word, len(code_of)) for word in words(text)] for text in corpus]
    index = bm25s.BM25(k1=K1, b=B)
    if code_of:
        index.index((codes, code_of), show_progress=False)
    return index, code_of


def _scores(index: Any, code_of: dict[str, int], queries: Sequence[str], documents: int) -> NDArray[np.float32]:
    scores_QN = np.zeros((len(queries), documents), np.float32)
    for row_N, query in zip(scores_QN, queries, strict=True):
        known = [code_of[word] for word in words(query) if word in code_of]
        if known:
            row_N[:] = index.get_scores_from_ids(known)
    return scores_QN
