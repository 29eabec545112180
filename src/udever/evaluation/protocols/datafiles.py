"""Data files of a task: tsv or jsonl, plain or gzipped, as tables whose rows know their line.

Invariant: no row is passed over silently; every complaint is a `DatasetError` that names file, line and the columns
there are. `x.tsv` and `x.tsv.gz` are the same file, and have the same digest.
Does not know: what a column means.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from udever.errors import DatasetError

SHOWN_NAMES = 20
"""Columns or values that an error lists; a wide table has hundreds."""


class Row(NamedTuple):
    """One row and the line it stands on, from 1."""

    line: int
    cells: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A whole file in memory."""

    path: Path
    columns: tuple[str, ...]
    """Of a tsv: its header; of a jsonl: the keys of all objects, in the order in which they come up."""
    rows: tuple[Row, ...]

    def require(self, *columns: str) -> None:
        """Raise a `DatasetError` that lists the columns there are, unless all of these are among them."""
        for column in columns:
            if column not in self.columns:
                raise DatasetError(f"{self.path} has no column {column!r}; it has {listed(self.columns)}")

    def first_of(self, columns: Sequence[str]) -> str:
        """The first of several usual names that is a column."""
        for column in columns:
            if column in self.columns:
                return column
        raise DatasetError(f"{self.path} has no column {either(columns)}; it has {listed(self.columns)}")

    def strings(self, column: str, *, may_be_empty: bool = False) -> list[str]:
        """The column as texts; an empty one is an error unless it may be."""
        self.require(column)
        return [_string(self.path, row, column, may_be_empty=may_be_empty) for row in self.rows]

    def strings_if_any(self, column: str) -> list[str]:
        """The column as texts; where a row has none (no such key, null), it is empty."""
        self.require(column)
        return [
            "" if row.cells.get(column) is None else _string(self.path, row, column, may_be_empty=True)
            for row in self.rows
        ]

    def numbers(self, column: str) -> list[float]:
        """The column as numbers."""
        self.require(column)
        return [_number(self.path, row, column) for row in self.rows]

    def integers(self, column: str) -> list[int]:
        """The column as whole numbers: relevance judgements, labels."""
        numbers = self.numbers(column)
        for row, number in zip(self.rows, numbers, strict=True):
            if number != int(number):
                raise DatasetError(f"{self.path}:{row.line}: {column!r} holds {number}, not a whole number")
        return [int(number) for number in numbers]

    def where(self, wanted: Mapping[str, Collection[str]]) -> "Table":
        """The rows whose columns hold one of the wanted values."""
        table = self
        for column, values in wanted.items():
            table.require(column)
            kept = tuple(row for row in table.rows if str(row.cells.get(column)) in values)
            if not kept:
                there = dict.fromkeys(str(row.cells.get(column)) for row in table.rows)
                raise DatasetError(
                    f"{self.path}: no row is left where {column!r} is {either(list(values))}",
                    hint=f"it is {listed(there)}",
                )
            table = replace(table, rows=kept)
        return table

    def by(self, column: str) -> dict[str, "Table"]:
        """Its parts by the values of a column, in the order of their first rows."""
        self.require(column)
        parts: dict[str, list[Row]] = {}
        for row in self.rows:
            parts.setdefault(str(_cell(self.path, row, column)), []).append(row)
        return {value: replace(self, rows=tuple(rows)) for value, rows in parts.items()}


def locate(folder: Path, name: str) -> Path:
    """The file of that name in the folder, or its gzipped (or unzipped) twin.

    Raises:
        DatasetError: neither is there.
    """
    path = folder / Path(name).expanduser()
    twin = path.with_suffix("") if path.suffix == ".gz" else path.with_name(path.name + ".gz")
    for candidate in (path, twin):
        if candidate.is_file():
            return candidate
    raise DatasetError(
        f"{path} does not exist", hint="check the name in the suite, and --data: the folder of the files"
    )


def read_table(path: Path) -> Table:
    """Read a whole .tsv (header line; a tab always ends a cell, quotes are text) or .jsonl, gzipped or not.

    Raises:
        DatasetError: unknown ending, no row, a row of another shape than the header, broken JSON or gzip, not UTF-8.
    """
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix not in READERS:
        raise DatasetError(
            f"{path}: unknown ending {suffix!r}", hint="known are .tsv and .jsonl, plain or with .gz behind"
        )
    table = READERS[suffix](path)
    if not table.rows:
        raise DatasetError(f"{path} holds no row")
    return table


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its ending). Only \\n ends a line; a byte order mark is dropped."""
    try:
        with _open(path) as file:
            for number, raw in enumerate(file, start=1):
                line = raw.decode("utf-8").rstrip("\r\n")
                yield number, line.removeprefix("\ufeff") if number == 1 else line
    except UnicodeDecodeError:
        raise DatasetError(f"{path}:{number}: not UTF-8") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DatasetError(f"{path}: not a whole gzip file: {error}", hint="was it copied to its end?") from None


def digest(*paths: Path) -> str:
    """Hash of the files' (unzipped) content, in this order: what a result was measured on."""
    whole = hashlib.sha256()
    for path in paths:
        one = hashlib.sha256()
        for _, line in read_lines(path):
            one.update(line.encode() + b"\n")
        whole.update(one.digest())
    return whole.hexdigest()[:32]


def digest_of_texts(texts: Iterable[str]) -> str:
    """The same for texts that are no file."""
    whole = hashlib.sha256()
    for text in texts:
        whole.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
    return whole.hexdigest()[:32]


def listed(names: Iterable[str]) -> str:
    """'a', 'b' and 7 more."""
    names = list(names)
    shown = ", ".join(map(repr, names[:SHOWN_NAMES])) or "none at all"
    return f"{shown} and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else shown


def either(names: Sequence[str]) -> str:
    """'a' or 'b'."""
    return " or ".join(map(repr, names))


def _read_tsv(path: Path) -> Table:
    lines = read_lines(path)
    _, header = next(lines, (0, ""))
    columns = tuple(header.split("\t"))
    if len(set(columns)) < len(columns):
        raise DatasetError(f"{path}:1: a column stands there twice: {listed(columns)}")
    return Table(
        path=path, columns=columns, rows=tuple(_tsv_row(path, columns, number, line) for number, line in lines)
    )


def _tsv_row(path: Path, columns: tuple[str, ...], number: int, line: str) -> Row:
    cells = line.split("\t")
    if len(cells) != len(columns):
        raise DatasetError(f"{path}:{number}: {len(cells)} cells where the header has {len(columns)}")
    return Row(number, dict(zip(columns, cells, strict=True)))


def _read_jsonl(path: Path) -> Table:
    rows = tuple(Row(number, json_object(path, number, line)) for number, line in read_lines(path) if line.strip())
    return Table(path=path, columns=tuple(dict.fromkeys(key for row in rows for key in row.cells)), rows=rows)


def json_object(path: Path, number: int, line: str) -> Mapping[str, Any]:
    """The JSON object on a line."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}:{number}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise DatasetError(f"{path}:{number}: not a JSON object but {line.strip()[:40]}")
    return found


def require_unicode(path: Path, row: Row, column: str, text: str) -> str:
    """The text, unless it has half of a surrogate pair, which JSON can hold and no model can read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        wrong = f"a lone surrogate U+{ord(text[error.start]):04X} at character {error.start}"
        raise DatasetError(f"{path}:{row.line}: {column!r} has {wrong}", hint="it is no valid Unicode") from None
    return text


READERS = {".tsv": _read_tsv, ".jsonl": _read_jsonl}
"""File name ending → reader."""


def _open(path: Path) -> BinaryIO:
    return cast("BinaryIO", gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _string(path: Path, row: Row, column: str, *, may_be_empty: bool) -> str:
    value = _cell(path, row, column)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # ids are often numbers in JSON
    if not isinstance(value, str):
        raise DatasetError(f"{path}:{row.line}: {column!r} holds {value!r}, not a text")
    if not value and not may_be_empty:
        raise DatasetError(f"{path}:{row.line}: {column!r} is empty", hint="leave the row out of the data")
    return value


def _number(path: Path, row: Row, column: str) -> float:
    value = _cell(path, row, column)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not abs(number) < float("inf"):
        raise DatasetError(f"{path}:{row.line}: {column!r} holds {value!r}, not a number")
    return number


def _cell(path: Path, row: Row, column: str) -> Any:
    if column not in row.cells:
        raise DatasetError(f"{path}:{row.line}: no {column!r}; it has {listed(row.cells)}")
    value = row.cells[column]
    return require_unicode(path, row, column, value) if isinstance(value, str) else value
