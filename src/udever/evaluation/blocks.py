"""Blocks of vectors that outlive the process: read where an earlier run left them, embedded and written where not.

Invariant: a block is used only for the same texts, weights and settings, because its name is a hash of all three, and
only if it is whole, because it gets its name when it is.
Does not know: where the texts come from, or what the vectors are for.
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udever.engine.folders import whole_file
from udever.errors import EvaluationError

Vectors = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class _Block:
    """One block of the plan."""

    path: Path
    shape: tuple[int, int]
    on_disk: bool


@dataclass(frozen=True, kw_only=True)
class Work:
    """Which blocks are on disk and which must be embedded.

    The embedder reads `missing` one block ahead of what it yields, so the plan is a queue: `missing` appends the blocks
    as it reads their texts, `completed` takes them off in the same order as their vectors arrive.
    """

    texts: Iterable[str]
    folder: Path
    block_texts: int
    settings: Mapping[str, Any]
    """Everything but the texts that decides the vectors."""
    planned: deque[_Block] = field(default_factory=deque)

    def missing(self) -> Iterator[str]:
        """The texts of all blocks that are not on disk. All blocks are full but the last, so they can be told apart."""
        from udever.tokenizer import require_text

        texts, first = iter(self.texts), 0
        while block := list(islice(texts, self.block_texts)):
            for index, text in enumerate(block, start=first):  # the embedder would count the missing ones only
                require_text(text, index=index)
            first += len(block)
            path = self.folder / f"{_digest(block, self.settings)}.npy"
            shape = (len(block), self.settings["dimensions"])
            on_disk = _read(path, shape, mapped=True) is not None
            self.planned.append(_Block(path=path, shape=shape, on_disk=on_disk))
            if not on_disk:
                yield from block

    def completed(self, fresh: Iterable[Vectors]) -> Iterator[Vectors]:
        """All blocks in order: those on disk, and between them the fresh ones, which are written before they go on."""
        for vectors in fresh:
            yield from self._found()
            _write(self.planned.popleft().path, vectors)
            yield vectors
        yield from self._found()

    def _found(self) -> Iterator[Vectors]:
        while self.planned and self.planned[0].on_disk:
            block = self.planned.popleft()
            vectors = _read(block.path, block.shape)
            if vectors is None:
                raise EvaluationError(f"{block.path} was there and is gone", hint="run again to embed it anew")
            yield vectors


def _digest(texts: Sequence[str], settings: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "big"))  # ["ab", "c"] is not ["a", "bc"]
        digest.update(encoded)
    return digest.hexdigest()[:32]


def _read(path: Path, shape: tuple[int, int], *, mapped: bool = False) -> Vectors | None:
    """The vectors of a file; None if there is none, or it is not whole. `mapped` checks that and reads nothing."""
    try:
        vectors = np.load(path, mmap_mode="r" if mapped else None)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return vectors if vectors.shape == shape and vectors.dtype == np.float32 else None


def _write(path: Path, vectors: Vectors) -> None:
    """All or nothing, also when the power fails: on disk under another name before it gets its own."""
    with whole_file(path, durable=True) as unfinished, unfinished.open("wb") as file:
        np.save(file, vectors)
