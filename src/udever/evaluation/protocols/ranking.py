"""Rankings of a corpus → scores, for the model and the baselines alike.

Invariant: every system is measured by the same metrics on the same queries and judgements; a query without a relevant
document is left out, and judgements of documents or queries that do not exist are an error, never dropped.
Does not know: how a ranking came about.

Shapes: Q queries, K documents found for each.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from udever.errors import DatasetError
from udever.evaluation.metrics import averages, retrieval_metrics
from udever.evaluation.results import Score

SHOWN_IDS = 5

Found = tuple[NDArray[np.int64], NDArray[np.float32]]
"""(indices [Q, K] into the corpus, scores [Q, K])."""


@dataclass(frozen=True, kw_only=True)
class Judgements:
    """Which documents answer which queries."""

    query_ids: Sequence[str]
    """Of the queries that have a relevant document, in the order in which they are embedded."""
    queries: Sequence[str]
    qrels: Mapping[str, Mapping[str, int]]
    """Query id → document id → grade, above 0 if relevant."""

    def scores(
        self,
        systems: Mapping[str, Found],
        document_ids: Sequence[str],
        *,
        subset: str,
        main: str,
        others: Sequence[str],
    ) -> list[Score]:
        """One score for each system; metrics are named as in `retrieval_metrics`."""
        ks = sorted({int(metric.partition("@")[2]) for metric in (main, *others)})
        scores = []
        for system, found in systems.items():
            values = averages(retrieval_metrics(self._run(found, document_ids), self.qrels, ks=ks))
            scores.append(
                Score(
                    metric=main,
                    value=values[main],
                    count=len(self.query_ids),
                    subset=subset,
                    system=system,
                    metrics={metric: values[metric] for metric in others},
                )
            )
        return scores

    def _run(self, found: Found, document_ids: Sequence[str]) -> dict[str, dict[str, float]]:
        return {
            query: {document_ids[index]: float(score) for index, score in zip(indices, scores, strict=True)}
            for query, indices, scores in zip(self.query_ids, *found, strict=True)
        }


def judgements(
    queries: Mapping[str, str],
    document_ids: Collection[str],
    rows: Sequence[tuple[str, str, int]],
    *,
    place: str,
) -> Judgements:
    """Check judgements against the queries and documents there are.

    Args:
        queries: id → text.
        document_ids: all of them; best a set.
        rows: (query id, document id, grade).
        place: the file of the judgements, for errors.

    Raises:
        DatasetError: unknown documents or queries (how many, the first five), or no relevant document at all.
    """
    _require_known([document for _, document, _ in rows], document_ids, place, "documents", "the corpus")
    _require_known([query for query, _, _ in rows], queries, place, "queries", "the queries")
    qrels: dict[str, dict[str, int]] = {}
    for query, document, grade in rows:
        qrels.setdefault(query, {})[document] = grade
    answered = [query for query in queries if any(grade > 0 for grade in qrels.get(query, {}).values())]
    if not answered:
        raise DatasetError(f"{place}: no query has a relevant document", hint="a grade above 0 means relevant")
    return Judgements(
        query_ids=answered,
        queries=[queries[query] for query in answered],
        qrels={query: qrels[query] for query in answered},
    )


def baselines(document_count: int, queries: Sequence[str], bm25: Callable[[], Found], *, k: int) -> dict[str, Found]:
    """What BM25 and chance find, beside which the model's score means something."""
    from udever.evaluation.baselines import random_ranking

    return {"bm25": bm25(), "random": random_ranking(document_count, len(queries), k=k, seed=0)}


def _require_known(ids: Sequence[str], known: Collection[str], place: str, what: str, where: str) -> None:
    unknown = list(dict.fromkeys(one for one in ids if one not in known))
    if unknown:
        first = ", ".join(map(repr, unknown[:SHOWN_IDS]))
        more = ", …" if len(unknown) > SHOWN_IDS else ""
        raise DatasetError(
            f"{place} names {len(unknown)} {what} that {where} do not have: {first}{more}".replace(
                "corpus do", "corpus does"
            ),
            hint="are the three files of one data set?",
        )
