"""`udever delta`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from udever import Embedder


@pytest.fixture
def tuned(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint beside the tiny one in which two biases and a marker's row moved."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "tuned"))
    tensors = load_file(folder / "model.safetensors")
    tensors["h.0.mlp.dense_h_to_4h.bias"][3] += 2.0
    tensors["h.1.mlp.dense_h_to_4h.bias"][:2] += 1.0
    marker = Embedder.load(str(folder), device="cpu").tokenize(["x"])[0][0]
    tensors["word_embeddings.weight"][marker] += 0.5
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def delta(udever: Callable, tuned: Path, tiny_checkpoint: Path, tmp_path: Path) -> Path:
    assert udever("delta", "extract", tuned, "--base", tiny_checkpoint, "-o", tmp_path / "delta").code == 0
    return tmp_path / "delta"


def test_diff_shows_what_moved(udever: Callable, tuned: Path, tiny_checkpoint: Path) -> None:
    outcome = udever("delta", "diff", tiny_checkpoint, tuned)
    assert outcome.code == 0, outcome.err
    lines = [line.split() for line in outcome.out.splitlines()]
    assert ["mlp.dense_h_to_4h.bias", "3", "2.449"] in [line[:3] for line in lines]
    assert [line[:3] for line in lines if line and line[0] in ("embedding", "0", "1")] == [
        ["embedding", "64", "4"],
        ["0", "1", "2"],
        ["1", "2", "1.414"],
    ]
    assert outcome.out.rstrip().endswith("only biases and 1 of the 4 markers' rows")


def test_diff_as_json_and_as_a_picture(udever: Callable, tuned: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    outcome = udever("delta", "diff", tiny_checkpoint, tuned, "--json", "--plot", tmp_path / "moved.svg")
    facts = json.loads(outcome.out)
    assert (facts["moved"], facts["only_biases_and_markers"], facts["others"]) == (67, True, [])
    assert [row["layer"] for row in facts["by_layer"]] == ["embedding", "0", "1"]
    assert sum(row["moved"] for row in facts["by_kind"]) == 67
    assert {change["tensor"] for change in facts["changes"]} == {
        "word_embeddings.weight",
        "h.0.mlp.dense_h_to_4h.bias",
        "h.1.mlp.dense_h_to_4h.bias",
    }
    assert "<svg" in (tmp_path / "moved.svg").read_text("utf-8")


def test_diff_says_when_more_than_biases_moved(udever: Callable, tuned: Path, tiny_checkpoint: Path) -> None:
    tensors = load_file(tuned / "model.safetensors")
    tensors["h.1.mlp.dense_4h_to_h.weight"][0, 0] += 1
    save_file(tensors, tuned / "model.safetensors")
    outcome = udever("delta", "diff", tiny_checkpoint, tuned)
    assert outcome.code == 0
    assert "not only biases and markers: h.1.mlp.dense_4h_to_h.weight" in outcome.out
    assert "nothing moved" in udever("delta", "diff", tuned, tuned).out


def test_extract_then_merge_is_the_checkpoint_again(udever: Callable, tuned: Path, delta: Path, tmp_path: Path) -> None:
    outcome = udever("delta", "merge", delta, "--output", tmp_path / "merged", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["output"] == str(tmp_path / "merged")
    assert json.loads(udever("delta", "diff", tuned, tmp_path / "merged", "--json").out)["moved"] == 0
    outcome = udever("delta", "merge", delta, "--output", tmp_path / "merged")
    assert (outcome.code, "already there" in outcome.err) == (2, True)


def test_extract_refuses_and_names_the_tensor(udever: Callable, delta: Path, tiny_checkpoint: Path) -> None:
    tensors = load_file(delta.parent / "tuned" / "model.safetensors")
    tensors["ln_f.weight"] *= 2
    save_file(tensors, delta.parent / "tuned" / "model.safetensors")
    out = delta.parent / "no"
    outcome = udever("delta", "extract", delta.parent / "tuned", "--base", tiny_checkpoint, "--output", out)
    assert outcome.code == 1
    assert "ln_f.weight" in outcome.err
    assert not out.exists()


def test_average(udever: Callable, delta: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    arguments = ("delta", "average", delta, delta, "--weight", "1", "--weight", "3", "--name", "mean")
    outcome = udever(*arguments, "-o", tmp_path / "mean")
    assert outcome.code == 0, outcome.err
    assert json.loads(udever("delta", "diff", delta, tmp_path / "mean", "--json").out)["moved"] == 0
    assert udever("delta", "average", delta, "-o", tmp_path / "one").code == 2


def test_every_command_takes_a_delta_for_a_model(udever: Callable, delta: Path, tiny_checkpoint: Path) -> None:
    facts = json.loads(udever("info", delta, "--json", "--device", "cpu").out)
    assert facts["folder"] == str(delta)
    assert Path(facts["base"]).resolve() == tiny_checkpoint.resolve()
    assert facts["fingerprint"] == Embedder.load(str(delta), device="cpu").fingerprint
    outcome = udever("similarity", "fox", "dog", "--model", delta)
    assert outcome.code == 0, outcome.err


def test_a_built_in_delta_is_listed(
    udever: Callable, delta: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from udever.engine import registry

    monkeypatch.setattr(registry, "BUILTIN_FOLDER", delta.parent)
    rows = {row["name"]: row for row in json.loads(udever("models", "--json").out)}
    assert (rows["delta"]["where"], rows["delta"]["dimensions"]) == ("built in", 64)
    assert udever("info", "delta").code == 0
