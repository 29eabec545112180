"""What two models differ in, number by number.

Invariant: a number counts as moved only if the two hold different values, whatever dtypes they are stored in; of large
tensors a window at a time is in memory.
Does not know: how the result is shown, or what is made of it.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress

from torch import Tensor

from udever.engine.deltas import Moved
from udever.engine.locating import Located, locate
from udever.engine.registry import MANIFEST, Manifest, check_finite
from udever.errors import DeltaError
from udever.model.config import TABLE, BloomConfig
from udever.model.weight_files import first_of
from udever.model.weights import Checkpoint
from udever.tokenizer import MIN_TOKENS, UdeverTokenizer
from udever.training.deltas.full_model import parts_of

ROWS_AT_ONCE = 2048
"""Of the token table, where single rows are looked at."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """How far one tensor moved."""

    tensor: str
    layer: str
    """embedding, 0, 1, … or final."""
    kind: str
    """The tensor's name within its layer."""
    numbers: int
    """Of the tensor; of the token table, those in rows that moved."""
    moved: int
    """How many of the numbers differ."""
    norm: float
    """Of the difference."""
    base_norm: float
    """Of what stood there before."""
    largest: float
    """Difference, in absolute value."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What differs between two models."""

    a: str
    b: str
    changes: tuple[Change, ...]
    """Of the tensors that moved, in the model's order."""
    token_ids: tuple[int, ...]
    """Rows of the token table that moved."""
    markers: tuple[int, ...]
    """Token ids of the markers."""
    numbers: int
    """Of the whole model."""

    @property
    def moved(self) -> int:
        """Numbers that differ."""
        return sum(change.moved for change in self.changes)

    @property
    def others(self) -> tuple[str, ...]:
        """What moved besides biases and the markers' rows."""
        names = tuple(c.tensor for c in self.changes if c.tensor != TABLE and not c.tensor.endswith(".bias"))
        rows = [str(index) for index in self.token_ids if index not in self.markers]
        listed = first_of(", ".join(rows[:5]), shown=5, total=len(rows))
        return names + ((f"{TABLE} (rows {listed})",) if rows else ())


class Weights:
    """A model's numbers, its delta applied."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.located: Located = locate(name, as_base=True)
        self.checkpoint: Checkpoint = self.located.checkpoint()
        check_finite(self.checkpoint, self.located.base.folder)
        self.moved: Moved = self.located.moved(self.checkpoint)

    @property
    def config(self) -> BloomConfig:
        """The architecture."""
        return self.checkpoint.config

    @cached_property
    def tokenizer(self) -> UdeverTokenizer:
        """With the markers, even of a base BLOOM."""
        return self.located.tokenizer(add_markers=True)

    @cached_property
    def base_digest(self) -> str:
        """Of the full checkpoint underneath."""
        return self.located.weights_digest(self.checkpoint)

    @cached_property
    def recipe(self) -> str:
        """Digest of the recipe that made the model, as its `udever.json` says; empty if it does not."""
        if self.located.delta:
            return self.located.delta.recipe
        path = self.located.base.folder / MANIFEST
        return str(json.loads(path.read_text("utf-8")).get("recipe", "")) if path.exists() else ""

    def shares_base_with(self, other: "Weights") -> bool:
        """Whether all that is not moved is the same; looked for only where a base had to be hashed anyway."""
        return bool(self.located.delta or other.located.delta) and self.base_digest == other.base_digest

    def pieces(self, tensor: str) -> Iterator[Tensor]:
        """A tensor's rows in order, some at a time."""
        return parts_of(self.checkpoint.tensors([tensor]), self.moved, storage="exact")[tensor].pieces()

    def manifest(self) -> Manifest:
        """The model's own."""
        return self.located.manifest(self.config)


def diff(a: str, b: str) -> Difference:
    """Compare two models: deltas, full checkpoints or base BLOOMs of one shape.

    Raises:
        ModelError: what `Embedder.load` would raise.
        DeltaError: they have different shapes.
    """
    return compare(Weights(a), Weights(b))


def compare(a: Weights, b: Weights) -> Difference:
    """As `diff`."""
    _require_one_shape(a, b)
    shared = a.shares_base_with(b)
    changes: list[Change] = []
    token_ids = _moved_rows(a, b, shared=shared)
    for tensor in a.config.tensor_shapes():
        if tensor == TABLE:
            pieces = _row_pieces(a, b, token_ids)
        elif shared and tensor not in a.moved.biases and tensor not in b.moved.biases:
            continue
        else:
            pieces = zip(a.pieces(tensor), b.pieces(tensor), strict=True)
        change = _change(tensor, pieces)
        if change.moved:
            changes.append(change)
    return Difference(
        a=a.name,
        b=b.name,
        changes=tuple(changes),
        token_ids=tuple(token_ids),
        markers=b.tokenizer.marker_ids,
        numbers=a.config.parameters,
    )


def _moved_rows(a: Weights, b: Weights, *, shared: bool) -> list[int]:
    """Ids of the token table's rows that differ."""
    if shared:
        candidates = sorted({*a.moved.token_ids, *b.moved.token_ids})
        windows = iter([tuple(model.moved.table_rows(model.checkpoint, candidates) for model in (a, b))])
    else:
        candidates = list(range(a.config.vocab_size))
        windows = zip(a.pieces(TABLE), b.pieces(TABLE), strict=True)
    differs = (row for ours, theirs in windows for row in (ours != theirs).any(1).tolist())
    return list(compress(candidates, differs))


def _row_pieces(a: Weights, b: Weights, token_ids: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(token_ids), ROWS_AT_ONCE):
        some = token_ids[start : start + ROWS_AT_ONCE]
        yield a.moved.table_rows(a.checkpoint, some), b.moved.table_rows(b.checkpoint, some)


def _change(tensor: str, pieces: Iterator[tuple[Tensor, Tensor]]) -> Change:
    numbers, moved, squares, base_squares, largest = 0, 0, 0.0, 0.0, 0.0
    for ours, theirs in pieces:
        before = ours.double()
        difference = theirs.double() - before
        numbers += difference.numel()
        moved += int(difference.count_nonzero())
        squares += float(difference.square().sum())
        base_squares += float(before.square().sum())
        largest = max(largest, float(difference.abs().max()) if difference.numel() else 0.0)
    layer, kind = _place(tensor)
    return Change(
        tensor=tensor,
        layer=layer,
        kind=kind,
        numbers=numbers,
        moved=moved,
        norm=squares**0.5,
        base_norm=base_squares**0.5,
        largest=largest,
    )


def _place(tensor: str) -> tuple[str, str]:
    """Layer and kind."""
    if match := re.fullmatch(r"h\.(\d+)\.(.*)", tensor):
        return match[1], match[2]
    return ("final" if tensor.startswith("ln_f") else "embedding"), tensor


def _require_one_shape(a: Weights, b: Weights) -> None:
    ours, theirs = (replace(model.config, max_tokens=MIN_TOKENS) for model in (a, b))
    if ours != theirs:
        raise DeltaError(
            f"{a.name} and {b.name} are different BLOOMs: {ours} and {theirs}",
            hint="compare models of one base",
        )
