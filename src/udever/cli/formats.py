"""File formats: a path → the texts in it, one generator a format.

Invariant: memory does not grow with the file (but for one long line, one whole document or one parquet batch); every
complaint is a `FileInputError` that names file and line.
Does not know: which files there are, or what becomes of the texts.
"""

import codecs
import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from udever.errors import FileInputError

Format = Literal["txt", "jsonl", "csv", "tsv", "parquet", "document"]

STDIN = "-"
PARQUET_BATCH_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Record:
    """One text and where it stands."""

    text: str
    source: str
    """The file as named on the command line, `folder/…/file` inside a folder, `stdin`."""
    line: int | None
    """Line (parquet: row) counted from 1; None for a whole file."""
    size_bytes: int
    """Share of the input behind this text, for the progress bar."""

    @property
    def place(self) -> str:
        """`file:line`, as compilers print it."""
        return _place(self.source, self.line)


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How to find the texts in the files."""

    field: str = "text"
    """Key (jsonl) or column (csv, tsv, parquet) that holds the text."""
    format: Format | None = None
    """None: by the file's name; stdin is txt."""
    globs: tuple[str, ...] = ()
    """Which files of a folder; empty: those that end in `SOURCE_SUFFIXES`."""
    skip_empty: bool = False
    """Leave out nulls and texts without a visible character, instead of passing them on."""


def _place(source: str, line: int | None) -> str:
    return source if line is None else f"{source}:{line}"


def _read_lines(path: str, _options: ReadOptions) -> Iterator[Record]:
    for number, text, size in _decoded_lines(path):
        yield Record(text.rstrip("\r\n"), _name(path), number, size)


def _read_jsonl(path: str, options: ReadOptions) -> Iterator[Record]:
    for number, line, size in _decoded_lines(path):
        place = _place(_name(path), number)
        if not line.strip():
            yield Record("", _name(path), number, size)
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FileInputError(f"{place}: not JSON: {error}", hint="jsonl holds one JSON object a line") from error
        if not isinstance(row, dict):
            raise FileInputError(f"{place}: not a JSON object but {line.strip()[:40]}", hint='like {"text": "…"}')
        yield Record(_text_of(row, options, place), _name(path), number, size)


def _read_csv(path: str, options: ReadOptions) -> Iterator[Record]:
    return _read_table(path, options, delimiter=",")


def _read_tsv(path: str, options: ReadOptions) -> Iterator[Record]:
    return _read_table(path, options, delimiter="\t")


def _read_table(path: str, options: ReadOptions, *, delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(sys.maxsize)  # the default refuses fields over 128 KiB; a text may be longer
    consumed = _Consumed()
    rows = csv.reader(consumed.lines(path), delimiter=delimiter, strict=True)
    start = 1
    try:
        header = next(rows, [])
        _require_column(options.field, header, path)
        column = header.index(options.field)
        start = rows.line_num + 1
        for row in rows:
            place = _place(_name(path), start)
            if row and (column >= len(row) or any(row[len(header) :])):
                raise FileInputError(
                    f"{place}: {len(row)} columns where the header has {len(header)}", hint="is a quote missing?"
                )
            if row:  # a blank line is no row
                yield Record(row[column], _name(path), start, consumed.take())
            start = rows.line_num + 1
    except csv.Error as error:
        raise FileInputError(f"{_place(_name(path), start)}: {error}", hint="is a quote missing?") from error


def _read_parquet(path: str, options: ReadOptions) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path == STDIN:
        raise FileInputError("stdin cannot be parquet", hint="parquet is read from its end; name the file")
    try:
        with pq.ParquetFile(path) as file:
            _require_column(options.field, file.schema_arrow.names, path)
            share = Path(path).stat().st_size // max(1, file.metadata.num_rows)
            number = 0
            for batch in file.iter_batches(PARQUET_BATCH_ROWS, columns=[options.field]):
                for value in batch.column(options.field).to_pylist():
                    number += 1
                    place = _place(_name(path), number)
                    yield Record(_text_of({options.field: value}, options, place), _name(path), number, share)
    except UnicodeDecodeError as error:
        raise FileInputError(
            f"{_name(path)}: {options.field!r} is not UTF-8: {error}", hint="write it again"
        ) from error
    except (pa.ArrowException, OSError) as error:
        raise FileInputError(
            f"{_name(path)}: not a readable parquet file: {error}", hint="was it copied whole? It cannot be a pipe."
        ) from error


def _read_document(path: str, _options: ReadOptions) -> Iterator[Record]:
    with _open(path) as file:
        raw = file.read()
    if b"\0" in raw:
        raise FileInputError(f"{_name(path)}: a binary file", hint="udever reads text")
    text = _decode(raw, _name(path)).removeprefix("\ufeff").replace("\r\n", "\n")
    yield Record(text, _name(path), None, len(raw))


FORMATS: dict[Format, Callable[[str, ReadOptions], Iterator[Record]]] = {
    "txt": _read_lines,
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "parquet": _read_parquet,
    "document": _read_document,
}
"""Format → reader."""


class _Consumed:
    """Lines for csv.reader that remember how many bytes went by since the last `take`."""

    def __init__(self) -> None:
        self._bytes = 0

    def lines(self, path: str) -> Iterator[str]:
        for _, line, size in _decoded_lines(path):
            self._bytes += size
            yield line

    def take(self) -> int:
        taken, self._bytes = self._bytes, 0
        return taken


def _decoded_lines(path: str) -> Iterator[tuple[int, str, int]]:
    """(number from 1, line with its ending, bytes). Only \\n ends a line: U+2028 and its like are part of a text."""
    with _open(path) as file:
        for number, raw in enumerate(file, start=1):
            line = _decode(raw, _place(_name(path), number))
            yield number, line.removeprefix("\ufeff") if number == 1 else line, len(raw)


def _decode(raw: bytes, place: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = f"byte 0x{raw[error.start]:02x} at offset {error.start}"
        encoding = "utf-16" if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "latin1"
        hint = f"convert it: iconv -f {encoding} -t utf-8"
        raise FileInputError(f"{place}: not UTF-8 ({wrong})", hint=hint) from error


def _open(path: str) -> BinaryIO:
    return sys.stdin.buffer if path == STDIN else Path(path).open("rb")


def _name(path: str) -> str:
    """The path as text; a file name need not be Unicode, what we print and write must be."""
    return "stdin" if path == STDIN else path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _require_column(name: str, columns: Iterable[str], path: str) -> None:
    columns = list(columns)
    if name not in columns:
        raise FileInputError(
            f"{_name(path)} has no column {name!r}; it has {_listed(columns)}", hint="pass --field with one of them"
        )
    if columns.count(name) > 1:
        raise FileInputError(f"{_name(path)} has {columns.count(name)} columns {name!r}", hint="rename all but one")


def _text_of(row: dict[str, Any], options: ReadOptions, place: str) -> str:
    name = options.field
    if name not in row:
        raise FileInputError(f"{place}: no field {name!r}; it has {_listed(row)}", hint="pass --field with one of them")
    value = row[name]
    if value is None and options.skip_empty:
        return ""
    if not isinstance(value, str):
        kind, hint = type(value).__name__, "only strings can be embedded"
        if value is None:
            kind, hint = "null", "--skip-empty leaves such rows out"
        raise FileInputError(f"{place}: {name!r} holds {kind}, not a string", hint=hint)
    return value


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none at all"
