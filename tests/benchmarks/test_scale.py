"""docs/scale.md says what the arithmetic gives for what was measured."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scale() -> Iterator[ModuleType]:
    pytest.importorskip("psutil")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("scale")


def test_the_arithmetic(scale: ModuleType) -> None:
    work = scale.Work(documents=7.2e6, tokens_per_document=50, price_per_hour=2.0)
    assert scale.hours(work, 1000) == 100
    assert scale.storage_bytes(1000, 256, "float32") == 1_024_000
    assert scale.storage_bytes(1000, 256, "int8") == 260_000
    measured = scale.Measured(what="a model", tokens_per_second=100.0, source="x.json")
    assert list(scale.time_table(work, [measured]))[-1] == "| a model ([x.json](x.json)) | 100 | 1,000 | 6 | 2,000 |"


def test_the_speed_of_bulk_runs_comes_first(scale: ModuleType, tmp_path: Path) -> None:
    rounds = [{scale.BULK: {"tokens": 900, "seconds": seconds}} for seconds in (1.0, 3.0, 9.0)]
    facts = {"model": "m", "machine": {"gpu": None, "threads": 2}, "rounds": rounds}
    (tmp_path / "bulk-performance.json").write_text(json.dumps(facts))
    [only] = scale.speeds(tmp_path)
    assert (only.tokens_per_second, only.source) == (300, "bulk-performance.json")


def test_the_page_is_up_to_date(scale: ModuleType) -> None:
    page = (ROOT / "docs" / "scale.md").read_text("utf-8")
    work = scale.Work(documents=1e9, tokens_per_document=100.0, price_per_hour=0.10)
    for name, body in scale.sections(work, ROOT / "docs"):
        assert body in page, f"{name}: run python benchmarks/scale.py"
