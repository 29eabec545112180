"""Every format that can be imported, as small real files; what is wrong with them is said by file and line."""

import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from udever.errors import ExamplesError, OptionError
from udever.tokenizer import UdeverTokenizer
from udever.training.data.examples import ExampleStore
from udever.training.data.importing import FORMATS, ImportJob, guess_format, import_examples, tokenizer_of
from udever.training.data.layouts import Choices
from udever.training.data.ms_marco import Sources
from udever.training.data.rows import Reading
from udever.training.data.store_writer import TextExample

Found = list[tuple[str, list[str], list[str]]]


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_path: Path) -> UdeverTokenizer:
    return UdeverTokenizer.from_folder(tiny_tokenizer_path.parent)


@pytest.fixture
def run(tmp_path: Path, tokenizer: UdeverTokenizer) -> Callable[..., ExampleStore]:
    """run(path, …, format=…, task=…) imports into a new store."""

    def do(*inputs: Path, **options: Any) -> ExampleStore:
        of_job = {"format", "max_tokens", "negatives", "limit", "ms_marco", "exclude"}
        choices = Choices(**{"task": "t"} | {k: v for k, v in options.items() if k not in of_job})
        job = ImportJob(inputs=inputs, choices=choices, **{k: v for k, v in options.items() if k in of_job})
        target = tmp_path / f"store{len(list(tmp_path.glob('store*')))}"
        about = import_examples(job, target, tokenizer=tokenizer)
        store = ExampleStore.open(target)
        assert store.about == about
        return store

    return do


def examples(store: ExampleStore) -> list[TextExample]:
    return [
        TextExample(
            store.text(example.query),
            tuple(map(store.text, example.positives)),
            tuple(map(store.text, example.negatives)),
            example.scores,
            example.task,
            example.symmetric,
        )
        for example in map(store.example, range(len(store)))
    ]


def found(store: ExampleStore) -> Found:
    return [(example.query, list(example.positives), list(example.negatives)) for example in examples(store)]


def put(path: Path, content: str | bytes) -> Path:
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def table(*rows: tuple[Any, ...]) -> str:
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)


def jsonl(*rows: Any) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# ---- sentence-transformers' columns ----

TRIPLETS = [
    {"anchor": "fox?", "positive": "a quick fox", "negative_1": "a lazy dog", "negative_2": "山"},
    {"anchor": "zorro", "positive": "el zorro", "negative_1": "el perro", "negative_2": "la montaña"},
]
TRIPLETS_FOUND: Found = [
    ("fox?", ["a quick fox"], ["a lazy dog", "山"]),
    ("zorro", ["el zorro"], ["el perro", "la montaña"]),
]


def write_triplets(path: Path) -> Path:
    rows = [tuple(TRIPLETS[0]), *(tuple(row.values()) for row in TRIPLETS)]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(TRIPLETS), path)
        return path
    if ".csv" in path.name:
        return put(path, "\r\n".join(",".join(f'"{cell}"' for cell in row) for row in rows))
    return put(path, jsonl(*TRIPLETS) if "json" in path.name else table(*rows))


@pytest.mark.parametrize(
    "name", ["x.jsonl", "x.json", "x.tsv", "x.csv", "x.parquet", "x.jsonl.gz", "x.tsv.gz", "X.TSV"]
)
def test_named_columns_in_every_kind_of_file(name: str, run: Callable[..., ExampleStore], tmp_path: Path) -> None:
    path = write_triplets(tmp_path / name)
    assert guess_format(path) == "columns"
    store = run(path)
    assert found(store) == TRIPLETS_FOUND
    assert examples(store)[0][3:] == (None, "t", False)
    assert store.about["sources"][0]["file"] == name
    assert store.about["options"] == {"format": "columns", "task": "t", "symmetric": False}


def test_every_kind_of_file_gives_the_same_digest(run: Callable[..., ExampleStore], tmp_path: Path) -> None:
    names = ["x.jsonl", "x.tsv", "x.csv", "x.parquet", "x.jsonl.gz"]
    assert len({run(write_triplets(tmp_path / name)).digest for name in names}) == 1


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"query": "q", "positive": "p"}, ("q", ["p"], [])),
        ({"query": "q", "positive": "p", "negative": "n"}, ("q", ["p"], ["n"])),
        ({"query": "q", "positives": ["p", "o"], "negatives": ["m", "n"]}, ("q", ["p", "o"], ["m", "n"])),
        ({"query": "q", "positive": "p", "negative_1": "m", "negative_2": None}, ("q", ["p"], ["m"])),
        ({"sentence1": "q", "sentence2": "p"}, ("q", ["p"], [])),
        ({"l1": "en", "l2": "fr", "text1": "q", "text2": "p"}, ("q", ["p"], [])),
        ({"lang": "en", "question": "q", "passage": "p", "source": "x"}, ("q", ["p"], [])),
        ({"doc": "q", "code": "p", "name": "f", "lang": "go"}, ("q", ["p"], [])),
    ],
)
def test_names_that_are_known(
    row: dict[str, Any], expected: Any, run: Callable[..., ExampleStore], tmp_path: Path
) -> None:
    path = put(tmp_path / "x.jsonl", jsonl(row))
    assert guess_format(path) == "columns"
    assert found(run(path)) == [expected]


def test_columns_by_choice_also_turn_the_direction(run: Callable[..., ExampleStore], tmp_path: Path) -> None:
    path = put(tmp_path / "x.tsv", table(("intent", "nl", "code (⏎=newline)"), ("a", "b", "c"), ("d", "e", "f")))
    assert found(run(path, columns=("nl", "code (⏎=newline)"))) == [("b", ["c"], []), ("e", ["f"], [])]
    assert found(run(path, columns=("code (⏎=newline)", "nl", "intent"))) == [("c", ["b"], ["a"]), ("f", ["e"], ["d"])]


def test_teacher_scores_stay_with_their_texts(run: Callable[..., ExampleStore], tmp_path: Path) -> None:
    row = {"query": "q", "positives": ["p", "q", "o"], "negatives": ["p", "n"], "scores": [5, 4, 3, 2, 1.5]}
    (example,) = examples(run(put(tmp_path / "x.jsonl", jsonl(row))))
    assert example[:4] == ("q", ("p", "o"), ("n",), (5.0, 3.0, 1.5))


def test_texts_are_taken_as_they_are(run: Callable[..., ExampleStore], tmp_path: Path) -> None:
    texts = ['"quoted', " blank ", "a\u2028b", "[BOQ] x", "e\u0301", "x\r"]
    path = put(tmp_path / "x.tsv", "query\tpositive\n" + "".join(f"{text}\tp\n" for text in texts[:5]) + "z\tp\r\n")
    assert [query for query, _, _ in found(run(path))] == [*texts[:5], "z"]
    path = put(tmp_path / "x.csv", 'query,positive\n"two\nlines","a ""word"""\n')
    assert found(run(path)) == [("two\nlines", ['a "word"'], [])]


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        (
            [{"sentence1": "a", "sentence2": "b", "label": 1}, {"sentence1": "a", "sentence2": "c", "label": 0}],
            {},
            ["b"],
        ),
        ([{"query": "a", "passage": "b", "label": "1"}, {"query": "a", "passage": "c", "label": "0"}], {}, ["b"]),
        ([{"text1": "a", "text2": t, "score": s} for t, s in (("b", 4.5), ("c", 2))], {"min_score": 4}, ["b"]),
        ([{"text1": "a", "text2": t, "label": s} for t, s in (("b", 0.9), ("c", 0.1))], {"min_score": 0.5}, ["b"]),
    ],
)
def test_labelled_pairs(
    rows: list[Any], options: dict[str, Any], expected: list[str], run: Callable[..., ExampleStore], tmp_path: Path
) -> None:
    path = put(tmp_path / "x.jsonl", jsonl(*rows))
    store = run(path, **options, format="labelled")
    assert found(store) == [("a", expected, [])]
    assert examples(store)[0].symmetric
    assert store.about["dropped"] == {"pair that is no positive by its label": 1}


def test_label_numbers_that_mean_two_things_are_not_guessed(tmp_path: Path) -> None:
    """1 says positive in pairs, neutral in NLI; GLUE's RTE and MRPC have the same columns and opposite labels."""
    pair = {"sentence1": "a", "sentence2": "b", "label": 1}
    with pytest.raises(ExamplesError, match="could be labelled or nli"):
        guess_format(put(tmp_path / "x.jsonl", jsonl(pair)))
    for row in ({"query": "a", "passage": "b", "label": 1}, {"text1": "a", "text2": "b", "score": 4.5}):
        assert guess_format(put(tmp_path / "x.jsonl", jsonl(row))) == "labelled"


# ---- FlagEmbedding, Tevatron ----


def test_flag_embedding(run: Callable[..., ExampleStore], tmp_path: Path) -> None:
    rows = [
        {"query": "q", "pos": ["p", "o"], "neg": ["n"], "pos_scores": [2, 1], "neg_scores": [0.5], "prompt": "x"},
        {"query": "r", "pos": ["p"], "neg": []},
        {"query": "s", "pos": ["p"]},
    ]
    path = put(tmp_path / "x.jsonl.gz", jsonl(*rows))
    assert guess_format(path) == "flagembedding"
    store = run(path)
    assert [e[:4] for e in examples(store)] == [
        ("q", ("p", "o"), ("n",), (2.0, 1.0, 0.5)),
        ("r", ("p",), (), None),
        ("s", ("p",), (), None),
    ]


def test_tevatron(run: Callable[..., ExampleStore], tmp_path: Path) -> None:
    row = {
        "query_id": "1",
        "query": "q",
        "positive_passages": [{"docid": "7", "title": "T", "text": "p"}, {"docid": "8", "text": "o"}],
        "negative_passages": [{"docid": "9", "title": "", "text": "n"}],
    }
    path = put(tmp_path / "x.jsonl", jsonl(row))
    assert guess_format(path) == "tevatron"
    assert found(run(path)) == [("q", ["T p", "o"], ["n"])]


# ---- NLI ----

NLI = [
    ("train", "entailment", "p1", "h1"),
    ("train", "contradiction", "p1", "h2"),
    ("train", "neutral", "p1", "h3"),
    ("train", "-", "p1", "h4"),
    ("dev", "entailment", "p9", "h9"),
    ("train", "entailment", " p2 ", "h5"),
    ("train", "entailment", "p2", "h6"),
    ("train", "contradiction", "h6", "h7"),
    ("train", "contradiction", "p3", "h8"),
]


@pytest.fixture
def all_nli(tmp_path: Path) -> Path:
    return put(tmp_path / "AllNLI.tsv.gz", table(("split", "label", "sentence1", "sentence2"), *NLI))


def test_all_nli_entails_both_ways(all_nli: Path, run: Callable[..., ExampleStore]) -> None:
    assert guess_format(all_nli) == "nli"
    store = run(all_nli)
    assert found(store) == [
        ("p1", ["h1"], []),
        ("h1", ["p1"], []),
        ("p2", ["h5", "h6"], []),
        ("h5", ["p2"], []),
        ("h6", ["p2"], []),
    ]
    assert all(example.symmetric for example in examples(store))
    assert store.about["dropped"] == {"pair without a label": 1, "row of another split than train": 1}


def test_contradictions_as_hard_negatives(all_nli: Path, run: Callable[..., ExampleStore]) -> None:
    assert found(run(all_nli, contradictions=True)) == [
        ("p1", ["h1"], ["h2"]),
        ("h1", ["p1"], ["h2"]),
        ("p2", ["h5", "h6"], ["h7"]),
        ("h5", ["p2"], []),
        ("h6", ["p2"], ["h7"]),
    ]


def test_all_nli_has_the_triplets_of_sentence_transformers(all_nli: Path, run: Callable[..., ExampleStore]) -> None:
    """Its training_nli_v2: sentences with an entailed and a contradicted one give (s, e, c) and (e, s, c)."""
    related: dict[str, dict[str, set[str]]] = {}
    for split, label, first, second in NLI:
        if split == "train":
            for one, other in ((first.strip(), second), (second, first.strip())):
                related.setdefault(one, {}).setdefault(label, set()).add(other)
    theirs = {
        triplet
        for sentence, by_label in related.items()
        for entailed in by_label.get("entailment", ())
        for contradicted in by_label.get("contradiction", ())
        for triplet in ((sentence, entailed, contradicted), (entailed, sentence, contradicted))
    }
    ours = {
        (q, p, n)
        for q, positives, negatives in found(run(all_nli, contradictions=True))
        for p in positives
        for n in negatives
    }
    assert theirs <= ours


@pytest.mark.parametrize("labels", [("e", "n", "c"), (0, 1, 2), ("Entailment", "neutral", "contradiction")])
def test_nli_labels_as_files_spell_them(
    labels: tuple[Any, ...], run: Callable[..., ExampleStore], tmp_path: Path
) -> None:
    rows = [{"premise": "p", "hypothesis": f"h{label}", "label": label, "lang": "id"} for label in labels]
    path = put(tmp_path / "x.jsonl", jsonl(*rows))
    assert guess_format(path) == "nli"
    assert found(run(path, contradictions=True))[0] == ("p", [f"h{labels[0]}"], [f"h{labels[2]}"])


# ---- parallel texts ----


def test_wide_files_pair_each_language_with_english(run: Callable[..., ExampleStore], tmp_path: Path) -> None:
    content = table(("arb_Arab", "eng_Latn", "fra_Latn"), ("الثعلب", "the fox", "le renard"), ("جبل", "mountain", ""))
    path = put(tmp_path / "x.wide.tsv.gz", content)
    assert guess_format(path) == "wide"
    store = run(path, task="bitext-{language}")
    assert found(store) == [("الثعلب", ["the fox"], []), ("le renard", ["the fox"], []), ("جبل", ["mountain"], [])]
    assert {task: indices.tolist() for task, indices in store.tasks.items()} == {
        "bitext-arb_Arab": [0, 2],
        "bitext-fra_Latn": [1],
    }
    assert all(example.symmetric for example in examples(store))
    french = run(path, pivot="fra_Latn")
    assert found(french) == [("الثعلب", ["le renard"], []), ("the fox", ["le renard"], [])]


# ---- MS MARCO ----


@pytest.fixture
def marco(tmp_path: Path) -> dict[str, Path]:
    return {
        "collection": put(tmp_path / "collection.tsv", table(*((i, f"passage {i}") for i in range(12)))),
        "queries": put(tmp_path / "queries.train.tsv.gz", table((100, "first query"), ("0101", "second query"))),
    }


HARD = [
    {"qid": 100, "pos": [1], "neg": {"bm25": [2, 3, 4], "dense": [3, 5, 6]}},
    {"qid": "0101", "pos": [7, 8], "neg": {}},
]
SCORES = {100: {1: 9.0, 2: 8.0, 3: 5.5, 4: 6.5, 5: -1.0, 6: 6.0}, 7: {1: 1.0}}


def test_ms_marco_hard_negatives(marco: dict[str, Path], run: Callable[..., ExampleStore], tmp_path: Path) -> None:
    path = put(tmp_path / "hard.jsonl.gz", jsonl(*HARD))
    assert guess_format(path) == "msmarco"
    store = run(path, ms_marco=Sources(**marco, per_system=2))
    assert found(store) == [
        ("first query", ["passage 1"], ["passage 2", "passage 5", "passage 3", "passage 6"]),
        ("second query", ["passage 7", "passage 8"], []),
    ], "two of each system, none twice, the systems taking turns"
    only = run(path, ms_marco=Sources(**marco, systems=("dense",)), negatives=1)
    assert found(only)[0] == ("first query", ["passage 1"], ["passage 3"])


def dumped(protocol: int, *, as_numpy: bool = False) -> bytes:
    wide: dict[int, dict[int, Any]] = {**SCORES, 9: {pid: float(pid) for pid in range(2500)}}
    if as_numpy:
        wide = {qid: {pid: np.float32(score) for pid, score in scores.items()} for qid, scores in wide.items()}
    return pickle.dumps(wide, protocol=protocol)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((f"scores{protocol}.pkl.gz", dumped(protocol)) for protocol in range(6)),
        ("scores.pickle", dumped(4, as_numpy=True)),
        ("one.pkl", pickle.dumps({100: SCORES[100], 7: {1: 1.0}}, protocol=2)),
        ("scores.tsv.gz", table(*((qid, pid, s) for qid, of in SCORES.items() for pid, s in of.items())).encode()),
    ],
)
def test_ms_marco_margin(
    name: str, content: bytes, marco: dict[str, Path], run: Callable[..., ExampleStore], tmp_path: Path
) -> None:
    hard, scores = put(tmp_path / "hard.jsonl", jsonl(HARD[0])), put(tmp_path / name, content)
    store = run(hard, ms_marco=Sources(**marco, scores=scores))
    (example,) = examples(store)
    assert example.negatives == ("passage 3", "passage 5", "passage 6"), "at least 3.0 below the positive's 9.0"
    assert example.scores == (9.0, 5.5, -1.0, 6.0)
    assert store.about["dropped"] == {"negative within the margin of a positive": 2}


def test_the_margin_counts_from_the_lowest_positive_and_unscored_negatives_go(
    marco: dict[str, Path], run: Callable[..., ExampleStore], tmp_path: Path
) -> None:
    row = {"qid": 100, "pos": [1, 4], "neg": {"bm25": [3, 5, 11]}}
    scores = put(tmp_path / "s.tsv", table(*((100, pid, s) for pid, s in SCORES[100].items())))
    store = run(put(tmp_path / "h.jsonl", jsonl(row)), ms_marco=Sources(**marco, scores=scores, margin=2.0))
    assert found(store)[0][2] == ["passage 5"]
    assert store.about["dropped"] == {"negative within the margin of a positive": 1, "negative without a score": 1}


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("pwned"),))


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({100: {1: Evil()}}),
        pickle.dumps(Evil()),
        pickle.dumps([1, 2]),
        pickle.dumps({100: 5.0}),
        pickle.dumps({100: {1: "x"}}),
        dumped(4)[:300],
        b"",
        b"nonsense",
    ],
)
def test_a_pickle_of_something_else_is_refused_and_never_run(
    content: bytes,
    marco: dict[str, Path],
    run: Callable[..., ExampleStore],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    hard, scores = put(tmp_path / "hard.jsonl", jsonl(HARD[0])), put(tmp_path / "scores.pkl.gz", content)
    with pytest.raises(ExamplesError, match=r"scores\.pkl\.gz"):
        run(hard, ms_marco=Sources(**marco, scores=scores))
    assert not (tmp_path / "pwned").exists()


def test_ms_marco_triples_of_ids_and_qrels(
    marco: dict[str, Path], run: Callable[..., ExampleStore], tmp_path: Path
) -> None:
    triples = put(tmp_path / "qidpidtriples.tsv.gz", table((100, 1, 2), (100, 1, 3), (100, 4, 3), ("0101", 7, 2)))
    assert guess_format(triples) == "msmarco"
    assert found(run(triples, ms_marco=Sources(**marco))) == [
        ("first query", ["passage 1"], ["passage 2", "passage 3"]),
        ("first query", ["passage 4"], ["passage 3"]),
        ("second query", ["passage 7"], ["passage 2"]),
    ]
    qrels = put(tmp_path / "qrels.train.tsv", "100\t0\t1\t1\n100 0 2 1\n100 0 3 0\n0101 0 7 1\n")
    assert guess_format(qrels) == "msmarco"
    assert found(run(qrels, ms_marco=Sources(**marco))) == [
        ("first query", ["passage 1", "passage 2"], []),
        ("second query", ["passage 7"], []),
    ]


def test_triples_of_texts(run: Callable[..., ExampleStore], tmp_path: Path) -> None:
    path = put(tmp_path / "triples.train.small.tsv", table(("q", "p", "m"), ("q", "p", "n"), ("r", "p", "n")))
    assert found(run(path, format="triples")) == [("q", ["p"], ["m", "n"]), ("r", ["p"], ["n"])]


# ---- several files, parts of them, texts that must stay out ----


def test_several_files_are_one_store(run: Callable[..., ExampleStore], tmp_path: Path) -> None:
    one = put(tmp_path / "a.jsonl", jsonl({"query": "q", "positive": "p"}, {"query": "r", "positive": "p"}))
    two = put(tmp_path / "b.tsv", table(("query", "positive"), ("q", "p"), ("s", "p")))
    store = run(one, two)
    assert [query for query, _, _ in found(store)] == ["q", "r", "s"]
    assert store.about["dropped"] == {"duplicate": 1}
    assert [query for query, _, _ in found(run(one, two, limit=2))] == ["q", "r"]


def test_what_is_kept_out_is_found_whatever_its_case_and_blanks(
    run: Callable[..., ExampleStore], tmp_path: Path
) -> None:
    path = put(tmp_path / "a.jsonl", jsonl(*({"query": q, "positive": p} for q, p in ("ab", "cd", "ef", "gh", "ij"))))
    dev = put(tmp_path / "dev.jsonl.gz", jsonl({"text": "  C. ", "more": [{"x": "F"}]}, {"text": "x h"}))
    store = run(path, exclude=(dev,))
    assert [query for query, _, _ in found(store)] == ["a", "g", "i"]
    assert store.about["dropped"] == {"text that is kept out": 2}


def test_long_texts_are_cut_at_the_end(
    tokenizer: UdeverTokenizer, run: Callable[..., ExampleStore], tmp_path: Path
) -> None:
    path = put(tmp_path / "a.jsonl", jsonl({"query": "fox", "positive": "the quick brown fox " * 50}))
    store = run(path, max_tokens=9)
    whole = tokenizer.encode([store.text(1)], role="document", max_tokens=10_000)[0][1:-1]
    assert store.token_ids(1) == whole[:7]
    assert store.text(1) == "the quick brown fox " * 50


# ---- what is wrong ----

BAD = [
    ("x.jsonl", jsonl({"query": "a", "pos": ["b"]}, {"query": "a", "pos": "b"}), "x.jsonl:2", "'pos' holds a string"),
    ("x.jsonl", jsonl({"query": "a", "pos": ["b"], "neg": "n"}), "x.jsonl:1", "'neg' holds a string where a list"),
    ("x.jsonl", jsonl({"query": "a", "positives": "b"}), "x.jsonl:1", "'positives' holds a string where a list"),
    ("x.jsonl", jsonl({"query": "a", "positive": ["b"]}), "x.jsonl:1", "'positive' holds a list where a text"),
    ("x.jsonl", jsonl({"query": "a", "pos": ["b", 7]}), "x.jsonl:1", "'pos' holds a number where a text"),
    ("x.jsonl", jsonl({"query": None, "positive": "b"}), "x.jsonl:1", "'query' holds nothing"),
    ("x.jsonl", jsonl({"query": "a", "positive": "b"}, {"query": "a"}), "x.jsonl:2", "no pair of columns"),
    ("x.jsonl", jsonl({"query": "a", "pos": ["b"], "neg": ["c"], "pos_scores": [1]}), "x.jsonl:1", "do not stand"),
    ("x.jsonl", jsonl({"query": "a", "pos": ["b"], "pos_scores": [1, 2]}), "x.jsonl:1", "2 scores for 1 texts"),
    ("x.jsonl", jsonl({"query": "a", "pos": ["b"], "pos_scores": "1"}), "x.jsonl:1", "no list of numbers"),
    ("x.jsonl", '{"query": "a", "pos": ["b"], "pos_scores": [NaN]}\n', "x.jsonl:1", "a score is not finite"),
    ("x.jsonl", jsonl({"query": "a", "pos": ["b"], "pos_scores": [True]}), "x.jsonl:1", "no list of numbers"),
    (
        "x.jsonl",
        jsonl({"query": "a", "positive_passages": [{"text": "b"}]}, {"query": "a", "positive_pasages": []}),
        "x.jsonl:2",
        "there is no 'positive_passages'",
    ),
    ("x.jsonl", jsonl({"query": "a", "positive_passages": "b"}), "x.jsonl:1", "a string where a list of passages"),
    ("x.jsonl", jsonl({"query": "a", "positive_passages": ["b"]}), "x.jsonl:1", "a string where a passage"),
    ("x.jsonl", jsonl({"query": "a", "positive_passages": [{"docid": 1}]}), "x.jsonl:1", "there is no 'text'"),
    ("x.jsonl", '{"query": "a", "positive": "\\ud800"}\n', "x.jsonl:1", "lone surrogate U+D800"),
    ("x.jsonl", jsonl({"query": "a", "positive": "b"}) + "{oops\n", "x.jsonl:2", "not JSON"),
    ("x.jsonl", jsonl({"query": "a", "positive": "b"}) + "[1]\n", "x.jsonl:2", "not a JSON object"),
    ("x.jsonl.gz", jsonl({"query": "a", "positive": "b"}).encode() + b"\xff\n", "x.jsonl.gz:2", "not UTF-8"),
    ("x.tsv", "query\tpositive\na\tb\na\tb\tc\n", "x.tsv:3", "3 columns where the header has 2"),
    ("x.csv", 'query,positive\na,b\n"a\n', "x.csv:3", "quote"),
    ("x.jsonl", jsonl({"sentence1": "a", "sentence2": "b", "score": 0.7}), "x.jsonl:1", "pass --min-score"),
    ("x.jsonl", jsonl({"sentence1": "a", "sentence2": "b", "label": 0.7}), "x.jsonl:1", "pass --min-score"),
    ("x.tsv", table(("premise", "hypothesis", "label"), ("a", "b", "e"), ("a", "b", "?")), "x.tsv:3", "label is '?'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "place", "said"), BAD)
def test_a_bad_row_is_named(
    name: str, content: Any, place: str, said: str, run: Callable[..., ExampleStore], tmp_path: Path
) -> None:
    path = put(tmp_path / name, content)
    with pytest.raises(ExamplesError) as caught:
        run(path)
    assert str(path.parent / place) + ":" in str(caught.value)
    assert said in str(caught.value)
    assert [each.name for each in tmp_path.iterdir()] == [name], "nothing half-written"


def test_bad_rows_can_be_skipped_and_are_counted(run: Callable[..., ExampleStore], tmp_path: Path) -> None:
    content = (
        jsonl({"query": "a", "pos": ["b"]}, {"query": "a", "pos": "b"}) + "{\n" + jsonl({"query": "c", "pos": ["d"]})
    )
    reading = Reading(skip_bad=True)
    store = run(put(tmp_path / "x.jsonl", content), reading=reading)
    assert [query for query, _, _ in found(store)] == ["a", "c"]
    assert store.about["dropped"] == {"bad row": 2}
    assert [place.split(": ")[0].rpartition("/")[2] for place in reading.bad] == ["x.jsonl:2", "x.jsonl:3"]


def test_ids_without_texts_are_named(marco: dict[str, Path], run: Callable[..., ExampleStore], tmp_path: Path) -> None:
    for row, said in (({"qid": 100, "pos": [99], "neg": {}}, "'99'"), ({"qid": 101, "pos": [1], "neg": {}}, "'101'")):
        path = put(tmp_path / "hard.jsonl", jsonl(row))
        with pytest.raises(ExamplesError, match=f"hard.jsonl:1: .* has no {said}"):
            run(path, ms_marco=Sources(**marco))
    for row in ({"qid": 100, "pos": 1, "neg": {}}, {"qid": 100, "pos": [1], "neg": {"bm25": "2"}}):
        with pytest.raises(ExamplesError, match=r"hard\.jsonl:1: "):
            run(put(tmp_path / "hard.jsonl", jsonl(row)), ms_marco=Sources(**marco), format="msmarco")
    for name, content in (("collection", "1 no tab\n"), ("queries", "")):
        broken = marco | {name: put(tmp_path / "broken.tsv", content)}
        with pytest.raises(ExamplesError, match=r"broken\.tsv"):
            run(put(tmp_path / "hard.jsonl", jsonl(HARD[0])), ms_marco=Sources(**broken))


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.parquet"])
def test_a_cut_off_file_is_an_error(name: str, run: Callable[..., ExampleStore], tmp_path: Path) -> None:
    path = tmp_path / name
    rows = [{"query": f"query {i}", "positive": f"p {i * 7919 % 1000}"} for i in range(3000)]
    if name.endswith("gz"):
        put(path, jsonl(*rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ExamplesError, match="damaged or cut off"):
        run(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "x.tsv",
            table(("s1", "s2", "score0-5"), ("a", "b", 1)),
            ["'s1', 's2', 'score0-5'", "--columns", "flagembedding"],
        ),
        ("x.jsonl", jsonl({"query": "a", "positive": "b", "anchor": "c"}), ["several pairs"]),
        ("x.jsonl", "", ["columns are none"]),
        ("x.txt", "hello", ["no way to tell", ".jsonl"]),
        ("x.parquet.gz", "hello", ["no way to tell"]),
        ("x.tsv", "query\tquery\na\tb\n", ["two columns are called 'query'"]),
    ],
)
def test_what_cannot_be_guessed_says_what_was_found(
    name: str, content: str, said: list[str], run: Callable[..., ExampleStore], tmp_path: Path
) -> None:
    with pytest.raises(ExamplesError) as caught:
        run(put(tmp_path / name, content))
    assert all(part in str(caught.value) for part in [name, *said]), caught.value


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": "xml"}, "xml"),
        ({"max_tokens": 2}, "max_tokens is 2"),
        ({"limit": 0}, "limit is 0"),
        ({"negatives": -1}, "negatives is -1"),
        ({"columns": ("query",)}, "one column"),
        ({"format": "msmarco"}, "--collection"),
        ({"contradictions": True}, "no contradictions"),
        ({"min_score": 1.0}, "no score"),
        ({"pivot": "fr"}, "no languages"),
        ({"format": "nli", "task": "x{lang}"}, "plain --task"),
    ],
)
def test_options_that_do_not_fit(
    options: dict[str, Any], said: str, run: Callable[..., ExampleStore], tmp_path: Path
) -> None:
    path = put(tmp_path / "x.jsonl", jsonl({"query": "a", "positive": "b"}))
    with pytest.raises(OptionError) as caught:
        run(path, **options)
    assert said in str(caught.value)


def test_missing_inputs_are_named_before_any_work(run: Callable[..., ExampleStore], tmp_path: Path) -> None:
    with pytest.raises(ExamplesError, match=r"nowhere.tsv does not exist"):
        run(tmp_path / "nowhere.tsv")
    with pytest.raises(ExamplesError, match="is a folder"):
        run(tmp_path)


def test_every_format_is_described() -> None:
    assert all(format_.summary for format_ in FORMATS.values())
    assert len(FORMATS) == 8


def test_a_tokenizer_by_name_or_folder(tiny_tokenizer_path: Path, tmp_path: Path) -> None:
    assert tokenizer_of("udever-nano").digest == tokenizer_of("udever-nano").digest
    bare = json.loads(tiny_tokenizer_path.read_text("utf-8"))
    bare["added_tokens"] = [token for token in bare["added_tokens"] if not token["content"].startswith("[")]
    (tmp_path / "tokenizer.json").write_text(json.dumps(bare))
    assert tokenizer_of(str(tmp_path)).digest == tokenizer_of(str(tiny_tokenizer_path.parent)).digest


def test_progress_reaches_the_end(tokenizer: UdeverTokenizer, tmp_path: Path) -> None:
    seen: list[int] = []
    path = put(tmp_path / "x.jsonl.gz", jsonl(*({"query": f"q{i}", "positive": f"p{i}"} for i in range(2000))))
    dev = put(tmp_path / "dev.jsonl", jsonl({"x": "y"}))
    choices = Choices(task="t", reading=Reading(on_bytes=seen.append))
    job = ImportJob(inputs=(path,), choices=choices, exclude=(dev,))
    import_examples(job, tmp_path / "s", tokenizer=tokenizer)
    assert seen == sorted(seen)
    assert seen[-1] == job.total_bytes()
