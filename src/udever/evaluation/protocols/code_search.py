"""Docstring → function: the mean reciprocal rank of each docstring's own function among a round of candidates.

    for each round: scores_QN = queries_QD · documents_DN;  MRR = mean of 1 / rank of the diagonal

Invariant: each docstring looks for its function among those of its own round only, so that scores with equal numbers of
candidates compare; a tie counts against the function; BM25 and random answer the very same rounds.
Does not know: where the pairs come from.

Shapes: Q queries and N documents of one round (Q = N), D dimensions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from udever.errors import DatasetError
from udever.evaluation.encoder import Encoder
from udever.evaluation.metrics import ranks_of
from udever.evaluation.results import Score

METRIC = "mrr"
RECALLS = (1, 10)
"""Also reported: how often the function is among the first 1 and 10."""


@dataclass(frozen=True, kw_only=True)
class CodePairs:
    """Docstrings and functions; row i of one belongs to row i of the other."""

    subset: str
    """The language, or another part of a task."""
    queries: Sequence[str]
    documents: Sequence[str]
    rounds: Sequence[NDArray[np.int64]]
    """Rows of each round; no row stands in two."""

    @property
    def texts(self) -> int:
        """How many will be embedded."""
        return 2 * sum(map(len, self.rounds))

    def scores(self, encoder: Encoder) -> list[Score]:
        """Of the model, of BM25, and of an order by chance (its expected value, not a draw)."""
        beside = [self._score("bm25", self._bm25_ranks()), self._random()]
        rows = np.concatenate(self.rounds)
        queries = encoder.queries([self.queries[row] for row in rows])
        documents = encoder.documents([self.documents[row] for row in rows])
        ends = np.cumsum([len(round_) for round_ in self.rounds])[:-1]
        halves = zip(np.split(queries, ends), np.split(documents, ends), strict=True)
        ranks = np.concatenate([_ranks(queries_QD @ documents_ND.T) for queries_QD, documents_ND in halves])
        return [self._score("model", ranks), *beside]

    def _score(self, system: str, ranks: NDArray[np.int64]) -> Score:
        return Score(
            metric=METRIC,
            value=float(np.mean(1 / ranks)),
            count=len(ranks),
            subset=self.subset,
            system=system,
            metrics={f"recall@{k}": float(np.mean(ranks <= k)) for k in RECALLS},
        )

    def _bm25_ranks(self) -> NDArray[np.int64]:
        return np.concatenate([_ranks(scores_QN) for scores_QN in self._bm25_scores()])

    def _bm25_scores(self) -> Iterator[NDArray[np.float32]]:
        from udever.evaluation.baselines import bm25

        for round_ in self.rounds:
            indices, found = bm25(
                [self.documents[row] for row in round_], [self.queries[row] for row in round_], k=len(round_)
            )
            scores_QN = np.zeros((len(round_), len(round_)), np.float32)  # no word in common is 0
            np.put_along_axis(scores_QN, indices, found, axis=1)
            yield scores_QN

    def _random(self) -> Score:
        """Each rank of n is as likely: MRR is (1 + 1/2 + … + 1/n) / n, recall@k is k / n."""
        sizes = np.array([len(round_) for round_ in self.rounds])
        expected = [float(np.mean(1 / np.arange(1, size + 1))) for size in sizes]
        return Score(
            metric=METRIC,
            value=float(np.average(expected, weights=sizes)),
            count=int(sizes.sum()),
            subset=self.subset,
            system="random",
            metrics={f"recall@{k}": float(np.average(np.minimum(k / sizes, 1), weights=sizes)) for k in RECALLS},
        )


def in_one_round(pairs: int) -> list[NDArray[np.int64]]:
    """Everything among everything."""
    return [np.arange(pairs)]


def in_rounds(pairs: int, *, candidates: int, seed: int) -> list[NDArray[np.int64]]:
    """Rounds of exactly so many candidates, shuffled by a seed; the rest that fills no round is left out.

    With 1,000 and seed 0 these are the rounds of CodeBERT's evaluation of CodeSearchNet, row for row: numpy's legacy
    generator shuffles the rows, the last and smaller round is dropped.

    Raises:
        DatasetError: fewer pairs than candidates.
    """
    if candidates < 2:
        raise DatasetError(f"a round of {candidates} candidates ranks nothing", hint="use at least 2")
    if pairs < candidates:
        raise DatasetError(
            f"{pairs} functions are too few for a round of {candidates:,} candidates",
            hint=f"ask for at most {pairs} candidates; the score is then of another protocol",
        )
    rows = np.arange(pairs)
    np.random.RandomState(seed).shuffle(rows)
    return [rows[first : first + candidates] for first in range(0, pairs - candidates + 1, candidates)]


def thousands(candidates: int) -> str:
    """For a protocol's name: 1000 → "1k", 50 → "50"."""
    return f"{candidates // 1000}k" if candidates % 1000 == 0 else str(candidates)


def _ranks(scores_QN: NDArray[np.float32]) -> NDArray[np.int64]:
    return ranks_of(scores_QN, np.arange(len(scores_QN)))
