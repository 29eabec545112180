"""diff, merge, extract and average, on random models that were "trained"."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load as safetensors_load
from safetensors.torch import load_file, save_file

from udever import Embedder
from udever.engine.deltas import ROWS, Delta, Moved
from udever.errors import DeltaError, NonFiniteWeightsError, OptionError
from udever.model.config import TABLE
from udever.model.weights import Checkpoint
from udever.training.base import load_base, write_checkpoint, write_delta
from udever.training.bitfit import unfreeze
from udever.training.card import with_scores
from udever.training.deltas.comparing import diff
from udever.training.deltas.plot import draw
from udever.training.deltas.tools import average, extract, merge

TEXTS = ["How tall is the mountain?", "敏捷的棕色狐狸", "def height(self): return 8611", "x " * 40]


def embed(folder: Path, precision: str = "fp32") -> np.ndarray:
    return Embedder.load(str(folder), precision=precision, device="cpu").embed(TEXTS)


def train(start: Path, folder: Path, *, tune: str = "bitfit", seed: int = 0, **facts: object) -> Path:
    """A delta (or a whole checkpoint) in which everything that may move has moved."""
    base = load_base(str(start))
    generator = torch.Generator().manual_seed(seed)
    for parameter in unfreeze(base.model, tune=tune).values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    (write_delta if tune == "bitfit" else write_checkpoint)(folder, base.model, base, **facts)
    return folder


def edited(source: Path, folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A copy of a checkpoint with some tensors changed."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def delta(raw_bloom: Path, tmp_path: Path) -> Path:
    return train(raw_bloom, tmp_path / "delta", name="tuned", max_tokens=99, matryoshka=(16,), recipe_digest="ab")


@pytest.fixture
def markers(delta: Path) -> tuple[int, ...]:
    return Delta.open(delta).stored.token_ids


# --- diff ------------------------------------------------------------------------------------------------------------


def test_a_delta_against_its_base_shows_the_biases_and_the_markers(
    delta: Path, raw_bloom: Path, markers: tuple[int, ...]
) -> None:
    found = diff(str(raw_bloom), str(delta))
    config = Checkpoint.open(raw_bloom).config
    assert found.moved == (11 * config.layers + 2 + 4) * config.width
    assert (found.others, found.token_ids, found.markers) == ((), markers, markers)
    before = {name: tensor.double() for name, tensor in load_file(raw_bloom / "model.safetensors").items()}
    after = load_file(delta / "delta.safetensors")
    for change in found.changes:
        old = before[TABLE][list(markers)] if change.tensor == TABLE else before[change.tensor]
        new = after[ROWS if change.tensor == TABLE else change.tensor].double()
        assert change.norm == pytest.approx(float((new - old).norm()))
        assert change.base_norm == pytest.approx(float(old.norm()))
        assert change.largest == pytest.approx(float((new - old).abs().max()))
    places = {change.tensor: (change.layer, change.kind) for change in found.changes}
    assert places["h.1.mlp.dense_h_to_4h.bias"] == ("1", "mlp.dense_h_to_4h.bias")
    assert places["ln_f.bias"] == ("final", "ln_f.bias")
    assert places[TABLE] == ("embedding", TABLE)


def test_every_way_to_write_the_same_model_shows_the_same(delta: Path, raw_bloom: Path, tmp_path: Path) -> None:
    merge(str(delta), tmp_path / "merged")
    by_delta, by_checkpoint = diff(str(raw_bloom), str(delta)), diff(str(raw_bloom), str(tmp_path / "merged"))
    assert by_delta.changes == by_checkpoint.changes
    assert by_delta.token_ids == by_checkpoint.token_ids
    assert diff(str(delta), str(tmp_path / "merged")).changes == ()
    assert diff(str(delta), str(delta)).moved == 0


def test_two_deltas(delta: Path, raw_bloom: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(delta, tmp_path / "other"))
    tensors = load_file(other / "delta.safetensors")
    tensors["h.0.input_layernorm.bias"][5] += 2
    tensors[ROWS][1, 7] -= 3
    save_file(tensors, other / "delta.safetensors")
    found = diff(str(delta), str(other))
    assert [(c.tensor, c.moved, c.norm) for c in found.changes] == [
        (TABLE, 1, pytest.approx(3)),
        ("h.0.input_layernorm.bias", 1, pytest.approx(2)),
    ]
    assert len(found.token_ids) == 1


@pytest.mark.parametrize(
    ("tensor", "place"), [("h.1.mlp.dense_h_to_4h.weight", (3, 9)), ("ln_f.weight", (0,)), (TABLE, (17, 2))]
)
def test_one_number_that_is_no_bias_is_found(delta: Path, tmp_path: Path, tensor: str, place: tuple[int, ...]) -> None:
    merge(str(delta), tmp_path / "merged")
    more = edited(tmp_path / "merged", tmp_path / "more", lambda tensors: tensors[tensor][place].add_(0.5))
    found = diff(str(tmp_path / "merged"), str(more))
    assert [(c.tensor, c.moved) for c in found.changes] == [(tensor, 1)]
    assert found.others == ((f"{TABLE} (rows 17)",) if tensor == TABLE else (tensor,))


def test_windows_of_the_table_count_rows_rightly(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from udever.training.deltas import comparing, full_model

    monkeypatch.setattr(full_model, "PIECE_BYTES", 4 * 64 * 7)  # 7 rows a window
    monkeypatch.setattr(comparing, "ROWS_AT_ONCE", 2)
    a = make_checkpoint()
    rows = torch.tensor([0, 6, 7, 100, 703])
    b = edited(a, tmp_path / "b", lambda tensors: tensors[TABLE].index_add_(0, rows, torch.ones(5, 64)))
    found = diff(str(a), str(b))
    assert found.token_ids == (0, 6, 7, 100, 703)
    assert (found.changes[0].moved, found.changes[0].norm) == (5 * 64, pytest.approx((5 * 64) ** 0.5))


def test_different_shapes_and_damaged_weights_are_refused(
    raw_bloom: Path, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(DeltaError, match="different BLOOMs"):
        diff(str(raw_bloom), str(make_checkpoint(layers=3)))
    broken = edited(raw_bloom, tmp_path / "broken", lambda tensors: tensors["ln_f.bias"].fill_(torch.nan))
    with pytest.raises(NonFiniteWeightsError):
        diff(str(raw_bloom), str(broken))


def test_the_plot_names_layers_and_kinds(delta: Path, raw_bloom: Path, tmp_path: Path) -> None:
    draw(tmp_path / "plots" / "moved.svg", diff(str(raw_bloom), str(delta)))
    svg = (tmp_path / "plots" / "moved.svg").read_text("utf-8")
    assert all(f">{label}</text>" in svg for label in ("embedding", "0", "1", "final", "mlp.dense_h_to_4h.bias"))
    draw(tmp_path / "nothing.svg", diff(str(delta), str(delta)))


# --- merge -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("bf16", 1e-3), ("int8", 1e-3)])
def test_the_merged_checkpoint_embeds_as_the_delta(
    delta: Path, tmp_path: Path, precision: str, tolerance: float
) -> None:
    (delta / "README.md").write_text("# the delta's card\n")
    merge(str(delta), tmp_path / "merged")
    np.testing.assert_allclose(embed(tmp_path / "merged", precision), embed(delta, precision), atol=tolerance, rtol=0)
    assert Checkpoint.open(tmp_path / "merged").dtypes.keys() == {"F16", "F32"}  # nothing rounded, nothing widened
    model = Embedder.load(str(tmp_path / "merged"), device="cpu")
    assert (model.name, model.max_tokens, model.matryoshka) == ("tuned", 99, (16, 64))
    assert json.loads((tmp_path / "merged" / "udever.json").read_text())["recipe"] == "ab"
    assert (tmp_path / "merged" / "README.md").read_text().startswith("# the delta's card\n\nMerged with its base")


@pytest.mark.parametrize(
    ("dtype", "stored", "tolerance"), [("fp32", "F32", 1e-6), ("fp16", "F16", 2e-3), ("bf16", "BF16", 3e-2)]
)
def test_a_merge_into_one_dtype(delta: Path, tmp_path: Path, dtype: str, stored: str, tolerance: float) -> None:
    merge(str(delta), tmp_path / "merged", storage=dtype)
    assert Checkpoint.open(tmp_path / "merged").dtypes.keys() == {stored}
    np.testing.assert_allclose(embed(tmp_path / "merged"), embed(delta), atol=tolerance)


def test_transformers_gives_the_delta_s_vectors_from_the_merged_checkpoint(delta: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, BloomModel

    merge(str(delta), tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    model, loading = BloomModel.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(loading.values())
    batch = tokenizer([f"[BOQ]{text}[EOQ]" for text in TEXTS], padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = model(**batch).last_hidden_state[:, -1]
    np.testing.assert_allclose(embed(delta), torch.nn.functional.normalize(states, dim=1).numpy(), atol=1e-5)


def test_a_table_written_in_pieces_has_its_rows_in_their_places(
    delta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from udever.training.deltas import full_model

    merge(str(delta), tmp_path / "whole")
    monkeypatch.setattr(full_model, "PIECE_BYTES", 4 * 64 * 7)
    merge(str(delta), tmp_path / "pieces")
    whole, pieces = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "pieces"))
    assert whole == pieces


def test_tensors_of_odd_sizes_are_aligned() -> None:
    from udever.training.deltas.full_model import parts_of, write_safetensors

    tensors = {"a.bias": torch.arange(3).half(), "b.bias": torch.arange(5.0), "c.bias": torch.arange(2).double()}
    stream = io.BytesIO()
    write_safetensors(stream, parts_of(tensors, Moved(biases={}), storage="exact"))
    read = safetensors_load(stream.getvalue())
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    header_bytes = int.from_bytes(stream.getvalue()[:8], "little")
    header = json.loads(stream.getvalue()[8 : 8 + header_bytes])
    starts = {name: header[name]["data_offsets"][0] for name in tensors}
    assert header_bytes % 8 == 0
    assert all(starts[name] % tensor.itemsize == 0 for name, tensor in tensors.items())


def test_safetensors_reads_the_merged_file(delta: Path, tmp_path: Path) -> None:
    merge(str(delta), tmp_path / "merged")
    ours = Checkpoint.open(tmp_path / "merged").tensors()
    theirs = load_file(tmp_path / "merged" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_what_is_no_delta_is_not_merged_and_nothing_is_overwritten(
    delta: Path, raw_bloom: Path, tmp_path: Path
) -> None:
    with pytest.raises(DeltaError, match="no delta"):
        merge(str(raw_bloom), tmp_path / "out")
    with pytest.raises(OptionError, match="already there"):
        merge(str(delta), raw_bloom)
    with pytest.raises(OptionError, match="fp8"):
        merge(str(delta), tmp_path / "out", storage="fp8")
    assert not (tmp_path / "out").exists()


def test_a_number_too_large_for_fp16_is_told(delta: Path, tmp_path: Path) -> None:
    tensors = load_file(delta / "delta.safetensors")
    tensors["ln_f.bias"][0] = 1e5
    save_file(tensors, delta / "delta.safetensors")
    with pytest.raises(NonFiniteWeightsError, match=r"ln_f\.bias"):
        merge(str(delta), tmp_path / "merged", storage="fp16")
    assert not (tmp_path / "merged").exists()
    merge(str(delta), tmp_path / "merged")


# --- extract ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["absolute", "difference"])
def test_extract_undoes_merge(delta: Path, raw_bloom: Path, tmp_path: Path, kind: str) -> None:
    merge(str(delta), tmp_path / "merged")
    found = extract(str(tmp_path / "merged"), tmp_path / "back", base=str(raw_bloom), kind=kind)
    assert found.others == ()
    np.testing.assert_allclose(embed(tmp_path / "back"), embed(delta), atol=1e-6)
    if kind == "absolute":
        assert Delta.open(tmp_path / "back").digest == Delta.open(delta).digest
    model = Embedder.load(str(tmp_path / "back"), device="cpu")
    assert (model.name, model.max_tokens) == ("tuned", 99)
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["delta.safetensors", "udever.json"]


def test_extract_refuses_more_than_biases_and_names_the_tensors(raw_bloom: Path, tmp_path: Path) -> None:
    whole = train(raw_bloom, tmp_path / "whole", tune="last:1")
    with pytest.raises(DeltaError) as caught:
        extract(str(whole), tmp_path / "out", base=str(raw_bloom))
    assert "h.1.mlp.dense_h_to_4h.weight" in caught.value.message
    assert "h.0." not in caught.value.message
    assert not (tmp_path / "out").exists()
    row = edited(raw_bloom, tmp_path / "row", lambda tensors: tensors[TABLE][9].add_(1))
    with pytest.raises(DeltaError, match="rows 9"):
        extract(str(row), tmp_path / "out", base=str(raw_bloom))


def test_a_tokenizer_of_its_own_goes_with_every_delta(raw_bloom: Path, delta: Path, tmp_path: Path) -> None:
    merge(str(delta), tmp_path / "merged")
    raw = json.loads((tmp_path / "merged" / "tokenizer.json").read_text("utf-8"))
    raw["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "merged" / "tokenizer.json").write_text(json.dumps(raw), "utf-8")
    extract(str(tmp_path / "merged"), tmp_path / "lower", base=str(raw_bloom))
    train(tmp_path / "lower", tmp_path / "further")
    average([str(tmp_path / "lower"), str(tmp_path / "further")], tmp_path / "mean")
    for name in ("lower", "further", "mean"):
        model = Embedder.load(str(tmp_path / name), device="cpu")
        assert model.tokenize(["FOX"]) == model.tokenize(["fox"])
    assert not (delta / "tokenizer.json").exists()


def test_extract_wants_a_full_base(delta: Path, tmp_path: Path) -> None:
    with pytest.raises(DeltaError, match="is a delta"):
        extract(str(delta), tmp_path / "out", base=str(delta))


# --- average ---------------------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(weights=st.lists(st.floats(0.1, 10), min_size=3, max_size=3) | st.just([]))
def test_an_average_is_the_weighted_mean_of_all_numbers(raw_bloom: Path, weights: list[float]) -> None:
    folder = raw_bloom.parent
    names = [folder / f"d{seed}" for seed in range(3)]
    for seed, name in enumerate(names):
        if not name.exists():
            train(raw_bloom, name, seed=seed, max_tokens=50 + seed, matryoshka=(16, 32)[: 1 + seed], scores={"a": 1})
    shutil.rmtree(folder / "mean", ignore_errors=True)
    average([str(name) for name in names], folder / "mean", weights=weights, name="mean")
    found = load_file(folder / "mean" / "delta.safetensors")
    parts = [load_file(name / "delta.safetensors") for name in names]
    shares = weights or [1.0] * 3
    for name, tensor in found.items():
        expected = sum(share * part[name].double() for share, part in zip(shares, parts, strict=True)) / sum(shares)
        torch.testing.assert_close(tensor, expected.float(), rtol=1e-6, atol=1e-7)
    assert found.keys() == parts[0].keys()
    model = Embedder.load(str(folder / "mean"), device="cpu")
    assert (model.name, model.max_tokens, model.matryoshka, model.manifest.scores) == ("mean", 50, (16, 64), {})
    card = (folder / "mean" / "README.md").read_text("utf-8")
    assert card.startswith("---\n")
    assert "# mean\n" in card
    assert all(f"/d{seed} | " in card for seed in range(3)), card
    assert with_scores(card, "| a table |").count("| a table |") == 1


def test_what_one_delta_left_alone_counts_as_the_base_s(raw_bloom: Path, tmp_path: Path) -> None:
    train(raw_bloom, tmp_path / "a")
    base = load_base(str(raw_bloom))
    write_delta(tmp_path / "nothing", base.model, base)
    average([str(tmp_path / "a"), str(tmp_path / "nothing")], tmp_path / "half")
    found, a = diff(str(raw_bloom), str(tmp_path / "half")), diff(str(raw_bloom), str(tmp_path / "a"))
    for half, whole in zip(found.changes, a.changes, strict=True):
        assert half.norm == pytest.approx(whole.norm / 2, rel=1e-5)
    assert found.token_ids == a.token_ids


def test_what_cannot_be_averaged(
    delta: Path, raw_bloom: Path, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    stranger = train(make_checkpoint(seed=3), tmp_path / "stranger")
    for names, options, error, says in (
        ([delta], {}, OptionError, "two deltas"),
        ([delta, raw_bloom], {}, DeltaError, "no delta"),
        ([delta, stranger], {}, DeltaError, "another base"),
        ([delta, delta], {"weights": [1.0]}, OptionError, "1 weights for 2 deltas"),
        ([delta, delta], {"weights": [1.0, -1.0]}, OptionError, "above 0"),
    ):
        with pytest.raises(error, match=says):
            average([str(name) for name in names], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
