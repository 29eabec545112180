"""`/compare?m=…&m=…`: specs and published numbers of several models side by side.

Invariant: the address says which models; one that does not exist is named and left out.
Does not know: how numbers become diagrams (benchmark_views.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from udever.server.console.models import benchmark_views
from udever.server.console.models.charts import MOST_SERIES
from udever.server.console.models.model_page import all_specs
from udever.server.console.models.status import Listing, listings
from udever.server.console.rendering import render
from udever.server.pipeline import service_of

REFERENCE = "text-embedding-ada-002"
MOST = MOST_SERIES - 1
"""As many models as can be told apart in a diagram beside the reference."""
SHOWN = ("mteb-eng-v1", "codesearchnet", "multi-cpr", "multi-cpr-recall")
DOTS = "mteb-eng-v1"
BARS = ("codesearchnet", "multi-cpr")
LEFT_OUT = frozenset({"Fingerprint", "Precision here"})
router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What the address asks for."""

    models: tuple[Listing, ...]
    unknown: tuple[str, ...]
    too_many: bool


@router.get("/compare")
async def compare(request: Request) -> Response:
    """The comparison; of all models if none is chosen."""
    known = listings(service_of(request))
    chosen = choose(request.query_params.getlist("m"), known)
    measured = [listing for listing in chosen.models if listing.manifest.published_numbers]
    rows = tuple(map(_row, measured))
    beside = (*rows, REFERENCE) if rows else ()
    return render(
        request,
        "compare.html",
        known=list(known.values()),
        chosen=chosen,
        chosen_ids={listing.id for listing in chosen.models},
        most=MOST,
        specs=spec_rows(chosen.models),
        columns=[benchmark_views.model_name(row) for row in beside],
        groups=benchmark_views.groups(beside, SHOWN),
        own=len(rows),
        unmeasured=[listing.manifest.title for listing in chosen.models if listing not in measured],
        figures=_figures(beside),
    )


def choose(asked: Sequence[str], known: Mapping[str, Listing]) -> Chosen:
    """The models that were asked for, each once; all if there are none, as far as they can be told apart.

    Of all, a delta on another of them comes last.
    """
    everything = sorted(known, key=lambda name: known[name].manifest.base in known)
    found = tuple(dict.fromkeys(name for name in asked if name in known)) or tuple(everything)
    return Chosen(
        models=tuple(known[name] for name in found[:MOST]),
        unknown=tuple(dict.fromkeys(name for name in asked if name and name not in known)),
        too_many=len(found) > MOST,
    )


def spec_rows(models: Sequence[Listing]) -> list[tuple[str, list[str]]]:
    """(name, a value for each model) of every spec that one of them has."""
    columns = zip(*(all_specs(listing) for listing in models), strict=True)
    rows = [(cells[0][0], [value for _, value in cells]) for cells in columns]
    return [(name, values) for name, values in rows if any(values) and name not in LEFT_OUT]


def _row(listing: Listing) -> str:
    numbers = listing.manifest.published_numbers
    return numbers.row if numbers else ""


def _figures(rows: tuple[str, ...]) -> list[benchmark_views.Figure]:
    drawn = (
        benchmark_views.dots_figure(DOTS, rows),
        *(benchmark_views.benchmark_figure(name, rows, own=False) for name in BARS),
    )
    return [figure for figure in drawn if figure]
