"""`udever data`: files in, a store out, and what is said about it."""

import gzip
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from udever.training.data.examples import ExampleStore
from udever.training.data.sampler import Mixture, Sampler

ROWS = [
    {"query": "fox?", "pos": ["a quick fox"], "neg": ["a lazy dog", "山"], "pos_scores": [2], "neg_scores": [1, 0.5]},
    {"query": "zorro", "pos": ["el zorro", "zorro"], "lang": "es"},
    {"query": "", "pos": ["nothing"]},
    {"query": "dog?", "pos": ["the dog " * 20]},
]


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    path = tmp_path / "animals.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    return path


def test_import_makes_a_store_and_says_what_it_dropped(
    examples: Path, tmp_path: Path, udever: Callable, tiny: tuple[str, str]
) -> None:
    outcome = udever("data", "import", examples, *tiny, "-o", tmp_path / "store", "--max-tokens", 20)
    assert (outcome.code, outcome.out) == (0, ""), outcome.err
    assert "dropped 1 × empty query" in outcome.err
    assert "cut 1 texts to 20 tokens" in outcome.err
    assert "3 examples, 8 texts" in outcome.err
    assert "(flagembedding)" in outcome.err
    store = ExampleStore.open(tmp_path / "store")
    assert (len(store), store.max_tokens, list(store.tasks)) == (3, 20, ["animals"])
    assert len(Sampler(Mixture([store]), batch_size=3, seed=0).batch(0)) == 3


def test_json_is_what_info_says(examples: Path, tmp_path: Path, udever: Callable, tiny: tuple[str, str]) -> None:
    outcome = udever("data", "import", examples, *tiny, "-o", tmp_path / "s", "--task", "pets", "--json")
    summary = json.loads(outcome.out)
    assert (summary["examples"], summary["tasks"], summary["output"]) == (3, {"pets": 3}, str(tmp_path / "s"))
    told = json.loads(udever("data", "info", tmp_path / "s", "--json").out)
    assert told.items() <= summary.items()
    shown = udever("data", "info", tmp_path / "s").out
    assert all(part in shown for part in (told["digest"], "pets 3", "animals.jsonl.gz", "flagembedding", "empty query"))


def test_show_prints_the_examples(examples: Path, tmp_path: Path, udever: Callable, tiny: tuple[str, str]) -> None:
    udever("data", "import", examples, *tiny, "-o", tmp_path / "s", "--symmetric")
    shown = udever("data", "show", tmp_path / "s", "--count", 2).out
    assert shown.splitlines() == [
        "0  animals, symmetric",
        "  query     fox?",
        "  positive  2  a quick fox",
        "  negative  1  a lazy dog",
        "  negative  0.5  山",
        "1  animals, symmetric",
        "  query     zorro",
        "  positive  el zorro",
    ]
    rows = [
        json.loads(line) for line in udever("data", "show", tmp_path / "s", "--first", 1, "--json").out.splitlines()
    ]
    assert [row["query"] for row in rows] == ["zorro", "dog?"]
    assert rows[1]["positives"] == ["the dog " * 20]
    assert udever("data", "show", tmp_path / "s", "--count", 0).code == 2


def test_every_option_reaches_the_import(tmp_path: Path, udever: Callable, tiny: tuple[str, str]) -> None:
    (tmp_path / "c.tsv").write_text("".join(f"{i}\tpassage {i}\n" for i in range(9)))
    (tmp_path / "q.tsv").write_text("1\tfirst\n2\tsecond\n3\tthird\n")
    (tmp_path / "s.tsv").write_text("".join(f"1\t{i}\t{-i}\n" for i in range(9)))
    rows = [{"qid": qid, "pos": [0], "neg": {"a": [1, 2, 3, 4], "b": [5, 6, 7]}} for qid in (1, 2, 3)]
    (tmp_path / "h.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "oops\n")
    (tmp_path / "dev.jsonl").write_text('{"x": "Second."}\n')
    files = ("--collection", tmp_path / "c.tsv", "--queries", tmp_path / "q.tsv", "--scores", tmp_path / "s.tsv")
    chosen = (
        "--margin",
        2,
        "--per-system",
        2,
        "--systems",
        "a,b",
        "--negatives",
        3,
        "--exclude",
        tmp_path / "dev.jsonl",
    )
    outcome = udever("data", "import", tmp_path / "h.jsonl", *tiny, "-o", tmp_path / "s", *files, *chosen, "--skip-bad")
    assert outcome.code == 0, outcome.err
    assert "h.jsonl:4: not JSON" in outcome.err
    rows = [json.loads(line) for line in udever("data", "show", tmp_path / "s", "--json").out.splitlines()]
    assert [(row["query"], row["negatives"]) for row in rows] == [
        ("first", ["passage 2", "passage 5", "passage 3"]),
        ("third", []),
    ]
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("lang,en,fr,label\nx,the fox,le renard,0.9\ny,the dog,le chien,0.2\n")
    options = ("--columns", "fr,en", "--format", "labelled", "--min-score", 0.5, "--task", "{lang}", "--limit", 1)
    assert udever("data", "import", pairs, *tiny, "-o", tmp_path / "p", *options, "--no-symmetric").code == 0
    (row,) = map(json.loads, udever("data", "show", tmp_path / "p", "--json").out.splitlines())
    assert (row["query"], row["positives"], row["task"], row["symmetric"]) == ("le renard", ["the fox"], "x", False)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "no file"),
        (("nowhere.jsonl",), 1, "nowhere.jsonl does not exist"),
        (("FILE", "--format", "xml"), 2, "xml"),
        (("FILE", "--max-tokens", "1"), 2, "max_tokens is 1"),
        (("FILE", "--collection", "c.tsv"), 2, "--queries"),
        (("FILE", "--limit", "0"), 2, "limit is 0"),
        (("FILE", "--model", "no-such-model-anywhere"), 1, "no-such-model-anywhere"),
    ],
)
def test_refusals(
    arguments: tuple[str, ...], code: int, said: str, examples: Path, udever: Callable, tiny: tuple[str, str]
) -> None:
    given = [str(examples) if argument == "FILE" else argument for argument in arguments]
    model = () if "--model" in given else tiny
    outcome = udever("data", "import", *given, *model, "-o", examples.with_name("s"))
    assert (outcome.code, outcome.out) == (code, ""), outcome.err
    assert said in outcome.err
    assert outcome.err.count("\n") == 1
    assert [path.name for path in examples.parent.iterdir()] == [examples.name]


def test_a_store_is_replaced_only_on_demand(
    examples: Path, tmp_path: Path, udever: Callable, tiny: tuple[str, str]
) -> None:
    command = ("data", "import", examples, *tiny, "-o", tmp_path / "s")
    assert udever(*command).code == 0
    refused = udever(*command)
    assert (refused.code, "--overwrite" in refused.err) == (1, True)
    assert udever(*command, "--overwrite", "--limit", 1).code == 0
    assert len(ExampleStore.open(tmp_path / "s")) == 1


def test_progress_is_a_bar_on_stderr(examples: Path, tmp_path: Path, udever: Callable, tiny: tuple[str, str]) -> None:
    outcome = udever("data", "import", examples, *tiny, "-o", tmp_path / "a", "--progress")
    assert (outcome.code, outcome.out) == (0, "")
    assert "100%" in outcome.err
    assert "100%" not in udever("data", "import", examples, *tiny, "-o", tmp_path / "b").err


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_killed_import_leaves_nothing(
    number: signal.Signals, code: int, tmp_path: Path, tiny: tuple[str, str], interrupted: Callable
) -> None:
    inputs, outputs = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    outputs.mkdir()
    rows = "".join(f"query {i}\tthe passage {i * 7919}\n" for i in range(400_000))
    (inputs / "x.tsv").write_text("query\tpositive\n" + rows)
    outcome = interrupted(
        ["data", "import", inputs / "x.tsv", *tiny, "-o", outputs / "s"],
        lambda: bool(list(outputs.glob(".s.*.tmp/texts.arrow"))),
        number,
    )
    assert (outcome.code, outcome.err) == (code, "interrupted\n" if number == signal.SIGINT else "")
    assert list(outputs.iterdir()) == []
