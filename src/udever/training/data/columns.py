"""Tables on disk that are larger than memory: Arrow IPC files of equal blocks, mapped, any row at once.

    with BlockWriter(path, schema) as writer: writer.add(batch)
    Blocks(path).ragged("token_ids")[row] -> a view into the file

Invariant: every block but the last has BLOCK_ROWS rows, so that a row's block is a division; the digest of what was
written depends on the rows alone, not on how they came in or on the version of Arrow.
Does not know: what the columns mean.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from udever.errors import ExamplesError

BLOCK_ROWS = 16_384
"""Rows a block: enough that Arrow's header of each costs nothing, few enough that one is written from memory."""

Item = TypeVar("Item")


class BlockWriter:
    """Appends rows to a new file."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.rows = 0
        """Rows added."""
        self._schema, self._sha256 = schema, hashlib.sha256()
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0
        self._file = pa.OSFile(str(path), "wb")
        # A dictionary grows as new values come: a later block's is an earlier one's and more.
        options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
        self._ipc = pa.ipc.new_file(self._file, schema, options=options)

    def add(self, batch: pa.RecordBatch) -> None:
        """Append rows of the writer's schema, any number."""
        self._waiting.append(batch)
        self._waiting_rows += batch.num_rows
        self.rows += batch.num_rows
        if self._waiting_rows >= BLOCK_ROWS:
            self._write(whole_blocks_only=True)

    def close(self) -> None:
        """Write what is left."""
        self._write(whole_blocks_only=False)
        self._ipc.close()
        self._file.close()

    def digest(self) -> bytes:
        """Sha256 of all rows; after `close`."""
        return self._sha256.digest()

    def __enter__(self) -> "BlockWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()  # the file is thrown away

    def _write(self, *, whole_blocks_only: bool) -> None:
        table = pa.Table.from_batches(self._waiting, self._schema).combine_chunks()
        rows = table.num_rows - table.num_rows % BLOCK_ROWS if whole_blocks_only else table.num_rows
        for block in table.slice(0, rows).to_batches(BLOCK_ROWS):
            for column in block.columns:
                for part in _content(column):
                    self._sha256.update(part)
            self._ipc.write_batch(block)
        self._waiting = table.slice(rows).to_batches()
        self._waiting_rows = table.num_rows - rows


class Blocks:
    """A file that a BlockWriter wrote, memory-mapped. Nothing is read until a row is asked for."""

    def __init__(self, path: Path) -> None:
        """Map `path`.

        Raises:
            ExamplesError: it is missing, cut off or no Arrow file.
        """
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
            self.count: int = self._reader.num_record_batches
            last_rows = self._reader.get_batch(self.count - 1).num_rows if self.count else 0
        except (OSError, pa.ArrowException) as error:
            raise ExamplesError(f"cannot read {path}: {error}", hint="import the examples again") from error
        self.rows: int = max(0, self.count - 1) * BLOCK_ROWS + last_rows

    def column(self, name: str, block: int) -> pa.Array:
        """One column of one block."""
        return self._reader.get_batch(block).column(name)

    def numbers(self, name: str) -> "Numbers":
        """A column of numbers, flags (as 0 and 1) or dictionary entries (as their places in `entries`)."""
        return Numbers(self, name)

    def ragged(self, name: str) -> "Ragged":
        """A column of lists of numbers."""
        return Ragged(self, name)

    def strings(self, name: str) -> "Strings":
        """A column of texts."""
        return Strings(self, name)

    def entries(self, name: str) -> list[str]:
        """All entries of a dictionary column."""
        found: list[str] = self.column(name, self.count - 1).dictionary.to_pylist() if self.count else []
        return found


class _Column(Generic[Item]):
    """The parts of a column that rows are read from, block by block, found when first asked for."""

    def __init__(self, blocks: Blocks, name: str) -> None:
        self._blocks, self._name = blocks, name
        self._parts: list[Item | None] = [None] * blocks.count

    def block(self, number: int) -> Item:
        """The parts of a block."""
        part = self._parts[number]
        if part is None:
            part = self._parts[number] = self._part(self._blocks.column(self._name, number))
        return part

    def __iter__(self) -> Iterator[Item]:
        """The parts of all blocks, in order."""
        return map(self.block, range(self._blocks.count))

    def _part(self, column: pa.Array) -> Item:
        raise NotImplementedError


class Numbers(_Column[NDArray[Any]]):
    """One number a row."""

    def __getitem__(self, row: int) -> int:
        return int(self.block(row // BLOCK_ROWS)[row % BLOCK_ROWS])

    def _part(self, column: pa.Array) -> NDArray[Any]:
        values: NDArray[Any] = _numbers(column)
        return values


class Ragged(_Column[tuple[NDArray[np.int32], NDArray[Any]]]):
    """A list of numbers a row."""

    def __getitem__(self, row: int) -> NDArray[Any]:
        offsets, values = self.block(row // BLOCK_ROWS)
        row %= BLOCK_ROWS
        return values[offsets[row] : offsets[row + 1]]

    def _part(self, column: pa.Array) -> tuple[NDArray[np.int32], NDArray[Any]]:
        return column.offsets.to_numpy(), column.values.to_numpy()


class Strings(_Column[pa.Array]):
    """A text a row."""

    def __getitem__(self, row: int) -> str:
        text: str = self.block(row // BLOCK_ROWS)[row % BLOCK_ROWS].as_py()
        return text

    def _part(self, column: pa.Array) -> pa.Array:
        return column


def _numbers(column: pa.Array) -> NDArray[Any]:
    if pa.types.is_dictionary(column.type):
        column = column.indices
    return column.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _content(column: pa.Array) -> Iterator[bytes]:
    """What a column says, as bytes; a dictionary's entries are left to who chose them."""
    if pa.types.is_list(column.type):
        yield np.diff(column.offsets.to_numpy()).tobytes()
        yield from _content(column.flatten())
    elif pa.types.is_large_string(column.type):
        texts = [text.encode() for text in column.to_pylist()]
        yield np.array([len(text) for text in texts], np.int64).tobytes()
        yield b"".join(texts)
    else:
        yield _numbers(column).tobytes()
