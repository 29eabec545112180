"""Result files → tables, files and figures."""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udever.catalog.published import author_tasks, benchmarks, models
from udever.errors import ResultFileError
from udever.evaluation import results
from udever.evaluation.reports import files as report_files
from udever.evaluation.reports.gather import gather
from udever.evaluation.reports.mteb_tasks import FORUMS, TASKS, split_of, subset_of
from udever.evaluation.reports.report import Report, build
from udever.evaluation.reports.tables import Cell, Row, Table, grid
from udever.evaluation.results import Result, Score

NANO = Result(task="", protocol="suite:own", model="udever-nano", fingerprint="a1b2c3d4e5", scores=())
LANGUAGES = ("go", "ruby", "python", "java", "javascript", "php")


def keep(folder: Path, task: str, *scores: Score, base: Result = NANO, **changes: Any) -> Path:
    return results.write(folder, replace(base, task=task, scores=scores, **changes))


def score(value: float, subset: str = "", *, metric: str = "accuracy", system: str = "model", **more: float) -> Score:
    return Score(metric=metric, value=value, count=10, subset=subset, system=system, metrics=more)


def keep_mteb(
    folder: Path,
    task: str,
    subsets: Mapping[str, Mapping[str, Any]],
    *,
    model: str = "some/model",
    split: str = "",
    **more: Any,
) -> Path:
    """As mteb writes it: results/NAME/REVISION/TASK.json beside model_meta.json."""
    place = folder / "results" / model.replace("/", "__") / "rev1"
    place.mkdir(parents=True, exist_ok=True)
    (place / "model_meta.json").write_text(json.dumps({"name": model, "revision": "rev1", "n_parameters": 1}))
    entries = [{"hf_subset": name, "languages": ["eng-Latn"], **values} for name, values in subsets.items()]
    content = {"task_name": task, "mteb_version": "2.26.0", "dataset_revision": "x", "evaluation_time": 1.0}
    path = place / f"{task}.json"
    path.write_text(json.dumps(content | {"scores": {split or split_of(task): entries}} | more))
    return path


def keep_all_56(folder: Path, *, without: Sequence[str] = (), **more: Any) -> None:
    for index, task in enumerate(task for task in TASKS if task not in without):
        keep_mteb(folder, task, {subset_of(task): {"main_score": 0.3 + index / 100}}, **more)


def made(*paths: Path, against: Sequence[str] = ()) -> Report:
    return build(gather(paths), against=against)


def table(report: Report, name: str) -> Table:
    return next(each for each in report.tables if each.id == name)


def values(shown: Table) -> dict[str, dict[str, float | None]]:
    return {
        row.name: {column: cell.value for column, cell in zip(shown.columns, row.cells, strict=True)}
        for row in shown.rows
    }


# What is compared with what


def test_a_measured_score_stands_beside_published_ones_of_its_own_protocol_only(tmp_path: Path) -> None:
    keep(tmp_path, "stdlib", score(0.5, "python", metric="mrr"), protocol="code-local-1k")
    keep(tmp_path, "go", score(0.6, "go", metric="mrr"), protocol="codesearchnet-200")
    report = made(tmp_path, against=tuple(models()))
    assert [each.protocol for each in report.tables] == ["code-local-1k", "codesearchnet-200"]
    assert {row.kind for each in report.tables for row in each.rows} == {"measured"}


def test_codesearchnet_beside_the_published_numbers(tmp_path: Path) -> None:
    scores = [score(index / 10, name, metric="mrr") for index, name in enumerate(LANGUAGES, 1)]
    keep(
        tmp_path, "codesearchnet", *scores, score(0.01, "go", metric="mrr", system="bm25"), protocol="codesearchnet-1k"
    )
    shown = table(made(tmp_path, against=("udever-bloom-560m", "CodeBERT")), "codesearchnet")
    assert [(row.name, row.kind) for row in shown.rows] == [
        ("udever-nano", "measured"), ("udever-bloom-560m", "published"), ("CodeBERT", "published"),
        ("BM25", "baseline"),
    ]  # fmt: skip
    assert values(shown)["udever-nano"] == pytest.approx(
        {"Go": 10, "Ruby": 20, "Python": 30, "Java": 40, "JavaScript": 50, "PHP": 60, "Average": 35}
    )
    assert values(shown)["udever-bloom-560m"]["Go"] == 75.38
    assert any("shifted columns" in note for note in shown.notes)


def test_a_language_that_is_missing_leaves_no_average(tmp_path: Path) -> None:
    for name in LANGUAGES[:5]:  # a task a language does as well as a subset a language
        keep(tmp_path, name, score(0.5, metric="mrr"), protocol="codesearchnet-1k")
    average = table(made(tmp_path), "codesearchnet").rows[0].cells[-1]
    assert average == Cell(value=None, note="5/6")
    assert average.text(2) == "– 5/6"


def test_multi_cpr_keeps_the_scale_of_its_sources(tmp_path: Path) -> None:
    both = score(0.0612, metric="mrr@10", **{"recall@1000": 0.4})
    keep(tmp_path, "medical", both, protocol="multi-cpr")
    report = made(tmp_path, against=("udever-bloom-3b",))
    assert values(table(report, "multi-cpr"))["udever-nano"] == {"ecom": None, "video": None, "medical": 0.0612}
    assert values(table(report, "multi-cpr"))["udever-bloom-3b"]["medical"] == 0.288
    assert values(table(report, "multi-cpr-recall"))["udever-nano"]["medical"] == 0.4
    assert table(report, "multi-cpr").scale == 1


def test_a_subset_that_no_published_table_has_is_named(tmp_path: Path) -> None:
    keep(
        tmp_path, "csn", score(0.5, "go", metric="mrr"), score(0.5, "cobol", metric="mrr"), protocol="codesearchnet-1k"
    )
    assert table(made(tmp_path), "codesearchnet").notes == (
        "udever-nano: cobol has no column here and is left out.",
    )  # fmt: skip


def test_without_results_the_published_tables_stand_alone() -> None:
    report = build(gather([]), against=("udever-bloom-1b1",))
    assert [each.id for each in report.tables] == ["mteb-eng-v1", "codesearchnet", "multi-cpr", "loading"]


def test_other_data_or_settings_are_not_comparable(tmp_path: Path) -> None:
    for name, data in (("one", "x"), ("two", "x"), ("three", "y")):
        keep(tmp_path, "sts", score(0.5), model=name, settings={"data": data, "dimensions": 64})
    report = made(tmp_path)
    assert {row.name for row in table(report, "suite:own").rows} == {"one", "two"}
    assert {row.name for row in table(report, "suite:own #2").rows} == {"three"}
    assert report.notes == ("suite:own / sts: measured with other data: not comparable, shown as #2.",)


def test_rows_of_one_name_are_told_apart_by_what_they_differ_in(tmp_path: Path) -> None:
    runs = (("udv1-ffff00001111", 256, 0.5), ("udv1-ffff00001111", 64, 0.4), ("udv1-eeee00001111", 256, 0.3))
    for fingerprint, dimensions, value in runs:  # all in one folder
        changes = {"fingerprint": fingerprint, "settings": {"dimensions": dimensions, "max_tokens": 512}}
        keep(tmp_path, "sts", score(value), **changes)
    rows = values(table(made(tmp_path), "suite:own"))
    assert rows == {
        "udever-nano @udv1-ffff0000 256 dimensions": {"sts": 50.0},
        "udever-nano @udv1-ffff0000 64 dimensions": {"sts": 40.0},
        "udever-nano @udv1-eeee0000 256 dimensions": {"sts": 30.0},
    }


def test_fingerprints_that_begin_alike_are_shown_as_far_as_they_differ(tmp_path: Path) -> None:
    for fingerprint, value in (("udv1-ffff00001111", 0.5), ("udv1-ffff00001222", 0.4)):
        keep(tmp_path, "sts", score(value), fingerprint=fingerprint)
    rows = values(table(made(tmp_path), "suite:own"))
    assert rows == {"udever-nano @udv1-ffff000011": {"sts": 50.0}, "udever-nano @udv1-ffff000012": {"sts": 40.0}}


def test_a_run_of_fewer_rounds_is_a_table_of_its_own_and_of_two_the_newer_comes_first(tmp_path: Path) -> None:
    for rounds, value, day in ((4, 0.6, 2), (1, 0.7, 1)):
        keep(tmp_path, "stdlib", score(value), settings={"rounds": rounds}, date=f"2026-01-0{day}T00:00:00+00:00")
    report = made(tmp_path)
    assert values(table(report, "suite:own")) == {"udever-nano": {"stdlib": 60.0}}
    assert values(table(report, "suite:own #2")) == {"udever-nano": {"stdlib": 70.0}}
    assert report.notes == ("suite:own / stdlib: measured with other rounds: not comparable, shown as #2.",)


def test_of_repeated_runs_the_newest_is_shown_and_the_reader_told(tmp_path: Path) -> None:
    for folder, value, day in (("a", 0.3, 1), ("b", 0.5, 3), ("c", 0.4, 2)):
        keep(tmp_path / folder, "sts", score(value), date=f"2026-01-0{day}T00:00:00+00:00")
    report = made(tmp_path)
    assert values(table(report, "suite:own")) == {"udever-nano": {"sts": 50.0}}
    assert "3 different results of suite:own / sts" in report.notes[0]
    assert made(tmp_path / "a", tmp_path / "a").notes == ()


# Suites


def test_a_mean_over_subsets_needs_all_of_them(tmp_path: Path) -> None:
    keep(tmp_path, "sts", score(0.2, "de"), score(0.4, "en"), score(0.9, "fr"))
    keep(tmp_path, "sts", score(0.2, "de"), score(0.4, "en"), model="other")
    keep(tmp_path, "retrieval", score(0.3, metric="ndcg@10"), score(0.2, metric="ndcg@10", system="bm25"))
    report = made(tmp_path)
    whole = table(report, "suite:own")
    assert whole.columns == ("sts, accuracy", "retrieval, ndcg@10") or whole.columns[::-1] == (
        "sts, accuracy",
        "retrieval, ndcg@10",
    )
    rows = values(whole)
    assert rows["udever-nano"] == pytest.approx({"sts, accuracy": 50, "retrieval, ndcg@10": 30})
    assert rows["other"] == {"sts, accuracy": None, "retrieval, ndcg@10": None}
    assert rows["BM25"] == {"sts, accuracy": None, "retrieval, ndcg@10": 20}
    assert whole.notes == ("sts: other lacks fr.",)
    by_language = table(report, "suite:own-sts")
    assert values(by_language)["other"] == {"de": 20.0, "en": 40.0, "fr": None}


def test_baselines_stand_once_and_below_every_model(tmp_path: Path) -> None:
    for model in ("one", "two"):
        keep(tmp_path, "search", score(0.3), score(0.2, system="bm25"), score(0.1, system="random"), model=model)
    rows = table(made(tmp_path), "suite:own").rows
    assert [(row.name, row.kind) for row in rows] == [
        ("one", "measured"), ("two", "measured"), ("BM25", "baseline"), ("random", "baseline"),
    ]  # fmt: skip


def test_wide_tables_are_turned(tmp_path: Path) -> None:
    keep(tmp_path, "flores", *(score(0.5, f"l{index}") for index in range(12)))
    lines = grid(table(made(tmp_path), "suite:own-flores"))
    assert lines[0] == ["", "udever-nano"]
    assert lines[12] == ["l11", "50.0"]


# MTEB


def test_mteb_means_beside_the_published_ones(tmp_path: Path) -> None:
    keep_all_56(tmp_path)
    report = made(tmp_path, against=("udever-bloom-1b1",))
    shown = table(report, "mteb-eng-v1")
    assert shown.notes == ()
    assert values(shown)["some/model"]["Average"] == pytest.approx(30 + 27.5)
    assert values(shown)["some/model"]["Summarisation"] == pytest.approx(30 + 55)
    assert values(shown)["udever-bloom-1b1"]["Average"] == 58.28
    assert values(table(report, "mteb-tasks"))["udever-bloom-1b1"]["STSBenchmark"] == 85.79


def test_missing_tasks_are_named_and_never_averaged_away(tmp_path: Path) -> None:
    keep_all_56(tmp_path, without=("STS22", "SummEval"))
    shown = table(made(tmp_path), "mteb-eng-v1")
    cells = dict(zip(shown.columns, shown.rows[0].cells, strict=True))
    assert cells["STS"] == Cell(value=None, note="9/10")
    assert cells["Summarisation"] == Cell()
    assert cells["Average"] == Cell(value=None, note="54/56")
    assert cells["Clustering"].value is not None
    assert shown.notes == (
        "some/model: no mean where a task is missing. Missing: STS22 (STS); all 1 of Summarisation.",
    )  # fmt: skip


def test_forums_count_as_cqadupstack_only_together(tmp_path: Path) -> None:
    for forum in FORUMS[:11]:
        keep_mteb(tmp_path, forum, {"default": {"main_score": 0.2}})
    keep_mteb(tmp_path, "NQ", {"default": {"main_score": 0.4}})
    assert FORUMS[11] in table(made(tmp_path), "mteb-eng-v1").notes[0]
    keep_mteb(tmp_path, FORUMS[11], {"default": {"main_score": 0.2}})
    retrieval = table(made(tmp_path), "mteb-eng-v1")
    assert dict(zip(retrieval.columns, retrieval.rows[0].cells, strict=True))["Retrieval"].note == "2/15"


def test_of_the_56_only_english_and_the_right_split_count(tmp_path: Path) -> None:
    keep_mteb(tmp_path, "STS17", {"ko-ko": {"main_score": 0.9}, "en-en": {"main_score": 0.5}})
    keep_mteb(tmp_path, "STS22", {"de": {"main_score": 0.9}})
    keep_mteb(tmp_path, "MSMARCO", {"default": {"main_score": 0.9}}, split="test")
    keep_mteb(tmp_path, "BUCC", {"de-en": {"main_score": 0.4}, "fr-en": {"main_score": 0.6}})
    report = made(tmp_path)
    assert [(c.value, c.note) for c in table(report, "mteb-eng-v1").rows[0].cells if c.note] == [
        (None, "1/56"),
        (None, "1/10"),
    ]
    assert values(table(report, "mteb-tasks"))["some/model"] == {
        "STS17": 50,
        "STS22": None,
        "BUCC": 50,
    }
    assert values(table(report, "mteb-STS17"))["some/model"] == {"ko-ko": 90, "en-en": 50}


def test_pair_classification_is_by_the_cosine(tmp_path: Path) -> None:
    keep_mteb(tmp_path, "TwitterURLCorpus", {"default": {"main_score": 0.9, "max_ap": 0.9, "cosine_ap": 0.8}})
    keep_mteb(tmp_path, "TwitterSemEval2015", {"default": {"main_score": 0.9, "cos_sim_ap": 0.7}}, model="old/one")
    shown = values(table(made(tmp_path), "mteb-tasks"))
    assert shown["some/model"]["TwitterURLCorpus"] == pytest.approx(80)
    assert shown["old/one"]["TwitterSemEval2015"] == pytest.approx(70)


def test_results_in_percent_are_recognised_by_file(tmp_path: Path) -> None:
    """mteb took some results over from model cards, which print either scale."""
    keep_mteb(tmp_path, "Tatoeba", {"spa-eng": {"main_score": 95.48}, "yid-eng": {"main_score": 0.19}})
    keep_mteb(tmp_path, "STS12", {"default": {"main_score": 0.74}})
    report = made(tmp_path)
    assert values(table(report, "mteb-Tatoeba"))["some/model"] == pytest.approx({"spa-eng": 95.48, "yid-eng": 0.19})
    assert values(table(report, "mteb-tasks"))["some/model"]["STS12"] == pytest.approx(74)


def test_a_split_that_does_not_count_shows_the_scale_too(tmp_path: Path) -> None:
    path = keep_mteb(tmp_path, "STS12", {"default": {"main_score": 0.9}})
    content = json.loads(path.read_text())
    content["scores"]["validation"] = [{"hf_subset": "default", "main_score": 74.0}]
    path.write_text(json.dumps(content))
    assert values(table(made(tmp_path), "mteb-tasks"))["some/model"]["STS12"] == pytest.approx(0.9)


def test_a_score_that_is_null_or_nan_is_absent(tmp_path: Path) -> None:
    keep_mteb(tmp_path, "CQADupstackRetrieval", {"default": {"main_score": None}})
    keep_mteb(tmp_path, "STS12", {"default": {"main_score": float("nan")}})
    keep_mteb(tmp_path, "STS13", {"default": {"main_score": 0.5}})
    shown = values(table(made(tmp_path), "mteb-tasks"))["some/model"]
    assert {task: value for task, value in shown.items() if value is not None} == {"STS13": 50}


def test_experiments_of_mteb_are_rows_of_their_own(tmp_path: Path) -> None:
    path = keep_mteb(tmp_path, "STS12", {"default": {"main_score": 0.5}})
    other = path.parent / "experiments" / "precision_int8" / path.name
    other.parent.mkdir(parents=True)
    other.write_text(path.read_text().replace("0.5", "0.4"))
    shown = values(table(made(tmp_path), "mteb-tasks"))
    assert shown == {"some/model": {"STS12": 50}, "some/model (precision_int8)": {"STS12": 40}}


def test_without_model_meta_the_folders_name_the_model(tmp_path: Path) -> None:
    path = keep_mteb(tmp_path, "STS12", {"default": {"main_score": 0.5}}, model="izhx/udever-bloom-1b1")
    (path.parent / "model_meta.json").unlink()
    assert list(values(table(made(path), "mteb-tasks"))) == ["izhx/udever-bloom-1b1"]


@pytest.mark.parametrize("model", ["udever-bloom-3b", "udever-bloom-7b1"])
def test_the_authors_tasks_as_mteb_files_give_the_cards_means(tmp_path: Path, model: str) -> None:
    """The whole way: files in mteb's layout → the row of the report, beside the card's own."""
    for task, known in author_tasks()[model].items():
        extra = {} if known.cosine_ap is None else {"cosine_ap": known.cosine_ap / 100}
        keep_mteb(
            tmp_path, task, {name: {"main_score": value / 100, **extra} for name, value in known.subsets.items()},
            split=known.split, model=model,
        )  # fmt: skip
    shown = table(made(tmp_path, against=(model,)), "mteb-eng-v1")
    measured, card = (dict(zip(shown.columns, row.cells, strict=True)) for row in shown.rows)
    for category in ("Clustering", "Pair classification", "Reranking", "Retrieval", "STS", "Summarisation"):
        assert measured[category].value == pytest.approx(card[category].value, abs=0.01)
    assert measured["Classification"].note == "6/12"
    assert measured["Average"].note == "50/56"
    assert "AmazonCounterfactualClassification" in shown.notes[0]


# Files that are no results


def test_unreadable_json_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    keep(tmp_path, "sts", score(0.5))
    (tmp_path / "broken.json").write_text('{"task_name": "STS12", "sco')
    with pytest.raises(ResultFileError, match=r"broken\.json: no readable JSON"):
        gather([tmp_path])


def test_json_of_other_kinds_is_passed_over(tmp_path: Path) -> None:
    keep(tmp_path, "sts", score(0.5))
    (tmp_path / "config.json").write_text('{"format": 3, "layers": 2}')
    (tmp_path / "list.json").write_text("[1, 2]")
    report_files.write(made(tmp_path), tmp_path / "report")
    assert len(gather([tmp_path]).entries) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"task_name": "STS12", "scores": {"test": [{"hf_subset": "default"}]}}', "no 'main_score'"),
        ('{"task_name": "STS12", "scores": {"test": 3}}', "not a result of mteb"),
        ('{"task_name": "Other", "scores": {}}', "no split"),
        ('{"mteb_dataset_name": "STS12", "test": {}}', "before mteb 1.11"),
        ('{"format": 1, "protocol": "x"}', "not a result of udever evaluate"),
        ('{"format": 99, "protocol": "x", "scores": []}', "written by a later udever"),
    ],
)
def test_a_result_of_another_shape_is_an_error_that_names_the_file(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(ResultFileError, match=message) as caught:
        gather([tmp_path])
    assert "bad.json" in caught.value.message


def test_a_path_without_results_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for path, message in ((tmp_path / "no", "does not exist"), (tmp_path, "no result here")):
        with pytest.raises(ResultFileError, match=message):
            gather([path])
    with pytest.raises(ResultFileError, match="no result here"):
        gather([tmp_path / "config.json"])


# What is written


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of every kind."""
    folder = tmp_path_factory.mktemp("results")
    keep(folder, "sts", *(score(index / 20, f"l{index}") for index in range(12)))
    keep(folder, "search", score(0.3, metric="ndcg@10"), score(0.2, metric="ndcg@10", system="random"))
    keep(folder, "codesearchnet", *(score(0.5, name, metric="mrr") for name in LANGUAGES), protocol="codesearchnet-1k")
    keep(folder, "ecom", score(-0.05, metric="mrr@10"), protocol="multi-cpr")
    keep_all_56(folder, without=("STS22",))
    return folder


def test_everything_is_written_whole_and_the_same_twice(folder: Path, tmp_path: Path) -> None:
    report = made(folder, against=("udever-bloom-1b1",))
    written = report_files.write(report, tmp_path / "one")
    again = report_files.write(report, tmp_path / "two")
    names = sorted(str(path.relative_to(tmp_path / "one")) for path in written)
    figures = ("codesearchnet", "mteb-eng-v1", "multi-cpr", "suite_own", "suite_own-sts")
    images = [f"figures/{name}.{kind}" for name in figures for kind in ("png", "svg")]
    assert names == sorted([*images, "report.csv", "report.json", "report.md"])
    for one, two in zip(written, again, strict=True):
        assert one.read_bytes() == two.read_bytes(), one
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2 * len(names)  # no temporary file


def test_a_write_that_fails_leaves_the_earlier_file_whole(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report.md").write_text("earlier")
    monkeypatch.setattr(report_files, "has_figures", lambda: False)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        report_files.write(made(folder), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]
    assert (tmp_path / "report.md").read_text() == "earlier"


def test_figures_are_pictures_of_some_size_and_carry_no_date(folder: Path, tmp_path: Path) -> None:
    report_files.write(made(folder), tmp_path)
    for path in tmp_path.glob("figures/*.svg"):
        text = path.read_text()
        assert text.count("<path") > 10
        assert not re.search(r"<dc:date>|20\d\d-\d\d-\d\d", text)
    for path in tmp_path.glob("figures/*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 5000


def test_every_number_of_a_table_stands_in_markdown_and_csv(folder: Path) -> None:
    report = made(folder, against=("udever-bloom-1b1", "text-embedding-ada-002"))
    page = report_files.markdown(report)
    lines = list(csv.DictReader(io.StringIO(report_files._csv(report))))
    for each in report.tables:
        cells = [cell for row in each.rows for cell in row.cells if cell.value is not None or cell.note]
        section = page.split(f"## {each.title}\n")[1].split("\n## ")[0]
        assert all(f"| {cell.text(each.decimals)} |" in section for cell in cells)
        assert f"Protocol: `{each.protocol}`" in section
        mine = [line for line in lines if line["table"] == each.id]
        assert len(mine) == len(cells)
        assert [line["value"] for line in mine] == ["" if c.value is None else repr(round(c.value, 6)) for c in cells]
    assert "model cards" in page
    assert "![" not in page


def test_the_page_shows_the_figures_that_lie_beside_it(folder: Path, tmp_path: Path) -> None:
    report_files.write(made(folder), tmp_path)
    page = (tmp_path / "report.md").read_text()
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", page)
    assert len(shown) == 4  # Multi-CPR has a single number here: nothing to draw
    assert all((tmp_path / image).is_file() for image in shown)


def test_json_says_what_was_measured_on_which_weights(folder: Path) -> None:
    content = report_files.as_json(made(folder, against=("udever-bloom-1b1",)))
    assert {"row": "udever-nano", "model": "udever-nano", "fingerprint": "a1b2c3d4e5"} in content["models"]
    card = benchmarks()["mteb-eng-v1"].rows["udever-bloom-1b1"]
    mteb = content["tables"][0]
    assert mteb["id"] == "mteb-eng-v1"
    rows = {row["name"]: row for row in mteb["rows"]}
    assert rows["udever-bloom-1b1"]["source"] == card.source
    assert {column: cell["value"] for column, cell in rows["udever-bloom-1b1"]["cells"].items()} == card.values
    assert rows["some/model"]["cells"]["STS"] == {"value": None, "note": "9/10"}
    json.dumps(content, allow_nan=False)


names = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12)
cells = st.one_of(st.none(), st.floats(-100, 100)).map(lambda value: Cell(value=value))


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_any_table_can_be_drawn(data: st.DataObject) -> None:
    from udever.evaluation.reports.figures import draw

    columns = data.draw(st.lists(names, min_size=1, max_size=11, unique=True))
    kinds = data.draw(st.lists(st.sampled_from(["measured", "published", "baseline"]), min_size=1, max_size=3))
    rows = [
        Row(name=data.draw(names), kind=kind, cells=tuple(data.draw(cells) for _ in columns))  # type: ignore[arg-type]
        for kind in kinds
    ]
    rows.append(Row(name="$\\x$", kind="measured", cells=(Cell(value=0.5),) * len(columns)))
    shown = Table(
        id="x", title="Title", protocol="p", about="", metric="m", scale=100, decimals=1,
        columns=tuple(columns), rows=tuple(rows),
    )  # fmt: skip
    assert draw(shown, "svg").startswith(b"<?xml")
