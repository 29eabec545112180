"""Files of rows, plain or gzipped, as a stream of named values that know their place.

    for row in read_rows(path, reading): row.values["query"], row.place

Invariant: memory does not grow with the file; every complaint is an `ExamplesError` that names file and line.
Does not know: which values make an example.
"""

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from udever.errors import ExamplesError

PARQUET_ROWS = 1024
REMEMBERED = 20
"""Bad rows that are remembered by name; the rest is only counted."""


class Row(NamedTuple):
    """One row of a file."""

    values: dict[str, Any]
    file: str
    line: int
    """Counted from 1; in parquet the row."""

    @property
    def place(self) -> str:
        """`file:line`, as compilers print it."""
        return f"{self.file}:{self.line}"


@dataclass(kw_only=True)
class Reading:
    """What goes on while files are read."""

    skip_bad: bool = False
    """Count bad rows instead of stopping at the first."""
    bad: list[str] = field(default_factory=list)
    """The complaints about the first of them."""
    bad_count: int = 0
    done_bytes: int = 0
    """Read so far, as the files lie on disk."""
    on_bytes: Callable[[int], None] = lambda _: None
    """Told `done_bytes` now and then."""

    def advance(self, done_bytes: int) -> None:
        """Say how far reading is."""
        self.done_bytes = done_bytes
        self.on_bytes(done_bytes)

    def complain(self, message: str, *, hint: str = "") -> None:
        """Raise what is wrong with a row; with `skip_bad`, remember it."""
        if not self.skip_bad:
            raise ExamplesError(message, hint=hint)
        self.bad_count += 1
        if len(self.bad) < REMEMBERED:
            self.bad.append(message)


def kind_of(path: Path) -> str:
    """How a file is read, by its name: jsonl, tsv, csv or parquet.

    Raises:
        ExamplesError: it does not exist, or ends in something else.
    """
    if not path.is_file():
        wrong = "is a folder" if path.is_dir() else "does not exist"
        raise ExamplesError(f"{path} {wrong}", hint="name the files")
    name = path.name.lower().removesuffix(".gz")
    kind = SUFFIXES.get(name[name.rfind(".") :])
    if kind is None or (kind == "parquet" and path.suffix.lower() == ".gz"):
        endings = f"{', '.join(SUFFIXES)}; all but parquet also with .gz"
        raise ExamplesError(f"{path}: no way to tell how to read it", hint=f"known endings: {endings}")
    return kind


def read_rows(path: Path, reading: Reading) -> Iterator[Row]:
    """The rows of a file with named columns (jsonl: keys). Blank lines are no rows.

    Raises:
        ExamplesError: names the place; rows that are bad in themselves obey `reading.skip_bad`.
    """
    return READERS[kind_of(path)](path, reading)


def columns_of(path: Path) -> tuple[list[str], dict[str, Any]]:
    """The names of a file's columns, and its first row; no row: no values.

    Raises:
        ExamplesError: the file cannot be read, or has no header.
    """
    with _errors(path):
        kind = kind_of(path)
        first = next(iter(read_rows(path, Reading())), None)
        if first is not None:
            return list(first.values), first.values
        if kind == "parquet":
            import pyarrow.parquet as pq

            return list(pq.read_schema(path).names), {}
        return next(_cells(path), []) if kind == "tsv" else [], {}


def read_lines(path: Path, reading: Reading) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its ending). Only \\n ends a line: U+2028 and its like are part of a text."""
    before = reading.done_bytes
    with _errors(path), path.open("rb") as raw:
        lines: Iterable[bytes] = gzip.GzipFile(fileobj=raw) if path.suffix.lower() == ".gz" else raw
        for number, line in enumerate(lines, start=1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                wrong = f"byte 0x{line[error.start]:02x} at offset {error.start}"
                reading.complain(f"{path}:{number}: not UTF-8 ({wrong})", hint="convert it with iconv")
                continue
            if number % 256 == 0:
                reading.advance(before + raw.tell())
            yield number, text.removeprefix("\ufeff").rstrip("\r\n") if number == 1 else text.rstrip("\r\n")
        reading.advance(before + path.stat().st_size)


def read_cells(path: Path, reading: Reading, *, counts: tuple[int, ...]) -> Iterator[tuple[int, list[str]]]:
    """(number from 1, cells) of a tab-separated file without a header; a row must have one of `counts` cells."""
    for number, line in read_lines(path, reading):
        cells = line.split("\t")
        if len(cells) in counts:
            yield number, cells
        elif line:
            expected = " or ".join(map(str, counts))
            reading.complain(
                f"{path}:{number}: {len(cells)} columns instead of {expected}", hint="columns stand apart by tabs"
            )


def _read_jsonl(path: Path, reading: Reading) -> Iterator[Row]:
    for number, line in read_lines(path, reading):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            reading.complain(f"{place}: not JSON: {error}", hint="jsonl holds one JSON object a line")
            continue
        if isinstance(values, dict):
            yield Row(values, str(path), number)
        else:
            reading.complain(f"{place}: not a JSON object but {line.strip()[:40]}", hint='like {"query": "…"}')


def _read_tsv(path: Path, reading: Reading) -> Iterator[Row]:
    """Tabs part cells and nothing quotes them, as in all published training files."""
    header: list[str] | None = None
    for number, line in read_lines(path, reading):
        if not line:
            continue
        cells = line.split("\t")
        if header is None:
            header = cells
            _require_names(header, path)
        elif len(cells) == len(header):
            yield Row(dict(zip(header, cells, strict=True)), str(path), number)
        else:
            reading.complain(
                f"{path}:{number}: {len(cells)} columns where the header has {len(header)}",
                hint="quotes do not protect tabs in tsv files",
            )


def _read_csv(path: Path, reading: Reading) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # the default refuses fields over 128 KiB; a text may be longer
    # csv must see each line's ending, or a quoted field that spans lines would lose it.
    rows = csv.reader((line + "\n" for _, line in read_lines(path, reading)), strict=True)
    start = 1
    try:
        header = next(rows, [])
        _require_names(header, path)
        start = rows.line_num + 1
        for cells in rows:
            if len(cells) == len(header):
                yield Row(dict(zip(header, cells, strict=True)), str(path), start)
            elif cells:
                reading.complain(
                    f"{path}:{start}: {len(cells)} columns where the header has {len(header)}",
                    hint="is a quote missing?",
                )
            start = rows.line_num + 1
    except csv.Error as error:
        raise ExamplesError(f"{path}:{start}: {error}", hint="is a quote missing?") from error


def _read_parquet(path: Path, reading: Reading) -> Iterator[Row]:
    import pyarrow.parquet as pq

    before, number = reading.done_bytes, 0
    with _errors(path), pq.ParquetFile(path) as file:
        share = path.stat().st_size / max(1, file.metadata.num_rows)
        for batch in file.iter_batches(PARQUET_ROWS):
            for values in batch.to_pylist():
                number += 1
                yield Row(values, str(path), number)
            reading.advance(before + round(number * share))


SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".tsv": "tsv",
    ".csv": "csv",
    ".parquet": "parquet",
}
"""File name ending → kind."""

READERS: dict[str, Callable[[Path, Reading], Iterator[Row]]] = {
    "jsonl": _read_jsonl,
    "tsv": _read_tsv,
    "csv": _read_csv,
    "parquet": _read_parquet,
}
"""Kind → reader."""


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """What reading libraries raise, as an error that names the file."""
    import pyarrow as pa

    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error, pa.ArrowException) as error:
        raise ExamplesError(f"{path} is damaged or cut off: {error}", hint="was it copied whole?") from error


def _cells(path: Path) -> Iterator[list[str]]:
    return (line.split("\t") for _, line in read_lines(path, Reading()) if line)


def _require_names(header: list[str], path: Path) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ExamplesError(f"{path}: two columns are called {', '.join(map(repr, twice))}", hint="rename one of them")
