"""The vectors of a store's texts on disk, made once.

    found = embed_texts(store, ids, reader=Reader(model=model, max_tokens=300), role="document", folder=work)
    found.take(some_ids) -> float32 [len(some_ids), d]

Invariant: vectors that an earlier run left there are used if model, role, options, store and texts are the same.
Does not know: what the vectors are for, or how they lie on disk (kept.py).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udever.engine.embedder import Embedder
from udever.tokenizer import Role
from udever.training.data.examples import ExampleStore
from udever.training.mining.kept import Ids, Watch, kept, key, unwatched

BLOCK_TEXTS = 1024
"""Texts embedded between two writes: what an interrupt may cost."""
STORED = np.float16
"""Moves a cosine by about 0.0001."""


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

    def described(self, store: ExampleStore) -> dict[str, Any]:
        """What the vectors of the store's texts depend on."""
        return {
            "store": store.digest,
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

    def make(part: slice) -> NDArray[np.float16]:
        return reader.vectors([store.text(text_id) for text_id in ids[part].tolist()], role)

    told = reader.described(store) | {"role": role}
    vectors = kept(
        folder / key(told, ids), make, rows=len(ids), block_rows=BLOCK_TEXTS, what=f"embedding, {role}", watch=watch
    )
    return VectorSet(ids=ids, vectors=vectors)
