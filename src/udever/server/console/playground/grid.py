"""Queries by documents: cosines, ranks, and what of the ranks a shorter vector keeps.

Invariant: a size's vectors are prefixes of the full ones brought back to unit length, as the API gives them for
`dimensions`; everything here follows from the full vectors.
Does not know: texts, prices or pages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAME = 6
"""Cosines that are equal to so many decimals are equal: below that they tell the order of additions, not of texts."""
SHORTEST_LENGTH = 1e-12

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How well a shorter vector's ranking keeps to the full one's; correlations are means over queries."""

    best_kept: int
    """Queries whose best document is still the best."""
    queries: int
    spearman: float | None
    """Of the cosines' ranks; None with one document, or where no query tells two documents apart."""
    kendall: float | None
    """Kendall's tau-b, None likewise."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """The grid at one size of the vectors."""

    dimensions: int
    cosines: Floats
    """[queries, documents]"""
    ranks: NDArray[np.intp]
    """[queries, documents]; 1 is the query's best document, equal ones in their order."""
    agreement: Agreement


def sizes(queries: Floats, documents: Floats, *, dimensions: Sequence[int]) -> tuple[Size, ...]:
    """The grid at each of these sizes, from full vectors [n, width]; agreements are with the full size."""
    full = _cosines(queries, documents)
    return tuple(_size(queries, documents, dimensions=each, full=full) for each in dimensions)


def prefix(vectors: Floats, dimensions: int) -> Floats:
    """The first dimensions, brought back to unit length."""
    cut = vectors[:, :dimensions]
    lengths = np.linalg.norm(cut, axis=1, keepdims=True)
    unit: Floats = cut / np.maximum(lengths, SHORTEST_LENGTH)
    return unit


def rank(cosines: Floats) -> NDArray[np.intp]:
    """1 for each row's largest, equal ones in their order."""
    order = np.argsort(-np.round(cosines, SAME), axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(1, cosines.shape[1] + 1)[None, :], axis=1)
    return ranks


def agreement(cosines: Floats, full: Floats) -> Agreement:
    """Of two grids' rankings, row by row."""
    pairs = (_signs(cosines), _signs(full))
    best = rank(cosines).argmin(axis=1) == rank(full).argmin(axis=1)
    return Agreement(
        best_kept=int(best.sum()),
        queries=len(full),
        spearman=_mean_cosine(*(signs.sum(axis=2) for signs in pairs)),
        kendall=_mean_cosine(*(signs.reshape(len(signs), -1) for signs in pairs)),
    )


def _size(queries: Floats, documents: Floats, *, dimensions: int, full: Floats) -> Size:
    cosines = _cosines(prefix(queries, dimensions), prefix(documents, dimensions))
    return Size(dimensions=dimensions, cosines=cosines, ranks=rank(cosines), agreement=agreement(cosines, full))


def _cosines(queries: Floats, documents: Floats) -> Floats:
    return np.clip(queries @ documents.T, -1.0, 1.0)


def _signs(cosines: Floats) -> NDArray[np.float64]:
    """[queries, n, n]: how each pair of documents compares, as -1, 0 or 1.

    Summed over one of the two it is twice a document's centred average rank, so that Spearman's correlation is the
    cosine of the sums as Kendall's tau-b is the cosine of the signs themselves; ties are dealt with in both.
    """
    rounded = np.round(cosines.astype(np.float64), SAME)
    signs: NDArray[np.float64] = np.sign(rounded[:, :, None] - rounded[:, None, :])
    return signs


def _mean_cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """Over the rows that both have a direction."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    told = lengths > 0
    if not told.any():
        return None
    return round(float(((a * b).sum(axis=1)[told] / lengths[told]).mean()), SAME)
