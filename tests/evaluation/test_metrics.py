"""Every metric equals trec_eval, scipy or scikit-learn on random input, ties included; no answer is an error."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import pytrec_eval
import sklearn.metrics
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from udever.errors import EvaluationError
from udever.evaluation.metrics import (
    accuracy,
    average_precision,
    averages,
    best_accuracy,
    macro_f1,
    pearson,
    ranks_of,
    retrieval_metrics,
    spearman,
)

KS = (1, 2, 3, 5, 10)
close = {"rel": 1e-9, "abs": 1e-9}

documents = st.sampled_from([f"d{i}" for i in range(12)] + ["é", "～", "𝄞", "Z"])
queries = st.sampled_from(["q1", "q2", "q3", "q4"])
scores = st.one_of(
    st.sampled_from([-1.0, -0.0, 0.0, 0.5, 0.5 + 1e-12, 1.0]),  # ties, some in single precision only
    st.floats(-1e30, 1e30, allow_nan=False),
)
runs = st.dictionaries(queries, st.dictionaries(documents, scores, max_size=14))
qrels_sets = st.dictionaries(queries, st.dictionaries(documents, st.integers(-2, 4), min_size=1, max_size=14))


@given(run=runs, qrels=qrels_sets)
def test_retrieval_metrics_equal_trec_eval(run: dict[str, dict[str, float]], qrels: dict[str, dict[str, int]]) -> None:
    ours = retrieval_metrics(run, qrels, ks=KS)
    relevant = {query for query, grades in qrels.items() if max(grades.values()) > 0}
    cuts = ",".join(map(str, KS))
    theirs = pytrec_eval.RelevanceEvaluator(
        {query: qrels[query] for query in relevant},  # it crashes on a query with negative grades only
        {f"ndcg_cut.{cuts}", f"recall.{cuts}", f"map_cut.{cuts}", "map", "recip_rank"},
    ).evaluate(run)
    for metric, of_query in ours.items():
        assert set(of_query) == relevant, metric
    for query in relevant:
        expected = theirs.get(query)
        if not expected:  # trec_eval passes over a query that the run has not; here it counts, as with its option -c
            assert all(of_query[query] == 0 for of_query in ours.values())
            continue
        first_rank = 1 / expected["recip_rank"] if expected["recip_rank"] else math.inf
        assert ours["map"][query] == pytest.approx(expected["map"], **close)
        for k in KS:
            assert ours[f"ndcg@{k}"][query] == pytest.approx(expected[f"ndcg_cut_{k}"], **close)
            assert ours[f"recall@{k}"][query] == pytest.approx(expected[f"recall_{k}"], **close)
            assert ours[f"map@{k}"][query] == pytest.approx(expected[f"map_cut_{k}"], **close)
            within = expected["recip_rank"] if first_rank <= k + 0.5 else 0.0
            assert ours[f"mrr@{k}"][query] == pytest.approx(within, **close)


def test_a_deep_run_with_many_ties_equals_trec_eval() -> None:
    generator = np.random.default_rng(0)
    names = [f"doc-{i}" for i in range(3000)]
    run = {f"q{q}": dict(zip(names, generator.integers(0, 50, 3000).astype(float), strict=True)) for q in range(20)}
    qrels = {
        f"q{q}": {names[i]: int(generator.integers(0, 4)) for i in generator.choice(3000, 200, replace=False)}
        for q in range(20)
    }
    ours = retrieval_metrics(run, qrels, ks=(10, 100, 1000))
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10,100,1000", "recall.10,100,1000", "map"}).evaluate(run)
    for query, expected in theirs.items():
        assert ours["map"][query] == pytest.approx(expected["map"], **close)
        for k in (10, 100, 1000):
            assert ours[f"ndcg@{k}"][query] == pytest.approx(expected[f"ndcg_cut_{k}"], **close)
            assert ours[f"recall@{k}"][query] == pytest.approx(expected[f"recall_{k}"], **close)


def test_equal_scores_are_ordered_by_document_id_descending() -> None:
    qrels = {"q": {"a": 1}}
    assert retrieval_metrics({"q": {"a": 0.5, "b": 0.5}}, qrels)["mrr@10"]["q"] == 0.5
    assert retrieval_metrics({"q": {"a": 0.5, "A": 0.5}}, qrels)["mrr@10"]["q"] == 1.0
    assert retrieval_metrics({"q": {"a": 0.5 + 1e-12, "b": 0.5}}, qrels)["mrr@10"]["q"] == 0.5  # equal in fp32


def test_a_query_that_was_not_answered_counts_zero_and_one_without_relevant_documents_does_not_count() -> None:
    qrels = {"found": {"a": 2}, "missing": {"a": 1}, "empty": {"a": 1}, "hopeless": {"a": 0, "b": -1}}
    run = {"found": {"a": 1.0}, "empty": {}, "hopeless": {"a": 1.0}, "unasked": {"a": 1.0}}
    values = retrieval_metrics(run, qrels, ks=(1,))
    assert values["ndcg@1"] == {"found": 1.0, "missing": 0.0, "empty": 0.0}
    assert averages(values) == dict.fromkeys(("ndcg@1", "mrr@1", "recall@1", "map@1", "map"), pytest.approx(1 / 3))


def test_no_relevant_document_at_all_is_an_error_of_the_average() -> None:
    assert retrieval_metrics({}, {"q": {"a": 0}})["ndcg@10"] == {}
    with pytest.raises(EvaluationError, match="no query has a relevant document"):
        averages(retrieval_metrics({"q": {"a": 1.0}}, {"q": {"a": 0}}))


def test_wrong_retrieval_input_is_named() -> None:
    with pytest.raises(EvaluationError, match="query 'q7'"):
        retrieval_metrics({"q7": {"a": math.nan}}, {"q7": {"a": 1}})
    with pytest.raises(EvaluationError, match="cut at 0"):
        retrieval_metrics({}, {}, ks=(10, 0))


# ---- ranks among candidates ----


@given(data=st.data(), queries=st.integers(1, 5), candidates=st.integers(1, 8))
def test_rank_is_the_place_after_all_that_score_as_much(data: st.DataObject, queries: int, candidates: int) -> None:
    scores_QN = np.array(
        data.draw(
            st.lists(
                st.lists(st.sampled_from([-1.0, 0.0, 0.5, math.inf]), min_size=candidates, max_size=candidates),
                min_size=queries,
                max_size=queries,
            )
        )
    )
    targets = data.draw(st.lists(st.integers(0, candidates - 1), min_size=queries, max_size=queries))
    expected = [
        1 + sum(score >= row[target] for column, score in enumerate(row) if column != target)
        for row, target in zip(scores_QN, targets, strict=True)
    ]
    assert ranks_of(scores_QN, targets).tolist() == expected


def test_a_model_that_tells_nothing_apart_ranks_last() -> None:
    assert ranks_of(np.ones((3, 7), np.float32), np.arange(3)).tolist() == [7, 7, 7]


def test_equal_vectors_tie_within_the_rounding_of_a_matrix_product() -> None:
    generator = np.random.default_rng(0)
    queries_QD = generator.standard_normal((100, 384)).astype(np.float32)
    queries_QD /= np.linalg.norm(queries_QD, axis=1, keepdims=True)
    scores_QN = queries_QD @ np.tile(queries_QD[0], (999, 1)).T
    assert ranks_of(scores_QN, np.arange(100), tolerance=1e-6).tolist() == [999] * 100
    assert ranks_of(np.array([[0.5, 0.5 - 1e-3, 0.5 + 1e-3]]), [0], tolerance=1e-6).tolist() == [2]


def test_ranks_of_nothing_is_nothing() -> None:
    assert ranks_of(np.zeros((0, 5)), []).tolist() == []


@pytest.mark.parametrize(
    ("scores_QN", "targets", "message"),
    [
        (np.array([[0.0, math.nan]]), [0], "NaN"),
        (np.zeros((2, 3)), [0], "shape"),
        (np.zeros((1, 3)), [3], "outside the 3 candidates"),
        (np.zeros((1, 3)), [-1], "outside"),
        (np.zeros(3), [0], "shape"),
    ],
)
def test_ranks_refuse_what_has_none(scores_QN: Any, targets: list[int], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        ranks_of(scores_QN, targets)


# ---- correlations ----

numbers = st.one_of(st.sampled_from([0.0, -0.0, 1.0, 2.0]), st.floats(-1e6, 1e6, width=32))
number_pairs = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=30)


@given(pairs=number_pairs)
def test_correlations_equal_scipy(pairs: list[tuple[float, float]]) -> None:
    x, y = (np.array(values) for values in zip(*pairs, strict=True))
    assume(np.ptp(x) > 0)
    assume(np.ptp(y) > 0)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, **close)
    assume(all(np.ptp(values) > 1e-3 * np.abs(values).max() for values in (x, y)))  # where scipy itself is sure
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, **close)


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1.0, 1e300])
def test_correlations_do_not_depend_on_the_unit(scale: float) -> None:
    x, y = np.array([1.0, 2.0, 4.0, 8.0]) * scale, np.array([1.0, 3.0, 2.0, 5.0])
    assert pearson(x, y) == pytest.approx(pearson([1, 2, 4, 8], y), rel=1e-3 if scale < 1e-300 else 1e-12)
    assert spearman(x, y) == pytest.approx(0.8, abs=1e-12)


def test_numbers_that_differ_in_the_last_digit_still_correlate() -> None:
    one = 1.0
    assert pearson([one, np.nextafter(one, 2), one], [0, 1, 0]) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("correlation", [pearson, spearman])
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1, 2, 3], [5, 5, 5], "all 3 values are 5"),
        ([0.1, 0.1], [1, 2], "all 2 values are 0.1"),
        ([1], [1], "at least two pairs; there are 1"),
        ([], [], "there are 0"),
        ([1, 2], [1, 2, 3], "one length"),
        ([1, math.nan], [1, 2], "NaN"),
        ([1, math.inf], [1, 2], "infinity"),
    ],
)
def test_correlations_refuse_what_has_none(correlation: Callable[..., float], x: Any, y: Any, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        correlation(x, y)


# ---- labels ----

names = st.sampled_from(["a", "b", "c", "ü", ""])
label_pairs = st.lists(st.tuples(names, names), min_size=1, max_size=40)


@given(pairs=label_pairs)
def test_label_metrics_equal_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    truth, predicted = zip(*pairs, strict=True)
    assert accuracy(truth, predicted) == pytest.approx(sklearn.metrics.accuracy_score(truth, predicted), **close)
    assert macro_f1(truth, predicted) == pytest.approx(
        sklearn.metrics.f1_score(truth, predicted, average="macro", zero_division=0), **close
    )


def test_labels_are_equal_if_python_says_so() -> None:
    assert accuracy([1, 0], [True, "0"]) == 0.5
    assert accuracy(np.array(["a", "b"]), ["a", "b"]) == 1.0


@pytest.mark.parametrize("metric", [accuracy, macro_f1])
def test_label_metrics_refuse_what_has_no_answer(metric: Callable[..., float]) -> None:
    with pytest.raises(EvaluationError, match="no labels"):
        metric([], [])
    with pytest.raises(EvaluationError, match="2 labels and 1 predictions"):
        metric([1, 2], [1])


# ---- scored pairs ----

scored = st.lists(
    st.tuples(st.one_of(st.sampled_from([0.0, -0.0, 0.25, 0.5]), st.floats(-1, 1)), st.booleans()),
    min_size=1,
    max_size=40,
)


@given(pairs=scored)
def test_average_precision_equals_scikit_learn(pairs: list[tuple[float, bool]]) -> None:
    values, labels = zip(*pairs, strict=True)
    assume(any(labels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a list without negatives
        expected = sklearn.metrics.average_precision_score(labels, values)
    assert average_precision(values, labels) == pytest.approx(expected, **close)


@given(pairs=scored)
def test_best_accuracy_is_the_best_of_all_thresholds(pairs: list[tuple[float, bool]]) -> None:
    values, labels = (np.array(column) for column in zip(*pairs, strict=True))
    thresholds = [*values, math.inf]
    expected = max(accuracy(labels, values >= threshold) for threshold in thresholds)
    assert best_accuracy(values, labels) == pytest.approx(expected, abs=1e-12)


@given(pairs=scored, seed=st.integers(0, 99))
def test_scored_pairs_may_come_in_any_order(pairs: list[tuple[float, bool]], seed: int) -> None:
    values, labels = (np.array(column) for column in zip(*pairs, strict=True))
    assume(labels.any())
    order = np.random.default_rng(seed).permutation(len(pairs))
    assert average_precision(values[order], labels[order]) == average_precision(values, labels)
    assert best_accuracy(values[order], labels[order]) == best_accuracy(values, labels)


@pytest.mark.parametrize("metric", [average_precision, best_accuracy])
@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        ([], [], "no pairs"),
        ([1, 2], [1], "one length"),
        ([1, math.nan], [1, 0], "NaN"),
        ([1, 2], [1, 2], "neither 0 nor 1"),
    ],
)
def test_scored_pairs_refuse_what_has_no_answer(
    metric: Callable[..., float], values: Any, labels: Any, message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        metric(values, labels)


def test_average_precision_needs_a_positive() -> None:
    with pytest.raises(EvaluationError, match="no positive"):
        average_precision([1.0, 2.0], [0, 0])
