"""`udever export`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from udever.training.export import for_sentence_transformers as export


@pytest.mark.slow
def test_sentence_transformers(udever: Callable, tiny_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed here")
    arguments = ("export", tiny_checkpoint, "--format", "sentence-transformers", "-o", tmp_path / "st")
    outcome = udever(*arguments)
    assert outcome.code == 0, outcome.err
    assert "cosine to the model's vectors at least 0.99999" in outcome.err
    assert outcome.out.startswith(f"{tmp_path / 'st'}: ")
    assert (tmp_path / "st" / "modules.json").is_file()
    again = udever(*arguments)
    assert (again.code, "already there" in again.err) == (2, True)
    half = udever(*arguments[:-1], tmp_path / "half", "--dtype", "bf16", "--json")
    assert half.code == 0, half.err
    assert 0.9 < json.loads(half.out)["checked"]["bf16"]["min_cosine"] < 1


def test_without_a_check(
    udever: Callable, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("export", tiny_checkpoint, "--format", "sentence-transformers", "--json", "--dtype", "fp16")
    outcome = udever(*arguments, "--no-check", "--output", tmp_path / "a")
    assert outcome.code == 0, outcome.err
    facts = json.loads(outcome.out)
    assert (facts["output"], facts["checked"]) == (str(tmp_path / "a"), {"fp16": None})
    assert json.loads((tmp_path / "a" / "config.json").read_text())["dtype"] == "float16"
    monkeypatch.setattr(export, "_can_load", lambda: False)
    outcome = udever(*arguments[:-3], "--output", tmp_path / "b")
    assert outcome.code == 0
    assert "not checked" in outcome.err


@pytest.mark.slow
def test_onnx(udever: Callable, tiny_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed here")
    outcome = udever("export", tiny_checkpoint, "--format", "onnx", "--json", "--output", tmp_path / "onnx")
    assert outcome.code == 0, outcome.err
    facts = json.loads(outcome.out)
    assert facts["checked"]["fp32"]["min_cosine"] > 0.99999
    assert facts["checked"]["int8"] is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--format", "onnx", "--dtype", "fp16"), "--dtype is not for --format onnx"),
        (("--format", "onnx", "--no-check"), "--no-check is not for --format onnx"),
        (("--format", "sentence-transformers", "--int8"), "--int8 is not for --format sentence-transformers"),
        (("--format", "tflite"), "tflite"),
        ((), "format"),
    ],
)
def test_options_that_do_not_go_together(
    udever: Callable, tiny_checkpoint: Path, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    outcome = udever("export", tiny_checkpoint, "--output", tmp_path / "out", *options)
    assert outcome.code == 2
    assert says in outcome.err
    assert not (tmp_path / "out").exists()
