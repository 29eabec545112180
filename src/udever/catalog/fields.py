"""The fields of a manifest: what each may hold, and what to say if it does not.

Invariant: `check_table` returns only fields of its table, each of the kind that the table says.
Does not know: what a field is for.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from udever.catalog.published import benchmarks, models
from udever.errors import CatalogError

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Z][a-z]{3})?")
MONTH = re.compile(r"(\d{4})-(\d{2})")


@dataclass(frozen=True, order=True)
class Month:
    """A month of a year: what is known of most dates in a catalogue."""

    year: int
    month: int

    def __str__(self) -> str:
        return f"{date(self.year, self.month, 1):%b %Y}"

    @property
    def iso(self) -> str:
        """2023-10."""
        return f"{self.year:04}-{self.month:02}"


@dataclass(frozen=True, kw_only=True)
class Field:
    """What a field may hold."""

    valid: Callable[[Any], bool]
    meaning: str
    """"it must be …"."""
    make: Callable[[Any], Any] = lambda value: value
    required: bool = False
    table: "Mapping[str, Field] | None" = None
    """The fields of a table, or of each table in a list."""


def check_table(raw: Mapping[str, Any], fields: Mapping[str, Field], *, where: str) -> dict[str, Any]:
    """The fields of a table, checked and made into what they mean.

    Args:
        where: the file, and the table in it.

    Raises:
        CatalogError: names the file and the field.
    """
    for name in raw.keys() - fields.keys():
        close = get_close_matches(name, fields, n=1)
        meant = f"did you mean {close[0]}? " if close else ""
        raise CatalogError(f"{where}: unknown field {name}", hint=f"{meant}fields are {', '.join(fields)}")
    for name, field in fields.items():
        if field.required and name not in raw:
            raise CatalogError(f"{where}: {name} is missing", hint=f"it must be {field.meaning}")
    return {name: _checked(value, fields[name], where=where, name=name) for name, value in raw.items()}


def _checked(value: Any, field: Field, *, where: str, name: str) -> Any:
    if not field.valid(value):
        raise CatalogError(f"{where}: {name} is {value!r}; it must be {field.meaning}", hint=f"correct {name}")
    if field.table is None:
        return field.make(value)
    if isinstance(value, list):
        return [check_table(entry, field.table, where=f"{where}: {name}[{place}]") for place, entry in enumerate(value)]
    return check_table(value, field.table, where=f"{where}: {name}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_url(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("https://", "http://"))


def _is_month(value: Any) -> bool:
    if isinstance(value, date):
        return True
    match = MONTH.fullmatch(value) if isinstance(value, str) else None
    return match is not None and 1 <= int(match[2]) <= 12 and int(match[1]) >= 1


def _month(value: str | date) -> Month:
    return Month(value.year, value.month) if isinstance(value, date) else Month(*map(int, value.split("-")))


def _list_of(valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(valid, value)) and len(set(value)) == len(value)


def _one_of(names: Callable[[], Iterable[str]]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in names()


def _are_scores(value: Any) -> bool:
    def is_number(entry: Any) -> bool:
        return isinstance(entry, (int, float)) and not isinstance(entry, bool) and math.isfinite(entry)

    return isinstance(value, dict) and bool(value) and all(map(is_number, value.values()))


def _descending(value: list[int]) -> tuple[int, ...]:
    return tuple(sorted(value, reverse=True))


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _are_tables(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_table, value))


def _text(meaning: str = "a text that is not empty", *, required: bool = False) -> Field:
    return Field(valid=_is_text, meaning=meaning, make=str.strip, required=required)


_COUNT = Field(valid=_is_count, meaning="a whole number from 1")
_MONTH = Field(valid=_is_month, meaning='a month like "2023-10", or a date', make=_month)
_URL = Field(valid=_is_url, meaning="an address that begins with https:// or http://")
_TEXTS = Field(valid=_list_of(_is_text), meaning="a list of texts, each once", make=tuple)

_DOWNLOADS = MappingProxyType(
    {
        "per_month": Field(
            valid=lambda value: value == 0 or _is_count(value), meaning="a whole number from 0", required=True
        ),
        "seen": Field(valid=_is_month, meaning=_MONTH.meaning, make=_month, required=True),
    }
)
_PUBLISHED = MappingProxyType(
    {
        "row": Field(valid=_one_of(models), meaning="a model of catalog/published.yaml", required=True),
        "benchmarks": Field(
            valid=_list_of(_one_of(benchmarks)),
            meaning=f"a list of {', '.join(benchmarks())}",
            make=tuple,
        ),
        "references": Field(
            valid=_list_of(_one_of(models)),
            meaning="a list of models of catalog/published.yaml",
            make=tuple,
        ),
    }
)
_RESULTS = MappingProxyType(
    {
        "protocol": _text(required=True),
        "scores": Field(valid=_are_scores, meaning="a table of numbers", required=True),
    }
)
_FAQ = MappingProxyType({"question": _text(required=True), "answer": _text(required=True)})
_LINKS = MappingProxyType(
    {
        "title": _text(required=True),
        "url": Field(valid=_is_url, meaning=_URL.meaning, required=True),
    }
)

FIELDS: Mapping[str, Field] = MappingProxyType(
    {
        "id": Field(
            valid=lambda value: isinstance(value, str) and ID.fullmatch(value) is not None,
            meaning="a name, or owner/name, of letters, digits, and . _ -",
            required=True,
        ),
        "title": _text(required=True),
        "summary": _text(),
        "family": _text(),
        "published": _MONTH,
        "updated": _MONTH,
        "licence": _text(),
        "licence_url": _URL,
        "task": _text(),
        "architecture": _text(),
        "base": _text(),
        "method": _text(),
        "parameters": _COUNT,
        "dimensions": Field(
            valid=lambda value: _list_of(_is_count)(value) and bool(value),
            meaning="a list of whole numbers from 1",
            make=_descending,
        ),
        "max_tokens": _COUNT,
        "trained_tokens": _COUNT,
        "training_data": _TEXTS,
        "languages": Field(
            valid=_list_of(lambda code: isinstance(code, str) and LANGUAGE.fullmatch(code) is not None),
            meaning='a list of ISO 639 codes like "pt", "fon" or "zh-Hans", each once',
            make=tuple,
        ),
        "code_languages": _TEXTS,
        "best_for": _TEXTS,
        "about": _TEXTS,
        "related": _TEXTS,
        "microcredits_per_token": Field(
            valid=lambda value: value == 0 or _is_count(value), meaning="a whole number from 0"
        ),
        "downloads": Field(valid=_is_table, meaning="a table", table=_DOWNLOADS),
        "published_numbers": Field(valid=_is_table, meaning="a table", table=_PUBLISHED),
        "results": Field(valid=_are_tables, meaning="a list of tables", table=_RESULTS),
        "scores_file": _text(),
        "faq": Field(valid=_are_tables, meaning="a list of tables", table=_FAQ),
        "links": Field(valid=_are_tables, meaning="a list of tables", table=_LINKS),
    }
)
