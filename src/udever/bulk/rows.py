"""Rows as they were read → texts, by column or template; what has no embedding becomes a bad row.

Invariant: each row of a shard is a text or a bad row, or a blank line of jsonl or csv, which is no row.
Does not know: tokens; a text that is too long is found out later.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, time
from decimal import Decimal
from string import Formatter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from udever.bulk.job import Options
from udever.bulk.parsing import BadRow
from udever.bulk.reading import Raw

REASONS = {
    "null": "there is no text",
    "empty": "the text has no characters",
    "too_many_tokens": "longer than the limit, and --truncate is error",
    "not_a_text": "a number, a list, …, or no valid Unicode",
    "not_utf8": "bytes that are no UTF-8",
    "malformed": "a line that is no JSON object, a record of another width than the header",
    "column_type": "a carried column holds a value of another type than the file's first rows",
}
"""Codes of bad rows; stable across releases."""

Fault = tuple[str, str]
Texts = list[str | Fault]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The rows of a shard that have a text."""

    numbers: NDArray[np.int64]
    """Row numbers in the file, from 1; ascending."""
    texts: list[str]
    table: pa.Table
    """The carried columns."""
    bad: tuple[BadRow, ...]
    """The other rows, ascending."""

    def only(self, places: NDArray[np.int64]) -> "Loaded":
        """These rows, and the bad ones."""
        return Loaded(
            numbers=self.numbers[places],
            texts=[self.texts[place] for place in places],
            table=self.table.take(places) if self.table.num_columns else self.table,
            bad=self.bad,
        )

    def without(self, faults: dict[int, Fault]) -> "Loaded":
        """Leave out rows, by place, and note why."""
        if not faults:
            return self
        kept = np.array([place for place in range(len(self.texts)) if place not in faults], np.int64)
        bad = [BadRow(int(self.numbers[place]), *fault) for place, fault in faults.items()]
        return replace(self.only(kept), bad=tuple(sorted([*self.bad, *bad])))


def load(raw: Raw, options: Options) -> Loaded:
    """Make the texts."""
    texts = _of_column(raw.values[0], options.text_column) if options.template is None else _of_template(raw, options)
    faults = {place: text for place, text in enumerate(texts) if isinstance(text, tuple)}
    loaded = Loaded(
        numbers=raw.numbers,
        texts=[text if isinstance(text, str) else "" for text in texts],
        table=raw.table,
        bad=tuple(raw.bad),
    )
    return loaded.without(faults)


def _of_column(values: Sequence[Any], name: str) -> Texts:
    return [_checked(value) if isinstance(value, str) else _no_text(value, name) for value in values]


def _no_text(value: Any, name: str) -> Fault:
    if value is None:
        return "null", f"column {name!r} is null"
    return "not_a_text", f"column {name!r} holds {type(value).__name__}, not text"


def _checked(text: str) -> str | Fault:
    if not text:
        return "empty", "the text is empty"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        wrong = ord(text[error.start])
        if 0xDC80 <= wrong <= 0xDCFF:  # how a byte that is no UTF-8 was read
            return "not_utf8", f"not UTF-8: byte 0x{wrong - 0xDC00:02x} behind {error.start} characters"
        return "not_a_text", f"a lone surrogate U+{wrong:04X} behind {error.start} characters is no valid Unicode"
    return text


def _of_template(raw: Raw, options: Options) -> Texts:
    names = options.text_columns
    parts = [
        (literal, None if name is None else names.index(name))
        for literal, name, _, _ in Formatter().parse(options.template or "")
    ]
    return [_filled(parts, row, names) for row in zip(*raw.values, strict=True)]


def _filled(parts: Sequence[tuple[str, int | None]], row: Sequence[Any], names: Sequence[str]) -> str | Fault:
    """A template with a row's values; null counts as empty, unless all are."""
    if all(value is None for value in row):
        return "null", f"{', '.join(map(repr, names))}: null"
    words: list[str] = []
    for name, value in zip(names, row, strict=True):
        if not isinstance(value, PRINTABLE):
            return "not_a_text", f"column {name!r} holds {type(value).__name__}, not text or a number"
        words.append("" if value is None else str(value))
    if not any(words):
        return "empty", "all columns of the template are empty"
    return _checked("".join([literal + ("" if place is None else words[place]) for literal, place in parts]))


PRINTABLE = (str, int, float, bool, Decimal, date, time, type(None))
"""What a template prints, as Python's str does."""
