"""A suite measures what its words say, refuses what cannot be measured, and never trusts data that changed."""

import gzip
import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import pytrec_eval
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score

from udever import Embedder
from udever.errors import DatasetError, EvaluationError, OptionError, ResultFileError
from udever.evaluation import results
from udever.evaluation.encoder import Encoder
from udever.evaluation.protocols.suite import LocalTask, read_suite
from udever.evaluation.protocols.suite_tasks import Bitext
from udever.evaluation.results import Result, Score
from udever.evaluation.runner import Outcome, measure, run

SENTENCES = (
    ("A man is playing a guitar.", "Un hombre toca la guitarra.", "一个男人在弹吉他。"),
    ("The children run through the park.", "Los niños corren por el parque.", "孩子们跑过公园。"),
    ("She is cutting an onion.", "Ella corta una cebolla.", ""),
    ("The train leaves at seven.", "El tren sale a las siete.", "火车七点开。"),
    ("It rained the whole night.", "Llovió toda la noche.", "下了一整夜的雨。"),
    ("Prices went up again this year.", "Los precios volvieron a subir este año.", "今年物价又涨了。"),
)
FUNCTIONS = (
    ("Return the larger of two numbers.", "def larger(a, b):\n    return a if a > b else b"),
    ("Read all lines of a text file.", "def lines(path):\n    with open(path) as file:\n        return list(file)"),
    ("Remove duplicates but keep the order.", "def unique(items):\n    return list(dict.fromkeys(items))"),
    ("Count how often each word occurs.", "def counts(words):\n    return Counter(words)"),
    ("Compute the mean of some values.", "def mean(values):\n    return sum(values) / len(values)"),
    ("Delete a folder and everything in it.", "def delete(folder):\n    shutil.rmtree(folder)"),
)

SUITE = """
name = "mine"

[[task]]
kind = "sts"
name = "sts"
file = "sts.tsv"
text1 = "left"
text2 = "right"
subset = "lang"
where = { source = ["news", "chat"] }

[[task]]
kind = "pairs"
name = "pairs"
file = "pairs.tsv"

[[task]]
kind = "bitext"
name = "bitext"
file = "bitext.tsv"
pivot = "en"

[[task]]
kind = "retrieval"
name = "retrieval"
corpus = "corpus.jsonl"
queries = "queries.tsv"
qrels = "qrels.tsv"

[[task]]
kind = "code"
name = "code"
file = { first = "code.jsonl", second = "code.jsonl" }

[[task]]
kind = "classification"
name = "classification"
train = "train.tsv"
test = "test.tsv"
"""


def tsv(*rows: tuple[object, ...]) -> str:
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)


def jsonl(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def sts_rows() -> list[tuple[object, ...]]:
    """Every English sentence with every Spanish one, and with every Chinese one."""
    rows: list[tuple[object, ...]] = []
    for one, (english, *_) in enumerate(SENTENCES):
        for two, (_, spanish, chinese) in enumerate(SENTENCES):
            judged = 5 if one == two else abs(one - two) / 10
            rows.append(("es", "news", english, spanish, judged))
            rows += [("zh", "chat", english, chinese, judged)] if chinese else []
    return rows


FILES = {
    "sts.tsv": tsv(("lang", "source", "left", "right", "score"), *sts_rows(), ("es", "dropped", "a", "b", "nonsense")),
    "pairs.tsv": tsv(
        ("text1", "text2", "label"),
        *((one[0], two[1], int(one == two)) for one in SENTENCES for two in SENTENCES[:4]),
    ),
    "bitext.tsv": tsv(("en", "es", "zh"), *SENTENCES),
    "corpus.jsonl": jsonl(
        *({"_id": f"d{i}", "title": row[1], "text": row[0]} for i, row in enumerate(SENTENCES)),
        {"_id": "empty", "title": "", "text": ""},
    ),
    "queries.tsv": tsv(("qid", "text"), *((f"q{i}", row[2]) for i, row in enumerate(SENTENCES) if row[2])),
    "qrels.tsv": tsv(
        ("qid", "docid", "rel"), ("q0", "d0", 2), ("q0", "d1", 1), ("q1", "d1", 1), ("q3", "d3", 1), ("q3", "d0", -1)
    ),
    "code.jsonl": jsonl(*({"doc": doc, "code": code} for doc, code in FUNCTIONS)),
    "train.tsv": tsv(
        ("text", "label"), *((row[0], "en") for row in SENTENCES), *((row[1], "es") for row in SENTENCES[:3])
    ),
    "test.tsv": tsv(("text", "label"), *((row[1], "es") for row in SENTENCES[3:]), ("It is raining again.", "en")),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the suite and all of its files."""
    (tmp_path / "suite.toml").write_text(SUITE, "utf-8")
    for name, content in FILES.items():
        (tmp_path / name).write_text(content, "utf-8")
    return tmp_path


def task_of(folder: Path, name: str) -> LocalTask:
    (task,) = read_suite(folder / "suite.toml", names=[name])
    return task


def markers_alone(embedder: Embedder) -> np.ndarray:
    """What a document of no characters is."""
    opening, *_, closing = embedder.tokenize(["a"], "document")[0]
    (vector,) = embedder.finish(embedder.forward([[opening, closing]]))
    return vector


def score_of(folder: Path, name: str, embedder: Embedder, subset: str = "") -> Score:
    outcome = measure(task_of(folder, name), Encoder(embedder=embedder), output=None)
    (score,) = (score for score in outcome.result.of("model") if score.subset == subset)
    return score


# ---- each kind is what it says, computed here by other means ----


def test_sts_is_the_correlation_of_query_cosines_with_the_judgements(folder: Path, nano: Embedder) -> None:
    score = score_of(folder, "sts", nano, "es")
    left, right, judged = zip(*[(row[2], row[3], float(row[4])) for row in sts_rows() if row[0] == "es"], strict=True)
    cosines = (nano.embed(left, "query") * nano.embed(right, "query")).sum(axis=1)
    assert (score.metric, score.count) == ("spearman", 36)
    assert score.value == pytest.approx(stats.spearmanr(cosines, judged).statistic, abs=1e-6)
    assert score.metrics["pearson"] == pytest.approx(stats.pearsonr(cosines, judged).statistic, abs=1e-6)


def test_pairs_is_the_average_precision_of_the_cosine(folder: Path, nano: Embedder) -> None:
    score = score_of(folder, "pairs", nano)
    pairs = [(one[0], two[1], int(one == two)) for one in SENTENCES for two in SENTENCES[:4]]
    left, right, labels = zip(*pairs, strict=True)
    cosines = (nano.embed(left, "query") * nano.embed(right, "query")).sum(axis=1)
    assert score.metric == "average_precision"
    assert score.value == pytest.approx(average_precision_score(labels, cosines), abs=1e-6)
    best = max(np.mean((cosines >= threshold) == labels) for threshold in (*cosines, 2))
    assert score.metrics["best_accuracy"] == pytest.approx(best)


def test_bitext_asks_the_rows_a_language_has_among_all_pivot_sentences(folder: Path, nano: Embedder) -> None:
    pivot = nano.embed([row[0] for row in SENTENCES], "query")
    for column, language in ((1, "es"), (2, "zh")):
        rows = [row for row, sentences in enumerate(SENTENCES) if sentences[column]]
        cosines = nano.embed([SENTENCES[row][column] for row in rows], "query") @ pivot.T
        score = score_of(folder, "bitext", nano, language)
        assert (score.metric, score.count) == ("accuracy", len(rows))
        assert score.value == pytest.approx(np.mean(cosines.argmax(axis=1) == rows))
        back = cosines[:, rows].argmax(axis=0) == np.arange(len(rows))
        assert score.metrics["accuracy_from_pivot"] == pytest.approx(np.mean(back))


def test_bitext_is_measured_in_both_directions() -> None:
    class Fixed:
        """Both foreign sentences are nearest to the first pivot; each pivot is nearest to its own."""

        vectors = MappingProxyType({"p0": (1, 0), "p1": (0, 1), "f0": (1, 0), "f1": (0.8, 0.6)})

        def queries(self, texts: Sequence[str]) -> np.ndarray:
            return np.array([self.vectors[text] for text in texts], np.float32)

    (score,) = Bitext(pivot=["p0", "p1"], languages={"xx": ["f0", "f1"]}).scores(Fixed())  # type: ignore[arg-type]
    assert (score.value, score.metrics) == (0.5, {"accuracy_from_pivot": 1.0})


def test_retrieval_is_trec_evals_ndcg_of_title_and_text(folder: Path, nano: Embedder) -> None:
    queries = {f"q{i}": SENTENCES[i][2] for i in (0, 1, 3)}
    documents = {f"d{i}": f"{row[1]} {row[0]}" for i, row in enumerate(SENTENCES)}
    vectors = [*nano.embed(list(documents.values()), "document"), markers_alone(nano)]
    cosines = nano.embed(list(queries.values()), "query") @ np.stack(vectors).T
    documents["empty"] = ""
    found = {
        query: dict(zip(documents, map(float, row), strict=True)) for query, row in zip(queries, cosines, strict=True)
    }
    qrels = {"q0": {"d0": 2, "d1": 1}, "q1": {"d1": 1}, "q3": {"d3": 1, "d0": -1}}
    expected = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(found)
    score = score_of(folder, "retrieval", nano)
    assert (score.metric, score.count) == ("ndcg@10", 3)
    assert score.value == pytest.approx(np.mean([values["ndcg_cut_10"] for values in expected.values()]))
    assert set(score.metrics) == {"mrr@10", "recall@100"}
    assert score.metrics["recall@100"] == 1


def test_code_is_the_mean_reciprocal_rank_of_each_docstrings_function(folder: Path, nano: Embedder) -> None:
    docs, codes = zip(*FUNCTIONS, strict=True)
    cosines = nano.embed(docs, "query") @ nano.embed(codes, "document").T
    ranks = 1 + (cosines > cosines.diagonal()[:, None]).sum(axis=1)
    score = score_of(folder, "code", nano, "second")
    assert (score.metric, score.count) == ("mrr", 6)
    assert score.value == pytest.approx(np.mean(1 / ranks))
    assert score.metrics["recall@1"] == pytest.approx(np.mean(ranks == 1))


def test_classification_is_a_logistic_regression_on_frozen_vectors(folder: Path, nano: Embedder) -> None:
    """Of noisy labels, so that the strength of its penalty and the scale of the vectors matter."""
    words = [word for row in SENTENCES for sentence in row for word in sentence.split()]
    draw = np.random.default_rng(0)
    first = set(words[:4])
    rows = [
        (f"{one} {two}", "ab"[int(draw.random() < 0.1 + 0.8 * (one in first))]) for one in words[:9] for two in words
    ]
    train, test = rows[::2], rows[1::2]
    for split, of in (("train", train), ("test", test)):
        (folder / f"{split}.tsv").write_text(tsv(("text", "label"), *of), "utf-8")
    (texts, labels), (asked, truth) = (zip(*of, strict=True) for of in (train, test))
    regression = LogisticRegression(max_iter=1000).fit(nano.embed(texts, "query") * np.float32(16), labels)
    predicted = regression.predict(nano.embed(asked, "query") * np.float32(16))
    score = score_of(folder, "classification", nano)
    assert score.value == pytest.approx(np.mean(predicted == truth))
    assert score.metrics["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert 0.5 < score.value < 1


@pytest.mark.parametrize(
    ("task", "documents"),
    [
        ("sts", set()),
        ("pairs", set()),
        ("bitext", set()),
        ("classification", set()),
        ("retrieval", {f"{row[1]} {row[0]}" for row in SENTENCES} | {" "}),
        ("code", {code for _, code in FUNCTIONS}),
    ],
)
def test_only_what_is_to_be_found_is_a_document(
    task: str, documents: set[str], folder: Path, recording: Callable[..., Any]
) -> None:
    model = recording()
    measure(task_of(folder, task), Encoder(embedder=model), output=None)
    assert model.heard["document"] == documents
    assert model.heard["query"]
    assert not model.heard["query"] & documents


def test_swapped_roles_change_the_scores(folder: Path, nano: Embedder, recording: Callable[..., Any]) -> None:
    right, swapped = (score_of(folder, "sts", model, "es") for model in (nano, recording(swapped=True)))
    assert right.value != swapped.value


def test_baselines_stand_beside_retrieval_and_code(folder: Path, nano: Embedder) -> None:
    result = measure(task_of(folder, "retrieval"), Encoder(embedder=nano), output=None).result
    assert [score.system for score in result.scores] == ["model", "bm25", "random"]
    (bm25,) = result.of("bm25")
    assert bm25.value < 0.8, "Chinese queries share no word with English and Spanish documents"
    code = measure(task_of(folder, "code"), Encoder(embedder=nano), output=None).result
    assert [score.subset for score in code.of("bm25")] == ["first", "second"]
    (random, _) = code.of("random")
    assert random.value == pytest.approx(sum(1 / rank for rank in range(1, 7)) / 6)
    assert all(score.value > random.value for score in (*code.of("model"), *code.of("bm25")))


def test_dimensions_and_token_limit_reach_the_model(folder: Path, nano: Embedder) -> None:
    outcome = measure(task_of(folder, "code"), Encoder(embedder=nano, dimensions=64, max_tokens=8), output=None)
    docs, codes = zip(*FUNCTIONS, strict=True)
    options: dict[str, Any] = {"dimensions": 64, "max_tokens": 8, "truncate": "end"}
    cosines = nano.embed(docs, "query", **options) @ nano.embed(codes, "document", **options).T
    ranks = (cosines >= cosines.diagonal()[:, None]).sum(axis=1)
    assert outcome.result.of()[0].value == pytest.approx(np.mean(1 / ranks))
    assert (outcome.result.settings["dimensions"], outcome.result.settings["max_tokens"]) == (64, 8)


def test_the_number_of_texts_foretold_is_the_number_embedded(folder: Path, nano: Embedder) -> None:
    for task in read_suite(folder / "suite.toml"):
        advanced: list[int] = []
        measure(task, Encoder(embedder=nano, advance=advanced.append), output=None)
        assert sum(advanced) == task.texts, task.name


# ---- files ----


def test_gzipped_files_are_the_same_files(folder: Path, tmp_path: Path) -> None:
    plain = {task.name: task for task in read_suite(folder / "suite.toml")}
    zipped = tmp_path / "zipped"
    zipped.mkdir()
    for name, content in FILES.items():
        (zipped / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
    for task in read_suite(folder / "suite.toml", data=zipped):
        assert task.settings() == plain[task.name].settings()
        assert task.texts == plain[task.name].texts


def test_a_title_is_left_out_if_the_suite_says_so(folder: Path, recording: Callable[..., Any]) -> None:
    change(folder, 'qrels = "qrels.tsv"', 'qrels = "qrels.tsv"\ntitle = ""')
    model = recording()
    measure(task_of(folder, "retrieval"), Encoder(embedder=model), output=None)
    assert model.heard["document"] == {row[0] for row in SENTENCES} | {" "}


def test_a_jsonl_has_the_columns_of_all_its_rows(folder: Path, recording: Callable[..., Any]) -> None:
    rows = ({"id": 1, "text": "a"}, {"id": 2, "text": "b", "title": "B"}, {"id": 3, "text": "c", "title": None})
    (folder / "corpus.jsonl").write_text(jsonl(*rows), "utf-8")
    (folder / "qrels.tsv").write_text("qid\tdocid\trel\nq0\t1\t1\n", "utf-8")
    model = recording()
    measure(task_of(folder, "retrieval"), Encoder(embedder=model), output=None)
    assert model.heard["document"] == {"a", "B b", "c"}


def test_a_translation_that_a_row_has_not_is_missing(folder: Path) -> None:
    rows = ({"en": "One."}, {"en": "Two.", "es": "Dos."}, {"en": "Three.", "es": None})
    (folder / "bitext.jsonl").write_text(jsonl(*rows), "utf-8")
    change(folder, "bitext.tsv", "bitext.jsonl")
    (part,) = task_of(folder, "bitext").parts
    assert part.languages == {"es": ["", "Dos.", ""]}  # type: ignore[attr-defined]


def test_quotes_are_text(folder: Path) -> None:
    (folder / "bitext.tsv").write_text('en\tes\n"Hi" is a word\t"Hola\n', "utf-8")
    (part,) = task_of(folder, "bitext").parts
    assert part.pivot == ['"Hi" is a word']  # type: ignore[attr-defined]


def test_rounds_of_candidates_leave_the_rest_out(folder: Path, nano: Embedder) -> None:
    change(folder, '[[task]]\nkind = "classification"', 'candidates = 4\n\n[[task]]\nkind = "classification"')
    change(folder, '{ first = "code.jsonl", second = "code.jsonl" }', '"code.jsonl"')
    assert score_of(folder, "code", nano).count == 4


# ---- errors ----


def change(folder: Path, old: str, new: str, file: str = "suite.toml") -> None:
    text = (folder / file).read_text("utf-8")
    assert old in text
    (folder / file).write_text(text.replace(old, new), "utf-8")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "mine"', "", ["no name"]),
        ('name = "mine"', "name = mine", ["not TOML"]),
        ('name = "mine"', 'name = "mine"\ntasks = 1', ["unknown key 'tasks'", "did you mean 'task'?"]),
        ('kind = "sts"', 'kind = "similarity"', ["task 'sts'", "'similarity'", "'bitext'"]),
        ('name = "pairs"', 'name = "sts"', ["two tasks", "'sts', 'sts'"]),
        ('name = "pairs"', 'name = "a/b"\n[[task]]\nname = "a__b"', ["two tasks", "'a/b', 'a__b'"]),
        ('name = "pairs"\n', "", ["task 2 has no name"]),
        ('text1 = "left"', 'text_1 = "left"', ["task 'sts'", "unknown key 'text_1'", "did you mean 'text1'?"]),
        ('text1 = "left"', 'text1 = "lft"', ["no column 'lft'", "'left', 'right'"]),
        ('subset = "lang"', 'subset = "language"', ["no column 'language'", "'lang'"]),
        ('subset = "lang"', "subset = 1", ["'subset' is 1", "a string"]),
        ('where = { source = ["news", "chat"] }', 'where = { source = "x" }', ["'source' is 'x'", "'news', 'chat'"]),
        ('where = { source = ["news", "chat"] }', "", ["'score' holds 'nonsense', not a number", "sts.tsv:68"]),
        ('file = "sts.tsv"', "", ["'file' is missing"]),
        ('file = "sts.tsv"', 'file = "nowhere.tsv"', ["nowhere.tsv does not exist", "--data"]),
        ('file = "sts.tsv"', 'file = { a = "sts.tsv" }', ["subsets by a column and by files"]),
        ('file = "sts.tsv"', 'file = "suite.toml"', ["unknown ending '.toml'", ".jsonl"]),
        ('pivot = "en"', 'pivot = "eng"', ["no column 'eng'", "'en', 'es', 'zh'"]),
        ('file = { first = "code.jsonl"', "file = { first = 1", ["'file'", "a table of strings"]),
        ('second = "code.jsonl" }', 'second = "code.jsonl" }\ncandidates = 7', ["6 functions are too few", "(first)"]),
        ('second = "code.jsonl" }', 'second = "code.jsonl" }\ncode = "function"', ["no column 'function'", "'code'"]),
    ],
)
def test_a_wrong_suite_says_what_and_where(old: str, new: str, said: list[str], folder: Path) -> None:
    change(folder, old, new)
    with pytest.raises(DatasetError) as caught:
        read_suite(folder / "suite.toml")
    assert all(part in str(caught.value) for part in said), str(caught.value)


UNKNOWN = "".join(f"q0\tx{i}\t1\n" for i in range(7))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("sts.tsv", "", ["holds no row"]),
        ("sts.tsv", "lang\tsource\tleft\tright\tscore\n", ["holds no row"]),
        ("sts.tsv", "lang\tsource\tleft\tright\tscore\nes\tnews\tone\t\t1\n", ["sts.tsv:2", "'right' is empty"]),
        ("sts.tsv", "lang\tsource\tleft\tright\tscore\nes\tnews\tone\n", ["sts.tsv:2: 3 cells", "5"]),
        ("sts.tsv", "lang\tlang\n", ["stands there twice"]),
        (
            "sts.tsv",
            tsv(("lang", "source", "left", "right", "score"), *[("es", "news", "a", "b", 3)] * 3),
            ["every score is 3"],
        ),
        ("pairs.tsv", "text1\ttext2\tlabel\na\tb\t2\n", ["pairs.tsv:2", "'label' holds 2, neither 0 nor 1"]),
        ("pairs.tsv", "text1\ttext2\tlabel\na\tb\t0.5\n", ["pairs.tsv:2", "not a whole number"]),
        ("pairs.tsv", "text1\ttext2\tlabel\na\tb\t0\n", ["no label is 1"]),
        ("bitext.tsv", "en\tes\nHi\t\n", ["no sentence in 'es'"]),
        ("bitext.tsv", "en\nHi\n", ["any language but the pivot"]),
        (
            "corpus.jsonl",
            '{"id": 1, "text": "a"}\n{"id": "1", "text": "b"}\n',
            ["corpus.jsonl:2", "'1' stands there twice"],
        ),
        ("corpus.jsonl", '{"key": 1, "text": "a"}\n', ["'id' or '_id'", "'key', 'text'"]),
        ("corpus.jsonl", '{"id": 1, "text": "a"\n', ["corpus.jsonl:1: not JSON"]),
        ("corpus.jsonl", "[1]\n", ["corpus.jsonl:1: not a JSON object"]),
        ("corpus.jsonl", '{"id": 1, "text": null}\n', ["corpus.jsonl:1: 'text' holds None, not a text"]),
        ("corpus.jsonl", '{"id": 1, "text": "a"}\n{"id": 2}\n', ["corpus.jsonl:2: no 'text'; it has 'id'"]),
        (
            "corpus.jsonl",
            '{"id": 1, "text": "a"}\n{"id": 2, "text": "\\ud83d"}\n',
            ["corpus.jsonl:2: 'text' has a lone surrogate U+D83D at character 0"],
        ),
        ("qrels.tsv", f"qid\tdocid\trel\nq0\td0\t1\n{UNKNOWN}", ["7 documents", "'x0', 'x1', 'x2', 'x3', 'x4', …"]),
        ("qrels.tsv", "qid\tdocid\trel\nq9\td0\t1\n", ["names 1 queries", "'q9'"]),
        ("qrels.tsv", "qid\tdocid\trel\nq0\td0\t0\n", ["no query has a relevant document"]),
        ("qrels.tsv", "qid\tdocument\trel\nq0\td0\t1\n", ["'docid' or 'pid' or 'corpus-id'", "'document'"]),
        ("train.tsv", "text\tlabel\na\ten\nb\ten\n", ["all labels are 'en'"]),
        ("test.tsv", "text\tlabel\na\tfr\n", ["labels that", "'fr'"]),
    ],
)
def test_wrong_data_says_what_and_where(file: str, content: str, said: list[str], folder: Path) -> None:
    (folder / file).write_text(content, "utf-8")
    with pytest.raises(DatasetError) as caught:
        read_suite(folder / "suite.toml")
    assert all(part in str(caught.value) for part in said), str(caught.value)


def test_a_row_without_its_subset_is_named(folder: Path) -> None:
    change(folder, 'file = { first = "code.jsonl", second = "code.jsonl" }', 'file = "code.jsonl"\nsubset = "lang"')
    (folder / "code.jsonl").write_text(jsonl({"doc": "a", "code": "b", "lang": "go"}, {"doc": "c", "code": "d"}))
    with pytest.raises(DatasetError, match=r"code\.jsonl:2: no 'lang'; it has 'doc', 'code'"):
        task_of(folder, "code")


@pytest.mark.parametrize(
    ("package", "task", "said"),
    [
        ("bm25s", "retrieval", "the BM25 baseline needs bm25s"),
        ("bm25s", "code", "the BM25 baseline needs bm25s"),
        ("sklearn", "classification", "classification needs scikit-learn"),
    ],
)
def test_a_package_that_is_missing_is_named_when_the_suite_is_read(
    package: str, task: str, said: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert task_of(folder, "sts")
    with pytest.raises(EvaluationError, match=rf"{said}, .*pip install 'udever\[eval\]'"):
        task_of(folder, task)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(FILES["pairs.tsv"].encode(), mtime=0)[:-20], "not a whole gzip file"),
        (b"text1\ttext2\tlabel\n", "not a whole gzip file"),
        (gzip.compress(b"text1\ttext2\tlabel\na\t\xff\t1\n", mtime=0), "pairs.tsv.gz:2: not UTF-8"),
    ],
)
def test_a_damaged_file_is_named(content: bytes, said: str, folder: Path) -> None:
    (folder / "pairs.tsv").unlink()
    (folder / "pairs.tsv.gz").write_bytes(content)
    with pytest.raises(DatasetError, match=said):
        task_of(folder, "pairs")


def test_an_unknown_task_is_wrong_usage_and_lists_those_there_are(folder: Path) -> None:
    with pytest.raises(OptionError, match=r"'stss'.*'sts', 'pairs'"):
        read_suite(folder / "suite.toml", names=["stss"])


# ---- runs ----


def run_suite(folder: Path, embedder: Any, **options: Any) -> list[Outcome]:
    encoder = Encoder(embedder=embedder, dimensions=options.pop("dimensions", None))
    tasks = read_suite(folder / "suite.toml", names=["bitext", "code"])
    return run(tasks, encoder, output=folder / "results", **options)


def test_a_second_run_measures_nothing_and_gives_the_same(
    folder: Path, nano: Embedder, recording: Callable[..., Any]
) -> None:
    first = run_suite(folder, nano)
    assert [outcome.reused for outcome in first] == [False, False]
    model = recording()
    second = run_suite(folder, model)
    assert [outcome.reused for outcome in second] == [True, True]
    assert not model.heard["query"]
    assert [outcome.result for outcome in second] == [results.read(outcome.path) for outcome in first if outcome.path]
    assert first[0].path == folder / "results" / "udever-nano" / "suite_mine" / "bitext.json"
    assert first[0].result.fingerprint == nano.fingerprint
    assert first[0].result.protocol == "suite:mine"


def test_force_measures_again(folder: Path, nano: Embedder) -> None:
    run_suite(folder, nano)
    assert [outcome.reused for outcome in run_suite(folder, nano, force=True)] == [False, False]


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("bitext.tsv", "guitarra", "guitarrita"),
        ("suite.toml", 'pivot = "en"', 'pivot = "es"'),
        ("suite.toml", 'pivot = "en"', 'pivot = "en"\nlanguages = ["es"]'),
    ],
)
def test_changed_data_or_options_are_measured_again(
    file: str, old: str, new: str, folder: Path, nano: Embedder
) -> None:
    run_suite(folder, nano)
    change(folder, old, new, file)
    assert [outcome.reused for outcome in run_suite(folder, nano)] == [False, True]


def test_other_dimensions_are_measured_again_and_both_are_kept(folder: Path, nano: Embedder) -> None:
    whole = run_suite(folder, nano)
    assert [outcome.reused for outcome in run_suite(folder, nano, dimensions=64)] == [False, False]
    again = {dimensions: run_suite(folder, nano, dimensions=dimensions) for dimensions in (None, 64)}
    assert all(outcome.reused for outcomes in again.values() for outcome in outcomes)
    assert [outcome.result for outcome in again[None]] == [outcome.result for outcome in whole]
    assert {outcome.result.settings["dimensions"] for outcome in again[64]} == {64}
    assert again[None][0].path == folder / "results" / "udever-nano" / "suite_mine" / "bitext.json"
    assert re.fullmatch(r"bitext-[0-9a-f]{8}\.json", again[64][0].path.name)  # type: ignore[union-attr]


def test_force_replaces_the_result_of_the_same_settings_only(folder: Path, nano: Embedder) -> None:
    (whole, _), (cut, _) = run_suite(folder, nano), run_suite(folder, nano, dimensions=64)
    before = whole.path.read_bytes()  # type: ignore[union-attr]
    (forced, _) = run_suite(folder, nano, dimensions=64, force=True)
    assert not forced.reused
    assert forced.path == cut.path
    assert whole.path.read_bytes() == before  # type: ignore[union-attr]
    assert len(list((folder / "results").rglob("bitext*.json"))) == 2


def test_other_weights_of_the_same_name_are_kept_beside(tmp_path: Path) -> None:
    base = Result(task="t", protocol="p", model="m", fingerprint="one", scores=(), settings={"seed": 0})
    others = [base, replace(base, fingerprint="two"), replace(base, settings={"seed": 1})]
    paths = [results.write(tmp_path, result) for result in others]
    assert len(set(paths)) == 3
    assert [results.find(tmp_path, result) for result in others] == others
    paths[0].unlink()
    assert results.find(tmp_path, base) is None
    assert [results.find(tmp_path, result) for result in others[1:]] == others[1:]


def test_a_result_is_utf8_wherever_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text = Path.write_text

    def under_windows(self: Path, data: str, encoding: str | None = None, **more: Any) -> int:
        return write_text(self, data, encoding or "cp1252", **more)

    monkeypatch.setattr(Path, "write_text", under_windows)
    result = Result(task="词", protocol="p", model="m", fingerprint="f", scores=())
    assert results.read(results.write(tmp_path, result)).task == "词"


def test_the_same_data_under_another_name_is_not(folder: Path, nano: Embedder) -> None:
    run_suite(folder, nano)
    shutil.move(folder / "bitext.tsv", folder / "renamed.tsv")
    change(folder, 'file = "bitext.tsv"', 'file = "renamed.tsv"')
    assert [outcome.reused for outcome in run_suite(folder, nano)] == [True, True]


def test_an_interrupted_run_keeps_what_is_finished_and_goes_on(
    folder: Path, nano: Embedder, recording: Callable[..., Any]
) -> None:
    class Interrupted(type(recording())):  # type: ignore[misc]
        def embed_iter(self, texts: Any, role: str, **options: Any) -> Any:
            if role == "document":
                raise KeyboardInterrupt
            return super().embed_iter(texts, role, **options)

    with pytest.raises(KeyboardInterrupt):
        run_suite(folder, Interrupted(nano))
    files = [path.name for path in (folder / "results").rglob("*") if path.is_file()]
    assert files == ["bitext.json"]
    assert [outcome.reused for outcome in run_suite(folder, nano)] == [True, False]


def test_a_half_written_result_never_counts(folder: Path, nano: Embedder) -> None:
    (first, _) = run_suite(folder, nano)
    assert first.path
    whole = first.path.read_text("utf-8")
    first.path.write_text(whole[: len(whole) // 2], "utf-8")
    with pytest.raises(ResultFileError, match=r"bitext\.json.*--force"):
        run_suite(folder, nano)
    assert run_suite(folder, nano, force=True)[0].result.scores == first.result.scores


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda block: np.full_like(block, np.nan), "NaN or infinity for 6 of 6 texts"),
        (lambda block: block[:, :7], "of shape"),
        (lambda block: np.ones_like(block), "all 36 values"),
    ],
)
def test_impossible_vectors_are_an_error_that_names_the_task(
    spoil: Callable[[Any], Any], said: str, folder: Path, nano: Embedder, recording: Callable[..., Any]
) -> None:
    class Spoilt(type(recording())):  # type: ignore[misc]
        def embed_iter(self, texts: Any, role: str, **options: Any) -> Any:
            return map(spoil, super().embed_iter(texts, role, **options))

    name = "sts" if "36" in said else "bitext"
    with pytest.raises(EvaluationError, match=f"^{name}: .*{said}"):
        measure(task_of(folder, name), Encoder(embedder=Spoilt(nano)), output=folder / "results")
    assert not (folder / "results").exists()


def test_a_score_that_is_no_number_is_never_written(folder: Path, nano: Embedder) -> None:
    class Broken:
        name, protocol, texts = "broken", "suite:mine", 0

        def settings(self) -> dict[str, Any]:
            return {}

        def run(self, _encoder: Encoder) -> list[Score]:
            return [Score(metric="mrr", value=float("nan"), count=1)]

    with pytest.raises(EvaluationError, match="broken: mrr of model is nan"):
        measure(Broken(), Encoder(embedder=nano), output=folder / "results")
    assert not (folder / "results").exists()


def test_a_result_says_when_by_what_and_on_what(folder: Path, nano: Embedder) -> None:
    result: Result = measure(task_of(folder, "code"), Encoder(embedder=nano), output=None).result
    assert result.settings["kind"] == "code"
    assert result.settings["file"] == ["first", "second"]
    assert len(result.settings["data"]) == 32
    assert result.version
    assert result.date.endswith("+00:00")
    assert result.seconds > 0
