"""The kinds of task a suite can hold, as texts and labels in memory → scores.

Invariant: both sides of a symmetric kind are queries; only retrieval and code have documents. Similarity is the cosine.
Does not know: files, columns, TOML (suite.py).

Shapes: P pairs or texts, Q queries, N documents, D dimensions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from udever.evaluation import metrics
from udever.evaluation.encoder import Encoder, Vectors
from udever.evaluation.packages import require_package
from udever.evaluation.protocols.ranking import Judgements, baselines
from udever.evaluation.results import Score

RETRIEVAL_DEPTH = 100
"""Documents kept for each query: as deep as the deepest metric looks."""


class Part(Protocol):
    """A task, or one subset of it."""

    @property
    def texts(self) -> int:
        """How many will be embedded."""

    def scores(self, encoder: Encoder) -> list[Score]:
        """Measure."""


@dataclass(frozen=True, kw_only=True)
class _TextPairs:
    subset: str
    left: Sequence[str]
    right: Sequence[str]

    @property
    def texts(self) -> int:
        """Both sides."""
        return 2 * len(self.left)

    def cosines(self, encoder: Encoder) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        """Pair by pair."""
        both = encoder.queries([*self.left, *self.right])
        count = len(self.left)
        cosines: np.ndarray[tuple[int], np.dtype[np.float32]] = (both[:count] * both[count:]).sum(axis=1)
        return cosines


@dataclass(frozen=True, kw_only=True)
class Sts(_TextPairs):
    """Pairs of texts and how alike people found them: Spearman's correlation of cosines and judgements."""

    judged: Sequence[float]

    def scores(self, encoder: Encoder) -> list[Score]:
        """Spearman; Pearson beside it."""
        cosines = self.cosines(encoder)
        return [
            Score(
                metric="spearman",
                value=metrics.spearman(cosines, self.judged),
                count=len(cosines),
                subset=self.subset,
                metrics={"pearson": metrics.pearson(cosines, self.judged)},
            )
        ]


@dataclass(frozen=True, kw_only=True)
class Pairs(_TextPairs):
    """Pairs of texts that belong together (1) or do not (0): average precision of the cosine."""

    labels: Sequence[int]

    def scores(self, encoder: Encoder) -> list[Score]:
        """Average precision; the accuracy at the best threshold beside it."""
        cosines = self.cosines(encoder)
        return [
            Score(
                metric="average_precision",
                value=metrics.average_precision(cosines, self.labels),
                count=len(cosines),
                subset=self.subset,
                metrics={"best_accuracy": metrics.best_accuracy(cosines, self.labels)},
            )
        ]


@dataclass(frozen=True, kw_only=True)
class Bitext:
    """Sentences in many languages, row by row: how often a sentence's nearest pivot sentence is its own translation.

    A language with gaps asks only for the rows it has; the candidates are always all pivot sentences.
    """

    pivot: Sequence[str]
    languages: Mapping[str, Sequence[str]]
    """Column → sentences, empty where there is none."""

    @property
    def texts(self) -> int:
        """The pivot's are embedded once."""
        return len(self.pivot) + sum(len(_kept(column)) for column in self.languages.values())

    def scores(self, encoder: Encoder) -> list[Score]:
        """Accuracy into the pivot's language; out of it, among the language's own sentences, beside it."""
        pivot = encoder.queries(self.pivot)
        return [self._score(language, column, pivot, encoder) for language, column in self.languages.items()]

    def _score(self, language: str, column: Sequence[str], pivot: Vectors, encoder: Encoder) -> Score:
        rows = _kept(column)
        cosines = encoder.queries([column[row] for row in rows]) @ pivot.T
        into = metrics.ranks_of(cosines, rows)
        out_of = metrics.ranks_of(cosines.T[rows], np.arange(len(rows)))
        return Score(
            metric="accuracy",
            value=float(np.mean(into == 1)),
            count=len(rows),
            subset=language,
            metrics={"accuracy_from_pivot": float(np.mean(out_of == 1))},
        )


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Queries, a corpus and judgements: nDCG@10 beside BM25's and that of chance."""

    document_ids: Sequence[str]
    documents: Sequence[str]
    judgements: Judgements

    @property
    def texts(self) -> int:
        """The corpus and the queries."""
        return len(self.documents) + len(self.judgements.queries)

    def scores(self, encoder: Encoder) -> list[Score]:
        """nDCG@10; MRR@10 and recall@100 beside it."""
        from udever.evaluation.baselines import bm25
        from udever.evaluation.retrieval import top_k

        queries, k = self.judgements.queries, min(RETRIEVAL_DEPTH, len(self.documents))
        beside = baselines(len(self.documents), queries, lambda: bm25(self.documents, queries, k=k), k=k)
        found = top_k(encoder.queries(queries), [encoder.documents(self.documents)], k=k)
        return self.judgements.scores(
            {"model": found, **beside},
            self.document_ids,
            subset="",
            main="ndcg@10",
            others=("mrr@10", f"recall@{RETRIEVAL_DEPTH}"),
        )


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Labelled texts: accuracy of a logistic regression on frozen vectors.

    The vectors are scaled to a mean square of 1 a number (unit length times √D), so that the regression's penalty
    (C = 1) weighs the same for every D; no other choice is made.
    """

    train_texts: Sequence[str]
    train_labels: Sequence[str]
    test_texts: Sequence[str]
    test_labels: Sequence[str]

    @property
    def texts(self) -> int:
        """Both splits."""
        return len(self.train_texts) + len(self.test_texts)

    def scores(self, encoder: Encoder) -> list[Score]:
        """Accuracy; macro-F1 beside it."""
        require_package("sklearn")
        from sklearn.linear_model import LogisticRegression

        train, test = encoder.queries(self.train_texts), encoder.queries(self.test_texts)
        scale = np.float32(np.sqrt(train.shape[1]))
        model = LogisticRegression(C=1.0, max_iter=1000)
        predicted = model.fit(train * scale, self.train_labels).predict(test * scale).tolist()
        return [
            Score(
                metric="accuracy",
                value=metrics.accuracy(self.test_labels, predicted),
                count=len(predicted),
                metrics={"macro_f1": metrics.macro_f1(self.test_labels, predicted)},
            )
        ]


def _kept(column: Sequence[str]) -> list[int]:
    return [row for row, text in enumerate(column) if text]
