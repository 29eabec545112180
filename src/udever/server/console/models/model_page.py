"""`/models/{id}`: everything that there is to know of one model.

Invariant: what is not known of a model leaves no empty place; its status is that of this moment.
Does not know: how numbers become diagrams (benchmark_views.py), or who voted (votes.py).
"""

from collections.abc import Mapping

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from udever.catalog.languages import language_name
from udever.catalog.manifests import ModelManifest
from udever.server.console.models import benchmark_views, calling, votes
from udever.server.console.models.status import STATUS_NAMES, Listing, listings
from udever.server.console.rendering import compact, render, thousands
from udever.server.credits import format_credits
from udever.server.errors import RequestError
from udever.server.pipeline import service_of

router = APIRouter(include_in_schema=False)


@router.get("/models/{model:path}")
async def model_page(request: Request, model: str) -> Response:
    """One model. Raises RequestError: there is none of this id."""
    service = service_of(request)
    known = listings(service)
    if model not in known:
        message = f"There is no model {model!r} in this catalogue."
        raise RequestError(message, code="model_not_found", status=404, param="model")
    listing = known[model]
    manifest = listing.manifest
    base_url = str(request.base_url).rstrip("/")
    return render(
        request,
        "model.html",
        listing=listing,
        manifest=manifest,
        status_name=STATUS_NAMES[listing.status],
        specs=specs(listing),
        languages=sorted(map(language_name, manifest.languages)),
        figures=benchmark_views.figures(manifest),
        benchmarks=_benchmarks(manifest),
        columns=_columns(manifest),
        examples=calling.examples(model, base_url=base_url, key=not service.access.is_open),
        related=[known[name] for name in related(manifest, known) if name in known],
        model_id=model,
        live=listing.status == "live",
        vote=await votes.standing(request, model),
    )


def specs(listing: Listing) -> list[tuple[str, str]]:
    """(name, value) of what is known."""
    return [(name, value) for name, value in all_specs(listing) if value]


def all_specs(listing: Listing) -> tuple[tuple[str, str], ...]:
    """(name, value) of every spec that a model may have; empty where it is not known."""
    manifest = listing.manifest
    price = listing.microcredits_per_token
    return (
        ("Task", manifest.task),
        ("Architecture", manifest.architecture),
        ("Parameters", _parameters(manifest)),
        ("Base model", manifest.base),
        ("Method", manifest.method),
        ("Dimensions", ", ".join(map(thousands, manifest.dimensions))),
        ("Context length", _context(manifest)),
        ("Languages", _languages(manifest)),
        ("Code", ", ".join(manifest.code_languages)),
        ("Training data", "; ".join(manifest.training_data)),
        ("Licence", manifest.licence),
        ("Price", "" if price is None else _price(price)),
        ("Fingerprint", listing.fingerprint),
        ("Precision here", listing.precision),
    )


def related(manifest: ModelManifest, known: Mapping[str, Listing]) -> tuple[str, ...]:
    """Ids of related models: those the manifest names, else the others of its family."""
    if manifest.related or not manifest.family:
        return manifest.related
    same = (listing for listing in known.values() if listing.manifest.family == manifest.family)
    return tuple(listing.id for listing in same if listing.id != manifest.id)


def _parameters(manifest: ModelManifest) -> str:
    count = manifest.parameters
    return f"{compact(count)} ({thousands(count)})" if count else ""


def _context(manifest: ModelManifest) -> str:
    if not manifest.max_tokens:
        return ""
    trained = f"; trained on up to {thousands(manifest.trained_tokens)}" if manifest.trained_tokens else ""
    return f"{thousands(manifest.max_tokens)} tokens{trained}"


def _languages(manifest: ModelManifest) -> str:
    count = len(manifest.languages)
    return f"{count} natural languages" if count > 3 else ", ".join(map(language_name, manifest.languages))


def _price(microcredits_per_token: int) -> str:
    if microcredits_per_token == 0:
        return "free"
    credit = "credit" if microcredits_per_token == 1 else "credits"
    return f"{format_credits(microcredits_per_token * 1_000_000)} {credit} for a million tokens"


def _benchmarks(manifest: ModelManifest) -> tuple[benchmark_views.Group, ...]:
    numbers = manifest.published_numbers
    return benchmark_views.groups((numbers.row, *numbers.references), numbers.benchmarks) if numbers else ()


def _columns(manifest: ModelManifest) -> list[str]:
    numbers = manifest.published_numbers
    return [manifest.title, *map(benchmark_views.model_name, numbers.references)] if numbers else []
