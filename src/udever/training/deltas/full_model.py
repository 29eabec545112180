"""A full checkpoint as a folder that transformers and udever load: weights, configs, tokenizer, manifest.

Invariant: no more than `PIECE_BYTES` of a tensor are in memory at once, whatever the model's size; with storage "exact"
no number is rounded.
Does not know: where the weights come from.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import torch
from torch import Tensor

from udever.engine.deltas import Moved
from udever.engine.folders import whole_folder
from udever.engine.registry import CARD, MANIFEST, Manifest, manifest_json
from udever.errors import NonFiniteWeightsError, OptionError
from udever.model.config import TABLE
from udever.model.weight_files import DTYPES
from udever.tokenizer import MARKERS, UdeverTokenizer

Storage = Literal["exact", "fp32", "fp16", "bf16"]
"""exact: each tensor as its checkpoint stores it, but float32 where that would round what moved."""
PIECE_BYTES = 32 << 20
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_SPECIAL = ("unk", "bos", "eos", "pad")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One tensor to write."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: Callable[[], Iterator[Tensor]]
    """Its rows, in order, some at a time, in this dtype."""


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """What stands beside the weights."""

    folder: Path
    """A folder of the same model, for its tokenizer_config.json."""
    raw_config: Mapping[str, Any]
    """The contents of its config.json."""
    tokenizer: UdeverTokenizer
    manifest: Manifest
    recipe: str = ""
    """Digest of the recipe that made it; empty if none did."""
    storage: Storage = "exact"
    card: str = ""
    """The model card; empty: none."""


def parts_of(tensors: Mapping[str, Tensor], moved: Moved, *, storage: Storage) -> dict[str, Part]:
    """A checkpoint's tensors, with what moved in its place.

    Raises:
        OptionError: an unknown storage.
    """
    if storage not in get_args(Storage):
        raise OptionError(f"dtype {storage!r} does not exist", hint=f"choose one of {', '.join(get_args(Storage))}")
    return {name: _part(name, tensor, moved, storage) for name, tensor in tensors.items()}


def write_full(folder: Path, parts: Mapping[str, Part], *, files: ModelFiles, replace: bool = False) -> None:
    """Write the folder, which appears whole under its name.

    Raises:
        OptionError: there is a folder of that name, and it is not to be replaced.
        NonFiniteWeightsError: a number that the dtype cannot hold, or that is none.
    """
    with whole_folder(folder, replace=replace) as unfinished:
        with (unfinished / "model.safetensors").open("wb") as stream:
            write_safetensors(stream, parts)
        for name, content in side_files(files).items():
            (unfinished / name).write_text(content, "utf-8")


def side_files(files: ModelFiles) -> dict[str, str]:
    """File name → contents, of all but the weights."""
    dtype = {"fp16": "float16", "bf16": "bfloat16"}.get(files.storage, "float32")
    # Both names: transformers before version 5 knows the second one only.
    config = dict(files.raw_config) | {"architectures": ["BloomModel"], "dtype": dtype, "torch_dtype": dtype}
    manifest = manifest_json(files.manifest) | ({"recipe": files.recipe} if files.recipe else {})
    return {
        "config.json": _json(config),
        "tokenizer.json": files.tokenizer.content,
        "tokenizer_config.json": _json(tokenizer_config(files)),
        MANIFEST: _json(manifest),
    } | ({CARD: files.card} if files.card else {})


def tokenizer_config(files: ModelFiles) -> dict[str, Any]:
    """What transformers reads beside tokenizer.json."""
    try:
        known = json.loads((files.folder / "tokenizer_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        known = {}
    own = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # it reads tokenizer.json as it stands
        "padding_side": "left",
        "model_max_length": files.manifest.max_tokens,
        "clean_up_tokenization_spaces": False,
        "additional_special_tokens": [marker for pair in MARKERS.values() for marker in pair],
    }
    return {**_special_tokens(files), **(known if isinstance(known, dict) else {}), **own}


def write_safetensors(stream: BinaryIO, parts: Mapping[str, Part]) -> None:
    """The format of safetensors, a piece at a time; wide dtypes first, so that every tensor is aligned."""
    order = sorted(parts, key=lambda name: (-parts[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        part = parts[name]
        start, end = end, end + math.prod(part.shape) * part.dtype.itemsize
        header[name] = {"dtype": _NAMES[part.dtype], "shape": list(part.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    stream.write(len(encoded).to_bytes(8, "little") + encoded)
    for name in order:
        for piece in parts[name].pieces():
            _require_finite(piece, name=name)
            stream.write(piece.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _part(name: str, tensor: Tensor, moved: Moved, storage: Storage) -> Part:
    rows = dict(zip(moved.token_ids, moved.rows, strict=True)) if name == TABLE and moved.rows is not None else {}
    values = moved.biases.get(name, tensor)
    new = [values] if name in moved.biases else list(rows.values())
    dtype = _DTYPES.get(storage) or _exact_dtype(tensor.dtype, new)

    def pieces() -> Iterator[Tensor]:
        count = max(1, PIECE_BYTES // (4 * math.prod(values.shape[1:])))
        for start in range(0, len(values), count):
            piece = values[start : start + count].detach().to("cpu", dtype, copy=bool(rows))
            for index, row in rows.items():
                if start <= index < start + count:
                    piece[index - start] = row.to(dtype)
            yield piece

    return Part(shape=tuple(values.shape), dtype=dtype, pieces=pieces)


def _exact_dtype(dtype: torch.dtype, new: list[Tensor]) -> torch.dtype:
    keeps = all(torch.equal(value.to(dtype).to(value.dtype), value) for value in new)
    return dtype if keeps else torch.float32


def _require_finite(piece: Tensor, *, name: str) -> None:
    if not torch.isfinite(piece).all():
        raise NonFiniteWeightsError(
            f"{name} holds a number that {_NAMES[piece.dtype]} cannot hold, or that is none", hint="choose dtype exact"
        )


def _special_tokens(files: ModelFiles) -> dict[str, str]:
    """unk_token, … by the ids in config.json."""
    added = {token["id"]: token["content"] for token in json.loads(files.tokenizer.content).get("added_tokens", ())}
    ids = {f"{name}_token": files.raw_config.get(f"{name}_token_id") for name in _SPECIAL}
    return {name: added[index] for name, index in ids.items() if index in added}


def _json(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
