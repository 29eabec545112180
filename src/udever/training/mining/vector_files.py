"""The vectors of a store's texts on disk, made once: an interrupted run goes on where it stopped.

    found = embed_texts(store, ids, reader=Reader(model=model, max_tokens=300), role="document", folder=work)
    found.take(some_ids) -> float32 [len(some_ids), d]

    FOLDER/KEY/000000.npy …  a block of texts each, written whole or not at all
           KEY/vectors.npy   all of them, when all are there; memory-mapped

Invariant: KEY stands for model, role, options, store and texts, so no run reads vectors that are not its own.
Does not know: what the vectors are for.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udever.engine.embedder import Embedder
from udever.engine.folders import whole_file
from udever.tokenizer import Role
from udever.training.data.examples import ExampleStore

BLOCK_TEXTS = 1024
"""Texts embedded between two writes: what an interrupt may cost."""
STORED = np.float16
"""Moves a cosine by about 0.0001."""
ALL = "vectors.npy"

Ids = NDArray[np.int64]
Watch = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and of how much."""


def unwatched(_what: str, _done: int, _total: int) -> None:
    """A `Watch` that shows nothing."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A model and how it reads texts."""

    model: Embedder
    max_tokens: int
    """Longer texts are cut at the end."""
    dimensions: int | None = None
    """None: all."""

    def vectors(self, texts: list[str], role: Role) -> NDArray[np.float16]:
        """[len(texts), d], of unit length but for rounding."""
        found = self.model.embed(texts, role, dimensions=self.dimensions, max_tokens=self.max_tokens, truncate="end")
        return found.astype(STORED)

    def described(self) -> dict[str, Any]:
        """What the vectors depend on."""
        return {
            "fingerprint": self.model.fingerprint,
            "dimensions": self.dimensions or self.model.dimensions,
            "max_tokens": self.max_tokens,
        }


@dataclass(frozen=True, kw_only=True)
class VectorSet:
    """The vectors of some texts."""

    ids: Ids
    """Text ids, ascending."""
    vectors: NDArray[np.float16]
    """[len(ids), d], memory-mapped."""

    def rows(self, ids: Ids) -> Ids:
        """Where the texts' vectors are; each must be there."""
        return np.searchsorted(self.ids, ids)

    def take(self, ids: Ids) -> NDArray[np.float32]:
        """The vectors of these texts."""
        return np.asarray(self.vectors[self.rows(ids)], np.float32)


def embed_texts(
    store: ExampleStore, ids: Ids, *, reader: Reader, role: Role, folder: Path, watch: Watch = unwatched
) -> VectorSet:
    """The vectors of the texts `ids` (ascending), of which `folder` may hold some already."""
    place = folder / _key(store, ids, reader, role)
    if not (place / ALL).is_file():
        place.mkdir(parents=True, exist_ok=True)
        watch(f"embedding, {role}", 0, len(ids))
        blocks = []
        for first in range(0, len(ids), BLOCK_TEXTS):
            part = ids[first : first + BLOCK_TEXTS]
            path = place / f"{first // BLOCK_TEXTS:06}.npy"
            if not path.is_file():
                _save(path, reader.vectors([store.text(text_id) for text_id in part.tolist()], role))
            blocks.append(path)
            watch(f"embedding, {role}", first + len(part), len(ids))
        _join(blocks, place / ALL, rows=len(ids))
    return VectorSet(ids=ids, vectors=np.load(place / ALL, mmap_mode="r"))


def _key(store: ExampleStore, ids: Ids, reader: Reader, role: Role) -> str:
    told = {**reader.described(), "role": role, "store": store.digest}
    sha256 = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    sha256.update(ids.tobytes())
    return sha256.hexdigest()[:24]


def _save(path: Path, block: NDArray[np.float16]) -> None:
    with whole_file(path, durable=True) as unfinished, unfinished.open("wb") as file:
        np.save(file, block)


def _join(blocks: list[Path], path: Path, *, rows: int) -> None:
    """One file of all blocks: a mapped file each would run into the limit of open files."""
    width = np.load(blocks[0], mmap_mode="r").shape[1]
    with whole_file(path) as unfinished:
        joined = np.lib.format.open_memmap(unfinished, "w+", STORED, (rows, width))
        for number, block in enumerate(blocks):
            joined[number * BLOCK_TEXTS : (number + 1) * BLOCK_TEXTS] = np.load(block)
        joined.flush()
    for block in blocks:
        block.unlink()
