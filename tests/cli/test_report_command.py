"""`udever report` as a shell sees it."""

import json
from pathlib import Path
from typing import Any

import pytest

from udever.cli import ERROR, USAGE
from udever.evaluation import results
from udever.evaluation.reports import files as report_files
from udever.evaluation.results import Result, Score


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """Results of two protocols."""
    folder = tmp_path / "results"
    base: dict[str, Any] = {"model": "udever-nano", "fingerprint": "a1b2"}
    languages = ("go", "ruby", "python", "java", "javascript", "php")
    scores = tuple(Score(metric="mrr", value=0.5, count=1000, subset=language) for language in languages)
    results.write(folder, Result(task="codesearchnet", protocol="codesearchnet-1k", scores=scores, **base))
    scores = tuple(Score(metric="accuracy", value=0.25, count=9, subset=f"l{index}") for index in range(40))
    results.write(folder, Result(task="flores", protocol="suite:own", scores=scores, **base))
    return folder


def test_tables_on_the_terminal_and_files_in_a_folder(udever: Any, measured: Path, tmp_path: Path) -> None:
    outcome = udever("report", measured, "--output", tmp_path / "out")
    assert outcome.code == 0
    assert "CodeSearchNet" in outcome.out
    assert "udever-bloom-560m" in outcome.out
    assert "75.38" in outcome.out
    assert "Protocol: codesearchnet-1k" in outcome.out
    assert "Longer tables stand in report.md: suite:own: flores" in outcome.out
    assert "7 files" in outcome.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "figures", "report.csv", "report.json", "report.md",
    ]  # fmt: skip


def test_json_is_one_object_on_stdout(udever: Any, measured: Path) -> None:
    outcome = udever("report", measured, "--against", "CodeBERT, izhx/udever-bloom-3b", "--json")
    content = json.loads(outcome.out)
    rows = [row["name"] for row in content["tables"][0]["rows"]]
    assert rows == ["udever-nano", "CodeBERT", "udever-bloom-3b"]
    assert outcome.err == ""


def test_against_none_shows_only_what_was_measured(udever: Any, measured: Path) -> None:
    content = json.loads(udever("report", measured, "--against", "none", "--json").out)
    assert {row["kind"] for table in content["tables"] for row in table["rows"]} == {"measured"}


def test_without_results_the_published_tables(udever: Any) -> None:
    outcome = udever("report")
    assert outcome.code == 0
    assert "58.28" in outcome.out
    assert "What generic loading does to Udever" in outcome.out
    assert "None" not in outcome.out


def test_an_unknown_model_is_wrong_usage_and_lists_the_names(udever: Any, measured: Path) -> None:
    outcome = udever("report", measured, "--against", "udever-bloom-1b1,gpt-2")
    assert outcome.code == USAGE
    assert outcome.out == ""
    assert outcome.err.startswith("error: no published numbers of 'gpt-2' (")
    assert "text-embedding-ada-002" in outcome.err


def test_broken_results_are_an_error_and_nothing_is_written(udever: Any, measured: Path, tmp_path: Path) -> None:
    (measured / "broken.json").write_text("{")
    outcome = udever("report", measured, "--output", tmp_path / "out")
    assert outcome.code == ERROR
    assert "broken.json: no readable JSON" in outcome.err
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_the_tables_come_and_one_line_says_why_no_figures(
    udever: Any, measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_files, "has_figures", lambda: False)
    outcome = udever("report", measured, "--output", tmp_path / "out")
    assert outcome.code == 0
    assert "no figures: they need matplotlib (pip install 'udever[eval]')" in outcome.err
    assert not (tmp_path / "out" / "figures").exists()
    assert "![" not in (tmp_path / "out" / "report.md").read_text()
