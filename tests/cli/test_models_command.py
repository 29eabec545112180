"""`udever models` and `udever info`."""

import json
from collections.abc import Callable
from pathlib import Path

import udever as package


def test_models_lists_built_in_and_published(udever: Callable, monkeypatch: object) -> None:
    outcome = udever("models", "--json")
    rows = {row["name"]: row for row in json.loads(outcome.out)}
    assert rows["udever-nano"]["where"] == "built in"
    assert rows["izhx/udever-bloom-7b1"] == {
        "name": "izhx/udever-bloom-7b1",
        "parameters": 7_069_016_064,
        "dimensions": 4096,
        "max_tokens": 2048,
        "where": rows["izhx/udever-bloom-7b1"]["where"],
        "license": "bigscience-bloom-rail-1.0",
    }


def test_the_table_fits_80_columns_and_cuts_nothing(udever: Callable, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = udever("models").out
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    assert out.count("bigscience-bloom-rail-1.0") == 4


def test_info_says_what_the_embedder_says(udever: Callable, tiny_checkpoint: Path) -> None:
    outcome = udever("info", tiny_checkpoint, "--json", "--precision", "fp32", "--device", "cpu")
    assert outcome.code == 0, outcome.err
    facts = json.loads(outcome.out)
    model = package.Embedder.load(str(tiny_checkpoint), precision="fp32", device="cpu")
    assert facts["fingerprint"] == model.fingerprint
    assert facts["dimensions"] == model.dimensions == 64
    assert facts["max_tokens"] == model.max_tokens
    assert facts["precision"] == "fp32"
    assert facts["architecture"] == "BLOOM, 2 layers, 64 wide, 4 heads"
    table = 64 * facts_rows(tiny_checkpoint)
    assert facts["parameters"] > table
    assert facts["tokenizer_entries"] <= facts_rows(tiny_checkpoint)


def facts_rows(folder: Path) -> int:
    return json.loads((folder / "config.json").read_text())["vocab_size"]


def test_info_of_the_built_in_model_in_words(udever: Callable) -> None:
    out = udever("info").out
    assert "udever-nano" in out
    assert "Apache-2.0" in out
    assert "udv1-" in out


def test_info_of_a_model_that_is_not_there(udever: Callable, tmp_path: Path) -> None:
    outcome = udever("info", tmp_path / "nowhere")
    assert outcome.code == 1
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
