"""`/`: all models, searched, filtered and sorted.

Invariant: the address says all there is to the list, so it can be kept, sent and opened without JavaScript; a filter
that does not exist is left out and never an error.
Does not know: HTML.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from udever.catalog.languages import language_name
from udever.catalog.published import benchmarks
from udever.server.console.models import votes
from udever.server.console.models.status import STATUS_NAMES, Listing, listings
from udever.server.console.rendering import render
from udever.server.pipeline import service_of

MTEB = "mteb-eng-v1"
LONGEST_SEARCH = 200
SIZES = (
    ("tiny", "below 100 million", 0, 100e6),
    ("small", "100 million to 1 billion", 100e6, 1e9),
    ("medium", "1 to 5 billion", 1e9, 5e9),
    ("large", "5 billion and more", 5e9, float("inf")),
)
router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One value of a filter."""

    value: str
    text: str
    count: int
    """Models that have it."""
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class Query:
    """What the address asks for."""

    search: str
    status: frozenset[str]
    size: frozenset[str]
    licence: frozenset[str]
    language: str
    sort: str

    @classmethod
    def of(cls, request: Request) -> "Query":
        """From the address, whatever it holds."""
        asked = request.query_params
        sort = asked.get("sort", "")
        return cls(
            search=asked.get("q", "").strip()[:LONGEST_SEARCH],
            status=frozenset(asked.getlist("status")),
            size=frozenset(asked.getlist("size")),
            licence=frozenset(asked.getlist("licence")),
            language=asked.get("language", ""),
            sort=sort if sort in SORTS else next(iter(SORTS)),
        )

    @property
    def filtered(self) -> bool:
        """Whether it leaves anything out."""
        return bool(self.search or self.status or self.size or self.licence or self.language)


@router.get("/")
async def catalogue(request: Request) -> Response:
    """The catalogue."""
    query = Query.of(request)
    models = list(listings(service_of(request)).values())
    shown = sort(filter_(models, query), query.sort)
    return render(
        request,
        "catalogue.html",
        query=query,
        models=shown,
        total=len(models),
        filters=filters(models, query),
        languages=languages(models),
        sorts=[(name, text) for name, (text, _) in SORTS.items()],
        votes=await votes.counts(request),
        mteb=mteb_average,
    )


def filter_(models: Iterable[Listing], query: Query) -> list[Listing]:
    """Those that have a chosen value of every filter, and all words of the search."""
    words = query.search.casefold().split()
    return [
        model
        for model in models
        if all(word in _searched(model) for word in words)
        and all(_has(model, name, getattr(query, name)) for name in VALUES)
        and (not query.language or query.language in (*model.manifest.languages, *model.manifest.code_languages))
    ]


def sort(models: Iterable[Listing], name: str) -> list[Listing]:
    """By the sort's key; models that lack what it is about go last, and equal ones keep their order."""
    _, key = SORTS[name]
    ordered = [(key(model), model) for model in models]
    return [
        model for _, model in sorted(ordered, key=lambda pair: (pair[0] is None, 0 if pair[0] is None else pair[0]))
    ]


def filters(models: Sequence[Listing], query: Query) -> list[tuple[str, str, list[Choice]]]:
    """(name, title, choices) of each filter with checkboxes; only values that some model has, or that are chosen."""
    return [(name, title, _choices(models, name, getattr(query, name))) for name, title in TITLES.items()]


def languages(models: Iterable[Listing]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(group, [(value, text)]) of every language that some model knows."""
    known = list(models)
    spoken = {code for model in known for code in model.manifest.languages}
    code = {name for model in known for name in model.manifest.code_languages}
    groups = (
        ("Languages", sorted(((each, language_name(each)) for each in spoken), key=lambda pair: pair[1])),
        ("Programming languages", sorted((each, each) for each in code)),
    )
    return [(title, options) for title, options in groups if options]


def mteb_average(model: Listing) -> float | None:
    """The published average of MTEB's 56 English tasks."""
    return published(model, MTEB).get("Average")


def published(model: Listing, benchmark: str) -> Mapping[str, float]:
    """A model's published numbers; empty if there are none."""
    numbers = model.manifest.published_numbers
    row = benchmarks()[benchmark].rows.get(numbers.row) if numbers else None
    return row.values if row else {}


def size_of(model: Listing) -> str:
    """Its place in `SIZES`; empty if its size is not known."""
    parameters = model.manifest.parameters
    return next((name for name, _, low, high in SIZES if parameters and low <= parameters < high), "")


VALUES: Mapping[str, Callable[[Listing], str]] = MappingProxyType(
    {"status": lambda model: model.status, "size": size_of, "licence": lambda model: model.manifest.licence}
)
TITLES = MappingProxyType({"status": "Status", "size": "Parameters", "licence": "Licence"})
TEXTS = MappingProxyType({**STATUS_NAMES, **{name: text for name, text, *_ in SIZES}})


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def _newest(model: Listing) -> Any:
    month = model.manifest.published
    return month and (-month.year, -month.month)


SORTS: Mapping[str, tuple[str, Callable[[Listing], Any]]] = MappingProxyType(
    {
        "live": ("Live first", lambda model: model.status != "live"),
        "small": ("Smallest first", lambda model: model.manifest.parameters),
        "large": ("Largest first", lambda model: _negative(model.manifest.parameters)),
        "mteb": ("Best MTEB average", lambda model: _negative(mteb_average(model))),
        "price": ("Lowest price", lambda model: model.microcredits_per_token),
        "new": ("Newest", _newest),
        "name": ("Name", lambda model: model.manifest.title.casefold()),
    }
)
"""Name → text and key; the first is taken if none is asked for."""


def _choices(models: Sequence[Listing], name: str, chosen: frozenset[str]) -> list[Choice]:
    found = [VALUES[name](model) for model in models]
    order = [value for value in TEXTS if value in found] + sorted({*found} - TEXTS.keys() - {""})
    return [
        Choice(value=value, text=TEXTS.get(value, value), count=found.count(value), chosen=value in chosen)
        for value in order
    ]


def _has(model: Listing, name: str, chosen: frozenset[str]) -> bool:
    return not chosen or VALUES[name](model) in chosen


def _searched(model: Listing) -> str:
    manifest = model.manifest
    names = (language_name(code) for code in manifest.languages)
    parts = (
        manifest.id, manifest.title, manifest.summary, manifest.family, manifest.licence, manifest.architecture,
        manifest.base, *manifest.best_for, *manifest.code_languages, *names,
    )  # fmt: skip
    return " ".join(parts).casefold()
