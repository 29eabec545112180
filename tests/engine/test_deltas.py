"""Deltas: written, found, refused, and equal to the checkpoint that they stand for."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from udever import Embedder
from udever.engine import registry
from udever.engine.deltas import ROWS, BaseReference, Delta, Moved, write
from udever.engine.hub import DELTA_FILE
from udever.engine.loading import INT8_CACHE
from udever.engine.locating import locate
from udever.engine.registry import Manifest
from udever.errors import (
    CorruptFileError,
    DeltaError,
    ModelNotFoundError,
    NonFiniteWeightsError,
    NotAnEmbedderError,
    OptionError,
    TensorNamesError,
    TensorShapeError,
    TokenizerError,
)
from udever.model.config import PUBLISHED, TABLE
from udever.model.weights import Checkpoint
from udever.tokenizer import MARKERS, UdeverTokenizer

TEXTS = ["How tall is the mountain?", "敏捷的棕色狐狸", "def height(self): return 8611", "жаба", "x " * 40]
MANIFEST = Manifest(name="tuned", max_tokens=100, matryoshka=(16, 64), license="MIT", scores={"stsb": {"en": 1}})


def without_markers(folder: Path) -> None:
    """Makes a checkpoint's tokenizer that of a base BLOOM."""
    path = folder / "tokenizer.json"
    raw = json.loads(path.read_text("utf-8"))
    markers = {marker for pair in MARKERS.values() for marker in pair}
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] not in markers]
    path.write_text(json.dumps(raw, ensure_ascii=False), "utf-8")


def draw_moved(checkpoint: Checkpoint, token_ids: tuple[int, ...], *, seed: int = 1) -> Moved:
    """Every bias and some rows, elsewhere than the base has them."""
    generator = torch.Generator().manual_seed(seed)
    names = [name for name in checkpoint.config.tensor_shapes() if name.endswith(".bias")]
    biases = {name: tensor.float() for name, tensor in checkpoint.tensors(names).items()}
    moved = {name: bias + 0.3 * torch.randn(bias.shape, generator=generator) for name, bias in biases.items()}
    rows = torch.randn(len(token_ids), checkpoint.config.width, generator=generator) if token_ids else None
    return Moved(biases=moved, token_ids=token_ids, rows=rows)


def write_on(base: Path, folder: Path, *, seed: int = 1, kind: str = "absolute", name: str | None = None) -> Moved:
    """A random delta on a checkpoint."""
    checkpoint = Checkpoint.open(base)
    tokenizer = UdeverTokenizer.from_folder(base, add_markers=True)
    moved = draw_moved(checkpoint, tuple(id for pair in tokenizer.markers.values() for id in pair), seed=seed)
    source = registry.ModelSource(name=str(base), folder=base, kind="folder")
    reference = BaseReference.to(source, weights=checkpoint.digest(), folder=folder)
    if name is not None:
        reference = BaseReference(name=name, weights=reference.weights)
    write(
        folder, moved, checkpoint=checkpoint, base=reference, manifest=MANIFEST, tokenizer=tokenizer, kind=kind,
        recipe="r" * 64,
    )  # fmt: skip
    return moved


def merge_by_hand(base: Path, moved: Moved, folder: Path) -> Path:
    """The full checkpoint that a delta stands for, in float32, by the plainest code."""
    tensors = {name: tensor.float().clone() for name, tensor in load_file(base / "model.safetensors").items()}
    tensors |= moved.biases
    if moved.rows is not None:
        tensors[TABLE][list(moved.token_ids)] = moved.rows
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    shutil.copy(base / "config.json", folder / "config.json")
    (folder / "tokenizer.json").write_text(UdeverTokenizer.from_folder(base, add_markers=True).content, "utf-8")
    return folder


def embed(folder: Path, precision: str = "fp32") -> np.ndarray[Any, Any]:
    model = Embedder.load(str(folder), precision=precision, device="cpu")
    return np.stack([model.embed(TEXTS, role) for role in ("query", "document")])


@pytest.fixture(params=["Udever checkpoint", "raw BLOOM"])
def base(request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    shutil.copytree(make_checkpoint(layers=3, width=64, dtype=torch.float16), folder)
    if request.param == "raw BLOOM":
        without_markers(folder)
    return folder


@pytest.fixture
def delta(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_checkpoint, tmp_path / "base")
    write_on(tmp_path / "base", tmp_path / "delta")
    return tmp_path / "delta"


def change(delta: Path, /, **facts: Any) -> None:
    """Rewrites keys of `udever.json`; a dict changes keys of the dict there, None takes a key out."""
    path = delta / "udever.json"
    raw = json.loads(path.read_text("utf-8"))
    for key, value in facts.items():
        raw[key] = raw[key] | value if isinstance(value, dict) else value
        if value is None:
            del raw[key]
    path.write_text(json.dumps(raw), "utf-8")


def change_tensors(delta: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(delta / DELTA_FILE)
    edit(tensors)
    save_file(tensors, delta / DELTA_FILE)


# --- what it computes ----------------------------------------------------------------------------------------------


# A product's last bit depends on where its factors lie in memory, and a bit can change how bf16 and int8 round.
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("bf16", 1e-3), ("int8", 1e-3)])
def test_a_delta_embeds_as_the_merged_checkpoint(base: Path, tmp_path: Path, precision: str, tolerance: float) -> None:
    moved = write_on(base, tmp_path / "delta")
    merged = merge_by_hand(base, moved, tmp_path / "merged")
    expected = embed(merged, precision)
    np.testing.assert_allclose(embed(tmp_path / "delta", precision), expected, atol=tolerance, rtol=0)
    # and again, now that int8's weights come from the disk
    np.testing.assert_allclose(embed(tmp_path / "delta", precision), expected, atol=tolerance, rtol=0)


def test_rows_and_biases_matter(base: Path, tmp_path: Path) -> None:
    write_on(base, tmp_path / "delta")
    before = embed(tmp_path / "delta")
    for edit in (lambda t: t.pop("h.1.mlp.dense_h_to_4h.bias"), lambda t: t[ROWS][2].zero_()):
        change_tensors(tmp_path / "delta", edit)
        after = embed(tmp_path / "delta")
        assert not np.allclose(before, after, atol=1e-4)
        before = after


def test_a_difference_is_the_absolute_to_a_rounding(base: Path, tmp_path: Path) -> None:
    write_on(base, tmp_path / "absolute")
    write_on(base, tmp_path / "difference", kind="difference")
    stored = load_file(tmp_path / "difference" / DELTA_FILE)
    assert not torch.allclose(stored["ln_f.bias"], load_file(tmp_path / "absolute" / DELTA_FILE)["ln_f.bias"])
    np.testing.assert_allclose(embed(tmp_path / "difference"), embed(tmp_path / "absolute"), atol=1e-6)


def test_int8_deltas_of_one_base_share_its_quantised_weights(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from huggingface_hub import cached_assets_path

    shutil.copytree(tiny_checkpoint, tmp_path / "base")
    write_on(tmp_path / "base", tmp_path / "a", seed=1)
    write_on(tmp_path / "base", tmp_path / "b", seed=2)
    a = embed(tmp_path / "a", "int8")
    files = set(Path(cached_assets_path("udever", namespace=INT8_CACHE)).iterdir())
    assert not np.allclose(a, embed(tmp_path / "b", "int8"), atol=1e-3)
    assert set(Path(cached_assets_path("udever", namespace=INT8_CACHE)).iterdir()) == files


def test_the_token_table_is_not_copied(delta: Path) -> None:
    model = Embedder.load(str(delta), precision="fp32", device="cpu")
    table = model._parts.model.table
    assert torch.equal(table, Checkpoint.open(delta.parent / "base").tensors([TABLE])[TABLE])
    assert model._parts.model.own_rows is not None


def test_the_four_published_sizes_move_as_many_numbers_as_the_paper_says() -> None:
    counts = []
    for config in PUBLISHED.values():
        biases = {name: shape for name, shape in config.tensor_shapes().items() if name.endswith(".bias")}
        counts.append(sum(shape[0] for shape in biases.values()))
        assert counts[-1] == (11 * config.layers + 2) * config.width
    assert counts == [272_384, 408_576, 849_920, 1_359_872]


# --- what it is ------------------------------------------------------------------------------------------------------


def test_a_loaded_delta_says_what_its_manifest_says(delta: Path) -> None:
    model = Embedder.load(str(delta), precision="fp32", device="cpu")
    assert (model.name, model.max_tokens, model.matryoshka) == ("tuned", 100, (16, 64))
    assert model.manifest == MANIFEST
    assert Delta.open(delta).recipe == "r" * 64
    assert not (delta / "tokenizer.json").exists()
    assert sum(path.stat().st_size for path in delta.iterdir()) < 20_000


def test_the_fingerprint_is_that_of_base_and_delta(delta: Path, tmp_path: Path) -> None:
    def fingerprint(folder: Path) -> str:
        return Embedder.load(str(folder), precision="fp32", device="cpu").fingerprint

    elsewhere = tmp_path / "another" / "machine"
    elsewhere.parent.mkdir()
    shutil.copytree(delta.parent / "base", elsewhere / "bloom")
    shutil.copytree(delta, elsewhere / "tuned")
    change(elsewhere / "tuned", base={"name": "../bloom"})
    save_file(dict(reversed(load_file(delta / DELTA_FILE).items())), elsewhere / "tuned" / DELTA_FILE)
    assert fingerprint(elsewhere / "tuned") == fingerprint(delta)
    assert fingerprint(delta) != fingerprint(delta.parent / "base")
    change_tensors(elsewhere / "tuned", lambda tensors: tensors["ln_f.bias"][0].add_(1))
    assert fingerprint(elsewhere / "tuned") != fingerprint(delta)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_what_is_written_is_what_is_read(delta: Path, data: st.DataObject) -> None:
    checkpoint = Checkpoint.open(delta.parent / "base")
    names = [name for name in checkpoint.config.tensor_shapes() if name.endswith(".bias")]
    chosen = data.draw(st.sets(st.sampled_from(names)))
    token_ids = tuple(sorted(data.draw(st.sets(st.integers(0, checkpoint.config.vocab_size - 1), max_size=5))))
    drawn = draw_moved(checkpoint, token_ids, seed=data.draw(st.integers(0, 9)))
    moved = Moved(biases={name: drawn.biases[name] for name in chosen}, token_ids=token_ids, rows=drawn.rows)
    folder = delta.parent / "again"
    shutil.rmtree(folder, ignore_errors=True)
    write(
        folder, moved, checkpoint=checkpoint, base=Delta.open(delta).base, manifest=MANIFEST,
        tokenizer=UdeverTokenizer.from_folder(checkpoint.folder),
    )  # fmt: skip
    read = Delta.open(folder).moved(checkpoint)
    assert read.token_ids == token_ids
    assert read.tensors().keys() == moved.tensors().keys()
    assert all(torch.equal(tensor, moved.tensors()[name]) for name, tensor in read.tensors().items())


def test_a_tokenizer_of_its_own_is_stored(delta: Path) -> None:
    checkpoint = Checkpoint.open(delta.parent / "base")
    content = json.loads((checkpoint.folder / "tokenizer.json").read_text("utf-8"))
    content["normalizer"] = {"type": "Lowercase"}
    write(
        delta.parent / "lower", Moved(biases={}), checkpoint=checkpoint, base=Delta.open(delta).base,
        manifest=MANIFEST, tokenizer=UdeverTokenizer(json.dumps(content)), own_tokenizer=True,
    )  # fmt: skip
    model = Embedder.load(str(delta.parent / "lower"), precision="fp32", device="cpu")
    assert model.tokenize(["FOX"]) == model.tokenize(["fox"])


# --- where the base is -----------------------------------------------------------------------------------------------


def test_a_base_beside_the_delta_moves_with_it(delta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert json.loads((delta / "udever.json").read_text())["base"]["name"] == "../base"
    expected = embed(delta)
    (tmp_path / "moved").mkdir()
    for name in ("base", "delta"):
        shutil.move(delta.parent / name, tmp_path / "moved" / name)
    monkeypatch.chdir("/")
    np.testing.assert_allclose(embed(tmp_path / "moved" / "delta"), expected, atol=1e-6)


def test_a_base_by_absolute_path(delta: Path, tmp_path: Path) -> None:
    expected = embed(delta)
    shutil.move(delta, tmp_path / "far" / "away" / "delta")
    change(tmp_path / "far" / "away" / "delta", base={"name": str(tmp_path / "base")})
    np.testing.assert_allclose(embed(tmp_path / "far" / "away" / "delta"), expected, atol=1e-6)


def test_a_built_in_delta_on_a_built_in_base(delta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (delta.parent / "base" / "udever.json").write_text('{"name": "base"}')
    change(delta, name="delta", base={"name": "base"})
    monkeypatch.setattr(registry, "BUILTIN_FOLDER", delta.parent)
    assert registry.builtin_models() == ("base", "delta")
    located = locate("delta")
    assert (located.source.kind, located.base.kind, located.base.name) == ("built-in", "built-in", "base")
    assert Embedder.load("delta", precision="fp32", device="cpu").name == "delta"


def test_a_hub_base_is_asked_for_at_its_revision(delta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def fetch(hub_id: str, **options: Any) -> Path:
        asked.update(options, hub_id=hub_id)
        return delta.parent / "base"

    monkeypatch.setattr(registry, "fetch", fetch)
    change(delta, base={"name": "owner/bloom", "revision": "abc"})
    embed(delta)
    assert asked == {"hub_id": "owner/bloom", "revision": "abc", "token": None, "as_base": True}


def test_a_base_bloom_alone_is_refused_still(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(make_checkpoint(), tmp_path / "bloom"))
    without_markers(folder)
    with pytest.raises(NotAnEmbedderError):
        Embedder.load(str(folder))


# --- refusals --------------------------------------------------------------------------------------------------------


def test_another_base_is_refused_with_both_digests(delta: Path, make_checkpoint: Callable[..., Path]) -> None:
    other = make_checkpoint(seed=5)
    change(delta, base={"name": str(other)})
    with pytest.raises(DeltaError) as caught:
        Embedder.load(str(delta))
    assert Checkpoint.open(other).digest() in caught.value.message
    assert Delta.open(delta).base.weights in caught.value.message
    assert str(delta / "udever.json") in caught.value.hint


@pytest.mark.parametrize("name", ["../gone", "owner/gone", "udever-gone"])
def test_a_missing_base_names_the_delta_that_needs_it(delta: Path, name: str) -> None:
    change(delta, base={"name": name})
    with pytest.raises(ModelNotFoundError) as caught:
        Embedder.load(str(delta))
    assert str(delta) in caught.value.message
    assert repr(name) in caught.value.message
    assert "base.name" in caught.value.hint


def test_a_delta_is_no_base(delta: Path) -> None:
    shutil.copytree(delta, delta.parent / "second")
    change(delta.parent / "second", base={"name": "../delta"})
    with pytest.raises(DeltaError, match="delta itself"):
        Embedder.load(str(delta.parent / "second"))


def test_another_tokenizer_in_the_base_is_refused(delta: Path) -> None:
    path = delta.parent / "base" / "tokenizer.json"
    raw = json.loads(path.read_text("utf-8"))
    raw["normalizer"] = {"type": "NFC"}
    path.write_text(json.dumps(raw), "utf-8")
    with pytest.raises(DeltaError, match="tokenizer"):
        Embedder.load(str(delta))


@pytest.mark.parametrize(
    ("facts", "key"),
    [
        ({"base": None}, "base.name"),
        ({"base": {"name": 3}}, "base.name"),
        ({"base": {"name": ""}}, "base.name"),
        ({"base": {"weights": None}}, "base.weights"),
        ({"base": {"revision": 1}}, "base.revision"),
        ({"delta": {"kind": "relative"}}, "delta.kind"),
        ({"delta": {"token_ids": [5, 4]}}, "delta.token_ids"),
        ({"delta": {"token_ids": [True]}}, "delta.token_ids"),
        ({"delta": {"token_ids": 3}}, "delta.token_ids"),
        ({"delta": {"token_ids": [-1]}}, "delta.token_ids"),
    ],
)
def test_a_broken_manifest_names_the_key(delta: Path, facts: dict[str, Any], key: str) -> None:
    change(delta, **facts)
    with pytest.raises(DeltaError, match=key):
        Embedder.load(str(delta))


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_an_unreadable_manifest(delta: Path, content: str | None) -> None:
    (delta / "udever.json").unlink()
    if content is not None:
        (delta / "udever.json").write_text(content)
    with pytest.raises(DeltaError, match=r"udever\.json"):
        Embedder.load(str(delta))


@pytest.mark.parametrize(
    ("edit", "error", "named"),
    [
        (
            lambda t: t.update({"h.0.mlp.dense_h_to_4h.weight": torch.zeros(2)}),
            TensorNamesError,
            "dense_h_to_4h.weight",
        ),
        (lambda t: t.update({"h.7.mlp.dense_h_to_4h.bias": torch.zeros(256)}), TensorNamesError, "h.7."),
        (lambda t: t.update({"ln_f.bias": torch.zeros(63)}), TensorShapeError, "ln_f.bias"),
        (lambda t: t.update({ROWS: torch.zeros(4, 63)}), TensorShapeError, ROWS),
        (
            lambda t: t.update({ROWS: torch.zeros(4, 64, dtype=torch.int8)}),
            TensorShapeError,
            f"scale is unknown: {ROWS}",
        ),
        (lambda t: t.update({ROWS: torch.zeros(3, 64)}), TensorShapeError, "4 token ids"),
        (lambda t: t.pop(ROWS), TensorShapeError, "4 token ids"),
        (
            lambda t: t["h.1.input_layernorm.bias"][3].fill_(torch.nan),
            NonFiniteWeightsError,
            "h.1.input_layernorm.bias",
        ),
        (lambda t: t[ROWS][0, 0].fill_(torch.inf), NonFiniteWeightsError, ROWS),
        (lambda t: t.update({"ln_f.bias": torch.zeros(64, dtype=torch.int8)}), TensorShapeError, "ln_f.bias"),
    ],
)
def test_tensors_that_do_not_fit(
    delta: Path, edit: Callable[[dict[str, Tensor]], object], error: type[Exception], named: str
) -> None:
    change_tensors(delta, edit)
    with pytest.raises(error) as caught:
        Embedder.load(str(delta))
    assert named in str(caught.value)


def test_a_row_beyond_the_table(delta: Path) -> None:
    change(delta, delta={"token_ids": [1, 2, 3, 704]})
    with pytest.raises(DeltaError, match="704"):
        Embedder.load(str(delta))


def test_a_truncated_file(delta: Path) -> None:
    file = delta / DELTA_FILE
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CorruptFileError, match="truncated"):
        Embedder.load(str(delta))


def test_a_base_without_room_for_the_markers(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    roomy = Path(shutil.copytree(make_checkpoint(), tmp_path / "roomy"))
    without_markers(roomy)
    rows = UdeverTokenizer.from_folder(roomy, add_markers=True).vocab_size - 1
    base = Path(shutil.copytree(make_checkpoint(vocab_size=rows), tmp_path / "base"))
    without_markers(base)
    checkpoint = Checkpoint.open(base)
    reference = BaseReference(name="../base", weights=checkpoint.digest())
    write(
        tmp_path / "delta", Moved(biases={}), checkpoint=checkpoint, base=reference, manifest=MANIFEST,
        tokenizer=UdeverTokenizer.from_folder(base, add_markers=True),
    )  # fmt: skip
    with pytest.raises(TokenizerError, match="rows"):
        Embedder.load(str(tmp_path / "delta"))


# --- writing ---------------------------------------------------------------------------------------------------------


def test_nothing_is_left_of_a_delta_with_nan(delta: Path) -> None:
    checkpoint = Checkpoint.open(delta.parent / "base")
    before = sorted(path.name for path in delta.parent.iterdir())
    for folder, options in ((delta.parent / "new", {}), (delta, {"replace": True})):
        with pytest.raises(NonFiniteWeightsError, match=r"ln_f\.bias"):
            write(
                folder, Moved(biases={"ln_f.bias": torch.full((64,), torch.nan)}), checkpoint=checkpoint,
                base=Delta.open(delta).base, manifest=MANIFEST,
                tokenizer=UdeverTokenizer.from_folder(checkpoint.folder), **options,
            )  # fmt: skip
    assert sorted(path.name for path in delta.parent.iterdir()) == before
    assert embed(delta).shape == (2, len(TEXTS), 64)


def test_a_folder_that_is_there_is_not_overwritten_unasked(delta: Path) -> None:
    before = {path.name: path.read_bytes() for path in delta.iterdir()}
    with pytest.raises(OptionError, match="already there"):
        write_on(delta.parent / "base", delta, seed=9)
    assert {path.name: path.read_bytes() for path in delta.iterdir()} == before
