import gc
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from udever.errors import (
    ConfigError,
    CorruptFileError,
    ModelNotFoundError,
    NonFiniteWeightsError,
    NotBloomError,
    TensorNamesError,
    TensorShapeError,
)
from udever.model import weights
from udever.model.config import TABLE
from udever.model.weight_files import choose_weight_files
from udever.model.weights import Checkpoint

Tensors = dict[str, Tensor]


def prefixed(tensors: Tensors) -> Tensors:
    """As BloomForCausalLM saves them, with the head that shares the table."""
    return {f"transformer.{name}": tensor for name, tensor in tensors.items()} | {"lm_head.weight": tensors[TABLE]}


def save_sharded(tensors: Tensors, folder: Path, *, whole: str, save: Callable[[Tensors, Path], object]) -> None:
    stem, suffix = whole.rsplit(".", 1)
    names = sorted(tensors)
    parts = [names[:5], names[5:11], names[11:]]
    weight_map = {}
    for number, part in enumerate(parts, 1):
        shard = f"{stem}-{number:05}-of-{len(parts):05}.{suffix}"
        save({name: tensors[name] for name in part}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    (folder / f"{whole}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def save_tensors(tensors: Tensors, path: Path) -> None:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)


def save_legacy(tensors: Tensors, path: Path) -> None:
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


LAYOUTS: dict[str, Callable[[Tensors, Path], object]] = {
    "safetensors": lambda t, d: save_tensors(t, d / "model.safetensors"),
    "safetensors, prefixed": lambda t, d: save_tensors(prefixed(t), d / "model.safetensors"),
    "safetensors, sharded": lambda t, d: save_sharded(t, d, whole="model.safetensors", save=save_tensors),
    "bin": lambda t, d: torch.save(t, d / "pytorch_model.bin"),
    "bin, prefixed": lambda t, d: torch.save(prefixed(t), d / "pytorch_model.bin"),
    "bin, sharded": lambda t, d: save_sharded(prefixed(t), d, whole="pytorch_model.bin", save=torch.save),
    "bin before torch 1.6": lambda t, d: save_legacy(prefixed(t), d / "pytorch_model.bin"),
}


@pytest.fixture(scope="module")
def tensors(tiny_checkpoint: Path) -> Tensors:
    return load_file(tiny_checkpoint / "model.safetensors")


@pytest.fixture
def write(tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function: a folder with the tiny checkpoint's config and the given tensors in the given layout."""

    def write(tensors: Tensors, layout: str = "safetensors", **config: Any) -> Path:
        folder = tmp_path / f"checkpoint-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        raw = json.loads((tiny_checkpoint / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))
        LAYOUTS[layout](tensors, folder)
        return folder

    return write


def weights_file(folder: Path) -> Path:
    return next(path for path in sorted(folder.iterdir(), reverse=True) if path.suffix in (".safetensors", ".bin"))


def mapped_kib(path: Path, field: str = "Size") -> int:
    """How much of a file this process has mapped ("Size") or holds in memory ("Rss")."""
    total, counting = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            counting = line.endswith(str(path))
        elif counting and line.startswith(f"{field}:"):
            total += int(line.split()[1])
    return total


needs_proc = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc/self/smaps")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_layout_gives_the_same_tensors(
    tensors: Tensors, write: Callable[..., Path], layout: str, dtype: torch.dtype
) -> None:
    saved = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    checkpoint = Checkpoint.open(write(saved, layout))
    loaded = checkpoint.tensors()
    assert loaded.keys() == saved.keys() == checkpoint.config.tensor_shapes().keys()
    for name, tensor in loaded.items():
        assert tensor.dtype == dtype
        assert tensor.is_contiguous()
        assert torch.equal(tensor, saved[name]), name
    checkpoint.check_finite()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_table_of_whole_numbers_comes_as_32nds(tensors: Tensors, write: Callable[..., Path], layout: str) -> None:
    every_number = torch.arange(-128, 128).repeat(tensors[TABLE].numel() // 256 + 1)[: tensors[TABLE].numel()]
    saved = tensors | {TABLE: every_number.view(tensors[TABLE].shape).to(torch.int8)}
    checkpoint = Checkpoint.open(write(saved, layout))
    loaded = checkpoint.tensors()
    assert loaded[TABLE].dtype == torch.float16
    assert torch.equal(loaded[TABLE].float() * 32, saved[TABLE].float())
    rest = sum(tensor.numel() for name, tensor in tensors.items() if name != TABLE)
    assert checkpoint.dtypes == {"I8": every_number.numel(), "F32": rest}
    checkpoint.check_finite()
    assert checkpoint.digest() == Checkpoint.open(write(saved)).digest()


def test_tensors_come_in_the_order_asked(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    names = ["ln_f.bias", TABLE, "h.1.mlp.dense_h_to_4h.weight"]
    assert list(checkpoint.tensors(names)) == names
    assert checkpoint.tensors([]) == {}
    with pytest.raises(KeyError):
        checkpoint.tensors(["h.2.mlp.dense_h_to_4h.weight"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_digest_is_the_same_in_every_layout(
    tensors: Tensors, write: Callable[..., Path], tiny_checkpoint: Path, layout: str
) -> None:
    assert Checkpoint.open(write(tensors, layout)).digest() == Checkpoint.open(tiny_checkpoint).digest()


def test_digest_does_not_depend_on_the_window(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    whole = checkpoint.digest()
    for window_bytes in (1, 1000, 5000, 100_000):
        monkeypatch.setattr(weights, "WINDOW_BYTES", window_bytes)
        assert checkpoint.digest() == whole


def test_digest_tells_weights_apart(tensors: Tensors, write: Callable[..., Path], tiny_checkpoint: Path) -> None:
    changed = {name: tensor.clone() for name, tensor in tensors.items()}
    changed["h.1.mlp.dense_4h_to_h.bias"][-1] += 1e-6
    swapped = tensors | {
        "h.0.input_layernorm.bias": tensors["h.1.input_layernorm.bias"],
        "h.1.input_layernorm.bias": tensors["h.0.input_layernorm.bias"],
    }
    folders = [
        tiny_checkpoint,
        write(changed),
        write(swapped),
        write({name: tensor.half() for name, tensor in tensors.items()}),
        write({name: tensor.bfloat16() for name, tensor in tensors.items()}),
        write(tensors, n_head=8),
        write(tensors, layer_norm_epsilon=1e-6),
        write(tensors, apply_residual_connection_post_layernorm=True),
    ]
    assert len({Checkpoint.open(folder).digest() for folder in folders}) == len(folders)


@pytest.mark.parametrize("class_name", ["BloomModel", "BloomForCausalLM"])
def test_opens_what_transformers_saves(tmp_path: Path, tiny_checkpoint: Path, class_name: str) -> None:
    import transformers

    model = getattr(transformers, class_name).from_pretrained(tiny_checkpoint)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    saved, original = Checkpoint.open(tmp_path), Checkpoint.open(tiny_checkpoint)
    assert saved.config == original.config
    assert saved.digest() == original.digest()


@pytest.mark.parametrize(
    "renamed",
    [
        {},
        {"hidden_size": None, "n_embed": 64},
        {"n_layer": None, "num_hidden_layers": 2, "n_head": None, "num_attention_heads": 4},
        {"torch_dtype": None, "dtype": "float32", "transformers_version": "5.0.0"},
    ],
)
def test_config_names_of_all_ages(tensors: Tensors, write: Callable[..., Path], renamed: dict[str, Any]) -> None:
    config = Checkpoint.open(write(tensors, **renamed)).config
    assert (config.width, config.layers, config.heads) == (64, 2, 4)


@needs_proc
@pytest.mark.parametrize("layout", ["safetensors", "bin, sharded", "safetensors, sharded", "bin"])
def test_each_call_maps_anew_and_dropping_its_dict_unmaps(
    tensors: Tensors, write: Callable[..., Path], layout: str
) -> None:
    checkpoint = Checkpoint.open(write(tensors, layout))
    gc.collect()
    file = checkpoint.files[0]
    assert mapped_kib(file) == 0
    first, second = checkpoint.tensors(), checkpoint.tensors()
    assert first[TABLE].data_ptr() != second[TABLE].data_ptr()
    twice = mapped_kib(file)
    assert twice * 1024 >= 2 * file.stat().st_size * 0.9
    del first
    assert 0 < mapped_kib(file) < twice
    del second
    assert mapped_kib(file) == 0


@needs_proc
def test_a_safetensors_tensor_is_unmapped_by_itself(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    loaded = checkpoint.tensors()
    before = mapped_kib(checkpoint.files[0])
    table_kib = loaded[TABLE].nbytes // 1024
    del loaded[TABLE]
    assert mapped_kib(checkpoint.files[0]) <= before - table_kib


def test_writing_to_a_tensor_leaves_the_file_alone(tensors: Tensors, write: Callable[..., Path]) -> None:
    for layout in ("safetensors", "bin"):
        checkpoint = Checkpoint.open(write(tensors, layout))
        before = checkpoint.files[0].read_bytes()
        checkpoint.tensors()["ln_f.bias"].fill_(7)
        assert checkpoint.files[0].read_bytes() == before
        assert torch.equal(checkpoint.tensors()["ln_f.bias"], tensors["ln_f.bias"])


def test_an_unaligned_safetensors_file_is_read(tensors: Tensors, write: Callable[..., Path]) -> None:
    """Files of the first safetensors releases do not pad their header to a multiple of eight bytes."""
    folder = write(tensors)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    header_bytes = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + header_bytes].rstrip() + b" "
    while len(header) % 4 != 1:
        header += b" "
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + header_bytes :])
    checkpoint = Checkpoint.open(folder)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in checkpoint.tensors().items())
    checkpoint.check_finite()


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(NotBloomError, match=r"no config\.json"):
        Checkpoint.open(tmp_path)
    with pytest.raises(NotBloomError, match=r"no config\.json"):
        Checkpoint.open(tmp_path / "absent")


@pytest.mark.parametrize("content", ["", "{", "[1]", '"bloom"', "\x00"])
def test_an_unreadable_config(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(NotBloomError, match=r"config\.json") as caught:
        Checkpoint.open(tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"model_type": "llama"}, NotBloomError, "'llama'"),
        ({"model_type": None}, NotBloomError, "not 'bloom'"),
        ({"hidden_size": None}, ConfigError, "hidden_size"),
        ({"n_head": 3}, ConfigError, "multiple"),
        ({"n_layer": 0}, ConfigError, "layers is 0"),
        ({"layer_norm_epsilon": "tiny"}, ConfigError, "tiny"),
        ({"layer_norm_epsilon": [1]}, ConfigError, "above 0"),
        ({"layer_norm_epsilon": -1e-5}, ConfigError, "above 0"),
        ({"layer_norm_epsilon": float("nan")}, ConfigError, "above 0"),
        ({"seq_length": "2048"}, ConfigError, "seq_length"),
        ({"apply_residual_connection_post_layernorm": "false"}, ConfigError, "true or false"),
    ],
)
def test_a_config_that_cannot_be(
    tensors: Tensors, write: Callable[..., Path], changes: dict[str, Any], error: Any, says: str
) -> None:
    with pytest.raises(error, match=says):
        Checkpoint.open(write(tensors, **changes))


def test_no_weights(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_checkpoint / "config.json", tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"model\.safetensors.*pytorch_model\.bin"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_missing_and_extra_tensors_are_named(tensors: Tensors, write: Callable[..., Path], layout: str) -> None:
    changed = tensors | {f"h.2.extra_{i}": torch.zeros(3) for i in range(7)}
    del changed["h.1.self_attention.dense.bias"]
    with pytest.raises(TensorNamesError) as caught:
        Checkpoint.open(write(changed, layout))
    assert "1 missing: h.1.self_attention.dense.bias" in caught.value.message
    assert "7 extra: h.2.extra_0, " in caught.value.message
    assert "(2 more)" in caught.value.message


def test_a_tensor_stored_twice(tensors: Tensors, write: Callable[..., Path]) -> None:
    with pytest.raises(TensorNamesError, match=r"ln_f\.bias is stored twice"):
        Checkpoint.open(write(tensors | {"transformer.ln_f.bias": tensors["ln_f.bias"]}))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_wrong_shapes_are_named(tensors: Tensors, write: Callable[..., Path], layout: str) -> None:
    changed = tensors | {"h.0.mlp.dense_4h_to_h.weight": tensors["h.0.mlp.dense_h_to_4h.weight"].clone()}
    with pytest.raises(TensorShapeError) as caught:
        Checkpoint.open(write(changed, layout))
    assert "h.0.mlp.dense_4h_to_h.weight is [256, 64], not [64, 256]" in caught.value.message


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.float8_e4m3fn])
def test_dtypes_of_no_bloom_are_refused(
    tensors: Tensors, write: Callable[..., Path], layout: str, dtype: torch.dtype
) -> None:
    changed = tensors | {"ln_f.bias": tensors["ln_f.bias"].to(dtype)}
    with pytest.raises(TensorShapeError, match=r"ln_f\.bias is stored as"):
        Checkpoint.open(write(changed, layout))


@pytest.mark.parametrize("layout", ["safetensors, prefixed", "bin"])
def test_quantised_weights_are_refused(tensors: Tensors, write: Callable[..., Path], layout: str) -> None:
    changed = {name: tensor.to(torch.int8) for name, tensor in tensors.items() if name in (TABLE, "ln_f.bias")}
    with pytest.raises(TensorShapeError, match=r"scale is unknown: ln_f\.bias \("):
        Checkpoint.open(write(tensors | changed, layout))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layout=st.sampled_from([*LAYOUTS]), kept=st.floats(0, 0.99999))
def test_a_file_cut_anywhere_is_refused(tensors: Tensors, write: Callable[..., Path], layout: str, kept: float) -> None:
    folder = write(tensors, layout)
    path = weights_file(folder)
    os.truncate(path, int(path.stat().st_size * kept))
    with pytest.raises(CorruptFileError) as caught:
        Checkpoint.open(folder)
    assert str(path) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("lost_bytes", [1, 2, 4, 100])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_short_of_a_few_bytes_is_refused(
    tensors: Tensors, write: Callable[..., Path], layout: str, lost_bytes: int
) -> None:
    folder = write(tensors, layout)
    os.truncate(weights_file(folder), weights_file(folder).stat().st_size - lost_bytes)
    with pytest.raises(CorruptFileError):
        Checkpoint.open(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a checkpoint at all, but long enough to have a header",
        b"\xff" * 100,
        (9).to_bytes(8, "little") + b"[1, 2, 3]",
        (12).to_bytes(8, "little") + b'{"a": {"b"}}',
        (14).to_bytes(8, "little") + b'{"ln_f.bias":1}'[:14],
        b"PK\x03\x04" + b"\0" * 100,
        pickle.dumps({"ln_f.bias": 3}, protocol=2),
        pickle.dumps([1, 2], protocol=2),
    ],
)
def test_what_is_no_weights_file_is_refused(tiny_checkpoint: Path, tmp_path: Path, name: str, content: bytes) -> None:
    shutil.copy(tiny_checkpoint / "config.json", tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorruptFileError, match=name):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_git_lfs_pointer_is_told(tiny_checkpoint: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(tiny_checkpoint / "config.json", tmp_path)
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 2130659352\n")
    with pytest.raises(CorruptFileError, match="git lfs pull"):
        Checkpoint.open(tmp_path)


class Evil:
    """A pickle that runs a program when it is loaded carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_bin_file_never_runs(tensors: Tensors, tiny_checkpoint: Path, tmp_path: Path, legacy: bool) -> None:
    shutil.copy(tiny_checkpoint / "config.json", tmp_path)
    state = {**tensors, "ln_f.bias": Evil(tmp_path / "ran")}
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CorruptFileError, match="plain tensors"):
        Checkpoint.open(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_state_dict_inside_a_training_checkpoint_is_refused(
    tensors: Tensors, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copy(tiny_checkpoint / "config.json", tmp_path)
    torch.save({"state_dict": tensors, "step": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CorruptFileError, match="no plain state dict"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("layout", ["safetensors, sharded", "bin, sharded"])
def test_a_missing_shard_is_named(tensors: Tensors, write: Callable[..., Path], layout: str) -> None:
    folder = write(tensors, layout)
    weights_file(folder).unlink()
    with pytest.raises(CorruptFileError, match=r"1 of 3 shards are missing.*-00003-of-00003"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    "index",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "../b"}}',
    ],
)
def test_an_unreadable_index_is_refused(tensors: Tensors, write: Callable[..., Path], index: str) -> None:
    folder = write(tensors, "safetensors, sharded")
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CorruptFileError, match=r"model\.safetensors\.index\.json"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_replaced_after_opening_is_no_crash(tensors: Tensors, write: Callable[..., Path], layout: str) -> None:
    folder = write(tensors, layout)
    checkpoint = Checkpoint.open(folder)
    os.truncate(weights_file(folder), 100)
    with pytest.raises(CorruptFileError):
        checkpoint.tensors()
    weights_file(folder).unlink()
    with pytest.raises(CorruptFileError):
        checkpoint.tensors()


@pytest.mark.parametrize(
    ("dtype", "value"),
    list(product([torch.float32, torch.bfloat16, torch.float16, torch.float64], [math.nan, math.inf, -math.inf])),
)
def test_nan_and_infinity_are_found_and_counted(
    tensors: Tensors, write: Callable[..., Path], dtype: torch.dtype, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "WINDOW_BYTES", 10_000)
    changed = {name: tensor.to(dtype, copy=True) for name, tensor in tensors.items()}
    changed[TABLE][::100, 3] = value
    changed["h.1.self_attention.query_key_value.bias"][-1] = value
    folder = write(changed, "bin" if dtype == torch.float64 else "safetensors")
    rows = len(changed[TABLE][::100])
    with pytest.raises(NonFiniteWeightsError) as caught:
        Checkpoint.open(folder).check_finite()
    assert "2 tensors" in caught.value.message
    assert f"h.1.self_attention.query_key_value.bias (1), {TABLE} ({rows})" in caught.value.message


def test_the_largest_finite_weights_pass(tensors: Tensors, write: Callable[..., Path]) -> None:
    largest = torch.finfo(torch.float16).max
    Checkpoint.open(write({name: torch.full_like(t, largest).half() for name, t in tensors.items()})).check_finite()


@needs_proc
def test_reading_all_weights_holds_a_window_of_them(make_checkpoint: Callable[..., Path]) -> None:
    folder = make_checkpoint(width=256, layers=2, vocab_size=100_000)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(
                """
            import sys
            from pathlib import Path
            from udever.model import weights
            from udever.model.weights import Checkpoint

            def peak_kib():
                return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

            small, large = (Checkpoint.open(Path(folder)) for folder in sys.argv[1:])
            weights.WINDOW_BYTES = 4 << 20
            small.check_finite(), small.digest()
            before = peak_kib()
            large.check_finite(), large.digest()
            print(peak_kib() - before)
            """
            ),
            str(make_checkpoint()),
            str(folder),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert int(done.stdout) < 30_000, "of a file of 109,000 KiB"


def test_which_files_of_a_repository_to_download() -> None:
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    old = [f"pytorch_model_0000{i}-of-00002.bin" for i in (1, 2)]
    rest = ["README.md", "config.json", "tokenizer.json", "onnx/model.onnx", "flax_model.msgpack", "training_args.bin"]
    index, old_index = "model.safetensors.index.json", "pytorch_model.bin.index.json"
    assert choose_weight_files(rest) == ()
    assert choose_weight_files([*rest, "pytorch_model.bin", "model.safetensors"]) == ("model.safetensors",)
    assert choose_weight_files([*rest, *old, "pytorch_model.bin"]) == ("pytorch_model.bin",)
    assert choose_weight_files([*old, old_index, *shards, index, *rest]) == (index, *shards)
    assert choose_weight_files([*old, old_index, *rest]) == (old_index, *old)
