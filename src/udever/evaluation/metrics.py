"""Numbers that say how well an embedder ranks, agrees, classifies and groups.

Invariant: every tie has a rule, written where it is applied; input without an answer (empty, NaN, a constant where a
correlation is asked for) is an error, never NaN.
Equal to 1e-9 to trec_eval (retrieval), scipy (correlations) and scikit-learn (the rest).
Does not know: tasks, files, embedders, or how relevant documents are found in a run (hits.py).

Shapes: Q queries, N documents or labels, L distinct labels, T distinct scores.
"""

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from udever.errors import EvaluationError
from udever.evaluation.hits import METRICS, Floats, Ints, Qrels, Run, find_hits, refuse_nan

Labels = Sequence[Hashable] | NDArray[np.generic]
"""Numbers or names."""

# ---- rankings ----


def ranks_of(scores_QN: NDArray[np.floating], target_Q: ArrayLike, *, tolerance: float = 0.0) -> Ints:
    """Rank, from 1, of each query's one target column among all N. A tie counts against the target.

    So an embedder that gives every candidate the same vector ranks last, not first.

    Args:
        tolerance: scores that are less than the target's by no more than this tie with it. A matrix product in single
            precision gives equal vectors cosines that differ by up to 1e-7, so 1e-6 is right for cosines.

    Raises:
        EvaluationError: NaN among the scores, or a target that is no column.
    """
    scores_QN, target_Q = np.asarray(scores_QN), np.asarray(target_Q)
    if scores_QN.ndim != 2 or target_Q.shape != scores_QN.shape[:1]:
        raise EvaluationError(f"scores of shape {scores_QN.shape} with targets of shape {target_Q.shape}")
    if not len(target_Q):
        return np.zeros(0, np.int64)
    if target_Q.min() < 0 or target_Q.max() >= scores_QN.shape[1]:
        raise EvaluationError(f"a target lies outside the {scores_QN.shape[1]} candidates")
    refuse_nan(scores_QN, "scores")
    reached_Q1 = np.take_along_axis(scores_QN, target_Q[:, None], axis=1)
    reaching_Q: Ints = np.count_nonzero(scores_QN >= reached_Q1 - tolerance, axis=1)  # the target among them
    return reaching_Q


def retrieval_metrics(run: Run, qrels: Qrels, *, ks: Sequence[int] = (10,)) -> dict[str, dict[str, float]]:
    """nDCG, MRR, recall and MAP of each query, as trec_eval defines them.

    Order: score descending, compared in single precision as trec_eval does; equal scores by document id descending (by
    code point). Gain of nDCG: the grade itself. MRR@k: 0 if the first relevant document comes after rank k.
    recall@k and map@k are over all relevant documents, also where these are more than k.

    Queries: all of `qrels` with at least one relevant document. One that is missing from `run`, or has no documents
    there, counts 0 everywhere. Queries without a relevant document, and those of `run` that `qrels` does not have, are
    left out.

    Args:
        ks: the ranks to cut at.

    Returns:
        "ndcg@k", "mrr@k", "recall@k", "map@k" for each k, and "map" uncut → query id → value, 0 to 1.

    Raises:
        EvaluationError: a score is NaN, or a k is below 1.
    """
    if any(k < 1 for k in ks):
        raise EvaluationError(f"a ranking cannot be cut at {min(ks)}", hint="use 1 or more")
    queries = [query for query, grades in qrels.items() if any(grade > 0 for grade in grades.values())]
    hits = find_hits(run, qrels, queries)
    values = {f"{name}@{k}": metric(hits, k) for k in ks for name, metric in METRICS.items()}
    values["map"] = METRICS["map"](hits, math.inf)
    return {name: dict(zip(queries, value_Q.tolist(), strict=True)) for name, value_Q in values.items()}


def averages(values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The mean over the queries of each metric that `retrieval_metrics` gave.

    Raises:
        EvaluationError: no query has a relevant document, so there is nothing to average.
    """
    if not all(values.values()):
        raise EvaluationError("no query has a relevant document", hint="check that the qrels hold grades above 0")
    return {name: math.fsum(of_query.values()) / len(of_query) for name, of_query in values.items()}


# ---- correlations ----


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's correlation of two lists of numbers, -1 to 1.

    Raises:
        EvaluationError: lists of different lengths or of fewer than two numbers, NaN or infinity, or all numbers of one
            list equal: a constant correlates with nothing.
    """
    centred_x, centred_y = (_centred(values) for values in _pairs(x, y))
    return float(np.clip(centred_x @ centred_y, -1.0, 1.0))


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation, -1 to 1: Pearson's of the ranks; equal numbers share the mean of their ranks.

    Raises:
        EvaluationError: as `pearson`.
    """
    return pearson(*(_mean_ranks(values) for values in _pairs(x, y)))


def _pairs(x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    _require_same_length(x, y)
    if len(x) < 2:
        raise EvaluationError(f"a correlation needs at least two pairs; there are {len(x)}")
    for values in (x, y):
        if not np.isfinite(values).all():
            raise EvaluationError("NaN or infinity among the values to correlate")
        if (values == values[0]).all():
            raise EvaluationError(
                f"no correlation: all {len(values)} values are {values[0]:g}",
                hint="a constant score or a model that gives every text the same vector correlates with nothing",
            )
    return x, y


def _centred(values: Floats) -> Floats:
    """Mean 0, length 1; scaled first, so that no square overflows or vanishes."""
    for _ in range(2):  # once more, since nearly equal numbers leave a rounded mean
        values = values / np.abs(values).max()
        values = values - values.mean()
    unit: Floats = values / np.linalg.norm(values)
    return unit


def _mean_ranks(values: Floats) -> Floats:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last_rank = np.cumsum(counts)
    mean_ranks: Floats = (last_rank - (counts - 1) / 2)[group]
    return mean_ranks


# ---- labels ----


def accuracy(truth: Labels, predicted: Labels) -> float:
    """Share of labels that were predicted right, 0 to 1.

    Raises:
        EvaluationError: lists of different lengths, or empty.
    """
    truth_N, predicted_N, _ = _label_codes(truth, predicted)
    return float(np.mean(truth_N == predicted_N))


def macro_f1(truth: Labels, predicted: Labels) -> float:
    """Mean of each label's F1, 0 to 1, over all labels of either list; one that was never right counts 0.

    Raises:
        EvaluationError: lists of different lengths, or empty.
    """
    truth_N, predicted_N, labels = _label_codes(truth, predicted)
    right_L = np.bincount(truth_N[truth_N == predicted_N], minlength=labels)
    named_L = np.bincount(truth_N, minlength=labels) + np.bincount(predicted_N, minlength=labels)
    return float(np.mean(2 * right_L / named_L))


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under precision over recall, in steps: Σ (recall_n - recall_n-1) · precision_n over the distinct scores.

    Pairs of equal score enter together, so their order in the lists does not matter.

    Args:
        labels: 1 (or True) for a positive, 0 for a negative.

    Raises:
        EvaluationError: lists of different lengths, NaN, a label that is neither 0 nor 1, or no positive at all.
    """
    true_T, taken_T, positives = _thresholds(scores, labels)
    if not positives:
        raise EvaluationError("no positive among the labels: there is no average precision")
    return float(np.sum(np.diff(true_T, prepend=0) * true_T / taken_T) / positives)


def best_accuracy(scores: ArrayLike, labels: ArrayLike) -> float:
    """Accuracy of "score ≥ threshold means 1" at the best threshold, 0 to 1; equal scores are never parted.

    Raises:
        EvaluationError: lists of different lengths, empty, NaN, or a label that is neither 0 nor 1.
    """
    true_T, taken_T, positives = _thresholds(scores, labels)
    negatives = int(taken_T[-1]) - positives
    right_T = true_T + negatives - (taken_T - true_T)
    return float(max(right_T.max(), negatives) / taken_T[-1])  # `negatives`: a threshold above every score


def _thresholds(scores: ArrayLike, labels: ArrayLike) -> tuple[Ints, Ints, int]:
    """At each distinct score, best first: positives and pairs that reach it; and the number of all positives."""
    score_N, label_N = np.asarray(scores, np.float64), np.asarray(labels)
    _require_same_length(score_N, label_N)
    refuse_nan(score_N, "scores")
    if not len(score_N):
        raise EvaluationError("there are no pairs to score")
    if not np.isin(label_N, (0, 1)).all():
        raise EvaluationError("a label is neither 0 nor 1")
    order = np.argsort(-score_N, kind="stable")
    descending_N, true_N = score_N[order], np.cumsum(label_N[order].astype(np.int64))
    last_of_score = np.flatnonzero(np.append(descending_N[1:] != descending_N[:-1], True))
    return true_N[last_of_score], last_of_score + 1, int(true_N[-1])


def _label_codes(truth: Labels, predicted: Labels) -> tuple[Ints, Ints, int]:
    """The labels as numbers from 0, and how many there are; labels are equal if Python says so (1 == 1.0, not "1")."""
    truth_list, predicted_list = _listed(truth), _listed(predicted)
    if len(truth_list) != len(predicted_list):
        raise EvaluationError(f"{len(truth_list)} labels and {len(predicted_list)} predictions")
    if not truth_list:
        raise EvaluationError("there are no labels to compare")
    code_of: dict[Hashable, int] = {}
    codes = [code_of.setdefault(label, len(code_of)) for label in (*truth_list, *predicted_list)]
    return np.array(codes[: len(truth_list)]), np.array(codes[len(truth_list) :]), len(code_of)


def _listed(labels: Labels) -> list[Hashable]:
    return labels.tolist() if isinstance(labels, np.ndarray) else list(labels)


def _require_same_length(x: NDArray[np.generic], y: NDArray[np.generic]) -> None:
    if x.ndim != 1 or x.shape != y.shape:
        raise EvaluationError(f"two lists of one length are needed; these have shapes {x.shape} and {y.shape}")
