"""Where a file may be cut into shards: after a row, never inside one.

Text files are read once from end to end, which counts their rows, finds the ends of rows and hashes every byte in the
same pass. A row of txt and jsonl ends with a line; a record of csv and tsv may hold line ends inside quotes, so it is
Python's own csv reader, the one that will read it later, that says where it ends. Parquet is cut by its footer.

Invariant: the cuts of a file cover each of its rows once, in order; they depend on the bytes and the limits only.
Does not know: which columns a row has, or what a shard becomes.
"""

import csv
import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from udever.errors import FileInputError

BLOCK_BYTES = 1 << 22
RECORD_BYTES = 1 << 26
"""A csv record that is longer has a quote that never closes."""


class Cut(NamedTuple):
    """A piece of a file."""

    first: int
    """Rows of the file before it."""
    rows: int
    """Rows in it; blank lines count, so that row numbers of txt and jsonl are line numbers."""
    start: int
    """Offset of its first byte; parquet: its first row."""
    stop: int
    """Offset behind its last byte; parquet: behind its last row."""
    digest: str
    """Of its bytes; parquet: empty, for the file's digest stands for it."""


class Limits(NamedTuple):
    """How large a piece may be."""

    rows: int
    bytes: int
    """The row that reaches this is the last one."""


def cut_lines(file: Any, *, start: int, limits: Limits) -> Iterator[Cut]:
    """Cut the rest of an open file, which begins at offset `start`, after line ends."""
    cutter = _Cutter(start, limits)
    while block := file.read(BLOCK_BYTES):
        yield from cutter.add(block, _line_ends(block))
    yield from cutter.rest()


def cut_records(file: Any, *, start: int, limits: Limits, delimiter: str, name: str) -> Iterator[Cut]:
    """Cut the rest of an open csv file, which begins at offset `start`, after records.

    Raises:
        FileInputError: a quote that never closes.
    """
    cutter = _Cutter(start, limits)
    while block := file.read(BLOCK_BYTES):
        block += file.readline()
        if b'"' not in block:
            yield from cutter.add(block, _line_ends(block))
            continue
        lines = RecordLines(chain(split_lines(block), file), name=name, first_row=cutter.seen)
        ends: list[int] = []
        for _ in csv_records(lines, delimiter=delimiter):
            ends.append(lines.consumed)
            if lines.consumed >= len(block):
                break
        yield from cutter.add(b"".join(lines.taken), np.array(ends))
    yield from cutter.rest()


class RecordLines:
    """Lines for csv.reader that remember what was taken, and give up on a record without end."""

    def __init__(self, lines: Iterable[bytes], *, name: str, first_row: int) -> None:
        self.consumed = 0
        """Bytes taken so far."""
        self.taken: list[bytes] = []
        self.row = first_row
        """Records before the one that is read, counted by `csv_records`."""
        self._lines, self._name, self._record_start = iter(lines), name, 0

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.taken.append(line)
            self.consumed += len(line)
            if self.consumed - self._record_start > RECORD_BYTES:
                raise self.open_quote()
            yield line.decode("utf-8", "surrogateescape")  # a wrong byte is the row's fault, not the file's

    def next_record(self) -> None:
        """The last line taken ended a record."""
        self.row += 1
        self._record_start = self.consumed

    def open_quote(self) -> FileInputError:
        """The complaint about the record that is read."""
        return FileInputError(
            f"{self._name}: row {self.row + 1} opens a quote that never closes", hint='a quote inside quotes is ""'
        )


def csv_records(lines: RecordLines, *, delimiter: str) -> Iterator[list[str] | csv.Error]:
    """The records, each as its fields or as what is wrong with it; a blank line has no fields."""
    csv.field_size_limit(sys.maxsize)  # the default refuses fields over 128 KiB; a text may be longer
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        try:
            record: list[str] | csv.Error = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise lines.open_quote() from error
            record = error  # the reader goes on with the next line
        lines.next_record()
        yield record


def cut_row_groups(sizes: Sequence[tuple[int, int]], *, limits: Limits) -> Iterator[Cut]:
    """Cut a parquet file: a large row group into equal parts, small neighbours together.

    Args:
        sizes: rows and bytes of each row group.
    """
    first, rows, size = 0, 0, 0
    for group_rows, group_bytes in sizes:
        if rows and (rows + group_rows > limits.rows or size + group_bytes > limits.bytes):
            yield Cut(first, rows, first, first + rows, "")
            first, rows, size = first + rows, 0, 0
        rows, size = rows + group_rows, size + group_bytes
        parts = min(rows, max(-(-rows // limits.rows), -(-size // limits.bytes)))
        if parts > 1:
            for part in range(parts):
                start, stop = first + rows * part // parts, first + rows * (part + 1) // parts
                yield Cut(start, stop - start, start, stop, "")
            first, rows, size = first + rows, 0, 0
    if rows:
        yield Cut(first, rows, first, first + rows, "")


class _Cutter:
    """Collects rows until a piece is full."""

    def __init__(self, start: int, limits: Limits) -> None:
        self.seen = 0
        """Rows so far."""
        self._limits, self._start = limits, start
        self._new_piece(start)

    def add(self, block: bytes, ends: NDArray[np.int64]) -> Iterator[Cut]:
        """Take the next bytes; `ends` are the offsets in them behind which rows end."""
        at = row = 0
        while True:
            by_rows = row + self._limits.rows - self._rows - 1
            by_bytes = int(np.searchsorted(ends, at + self._limits.bytes - self._bytes))
            last = min(by_rows, max(by_bytes, row))
            if last >= len(ends):
                break
            end = int(ends[last])
            self._take(block[at:end], rows=last + 1 - row)
            yield self._cut()
            at, row = end, last + 1
        self._take(block[at:], rows=len(ends) - row)
        self._open_row = at < len(block) and not (len(ends) and ends[-1] == len(block))

    def rest(self) -> Iterator[Cut]:
        """The last piece; its last row may lack a line end."""
        if self._bytes:
            self._take(b"", rows=int(self._open_row))
            yield self._cut()

    def _new_piece(self, start: int) -> None:
        self._start, self._rows, self._bytes, self._open_row = start, 0, 0, False
        self._hasher = hashlib.blake2b(digest_size=16)

    def _take(self, data: bytes, *, rows: int) -> None:
        self._hasher.update(data)
        self._bytes += len(data)
        self._rows += rows
        self.seen += rows

    def _cut(self) -> Cut:
        stop = self._start + self._bytes
        cut = Cut(self.seen - self._rows, self._rows, self._start, stop, self._hasher.hexdigest())
        self._new_piece(stop)
        return cut


def _line_ends(block: bytes) -> NDArray[np.int64]:
    return np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1


def split_lines(block: bytes) -> list[bytes]:
    """Lines with their ends; only \\n ends one."""
    lines = [line + b"\n" for line in block.split(b"\n")]
    return lines[:-1] if block.endswith(b"\n") else [*lines[:-1], lines[-1][:-1]]
