"""A file that was found → what its rows look like: columns, types, and where the first row begins.

Invariant: nothing but the head of a text file and the footer of a parquet file is read; equal files, equal answers.
Does not know: which column is the text; what cuts and hashes files is plan.py.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from udever.bulk.cutting import RecordLines, csv_records, split_lines
from udever.bulk.sources import DELIMITERS, Found, InputFormat, open_input, open_parquet
from udever.bulk.storage import digest
from udever.errors import FileInputError

BOM = b"\xef\xbb\xbf"
SAMPLE_ROWS = 1000
"""Rows of a jsonl file that say which columns it has, and of which types."""
SAMPLE_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Input:
    """A file and what its rows look like."""

    found: Found
    schema: pa.Schema
    """Its columns: parquet's own types; jsonl's by its first rows; csv and txt hold strings."""
    json_columns: frozenset[str]
    """Columns of a jsonl file that hold lists, objects or several types: kept as JSON text."""
    start: int
    """Offset of the first row, behind a byte order mark and a header."""
    row_groups: tuple[int, ...]
    """Rows of each row group of a parquet file."""
    footer: str
    """Digest of a parquet file's footer, checked again when a shard is read."""


def describe(found: Found) -> Input:
    """Look at the head of a text file, at the footer of a parquet file.

    Raises:
        FileInputError: it cannot be read as its format.
    """
    try:
        return DESCRIBE[found.format](found)
    except pa.ArrowException as error:
        raise FileInputError(
            f"{found.name}: not a readable parquet file: {error}", hint="was it copied whole?"
        ) from error


def footer_digest(file: pq.ParquetFile) -> str:
    """Stands for a parquet file's layout, sizes and statistics."""
    groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    facts = [
        [group.num_rows, group.total_byte_size, group.column(0).file_offset] for group in groups if group.num_columns
    ]
    return digest(json.dumps([file.metadata.serialized_size, str(file.schema_arrow), facts]).encode())


def _describe_parquet(found: Found) -> Input:
    with open_parquet(found.path) as file:
        groups = tuple(file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups))
        schema = pa.schema([pa.field(field.name, field.type) for field in file.schema_arrow])
        return _input(found, schema, row_groups=groups, footer=footer_digest(file))


def _describe_txt(found: Found) -> Input:
    return _input(found, pa.schema([pa.field("text", pa.string())]), start=_bom_bytes(_head(found)))


def _describe_jsonl(found: Found) -> Input:
    head = _head(found)
    start = _bom_bytes(head)
    seen: dict[str, set[type]] = {}
    for row in _objects(split_lines(head[start:])[:SAMPLE_ROWS]):
        for name, value in row.items():
            seen.setdefault(name, set()).add(type(value))
    types = {name: _json_type(kinds - {type(None)}) for name, kinds in seen.items()}
    schema = pa.schema([pa.field(name, kind or pa.string()) for name, kind in types.items()])
    return _input(found, schema, start=start, json_columns=frozenset(name for name in types if types[name] is None))


def _describe_csv(found: Found) -> Input:
    head = _head(found)
    start = _bom_bytes(head)
    lines = RecordLines(split_lines(head[start:]), name=found.name, first_row=-1)
    header = next(csv_records(lines, delimiter=DELIMITERS[found.format]), [])
    if isinstance(header, csv.Error):
        raise FileInputError(f"{found.name}: its header is malformed: {header}", hint="the first row names the columns")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise FileInputError(f"{found.name}: two columns are called {twice[0]!r}", hint="give each column its own name")
    try:
        "".join(header).encode()
    except UnicodeEncodeError as error:
        raise FileInputError(
            f"{found.name}: its header is not UTF-8", hint="convert it: iconv -f latin1 -t utf-8"
        ) from error
    return _input(found, pa.schema([pa.field(name, pa.string()) for name in header]), start=start + lines.consumed)


DESCRIBE: dict[InputFormat, Callable[[Found], Input]] = {
    "parquet": _describe_parquet,
    "jsonl": _describe_jsonl,
    "csv": _describe_csv,
    "tsv": _describe_csv,
    "txt": _describe_txt,
}


def _input(
    found: Found,
    schema: pa.Schema,
    *,
    start: int = 0,
    json_columns: frozenset[str] = frozenset(),
    row_groups: tuple[int, ...] = (),
    footer: str = "",
) -> Input:
    return Input(
        found=found, schema=schema, start=start, json_columns=json_columns, row_groups=row_groups, footer=footer
    )


def _head(found: Found) -> bytes:
    """The first lines, whole."""
    with open_input(found.path) as file:
        return bytes(file.read(SAMPLE_BYTES) + file.readline())


def _bom_bytes(head: bytes) -> int:
    return len(BOM) if head.startswith(BOM) else 0


def _objects(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The rows that are JSON objects; what is wrong with the others is said when they are read."""
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


def _json_type(kinds: set[type]) -> pa.DataType | None:
    """The column type that holds values of these types; None: only JSON text does."""
    for members, column in JSON_TYPES:
        if kinds <= members:
            return column
    return None


JSON_TYPES: tuple[tuple[frozenset[type], pa.DataType], ...] = (
    (frozenset({str}), pa.string()),
    (frozenset({bool}), pa.bool_()),
    (frozenset({int}), pa.int64()),
    (frozenset({int, float}), pa.float64()),
)
"""Types of JSON values → the column that holds all of them, narrowest first."""
