"""A fine-tune as the few numbers that moved: the biases, and some rows of the token table, over the weights of a base.

    DELTA/delta.safetensors   float32 biases by their names in a checkpoint, and the rows as `word_embeddings.rows`
    DELTA/udever.json         what any model's says, and "base": {"name", "weights"}, "delta": {"kind", "token_ids"}
    DELTA/tokenizer.json      only if it is not the base's, with the markers behind its last id

Invariant: a delta runs on the very weights that it was trained on (by digest, so they may be found anywhere) and on no
others. The base is a full checkpoint: a delta trained on a delta stands on that one's base.
This module knows nothing of training, texts or devices, nor where a base is found (locating.py).
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from udever.engine import registry
from udever.engine.folders import whole_folder
from udever.engine.hub import DELTA_FILE
from udever.engine.registry import CARD, MANIFEST, Manifest, ModelSource
from udever.engine.tensor_files import save_tensors
from udever.errors import DeltaError, NonFiniteWeightsError, TensorNamesError, TensorShapeError
from udever.model.config import TABLE, BloomConfig
from udever.model.weight_files import contents, first_of, map_tensors, require_scales
from udever.model.weights import Checkpoint
from udever.tokenizer import UdeverTokenizer

Kind = Literal["absolute", "difference"]
"""Whether a delta holds the values themselves or what is to be added to the base's."""
ROWS = "word_embeddings.rows"
"""The tensor of the token table's rows that moved, [M, H]."""
_TRAIN_AGAIN = "copy the delta's folder again, or train it again"


@dataclass(frozen=True, kw_only=True)
class BaseReference:
    """Which weights a delta belongs to."""

    name: str
    """A built-in name, a hub id, or a path: absolute, or relative to the delta's folder."""
    weights: str
    """`Checkpoint.digest` of the base."""
    revision: str | None = None
    """The commit of a base from the hub."""

    @classmethod
    def to(cls, source: ModelSource, *, weights: str, folder: Path) -> "BaseReference":
        """How a delta in `folder` names its base: a folder by its way from there, so that both can move together."""
        name = source.name
        if source.kind == "folder":
            name = Path(os.path.relpath(source.folder.resolve(), folder.resolve())).as_posix()
        return cls(name=name, weights=weights, revision=source.revision)

    def as_json(self) -> dict[str, str]:
        """As it stands in `udever.json`."""
        facts = {"name": self.name, "weights": self.weights}
        return facts | ({"revision": self.revision} if self.revision else {})


@dataclass(frozen=True, kw_only=True)
class Moved:
    """What differs from a base, as values: all that a delta is."""

    biases: Mapping[str, Tensor]
    """float32, by their names in a checkpoint."""
    token_ids: tuple[int, ...] = ()
    """Rows of the token table that differ, ascending."""
    rows: Tensor | None = None
    """float32 [M, H]; None if there are none."""

    def tensors(self) -> dict[str, Tensor]:
        """The biases, and the rows under `ROWS`."""
        return dict(self.biases) | ({} if self.rows is None else {ROWS: self.rows})

    def table_rows(self, checkpoint: Checkpoint, token_ids: Sequence[int]) -> Tensor:
        """Rows of the base's token table with those that moved in their places, float32 [len(token_ids), H]."""
        rows = table_rows(checkpoint, token_ids)
        own = dict(zip(self.token_ids, self.rows, strict=True)) if self.rows is not None else {}
        for place, index in enumerate(token_ids):
            if index in own:
                rows[place] = own[index]
        return rows

    def beside(self, checkpoint: Checkpoint, operation: Callable[[Tensor, Tensor], Tensor]) -> "Moved":
        """`operation(ours, the base's)` of each tensor."""
        base = checkpoint.tensors(self.biases)
        rows = self.rows
        if rows is not None:
            rows = operation(rows, table_rows(checkpoint, self.token_ids))
        biases = {name: operation(bias, base[name].float()) for name, bias in self.biases.items()}
        return Moved(biases=biases, token_ids=self.token_ids, rows=rows)


@dataclass(frozen=True, kw_only=True)
class Delta:
    """A delta as its folder holds it; make one with `Delta.open`."""

    folder: Path
    base: BaseReference
    kind: Kind
    stored: Moved
    """As in the file: values or differences, as `kind` says."""
    recipe: str = ""
    """Digest of the recipe that made it; empty if it was not trained."""
    tokenizer: str = ""
    """Digest of its tokenizer."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """All of `udever.json`."""

    @classmethod
    def open(cls, folder: Path) -> "Delta":
        """Read and check a delta's own files; its base is not looked at.

        Raises:
            DeltaError: `udever.json` is missing, unreadable, or does not say what a delta must; names the key.
            CorruptFileError: `delta.safetensors` is truncated or unreadable.
            TensorNamesError: it holds something that is neither a bias nor the rows.
            TensorShapeError: rows and token ids do not belong together.
            NonFiniteWeightsError: NaN or infinity; names the tensors.
        """
        facts = _read_facts(folder / MANIFEST)
        base, delta = facts["base"], facts["delta"]
        token_ids = tuple(delta.get("token_ids", ()))
        return cls(
            folder=folder,
            base=BaseReference(name=base["name"], weights=base["weights"], revision=base.get("revision")),
            kind=delta["kind"],
            stored=_read_moved(folder / DELTA_FILE, token_ids),
            recipe=str(facts.get("recipe", "")),
            tokenizer=str(facts.get("tokenizer", "")),
            facts=facts,
        )

    @cached_property
    def digest(self) -> str:
        """Sha256 (hex) over what it does to its base, the same for every layout of the file."""
        sha = hashlib.sha256(json.dumps([self.kind, self.stored.token_ids]).encode())
        for name, tensor in sorted(self.stored.tensors().items()):
            sha.update(json.dumps([name, tuple(tensor.shape)]).encode())
            sha.update(tensor.contiguous().numpy().data)
        return sha.hexdigest()

    def combined_digest(self) -> str:
        """Sha256 (hex) over base and delta: what `Checkpoint.digest` is to a full checkpoint."""
        return hashlib.sha256(json.dumps({"base": self.base.weights, "delta": self.digest}).encode()).hexdigest()

    def require_base(self, digest: str, *, folder: Path) -> None:
        """Refuse other weights than those it belongs to.

        Raises:
            DeltaError: shows both digests.
        """
        if digest != self.base.weights:
            raise DeltaError(
                f"the delta {self.folder} belongs to weights {self.base.weights}, but its base {self.base.name!r}"
                f" ({folder}) has weights {digest}",
                hint=f"get the base it was trained on, and write where it lies as base.name into"
                f" {self.folder / MANIFEST}; a delta on other weights gives meaningless vectors",
            )

    def moved(self, checkpoint: Checkpoint) -> Moved:
        """Its values on this base.

        Raises:
            TensorNamesError, TensorShapeError, DeltaError: it does not fit the base's architecture.
        """
        _require_fit(self, checkpoint.config)
        return self.stored if self.kind == "absolute" else self.stored.beside(checkpoint, torch.add)


def write(
    folder: Path,
    moved: Moved,
    *,
    checkpoint: Checkpoint,
    base: BaseReference,
    manifest: Manifest,
    tokenizer: UdeverTokenizer,
    own_tokenizer: bool = False,
    kind: Kind = "absolute",
    recipe: str = "",
    card: str = "",
    replace: bool = False,
) -> None:
    """Write a delta's folder, which appears whole under its name.

    Args:
        moved: the values, whatever the kind.
        checkpoint: the base's.
        base: made by `BaseReference.to` for this `folder`.
        own_tokenizer: it is not the base's with markers, so it is stored.
        recipe: digest of what made it.
        card: Markdown, written as README.md; empty: none.
        replace: a folder of that name is replaced.

    Raises:
        OptionError: there is a folder of that name, and it is not to be replaced.
        NonFiniteWeightsError: NaN or infinity among the values; nothing is written.
    """
    stored = moved if kind == "absolute" else moved.beside(checkpoint, torch.sub)
    _require_finite(stored.tensors(), where="the delta")
    facts = registry.manifest_json(manifest) | {
        "base": base.as_json(),
        "delta": {"kind": kind, "token_ids": list(moved.token_ids)},
        "recipe": recipe,
        "tokenizer": tokenizer.digest,
    }
    with whole_folder(folder, replace=replace) as unfinished:
        tensors = {name: tensor.contiguous() for name, tensor in stored.tensors().items()}
        save_tensors(tensors, unfinished / DELTA_FILE, metadata={"format": "pt"})
        (unfinished / MANIFEST).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", "utf-8")
        if own_tokenizer:
            (unfinished / "tokenizer.json").write_text(tokenizer.content, "utf-8")
        if card:
            (unfinished / CARD).write_text(card, "utf-8")


def table_rows(checkpoint: Checkpoint, token_ids: Sequence[int]) -> Tensor:
    """Some rows of the token table, float32 [M, H]; no other is read."""
    return checkpoint.tensors([TABLE])[TABLE][list(token_ids)].float()


def _read_facts(path: Path) -> dict[str, Any]:
    """A delta's `udever.json`, with the keys that only a delta has found sound."""
    try:
        facts = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DeltaError(
            f"{path.parent} holds {DELTA_FILE} but no readable {MANIFEST}: {error}", hint=_TRAIN_AGAIN
        ) from error

    def section(key: str) -> dict[str, Any]:
        found = facts.get(key) if isinstance(facts, dict) else None
        return found if isinstance(found, dict) else {}

    base, delta = section("base"), section("delta")
    token_ids = delta.get("token_ids", [])
    for key, holds, meaning in (
        ("base.name", isinstance(base.get("name"), str) and base["name"], "a built-in name, a hub id or a path"),
        ("base.weights", isinstance(base.get("weights"), str), "the digest of the base's weights"),
        ("base.revision", isinstance(base.get("revision", ""), str), "a commit"),
        ("delta.kind", delta.get("kind") in get_args(Kind), f"one of {', '.join(get_args(Kind))}"),
        ("delta.token_ids", _are_token_ids(token_ids), "ascending whole numbers from 0"),
    ):
        if not holds:
            raise DeltaError(f"{path}: {key} must be {meaning}", hint=_TRAIN_AGAIN)
    return dict(facts)


def _are_token_ids(value: object) -> bool:
    if not isinstance(value, list) or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in value):
        return False
    return all(smaller < larger for smaller, larger in pairwise(value))


def _read_moved(file: Path, token_ids: tuple[int, ...]) -> Moved:
    """Copies in float32: small, and independent of the file."""
    entries = {entry.key.removeprefix("transformer."): entry for entry in contents(file)}
    strange = sorted(name for name in entries if name != ROWS and not name.endswith(".bias"))
    if strange:
        raise TensorNamesError(
            f"{file} holds what no delta has: {first_of(', '.join(strange[:5]), shown=5, total=len(strange))}",
            hint=f"a delta holds biases and {ROWS}; a full checkpoint is named model.safetensors",
        )
    require_scales(entries)
    tensors = {name: tensor.to(torch.float32, copy=True) for name, tensor in map_tensors(file, entries).items()}
    _require_finite(tensors, where=str(file))
    rows = tensors.pop(ROWS, None)
    if (rows.shape[0] if rows is not None and rows.dim() == 2 else 0) != len(token_ids):
        shape = list(rows.shape) if rows is not None else "missing"
        raise TensorShapeError(
            f"{file}: {ROWS} is {shape}, but {MANIFEST} names {len(token_ids)} token ids", hint=_TRAIN_AGAIN
        )
    return Moved(biases=tensors, token_ids=token_ids, rows=rows)


def _require_finite(tensors: Mapping[str, Tensor], *, where: str) -> None:
    bad = sorted(name for name, tensor in tensors.items() if not torch.isfinite(tensor).all())
    if bad:
        raise NonFiniteWeightsError(
            f"NaN or infinity in {len(bad)} of {len(tensors)} tensors of {where}: "
            f"{first_of(', '.join(bad[:5]), shown=5, total=len(bad))}",
            hint="the training that wrote them diverged",
        )


def _require_fit(delta: Delta, config: BloomConfig) -> None:
    file, shapes = delta.folder / DELTA_FILE, config.tensor_shapes()
    unknown = sorted(delta.stored.biases.keys() - shapes.keys())
    if unknown:
        raise TensorNamesError(
            f"{file} has biases that its base has not: {first_of(', '.join(unknown[:5]), shown=5, total=len(unknown))}",
            hint=_TRAIN_AGAIN,
        )
    expected = {ROWS: (len(delta.stored.token_ids), config.width)} | shapes
    for name, tensor in delta.stored.tensors().items():
        if tuple(tensor.shape) != expected[name]:
            raise TensorShapeError(
                f"{file}: {name} is {list(tensor.shape)}; on this base it must be {list(expected[name])}",
                hint=_TRAIN_AGAIN,
            )
    beyond = [index for index in delta.stored.token_ids if index >= config.vocab_size]
    if beyond:
        raise DeltaError(
            f"{delta.folder / MANIFEST}: token id {beyond[0]:,} lies beyond the base's {config.vocab_size:,} rows",
            hint=_TRAIN_AGAIN,
        )
