"""A checkpoint folder: its BLOOM config, and its weights as memory-mapped tensors with canonical names.

Invariant: a `Checkpoint` that opened has exactly the tensors its config.json asks for, in the right shapes, in files
of the right size; no weight has been read yet. Every `tensors()` call maps the files anew, so that dropping its dict
unmaps them.
This module knows nothing of tokenizers, hubs, file formats or precision.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from udever.errors import NonFiniteWeightsError, NotBloomError, TensorNamesError, TensorShapeError
from udever.model.config import TABLE, BloomConfig
from udever.model.weight_files import (
    IGNORED,
    Stored,
    contents,
    first_of,
    is_mappable,
    map_tensors,
    require_scales,
    weight_files,
)

WINDOW_BYTES = 32 << 20
"""Largest piece of the weights that `check_finite` and `digest` hold at once."""
_PREFIX = "transformer."
_FETCH_AGAIN = "copy or download the file again"


class _Piece(NamedTuple):
    """Rows `[start, stop)` of a tensor along its first axis."""

    name: str
    start: int
    stop: int


class Checkpoint:
    """The weights of one BLOOM model in a local folder; make one with `Checkpoint.open`."""

    def __init__(
        self, folder: Path, *, config: BloomConfig, raw_config: dict[str, Any], stored: Mapping[str, Stored]
    ) -> None:
        self.folder = folder
        self.config = config
        self.raw_config = raw_config
        self._stored = stored

    @classmethod
    def open(cls, folder: Path) -> "Checkpoint":
        """Read `config.json`, find the weights and compare names, shapes and file sizes; weights stay unread.

        Keys may carry a `transformer.` prefix; a tied `lm_head.weight` is ignored. (A `.bin` file of torch < 1.6 cannot
        be mapped: it is read.)

        Raises:
            NotBloomError, ConfigError: config.json is missing, unreadable, of another architecture, or impossible.
            ModelNotFoundError: no weights in the folder.
            CorruptFileError: a weights file is truncated, unreadable or absent although an index names it.
            TensorNamesError, TensorShapeError: the weights are not those of the config.
        """
        raw_config = read_raw_config(folder)
        config = BloomConfig.from_hugging_face(raw_config)
        stored = _canonical(entry for file in weight_files(folder) for entry in contents(file))
        _require_names(stored, expected=config.tensor_shapes().keys(), folder=folder)
        _require_shapes(stored, expected=config.tensor_shapes())
        require_scales(stored, unless=(TABLE,))
        return cls(folder, config=config, raw_config=raw_config, stored=stored)

    @property
    def files(self) -> tuple[Path, ...]:
        """The weights files, in the order of their names."""
        return tuple(sorted({entry.file for entry in self._stored.values()}))

    @property
    def dtypes(self) -> dict[str, int]:
        """How many weights are stored in each dtype (safetensors' names: "F32", "BF16", …)."""
        counts: Counter[str] = Counter()
        for entry in self._stored.values():
            counts[entry.dtype] += math.prod(entry.shape)
        return dict(counts)

    def tensors(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Tensors by canonical name (`word_embeddings.weight`, `h.0.…`, `ln_f.bias`), in the order asked; None: all.

        They are views of mappings of their own: no weight is copied, pages are read when touched, writing to a tensor
        never reaches the file, and dropping the tensors unmaps it (safetensors: each tensor by itself).

        Raises:
            CorruptFileError: a file changed since the checkpoint was opened.
            KeyError: a name that no BLOOM of this config has.
        """
        wanted = list(self._stored if names is None else names)
        by_file: dict[Path, dict[str, Stored]] = {}
        for name in wanted:
            by_file.setdefault(self._stored[name].file, {})[name] = self._stored[name]
        found: dict[str, Tensor] = {}
        for file, entries in by_file.items():
            found |= map_tensors(file, entries)
        return {name: found[name] for name in wanted}

    def check_finite(self) -> None:
        """Read every weight once, a window at a time.

        Raises:
            NonFiniteWeightsError: NaN or infinity somewhere; names the tensors and how many of their weights.
        """
        bad: Counter[str] = Counter()
        for piece, values in self._pieces():
            smallest, largest = torch.aminmax(values)  # one pass with no temporary; NaN wins over every number
            if not (math.isfinite(smallest) and math.isfinite(largest)):
                bad[piece.name] += values.numel() - int(torch.isfinite(values).sum())
        if bad:
            listed = ", ".join(f"{name} ({bad[name]:,})" for name in sorted(bad)[:5])
            raise NonFiniteWeightsError(
                f"NaN or infinity in {len(bad)} {_plural(len(bad), 'tensor')} of {self.folder}: "
                f"{first_of(listed, shown=5, total=len(bad))}",
                hint="the training that wrote them diverged, or the file was converted to a dtype too narrow for it",
            )

    def digest(self) -> str:
        """Sha256 (hex) over architecture and weights: the same for every file layout. Reads every weight: slow.

        Weights count by sorted name, dtype, shape and bytes; of the architecture, what no shape tells.
        """
        config = self.config
        architecture = [config.heads, config.norm_epsilon, config.post_layernorm_residual]
        sha = hashlib.sha256(json.dumps(architecture).encode())
        for piece, values in self._pieces():
            if piece.start == 0:
                entry = self._stored[piece.name]
                sha.update(json.dumps([piece.name, entry.dtype, entry.shape]).encode())
            sha.update(values.reshape(-1).view(torch.uint8).numpy().data)
        return sha.hexdigest()

    def _pieces(self) -> Iterator[tuple[_Piece, Tensor]]:
        """All weights in the order of names, in mappings that last for one window of at most WINDOW_BYTES."""
        unmappable = {file for file in self.files if not is_mappable(file)}
        read = self.tensors(name for name, entry in self._stored.items() if entry.file in unmappable)
        for window in self._windows():
            mapped = self.tensors({piece.name for piece in window if piece.name not in read}) | read
            for piece in window:
                yield piece, mapped[piece.name][piece.start : piece.stop]

    def _windows(self) -> Iterator[list[_Piece]]:
        window: list[_Piece] = []
        room = WINDOW_BYTES
        for name in sorted(self._stored):
            entry, start = self._stored[name], 0
            while start < entry.shape[0]:
                if room < entry.row_bytes and window:
                    yield window
                    window, room = [], WINDOW_BYTES
                stop = min(entry.shape[0], start + max(1, room // entry.row_bytes))
                window.append(_Piece(name, start, stop))
                room -= (stop - start) * entry.row_bytes
                start = stop
        yield window


def read_raw_config(folder: Path) -> dict[str, Any]:
    """The contents of `folder/config.json`.

    Raises:
        NotBloomError: it is missing or no JSON object.
    """
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise NotBloomError(
            f"no config.json in {folder}", hint="a model folder holds config.json, tokenizer.json and the weights"
        ) from error
    except (OSError, ValueError) as error:
        raise NotBloomError(f"cannot read {path}: {error}", hint=_FETCH_AGAIN) from error
    if not isinstance(raw, dict):
        raise NotBloomError(f"{path} holds no JSON object", hint=_FETCH_AGAIN)
    return raw


def _canonical(entries: Iterable[Stored]) -> dict[str, Stored]:
    stored: dict[str, Stored] = {}
    for entry in entries:
        if entry.key in IGNORED:
            continue
        name = entry.key.removeprefix(_PREFIX)
        if name in stored:
            raise TensorNamesError(
                f"{name} is stored twice: in {stored[name].file} and in {entry.file}",
                hint="keep one copy of each tensor, with or without the transformer. prefix",
            )
        stored[name] = entry
    return stored


def _require_names(stored: Mapping[str, Stored], *, expected: Iterable[str], folder: Path) -> None:
    names = set(expected)
    complaints = [
        f"{len(found)} {kind}: {first_of(', '.join(sorted(found)[:5]), shown=5, total=len(found))}"
        for kind, found in (("missing", names - stored.keys()), ("extra", stored.keys() - names))
        if found
    ]
    if complaints:
        raise TensorNamesError(
            f"the tensors of {folder} are not those of the BLOOM in its config.json; {'; '.join(complaints)}",
            hint="config.json and weights must come from the same model, saved whole",
        )


def _require_shapes(stored: Mapping[str, Stored], *, expected: Mapping[str, tuple[int, ...]]) -> None:
    wrong = [
        f"{name} is {list(entry.shape)}, not {list(expected[name])}"
        for name, entry in stored.items()
        if entry.shape != expected[name]
    ]
    if wrong:
        raise TensorShapeError(
            f"{len(wrong)} {_plural(len(wrong), 'tensor')} of another shape than config.json says: "
            f"{first_of('; '.join(wrong[:3]), shown=3, total=len(wrong))}",
            hint="config.json and weights must come from the same model",
        )


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"
