"""A base made trainable, and what was trained written as a delta or a whole checkpoint."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from udever import Embedder
from udever.engine.deltas import ROWS, Delta
from udever.engine.packing import pack
from udever.errors import NonFiniteWeightsError, OptionError, TokenizerError
from udever.model.config import TABLE
from udever.model.weights import Checkpoint
from udever.tokenizer import UdeverTokenizer
from udever.training.base import TrainBase, load_base, write_checkpoint, write_delta
from udever.training.bitfit import unfreeze

TEXTS = ["How tall is the mountain?", "敏捷的棕色狐狸", "def height(self): return 8611", "x " * 40]


def train(base: TrainBase, *, tune: str = "bitfit", markers: bool = True, seed: int = 0) -> None:
    """Stands in for training: everything that may move, moves."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in unfreeze(base.model, tune=tune, markers=markers).values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def vectors_of(base: TrainBase) -> np.ndarray:
    """What the trainable model itself gives, normalised; queries."""
    ids = base.tokenizer.encode(TEXTS, role="query", max_tokens=300)
    out = torch.empty(len(ids), base.config.width)
    for rows, batch in pack(ids, batch_tokens=4096, device=torch.device("cpu")):
        out[rows] = base.model(batch).detach().float()
    return torch.nn.functional.normalize(out, dim=1).numpy()


def embed(folder: Path, precision: str = "fp32") -> np.ndarray:
    return Embedder.load(str(folder), precision=precision, device="cpu").embed(TEXTS)


def test_a_raw_bloom_gets_its_markers_in_the_first_spare_rows(raw_bloom: Path) -> None:
    base = load_base(str(raw_bloom))
    first = UdeverTokenizer.from_folder(raw_bloom, add_markers=True).vocab_size - 4
    assert base.tokenizer.markers == {"query": (first, first + 1), "document": (first + 2, first + 3)}
    assert base.model.own_rows is not None
    assert base.model.own_rows.token_ids.tolist() == list(range(first, first + 4))
    table = Checkpoint.open(raw_bloom).tensors([TABLE])[TABLE]
    assert torch.equal(base.model.own_rows.rows, table[first : first + 4].float())
    assert base.weights_digest == Checkpoint.open(raw_bloom).digest()
    assert (base.name, base.source.folder) == (str(raw_bloom), raw_bloom)


def test_a_table_without_spare_rows_is_refused(raw_bloom: Path, make_checkpoint: Callable[..., Path]) -> None:
    rows = UdeverTokenizer.from_folder(raw_bloom, add_markers=True).vocab_size
    full = make_checkpoint(vocab_size=rows - 1)
    shutil.copy(raw_bloom / "tokenizer.json", full / "tokenizer.json")
    with pytest.raises(TokenizerError, match="no room for the markers") as caught:
        load_base(str(full))
    assert f"{rows:,} ids" in caught.value.message
    enough = make_checkpoint(vocab_size=rows)
    shutil.copy(raw_bloom / "tokenizer.json", enough / "tokenizer.json")
    load_base(str(enough))


def test_int8_cannot_be_trained(raw_bloom: Path) -> None:
    with pytest.raises(OptionError, match="int8"):
        load_base(str(raw_bloom), precision="int8")


@pytest.mark.parametrize("precision", ["fp32", "fp64", "bf16"])
def test_before_training_it_is_the_base(tiny_checkpoint: Path, precision: str) -> None:
    base = load_base(str(tiny_checkpoint), precision=precision)
    tolerance = 0.03 if precision == "bf16" else 1e-6
    np.testing.assert_allclose(vectors_of(base), embed(tiny_checkpoint), atol=tolerance)
    biases = {name: parameter.dtype for name, parameter in unfreeze(base.model, tune="bitfit").items()}
    assert set(biases.values()) == {torch.float64 if precision == "fp64" else torch.float32}


@pytest.mark.parametrize("kind", ["absolute", "difference"])
def test_a_trained_delta_embeds_as_the_trained_model(raw_bloom: Path, tmp_path: Path, kind: str) -> None:
    base = load_base(str(raw_bloom))
    train(base)
    write_delta(tmp_path / "delta", base.model, base, kind=kind, name="tuned", recipe_digest="ab", max_tokens=99)
    np.testing.assert_allclose(embed(tmp_path / "delta"), vectors_of(base), atol=1e-6)
    model = Embedder.load(str(tmp_path / "delta"), device="cpu")
    assert (model.name, model.max_tokens, model.matryoshka) == ("tuned", 99, ())
    stored = load_file(tmp_path / "delta" / "delta.safetensors")
    moved = (11 * base.config.layers + 2 + 4) * base.config.width
    assert sum(tensor.numel() for tensor in stored.values()) == moved
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert Delta.open(tmp_path / "delta").recipe == "ab"
    assert sorted(path.name for path in (tmp_path / "delta").iterdir()) == ["delta.safetensors", "udever.json"]


def test_only_what_moved_is_in_a_delta(raw_bloom: Path, tmp_path: Path) -> None:
    base = load_base(str(raw_bloom))
    unfreeze(base.model, tune="bitfit")
    base.model.own_rows.rows.data[2] += 1
    base.model.blocks[1].mlp_in.bias.data[0] += 1
    write_delta(tmp_path / "delta", base.model, base)
    stored = load_file(tmp_path / "delta" / "delta.safetensors")
    assert stored.keys() == {"h.1.mlp.dense_h_to_4h.bias", ROWS}
    assert Delta.open(tmp_path / "delta").stored.token_ids == (base.tokenizer.markers["document"][0],)


def test_a_delta_of_nothing_is_the_base(tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = load_base(str(tiny_checkpoint))
    write_delta(tmp_path / "delta", base.model, base)
    assert load_file(tmp_path / "delta" / "delta.safetensors") == {}
    np.testing.assert_allclose(embed(tmp_path / "delta"), embed(tiny_checkpoint), atol=1e-6)


def test_markers_that_do_not_move_are_not_in_the_delta(raw_bloom: Path, tmp_path: Path) -> None:
    base = load_base(str(raw_bloom), markers=False)
    assert base.model.own_rows is None
    train(base, markers=False)
    write_delta(tmp_path / "delta", base.model, base)
    assert Delta.open(tmp_path / "delta").stored.rows is None
    np.testing.assert_allclose(embed(tmp_path / "delta"), vectors_of(base), atol=1e-6)


def test_a_delta_may_be_trained_further_and_stands_on_the_same_base(raw_bloom: Path, tmp_path: Path) -> None:
    first = load_base(str(raw_bloom))
    train(first, seed=1)
    write_delta(tmp_path / "first", first.model, first, name="first", matryoshka=(16,), license="MIT")
    second = load_base(str(tmp_path / "first"))
    assert (second.manifest.name, second.source.folder) == ("first", tmp_path / "first" / ".." / "bloom")
    np.testing.assert_allclose(vectors_of(second), embed(tmp_path / "first"), atol=1e-6)
    assert torch.equal(second.tensors()["ln_f.bias"], first.model.final_norm.bias)
    train(second, seed=2)
    write_delta(tmp_path / "second", second.model, second, name="second")
    assert Delta.open(tmp_path / "second").base == Delta.open(tmp_path / "first").base
    np.testing.assert_allclose(embed(tmp_path / "second"), vectors_of(second), atol=1e-6)
    model = Embedder.load(str(tmp_path / "second"), device="cpu")
    assert (model.matryoshka, model.manifest.license, model.manifest.scores) == ((16, 64), "MIT", {})
    # without markers of its own the first delta's rows are there still
    third = load_base(str(tmp_path / "first"), markers=False)
    np.testing.assert_allclose(vectors_of(third), embed(tmp_path / "first"), atol=1e-6)


def test_a_delta_is_written_over_an_older_one(raw_bloom: Path, tmp_path: Path) -> None:
    base = load_base(str(raw_bloom))
    train(base)
    write_delta(tmp_path / "run" / "best", base.model, base, name="old")
    write_delta(tmp_path / "run" / "best", base.model, base, name="new")
    assert Embedder.load(str(tmp_path / "run" / "best"), device="cpu").name == "new"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["best"]
    base.model.final_norm.bias.data[0] = torch.nan
    with pytest.raises(NonFiniteWeightsError, match=r"ln_f\.bias"):
        write_delta(tmp_path / "run" / "best", base.model, base, name="newest")
    assert Embedder.load(str(tmp_path / "run" / "best"), device="cpu").name == "new"


@pytest.mark.parametrize("tune", ["all", "last:1"])
def test_a_whole_checkpoint_embeds_as_the_trained_model(raw_bloom: Path, tmp_path: Path, tune: str) -> None:
    base = load_base(str(raw_bloom))
    train(base, tune=tune)
    write_checkpoint(
        tmp_path / "model", base.model, base, name="whole", matryoshka=(16,), scores={"a": 1}, recipe_digest="cd"
    )
    np.testing.assert_allclose(embed(tmp_path / "model"), vectors_of(base), atol=1e-6)
    model = Embedder.load(str(tmp_path / "model"), device="cpu")
    assert (model.name, model.matryoshka, dict(model.manifest.scores)) == ("whole", (16, 64), {"a": 1})
    assert json.loads((tmp_path / "model" / "udever.json").read_text())["recipe"] == "cd"
    assert Checkpoint.open(tmp_path / "model").dtypes == {"F32": sum(t.numel() for t in base.tensors().values())}


def test_transformers_gives_the_vectors_of_a_whole_checkpoint(raw_bloom: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    base = load_base(str(raw_bloom))
    train(base, tune="all")
    write_checkpoint(tmp_path / "model", base.model, base)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModel.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.float32
    batch = tokenizer([f"[BOQ]{text}[EOQ]" for text in TEXTS], padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = model(**batch).last_hidden_state[:, -1]
    expected = torch.nn.functional.normalize(states, dim=1).numpy()
    np.testing.assert_allclose(embed(tmp_path / "model"), expected, atol=1e-5)


def test_the_files_of_the_base_are_untouched(raw_bloom: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in raw_bloom.iterdir()}
    base = load_base(str(raw_bloom))
    train(base)
    write_delta(tmp_path / "delta", base.model, base)
    write_checkpoint(tmp_path / "model", base.model, base)
    assert {path.name: path.read_bytes() for path in raw_bloom.iterdir()} == before
