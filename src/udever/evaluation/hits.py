"""Where the relevant documents stand in a run, and the metrics of trec_eval over that.

Invariant: a ranking is ordered by score descending in single precision, then by document id descending, as trec_eval
does; only grades above 0 are relevant.
Does not know: which queries count, or averages.

Shapes: Q queries, N documents retrieved, H relevant documents that were retrieved, R relevant documents.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from udever.errors import EvaluationError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Run = Mapping[str, Mapping[str, float]]
"""Query id → document id → score, higher is better; the order of the documents does not matter."""
Qrels = Mapping[str, Mapping[str, int]]
"""Query id → document id → grade: above 0 is relevant; 0, below 0 and unnamed are all not relevant."""


@dataclass(frozen=True, kw_only=True)
class Hits:
    """Where the relevant documents of all queries stand: in the run (a hit), and in an ideal one."""

    query: Ints
    """Of each hit."""
    rank: Floats
    gain: Floats
    ordinal: Floats
    """1 for a query's first hit, 2 for its second, …"""
    ideal_query: Ints
    """Of each relevant document."""
    ideal_rank: Floats
    ideal_gain: Floats
    relevant: Ints
    """Number of relevant documents of each query."""

    def sums(self, value_H: Floats, *, k: float) -> Floats:
        """Sum over each query's hits up to rank k."""
        return _sums(self.query, np.where(self.rank <= k, value_H, 0.0), queries=len(self.relevant))


def find_hits(run: Run, qrels: Qrels, queries: Sequence[str]) -> Hits:
    """Of these queries, each of which has a relevant document, in this order.

    Raises:
        EvaluationError: a score is NaN.
    """
    grades = [_grades_in_order(run.get(query, {}), qrels[query], query=query) for query in queries]
    ranks = [np.flatnonzero(grade_N > 0).astype(np.float64) + 1 for grade_N in grades]
    ideal = [np.sort([float(grade) for grade in qrels[query].values() if grade > 0])[::-1] for query in queries]
    return Hits(
        query=_owners(ranks),
        rank=_joined(ranks),
        gain=_joined(grade_N[grade_N > 0] for grade_N in grades),
        ordinal=_joined(_numbered(hits) for hits in ranks),
        ideal_query=_owners(ideal),
        ideal_rank=_joined(_numbered(gains) for gains in ideal),
        ideal_gain=_joined(ideal),
        relevant=np.array([len(gains) for gains in ideal], np.int64),
    )


def _grades_in_order(scores: Mapping[str, float], grades: Mapping[str, int], *, query: str) -> Floats:
    """Grade of each retrieved document, best first."""
    documents = sorted(scores, reverse=True)  # the stable sort below keeps this order among equal scores
    with np.errstate(over="ignore"):  # what single precision cannot hold is infinite in trec_eval too
        score_N = np.fromiter((scores[document] for document in documents), np.float64).astype(np.float32)
    refuse_nan(score_N, f"the scores of query {query!r}")
    grade_N = np.fromiter((grades.get(document, 0) for document in documents), np.float64)
    return grade_N[np.argsort(-score_N, kind="stable")]


def _numbered(items: Floats) -> Floats:
    return np.arange(1.0, len(items) + 1)


def _owners(lists: Sequence[Floats]) -> Ints:
    """Which list each item of the joined lists is from."""
    return np.repeat(np.arange(len(lists)), [len(items) for items in lists])


def _joined(lists: Iterable[Floats]) -> Floats:
    return np.concatenate([np.zeros(0), *lists])


def _sums(query: Ints, value: Floats, *, queries: int) -> Floats:
    return np.bincount(query, value, minlength=queries).astype(np.float64)  # of no item at all, bincount makes integers


def _ndcg(hits: Hits, k: float) -> Floats:
    ideal = np.where(hits.ideal_rank <= k, hits.ideal_gain / np.log2(hits.ideal_rank + 1), 0.0)
    ideal_Q = _sums(hits.ideal_query, ideal, queries=len(hits.relevant))
    return hits.sums(hits.gain / np.log2(hits.rank + 1), k=k) / ideal_Q


def _mrr(hits: Hits, k: float) -> Floats:
    return hits.sums(np.where(hits.ordinal == 1, 1 / hits.rank, 0.0), k=k)


def _recall(hits: Hits, k: float) -> Floats:
    return hits.sums(np.ones_like(hits.rank), k=k) / hits.relevant


def _map(hits: Hits, k: float) -> Floats:
    return hits.sums(hits.ordinal / hits.rank, k=k) / hits.relevant


METRICS: dict[str, Callable[[Hits, float], Floats]] = {"ndcg": _ndcg, "mrr": _mrr, "recall": _recall, "map": _map}
"""Name → metric of each query, from the hits and the rank to cut at."""


def refuse_nan(values: NDArray[np.floating], what: str) -> None:
    """Raise EvaluationError if there is NaN among `what`."""
    if np.isnan(values).any():
        raise EvaluationError(f"NaN among {what}", hint="the model gave a vector that is not a number")
