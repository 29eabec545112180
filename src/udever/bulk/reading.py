"""A shard of a file → its rows: the values that texts are made of, the columns that are carried along, the bad rows.

    reader = Reader(carried=..., text_columns=...);  raw = reader.read(shard)

Invariant: what is read is what was planned: the bytes of a text shard are hashed again, a parquet file's footer too.
A shard's columns lie in memory in the same way wherever reading began, for they decide the bytes that are written.
One shard is held in memory. Consecutive shards of a file are read in one go, without seeking or unpacking twice.
Does not know: how a line becomes a row (parsing.py), or which of the texts can be embedded.
"""

import errno
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from udever.bulk.heads import Input, footer_digest
from udever.bulk.parsing import PARSE, BadRow, Rows
from udever.bulk.plan import Shard
from udever.bulk.sources import open_input, open_parquet
from udever.bulk.storage import digest
from udever.errors import FileInputError

_BATCH_ROWS = 8192


@dataclass(frozen=True, kw_only=True)
class Raw:
    """The rows of a shard that could be read."""

    numbers: NDArray[np.int64]
    """Row numbers in the file, from 1."""
    values: list[list[Any]]
    """For each text column, its values."""
    table: pa.Table
    """The carried columns."""
    bad: list[BadRow]
    """Rows that could not be read."""


class Reader:
    """Reads shards; keeps the last file open. For one thread."""

    def __init__(self, *, text_columns: Sequence[str], carried: pa.Schema, texts_only: bool) -> None:
        """`texts_only`: the text column must hold texts, so whoever makes texts will say what is wrong with a value."""
        self._text_columns, self._carried = tuple(text_columns), carried
        self._judged_later = frozenset(text_columns if texts_only else ())
        self._open: _Lines | _Groups | None = None

    def read(self, shard: Shard) -> Raw:
        """The rows of a shard. After an error the file is opened anew.

        Raises:
            FileInputError: the file changed since it was planned, or is damaged.
            OSError: it cannot be read now; whether it ever can is not known.
        """
        try:
            return self._read(shard)
        except BaseException as error:
            self.close()  # where in the file reading stopped is not known
            if isinstance(error, OSError) and not error.strerror:
                # A timeout, or what Arrow says of some damaged pages: sentences that name no file.
                said = " ".join(str(error).split())
                raise OSError(errno.EIO, f"cannot be read: {said}", shard.input.found.name) from error
            raise

    def close(self) -> None:
        """Close the open file."""
        was, self._open = self._open, None
        if was:
            was.close()

    def _read(self, shard: Shard) -> Raw:
        if shard.input.found.format == "parquet":
            return self._read_parquet(shard)
        numbers, rows, bad = PARSE[shard.input.found.format](self._bytes(shard), shard)
        columns, lost = self._columns(rows, shard.input)
        table = pa.table(columns, schema=self._carried)
        if lost:
            kept = [place for place in range(len(rows)) if place not in lost]
            bad = sorted([*bad, *(BadRow(numbers[place], *fault) for place, fault in lost.items())])
            rows, numbers = [rows[place] for place in kept], [numbers[place] for place in kept]
            table = table.take(np.array(kept, np.int64))
        return Raw(
            numbers=np.array(numbers, np.int64),
            values=[[row.get(name) for row in rows] for name in self._text_columns],
            table=table,
            bad=bad,
        )

    def _read_parquet(self, shard: Shard) -> Raw:
        names = list(dict.fromkeys([*self._text_columns, *self._carried.names]))
        try:
            table = self._opened(shard.input, _Groups).read(shard.cut.start, shard.cut.stop, names)
        except pa.ArrowException as error:
            name = shard.input.found.name
            raise FileInputError(f"{name}: cannot be read: {error}", hint="was it copied whole?") from error
        return Raw(
            numbers=np.arange(shard.cut.first + 1, shard.cut.first + 1 + table.num_rows),
            values=[_values(table.column(name)) for name in self._text_columns],
            table=table.select(self._carried.names),
            bad=[],
        )

    def _columns(self, rows: "Rows", item: Input) -> tuple[list[pa.Array], dict[int, tuple[str, str]]]:
        """The carried columns, and the rows with a value that does not fit, each with its first fault."""
        arrays: list[pa.Array] = []
        lost: dict[int, tuple[str, str]] = {}
        for field in self._carried:
            as_json = field.name in item.json_columns and field.name not in self._judged_later
            array, faults = _column(rows, field, item, as_json=as_json)
            arrays.append(array)
            if field.name not in self._judged_later:
                lost = faults | lost
        return arrays, lost

    def _bytes(self, shard: Shard) -> bytes:
        data: bytes = self._opened(shard.input, _Lines).read(shard.cut.start, shard.cut.stop)
        if digest(data) != shard.cut.digest:
            raise _changed(shard.input)
        return data

    def _opened(self, item: Input, kind: Any) -> Any:
        if self._open is None or self._open.path != item.found.path:
            self.close()
            self._open = kind(item)
        return self._open


class _Lines:
    """An open text file."""

    def __init__(self, item: Input) -> None:
        self.path = item.found.path
        self._file, self._at = open_input(self.path), 0

    def read(self, start: int, stop: int) -> bytes:
        if self._at != start:
            self._file.seek(start)
        data = bytes(self._file.read(stop - start))
        self._at = stop
        return data

    def close(self) -> None:
        self._file.close()


class _Groups:
    """An open parquet file, and where in it the last shard ended."""

    def __init__(self, item: Input) -> None:
        self.path = item.found.path
        self._file = open_parquet(self.path)
        self._row_groups = item.row_groups
        if footer_digest(self._file) != item.footer:
            self.close()
            raise _changed(item)
        self._at, self._batches = -1, iter(())
        self._left: list[pa.RecordBatch] = []

    def read(self, start: int, stop: int, names: list[str]) -> pa.Table:
        """Rows start to stop. Going on where the last call ended costs nothing extra."""
        if start != self._at:
            self._seek(start, names)
        batches = list(self._take(stop - start))
        self._at = stop
        schema = pa.schema([pa.field(name, self._file.schema_arrow.field(name).type) for name in names])
        table = pa.Table.from_batches([batch.select(names).cast(schema) for batch in batches], schema)
        return pa.table([_in_one_piece(column) for column in table.columns], schema)

    def close(self) -> None:
        self._file.close(force=True)  # also what another file system opened

    def _seek(self, row: int, names: list[str]) -> None:
        group, first = 0, 0
        while first + self._row_groups[group] <= row:
            first += self._row_groups[group]
            group += 1
        groups = list(range(group, len(self._row_groups)))
        self._batches = self._file.iter_batches(_BATCH_ROWS, row_groups=groups, columns=names, use_threads=False)
        self._left.clear()
        for _ in self._take(row - first):
            pass

    def _take(self, rows: int) -> Iterator[pa.RecordBatch]:
        """The next so many rows."""
        while rows:
            batch = self._left.pop() if self._left else next(self._batches)
            if batch.num_rows > rows:
                self._left.append(batch.slice(rows))
                batch = batch.slice(0, rows)
            rows -= batch.num_rows
            yield batch


def _in_one_piece(column: pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """The same values, copied out of the pieces and the dictionaries that they were read in.

    Those depend on where reading began, and a writer ends pages where pieces end and writes dictionaries as they are.
    """
    kind, plain = column.type, _without_dictionaries(column.type)
    values = (column if kind == plain else column.cast(plain)).combine_chunks()
    if kind == plain:
        return values
    try:
        return values.cast(kind)
    except pa.ArrowInvalid:  # several row groups may hold more values together than the index of one can count
        rows = (1 << kind.index_type.bit_width - 1) - 1 if pa.types.is_dictionary(kind) else 1
        return pa.chunked_array([values.slice(at, rows).cast(kind) for at in range(0, len(values), rows)], kind)


def _without_dictionaries(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_without_dictionaries(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_dictionaries(field.type)) for field in kind])
    return kind


def _column(rows: Rows, field: pa.Field, item: Input, *, as_json: bool) -> tuple[pa.Array, dict[int, tuple[str, str]]]:
    """A carried column, null where a value does not fit; and why, by row."""
    values = [row.get(field.name) for row in rows]
    if as_json:
        values = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    try:
        return pa.array(values, field.type), {}
    except _DOES_NOT_FIT:
        faults: dict[int, tuple[str, str]] = {}
        for index, value in enumerate(values):
            if fault := _misfit(value, field, item):
                values[index], faults[index] = None, fault
        return pa.array(values, field.type), faults


_DOES_NOT_FIT = (pa.ArrowException, TypeError, ValueError, OverflowError)


def _misfit(value: Any, field: pa.Field, item: Input) -> tuple[str, str] | None:
    try:
        pa.array([value], field.type)
    except UnicodeEncodeError:
        code = "not_a_text" if item.found.format == "jsonl" else "not_utf8"
        return code, f"column {field.name!r} is not valid Unicode"
    except _DOES_NOT_FIT:
        held = f"{type(value).__name__} {str(value)[:40]!r}"
        return "column_type", f"column {field.name!r} holds {held}; in the file's first rows it holds {field.type}"
    return None


def _values(column: pa.ChunkedArray) -> list[Any]:
    """A parquet column as Python values; bytes that are no UTF-8 become lone surrogates."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        plain = column.cast(pa.large_string()) if pa.types.is_dictionary(column.type) else column
        raw = plain.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw]


def _changed(item: Input) -> FileInputError:
    return FileInputError(f"{item.found.name} changed while it was read", hint="let it rest, and run the command again")
