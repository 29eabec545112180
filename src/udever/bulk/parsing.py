"""The bytes of a text shard → rows as dictionaries, and the rows that are none.

Invariant: a broken row costs itself only; row numbers count from the shard's first row, blank lines included.
Does not know: files, or which columns are wanted.
"""

import csv
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from udever.bulk.cutting import RecordLines, csv_records, split_lines
from udever.bulk.plan import Shard
from udever.bulk.sources import DELIMITERS


class BadRow(NamedTuple):
    """A row without a vector."""

    row: int
    """In its file, from 1; of csv and tsv the header is none."""
    code: str
    """Stable, see REASONS in rows.py."""
    reason: str


Rows = list[dict[str, Any]]
Parsed = tuple[list[int], Rows, list[BadRow]]


def _parse_txt(data: bytes, shard: Shard) -> Parsed:
    numbers: list[int] = []
    rows: Rows = []
    bad: list[BadRow] = []
    for number, line in enumerate(split_lines(data), shard.cut.first + 1):
        try:
            rows.append({"text": line.decode().removesuffix("\n").removesuffix("\r")})
            numbers.append(number)
        except UnicodeDecodeError as error:
            bad.append(_not_utf8(number, error))
    return numbers, rows, bad


def _parse_jsonl(data: bytes, shard: Shard) -> Parsed:
    numbers: list[int] = []
    rows: Rows = []
    bad: list[BadRow] = []
    for number, line in enumerate(split_lines(data), shard.cut.first + 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
        except UnicodeDecodeError as error:
            bad.append(_not_utf8(number, error))
        except (ValueError, RecursionError) as error:
            bad.append(BadRow(number, "malformed", f"not JSON: {error}"))
        else:
            if isinstance(row, dict):
                rows.append(row)
                numbers.append(number)
            else:
                bad.append(BadRow(number, "malformed", f"not a JSON object but a {type(row).__name__}"))
    return numbers, rows, bad


def _parse_csv(data: bytes, shard: Shard) -> Parsed:
    numbers: list[int] = []
    rows: Rows = []
    bad: list[BadRow] = []
    found, header = shard.input.found, shard.input.schema.names
    lines = RecordLines(split_lines(data), name=found.name, first_row=shard.cut.first)
    for number, record in enumerate(csv_records(lines, delimiter=DELIMITERS[found.format]), shard.cut.first + 1):
        if isinstance(record, csv.Error):
            bad.append(BadRow(number, "malformed", str(record)))
        elif len(record) == len(header):
            rows.append(dict(zip(header, record, strict=True)))
            numbers.append(number)
        elif record:  # a blank line is no row
            reason = f"{len(record)} columns where the header has {len(header)}: is a quote missing?"
            bad.append(BadRow(number, "malformed", reason))
    return numbers, rows, bad


PARSE: dict[str, Callable[[bytes, Shard], Parsed]] = {
    "txt": _parse_txt,
    "jsonl": _parse_jsonl,
    "csv": _parse_csv,
    "tsv": _parse_csv,
}
"""Format → (row numbers, rows, bad rows) of a shard's bytes."""


def _not_utf8(number: int, error: UnicodeDecodeError) -> BadRow:
    return BadRow(number, "not_utf8", f"not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start}")
