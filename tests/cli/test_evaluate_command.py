"""`udever evaluate`: real runs, what they print and keep, and one clear line when something is wrong."""

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from udever.cli.evaluate import app
from udever.evaluation import results

SUITE = """
name = "mine"

[[task]]
kind = "bitext"
name = "sentences"
file = "bitext.tsv"
pivot = "en"

[[task]]
kind = "code"
name = "functions"
file = "code.jsonl"
"""
BITEXT = "en\tes\tfr\nGood morning.\tBuenos días.\tBonjour.\nThe dog runs.\tEl perro corre.\tLe chien court.\n"
VERBS = ("open", "close", "read", "write")


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A suite of two small tasks."""
    (tmp_path / "suite.toml").write_text(SUITE, "utf-8")
    (tmp_path / "bitext.tsv").write_text(BITEXT, "utf-8")
    rows = ({"doc": f"{verb} a file", "code": f"def {verb}(path): …"} for verb in VERBS)
    (tmp_path / "code.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return tmp_path / "suite.toml"


def test_a_suite_prints_a_table_and_keeps_a_file_a_task(udever: Callable, suite: Path, tmp_path: Path) -> None:
    outcome = udever("evaluate", "suite", suite, "--output", tmp_path / "results")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert "udever-nano, suite:mine" in lines[0]
    assert lines[1].split() == ["task", "metric", "x", "100", "of", "udever-nano", "bm25", "random"]
    assert any(line.startswith("sentences, mean of 2") for line in lines)
    assert any(line.split()[:2] == ["es", "2"] for line in lines)
    (functions,) = (line.split() for line in lines if line.startswith("functions"))
    assert functions[1:3] == ["mrr", "4"]
    assert functions[5] == "52.1", "chance: (1 + 1/2 + 1/3 + 1/4) / 4"
    files = sorted(path.name for path in (tmp_path / "results").rglob("*.json"))
    assert files == ["functions.json", "sentences.json"]
    assert "sentences: " in outcome.err
    assert "results in " in outcome.err


def test_a_second_run_says_that_it_measured_nothing(udever: Callable, suite: Path, tmp_path: Path) -> None:
    first = udever("evaluate", "suite", suite, "--output", tmp_path / "results")
    second = udever("evaluate", "suite", suite, "--output", tmp_path / "results")
    assert second.out == first.out
    assert second.err.count("measured before") == 2
    forced = udever("evaluate", "suite", suite, "--output", tmp_path / "results", "--force")
    assert "measured before" not in forced.err


def test_json_holds_every_score_and_its_protocol(udever: Callable, suite: Path, tmp_path: Path) -> None:
    arguments = ("evaluate", "suite", suite, "--task", "functions", "--json", "--dimensions", 64)
    outcome = udever(*arguments, "--output", tmp_path / "results")
    (result,) = json.loads(outcome.out)["results"]
    assert (result["task"], result["protocol"], result["model"]) == ("functions", "suite:mine", "udever-nano")
    assert [score["system"] for score in result["scores"]] == ["model", "bm25", "random"]
    assert result["settings"]["dimensions"] == 64
    assert not result["reused"]
    assert results.read(Path(result["path"])).scores[0].value == result["scores"][0]["value"]
    without = udever(*arguments)
    assert json.loads(without.out)["results"][0]["path"] is None
    assert "nothing was kept" in without.err


def test_many_subsets_stand_below_the_table(udever: Callable, suite: Path) -> None:
    languages = "\t".join(f"l{number}" for number in range(20))
    cells = "\t".join(["Hallo."] * 20)
    (suite.parent / "bitext.tsv").write_text(f"en\t{languages}\nHello.\t{cells}\n", "utf-8")
    out = udever("evaluate", "suite", suite, "--task", "sentences").out
    table, below = out.split("\nsentences\n")
    assert "mean of 20" in table
    assert "l19" not in table
    assert "l19 100.0" in below


def test_code_local_needs_no_data(udever: Callable) -> None:
    arguments = ("--package", "cyclopts", "--candidates", 20, "--rounds", 1, "--max-tokens", 48)
    outcome = udever("evaluate", "code-local", *arguments, "--json")
    assert outcome.code == 0
    (result,) = json.loads(outcome.out)["results"]
    assert (result["task"], result["protocol"]) == ("cyclopts", "code-local-20")
    model, bm25, random = (score["value"] for score in result["scores"])
    assert min(model, bm25) > random
    assert (
        json.loads(udever("evaluate", "code-local", *arguments, "--json").out)["results"][0]["scores"]
        == result["scores"]
    )


def test_codesearchnet_and_multi_cpr_read_their_layouts(udever: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "go" / "final" / "jsonl" / "test"
    folder.mkdir(parents=True)
    rows = ({"docstring_tokens": [verb, "it"], "code_tokens": ["func", verb, "()"]} for verb in VERBS)
    (folder / "go_test_0.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    go = udever("evaluate", "codesearchnet", "--data", tmp_path, "--language", "go", "--candidates", 4)
    assert "codesearchnet-4" in go.out
    (tmp_path / "ecom").mkdir()
    (tmp_path / "ecom" / "corpus.tsv").write_text("1\t红色手机\n2\t黑色鞋子\n", "utf-8")
    (tmp_path / "ecom" / "dev.query.txt").write_text("7\t手机\n", "utf-8")
    (tmp_path / "ecom" / "qrels.dev.tsv").write_text("7\t0\t1\t1\n", "utf-8")
    ecom = udever("evaluate", "multi-cpr", "--data", tmp_path, "--domain", "ecom", "--sampled")
    assert "multi-cpr-sampled" in ecom.out
    refused = udever("evaluate", "multi-cpr", "--data", tmp_path, "--domain", "ecom")
    assert (refused.code, refused.out) == (1, "")
    assert "--sampled" in refused.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["code-local", "--package", "no_such_package"], 1, "no Python package 'no_such_package'"),
        (["code-local", "--package", "cyclopts"], 1, "too few for a round of 1,000"),
        (["code-local", "--package", "cyclopts", "--candidates", "1"], 1, "ranks nothing"),
        (["code-local", "--rounds", "0"], 2, "--rounds is 0"),
        (["code-local", "--seed=-1"], 2, "--seed is -1"),
        (["code-local", "--seed", str(2**32)], 2, "--seed is 4294967296"),
        (["codesearchnet"], 2, "--data"),
        (["codesearchnet", "--data", ".", "--language", "rust"], 2, "no language 'rust'"),
        (["multi-cpr", "--data", ".", "--domain", "news"], 2, "no domain 'news'"),
        (["suite", "nowhere.toml"], 1, "nowhere.toml"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: list[str], code: int, said: str, udever: Callable) -> None:
    outcome = udever("evaluate", *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert said in outcome.err
    assert outcome.err.count("\n") == 1


def test_mistakes_in_the_data_come_before_the_model_is_loaded(udever: Callable, suite: Path) -> None:
    (suite.parent / "code.jsonl").write_text("{}\n", "utf-8")
    outcome = udever("evaluate", "suite", suite, "--model", "no/such/model")
    assert "no column 'doc'" in outcome.err


@pytest.mark.parametrize(("option", "said"), [("--dimensions", "100 dimensions"), ("--max-tokens", "max_tokens")])
def test_options_the_model_has_not_are_refused_before_anything_is_measured(
    option: str, said: str, udever: Callable, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("udever.evaluation.runner.run", lambda *_, **__: pytest.fail("it began"))
    value = {"--dimensions": 100, "--max-tokens": 9999}[option]
    outcome = udever("evaluate", "suite", suite, option, value, "--output", tmp_path / "results")
    assert outcome.code == 2
    assert said in outcome.err
    assert not (tmp_path / "results").exists()


def test_another_seed_is_kept_beside_the_first_one(udever: Callable, tmp_path: Path) -> None:
    arguments = ("--package", "cyclopts", "--candidates", 20, "--rounds", 1, "--max-tokens", 48)
    for seed in (0, 1, 0):
        outcome = udever("evaluate", "code-local", *arguments, "--seed", seed, "--output", tmp_path / "results")
    assert "measured before" in outcome.err
    names = sorted(path.name for path in (tmp_path / "results").rglob("*.json"))
    assert len(names) == 2
    assert names[1] == "cyclopts.json"
    report = udever("report", tmp_path / "results", "--against", "none")
    assert "measured with other seed" in report.out
    assert "code-local-20 #2" in report.out


def test_the_bar_is_on_stderr(udever: Callable, suite: Path) -> None:
    shown, hidden = (udever("evaluate", "suite", suite, flag) for flag in ("--progress", "--no-progress"))
    assert shown.out == hidden.out
    assert "sentences" in shown.err


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to another process there")
def test_ctrl_c_keeps_the_finished_tasks_only(suite: Path, tmp_path: Path, interrupted: Callable) -> None:
    long = "".join(json.dumps({"doc": f"number {i}", "code": f"{i} is a number " * 40}) + "\n" for i in range(20_000))
    (suite.parent / "code.jsonl").write_text(long, "utf-8")
    finished = tmp_path / "results" / "udever-nano" / "suite_mine" / "sentences.json"
    outcome = interrupted(
        ["evaluate", "suite", suite, "--output", tmp_path / "results", "--no-progress"], finished.exists
    )
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err.splitlines()[-1] == "interrupted"
    assert [path.name for path in (tmp_path / "results").rglob("*") if path.is_file()] == ["sentences.json"]


def test_every_kind_of_measurement_is_a_command() -> None:
    assert {name for name in app if not name.startswith("-")} == {
        "suite",
        "code-local",
        "codesearchnet",
        "multi-cpr",
        "mteb",
    }
