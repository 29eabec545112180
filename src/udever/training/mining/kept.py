"""An array that is made a block at a time and kept on disk, so that an interrupted run goes on where it stopped.

    FOLDER/000000.npy …  a block of rows each, written whole or not at all
           all.npy       all of them, when all are there; memory-mapped

Invariant: FOLDER's name stands for all that decides the rows (`key`), so no run reads rows that are not its own.
Does not know: what the rows are.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udever.engine.folders import whole_file

ALL = "all.npy"

Ids = NDArray[np.int64]
Watch = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and of how much."""


def unwatched(_what: str, _done: int, _total: int) -> None:
    """A `Watch` that shows nothing."""


def key(told: Mapping[str, Any], ids: Ids) -> str:
    """A folder's name: rows of `ids` made as `told`."""
    sha256 = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    sha256.update(ids.tobytes())
    return sha256.hexdigest()[:24]


def kept(
    folder: Path,
    make: Callable[[slice], NDArray[Any]],
    *,
    rows: int,
    block_rows: int,
    what: str,
    watch: Watch = unwatched,
) -> NDArray[Any]:
    """[rows, …], memory-mapped, of which `folder` may hold some already.

    Args:
        make: gives the rows of a slice, at most `block_rows`: what an interrupt may cost.
        what: is being done, for `watch`.
    """
    if not (folder / ALL).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        watch(what, 0, rows)
        blocks = []
        for first in range(0, rows, block_rows):
            part = slice(first, min(first + block_rows, rows))
            path = folder / f"{first // block_rows:06}.npy"
            if not path.is_file():
                with whole_file(path, durable=True) as unfinished, unfinished.open("wb") as file:
                    np.save(file, make(part))
            blocks.append(path)
            watch(what, part.stop, rows)
        _join(blocks, folder / ALL, rows=rows, block_rows=block_rows)
    found: NDArray[Any] = np.load(folder / ALL, mmap_mode="r")
    return found


def _join(blocks: list[Path], path: Path, *, rows: int, block_rows: int) -> None:
    """One file of all blocks: a mapped file each would run into the limit of open files."""
    first = np.load(blocks[0], mmap_mode="r")
    with whole_file(path) as unfinished:
        joined = np.lib.format.open_memmap(unfinished, "w+", first.dtype, (rows, *first.shape[1:]))
        for number, block in enumerate(blocks):
            joined[number * block_rows : (number + 1) * block_rows] = np.load(block)
        joined.flush()
    for block in blocks:
        block.unlink()
