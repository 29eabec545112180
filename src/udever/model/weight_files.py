"""The files that hold a checkpoint's weights: which there are, what each contains, and its tensors mapped into memory.

Four layouts: `model.safetensors` or `pytorch_model.bin`, each whole or as shards with an index.
Invariant: listing a file's contents reads no weights but finds it truncated if it is; no file's code is ever run.
This module knows nothing of BLOOM: any names and shapes will do.
"""

import json
import math
import mmap
import os
import pickle
import struct
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from udever.errors import CorruptFileError, ModelNotFoundError, TensorShapeError

IGNORED = frozenset({"lm_head.weight"})
"""Tensors of a language model that an embedder has no use for."""
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The dtypes that weights come in, by safetensors' names."""
WHOLE_NUMBERS = "I8"
"""Also a dtype of weights, but of unknown scale: right only for rows that something normalises before they are used."""
_STORED_DTYPES = DTYPES | {WHOLE_NUMBERS: torch.int8}
_DTYPE_NAMES = {dtype: name for name, dtype in _STORED_DTYPES.items()}
_SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
_LAYOUTS = tuple(name for single in _SINGLE_FILES for name in (single, f"{single}.index.json"))
_MAX_HEADER_BYTES = 100 << 20
_ZIP_MAGIC = b"PK\x03\x04"
_LFS_MAGIC = b"version "
_UNQUANTISED = "use the model's original, unquantised weights"
_FETCH_AGAIN = "copy or download the file again"
# What torch.load lets out for bytes that are no checkpoint: its own errors, and those of the pickle machine underneath.
_UNREADABLE = (
    RuntimeError,
    OSError,
    EOFError,
    pickle.UnpicklingError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Where a tensor stands: `key` is its name inside `file`; `offset` in bytes, safetensors only."""

    key: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one slice along the first axis."""
        return _STORED_DTYPES[self.dtype].itemsize * math.prod(self.shape[1:])


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files that hold a folder's weights: safetensors before .bin, one file before shards.

    Raises:
        ModelNotFoundError: there are none.
        CorruptFileError: a shard is absent, or the index unreadable.
    """
    for layout in _LAYOUTS:
        path = folder / layout
        if path.is_file():
            return _shards(path) if layout.endswith(".index.json") else (path,)
    raise ModelNotFoundError(
        f"no weights in {folder}: looked for {', '.join(_LAYOUTS)}",
        hint="download the whole model, not its config only",
    )


def choose_weight_files(names: Iterable[str]) -> tuple[str, ...]:
    """Of the file names of a repository, those to download to have its weights once; empty if it has none."""
    available = frozenset(names)
    layout = next((layout for layout in _LAYOUTS if layout in available), None)
    if layout is None or not layout.endswith(".index.json"):
        return (layout,) if layout else ()
    stem, suffix = layout.removesuffix(".index.json").rsplit(".", 1)
    # Not the index but the names tell the shards, as it is not here yet: stem-00001-of-00002, once stem_00001-of-…
    shards = (name for name in available if name.startswith(stem) and "-of-" in name and name.endswith(f".{suffix}"))
    return (layout, *sorted(shards))


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CorruptFileError(f"{index} is no index of shards: {error}", hint=_FETCH_AGAIN) from error
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise CorruptFileError(f"{index} names no shards, or shards outside its folder", hint=_FETCH_AGAIN)
    absent = sorted(name for name in names if not (index.parent / name).is_file())
    if absent:
        raise CorruptFileError(
            f"{len(absent)} of {len(names)} shards are missing in {index.parent}: "
            f"{first_of(', '.join(absent[:5]), shown=5, total=len(absent))}",
            hint="download the missing files into the same folder",
        )
    return tuple(index.parent / name for name in sorted(names))


def contents(file: Path) -> list[Stored]:
    """Every tensor of one weights file.

    Raises:
        CorruptFileError: the file is truncated, unreadable, or carries more than plain tensors.
        TensorShapeError: a tensor has a dtype that no BLOOM is published in (quantised weights).
    """
    return _safetensors_contents(file) if _is_safetensors(file) else _pickled_contents(file)


def map_tensors(file: Path, entries: Mapping[str, Stored]) -> dict[str, Tensor]:
    """The tensors of one file that `entries` names, as views of private copy-on-write mappings.

    Those of a safetensors file have a mapping each, so that each is unmapped with its last reference; those of a .bin
    file share one. What is stored as whole numbers is a copy in float16, a number n as n / 32.

    Raises:
        CorruptFileError: the file is not what it was when its contents were listed.
    """
    if not _is_safetensors(file):
        found = _map_pickled(file, entries)
    else:
        with _opened(file) as stream:
            found = {name: _map_stored(stream, entry) for name, entry in entries.items()}
    return {name: _widened(tensor) for name, tensor in found.items()}


def is_mappable(file: Path) -> bool:
    """False for a .bin file of the format before torch 1.6: `map_tensors` has to read it whole."""
    return _is_safetensors(file) or _is_zip(file)


def _is_safetensors(file: Path) -> bool:
    return file.suffix == ".safetensors"


def _safetensors_contents(file: Path) -> list[Stored]:
    """The header of a safetensors file, every offset of it checked against the file's size."""
    with _opened(file) as stream:
        file_bytes = os.fstat(stream.fileno()).st_size
        header, data_start = _safetensors_header(stream, file=file, file_bytes=file_bytes)
    entries, data_end = [], data_start
    for key, facts in header.items():
        if key == "__metadata__":
            continue
        try:
            dtype, shape = str(facts["dtype"]), tuple(int(size) for size in facts["shape"])
            first, last = (int(offset) for offset in facts["data_offsets"])
        except (LookupError, TypeError, ValueError) as error:
            raise CorruptFileError(f"{file}: the header entry of {key} is broken", hint=_FETCH_AGAIN) from error
        _require_dtype(dtype in _STORED_DTYPES or key in IGNORED, key=key, dtype=dtype, file=file)
        entry = Stored(key=key, file=file, dtype=dtype, shape=shape, offset=data_start + first)
        if key not in IGNORED and (first < 0 or last - first != math.prod(shape) * _STORED_DTYPES[dtype].itemsize):
            raise CorruptFileError(f"{file}: the header gives {key} the wrong number of bytes", hint=_FETCH_AGAIN)
        entries.append(entry)
        data_end = max(data_end, data_start + last)
    if data_end > file_bytes:
        raise CorruptFileError(
            f"{file} is truncated: it has {file_bytes:,} bytes and should have {data_end:,}", hint=_FETCH_AGAIN
        )
    return entries


def _safetensors_header(stream: BinaryIO, *, file: Path, file_bytes: int) -> tuple[dict[str, Any], int]:
    start = stream.read(8)
    header_bytes = int.from_bytes(start, "little")
    if start.startswith(_LFS_MAGIC):
        raise CorruptFileError(f"{file} is a Git LFS pointer, not the weights", hint="run git lfs pull")
    if len(start) < 8 or header_bytes > min(_MAX_HEADER_BYTES, file_bytes - 8):
        raise CorruptFileError(f"{file} is truncated or no safetensors file", hint=_FETCH_AGAIN)
    try:
        header = json.loads(stream.read(header_bytes))
    except ValueError as error:
        raise CorruptFileError(f"{file} has no readable safetensors header: {error}", hint=_FETCH_AGAIN) from error
    if not isinstance(header, dict):
        raise CorruptFileError(f"{file} has no readable safetensors header", hint=_FETCH_AGAIN)
    return header, 8 + header_bytes


def _map_stored(stream: BinaryIO, entry: Stored) -> Tensor:
    page_start = entry.offset - entry.offset % mmap.ALLOCATIONGRANULARITY
    end = entry.offset + math.prod(entry.shape) * _STORED_DTYPES[entry.dtype].itemsize
    try:
        # Copy-on-write, as torch has no read-only tensors; the tensor keeps the mapping alive.
        mapping = mmap.mmap(stream.fileno(), end - page_start, offset=page_start, access=mmap.ACCESS_COPY)
    except ValueError as error:
        raise CorruptFileError(f"{entry.file} shrank since it was opened", hint=_FETCH_AGAIN) from error
    count = math.prod(entry.shape)
    flat = torch.frombuffer(mapping, dtype=_STORED_DTYPES[entry.dtype], count=count, offset=entry.offset - page_start)
    return flat.view(entry.shape)


def _widened(tensor: Tensor) -> Tensor:
    """Whole numbers as 32nds, as rows of about unit spread train best; any other tensor as it is."""
    return tensor.half().mul_(1 / 32) if tensor.dtype == torch.int8 else tensor


def _pickled_contents(file: Path) -> list[Stored]:
    entries = []
    for key, value in _load_pickled(file).items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CorruptFileError(
                f"{file} is no plain state dict: {key!r} is {type(value).__name__}",
                hint="save model.state_dict() alone, or better as safetensors",
            )
        _require_dtype(value.dtype in _DTYPE_NAMES or key in IGNORED, key=key, dtype=value.dtype, file=file)
        dtype = _DTYPE_NAMES.get(value.dtype, "?")
        entries.append(Stored(key=key, file=file, dtype=dtype, shape=tuple(value.shape)))
    return entries


def _map_pickled(file: Path, entries: Mapping[str, Stored]) -> dict[str, Tensor]:
    loaded = _load_pickled(file)
    found = {name: loaded.get(entry.key) for name, entry in entries.items()}
    for name, value in found.items():
        if value is None or tuple(value.shape) != entries[name].shape:
            raise CorruptFileError(f"{file} changed since it was opened", hint=_FETCH_AGAIN)
    return {name: value.contiguous() for name, value in found.items() if value is not None}


def _load_pickled(file: Path) -> dict[str, Tensor]:
    """A .bin file without running its code (`weights_only`); mapped, unless it has the format of torch < 1.6."""
    with _opened(file) as stream:
        if stream.read(len(_LFS_MAGIC)) == _LFS_MAGIC:
            raise CorruptFileError(f"{file} is a Git LFS pointer, not the weights", hint="run git lfs pull")
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
    except _UNREADABLE as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CorruptFileError(
            f"{file} is truncated, or no file of plain tensors: {reason}",
            hint=f"{_FETCH_AGAIN}; udever never runs code that a .bin file carries",
        ) from error
    if not isinstance(loaded, dict):
        raise CorruptFileError(f"{file} holds a {type(loaded).__name__}, no state dict", hint=_FETCH_AGAIN)
    return loaded


def _is_zip(file: Path) -> bool:
    with _opened(file) as stream:
        return stream.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC


def _opened(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise CorruptFileError(f"cannot read {file}: {error}", hint="check that it exists and is readable") from error


def _require_dtype(supported: bool, *, key: str, dtype: object, file: Path) -> None:
    if not supported:
        raise TensorShapeError(
            f"{file}: {key} is stored as {dtype}; BLOOM's weights are {', '.join(DTYPES)}",
            hint=_UNQUANTISED,
        )


def require_scales(stored: Mapping[str, Stored], *, unless: Container[str] = ()) -> None:
    """No tensor but those in `unless` may be whole numbers: these have lost their scale.

    Raises:
        TensorShapeError: names the tensors.
    """
    wrong = sorted(name for name, entry in stored.items() if entry.dtype == WHOLE_NUMBERS and name not in unless)
    if wrong:
        raise TensorShapeError(
            f"whole numbers ({WHOLE_NUMBERS}) whose scale is unknown: "
            f"{first_of(', '.join(wrong[:3]), shown=3, total=len(wrong))}",
            hint=_UNQUANTISED,
        )


def first_of(listed: str, *, shown: int, total: int) -> str:
    """`listed`, and how many more there are."""
    return f"{listed}, … ({total - shown} more)" if total > shown else listed
