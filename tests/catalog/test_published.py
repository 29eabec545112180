"""The catalogue of published numbers: what it says, that it hangs together, and that it leaves out the unverified."""

import math

import pytest

from udever.catalog import published
from udever.catalog.published import author_tasks, benchmarks, choose, models
from udever.errors import OptionError
from udever.evaluation.reports.mteb_tasks import CATEGORIES


def row(benchmark: str, model: str) -> dict[str, float]:
    return dict(benchmarks()[benchmark].rows[model].values)


def test_numbers_as_their_sources_print_them() -> None:
    assert row("mteb-eng-v1", "udever-bloom-1b1") == {
        "Average": 58.28, "Classification": 70.18, "Clustering": 39.11, "Pair classification": 83.11,
        "Reranking": 54.28, "Retrieval": 45.27, "STS": 81.52, "Summarisation": 31.1,
    }  # fmt: skip
    assert row("codesearchnet", "udever-bloom-3b") == {
        "Go": 80.63, "Ruby": 75.4, "Python": 98.02, "Java": 83.88, "JavaScript": 76.18, "PHP": 79.67, "Average": 82.29,
    }  # fmt: skip
    assert row("multi-cpr", "udever-bloom-560m") == {"ecom": 0.156, "video": 0.149, "medical": 0.245}
    assert row("multi-cpr-recall", "udever-bloom-3b") == {"ecom": 0.871, "video": 0.836, "medical": 0.619}
    assert row("loading", "udever-bloom-1b1") == {"authors": 85.8, "generic loader": 48.9}


def test_what_nobody_verified_is_absent() -> None:
    assert row("codesearchnet", "udever-bloom-1b1") == {"Average": 80.9}
    assert row("multi-cpr", "text-embedding-ada-002") == {"ecom": 0.183}
    assert row("loading", "udever-bloom-7b1") == {"generic loader": 48.7}
    assert set(benchmarks()["multi-cpr-recall"].rows) == {
        "udever-bloom-3b", "DPR-general-BERT", "DPR-1-BERT-indomain", "DPR-2-BERTCT-indomain",
    }  # fmt: skip
    assert "udever-bloom-7b1" not in benchmarks()["codesearchnet"].rows


def test_every_number_is_one_with_a_column_a_source_and_a_protocol() -> None:
    for benchmark in benchmarks().values():
        assert benchmark.protocol
        assert benchmark.metric
        assert benchmark.about
        assert benchmark.scale in (1, 100)
        assert not benchmark.short or len(benchmark.short) == len(benchmark.columns)
        for model, published_row in benchmark.rows.items():
            assert model in models()
            assert published_row.source
            assert published_row.values
            assert published_row.values.keys() <= set(benchmark.columns)
            assert all(isinstance(value, float) and math.isfinite(value) for value in published_row.values.values())
            assert all(0 < value <= benchmark.scale for value in published_row.values.values())


def test_codesearchnet_averages_are_the_means_of_their_six_languages() -> None:
    benchmark = benchmarks()["codesearchnet"]
    for model, published_row in benchmark.rows.items():
        six = [published_row.values[column] for column in benchmark.columns[:-1] if column in published_row.values]
        if len(six) == 6:
            assert sum(six) / 6 == pytest.approx(published_row.values["Average"], abs=0.06), model


def test_mteb_averages_are_the_means_of_their_56_tasks() -> None:
    for model, published_row in benchmarks()["mteb-eng-v1"].rows.items():
        total = sum(len(tasks) * published_row.values[category] for category, tasks in CATEGORIES.items())
        assert total / 56 == pytest.approx(published_row.values["Average"], abs=0.01), model


@pytest.mark.parametrize(
    ("model", "printed"),
    [
        ("CodeBERT", (69.3, 70.6, 84.0, 86.8, 74.8, 70.6)),
        ("GraphCodeBERT", (84.1, 73.2, 87.9, 75.7, 71.1, 72.5)),
    ],
)
def test_rows_with_shifted_columns_are_corrected_and_say_so(model: str, printed: tuple[float, ...]) -> None:
    benchmark = benchmarks()["codesearchnet"]
    corrected = [benchmark.rows[model].values[column] for column in benchmark.columns[:-1]]
    assert sorted(corrected) == sorted(printed)
    assert corrected != list(printed)
    assert "shifted" in benchmark.rows[model].note
    assert ", ".join(map(str, printed)) in benchmark.rows[model].note
    assert "2308.03281" in benchmark.rows[model].source


def test_the_authors_tasks() -> None:
    tasks = author_tasks()
    assert set(tasks) == set(published.FAMILY)
    assert tasks["udever-bloom-1b1"]["STSBenchmark"].subsets == {"default": 85.79}
    assert tasks["udever-bloom-1b1"]["BUCC"].subsets["fr-en"] == 97.71
    assert len(tasks["udever-bloom-1b1"]["Tatoeba"].subsets) == 112
    assert tasks["udever-bloom-1b1"]["SprintDuplicateQuestions"].cosine_ap == 94.58
    assert [len(known) for known in tasks.values()] == [92, 92, 93, 93]


def test_models_are_chosen_by_name_or_hub_id_in_any_case_and_once() -> None:
    assert choose(["UDEVER-bloom-1b1", "izhx/udever-bloom-1b1", "codebert"]) == ("udever-bloom-1b1", "CodeBERT")
    assert choose(published.REFERENCES) == published.REFERENCES


def test_an_unknown_model_names_those_there_are() -> None:
    with pytest.raises(OptionError, match="no published numbers of 'udever-bloom-1b'") as caught:
        choose(["udever-bloom-1b"])
    assert "did you mean udever-bloom-1b1?" in caught.value.hint
    assert all(model in caught.value.hint for model in models())
