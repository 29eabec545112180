"""`/playground`: queries on one side, documents on the other, and how near they are to each other.

    GET  /playground            the page, filled with a preset
    POST /playground            the same page with a run's results; or with a row more or less
    POST /playground/run        a run as JSON
    POST /playground/count      tokens and price as JSON, free

Invariant: what was typed comes back with the page, also when the run failed, and is kept nowhere else.
Does not know: how a run is made (play.py) or what of it is drawn where (board.py).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from udever.errors import UdeverError
from udever.server.auth import Key
from udever.server.console import sessions
from udever.server.console.models.status import Listing, Status, listings
from udever.server.console.playground import play
from udever.server.console.playground.board import Board, Text, draw
from udever.server.console.playground.drafts import FIELDS, Draft, read_number, read_row
from udever.server.console.playground.presets import PRESETS
from udever.server.console.playground.scatter import HEIGHT, WIDTH
from udever.server.console.playground.snippets import Snippet, snippets
from udever.server.console.rendering import render
from udever.server.errors import ClientGoneError, Fault, RequestError, fault_of
from udever.server.hosting import Hosted
from udever.server.inputs import ROLES
from udever.server.openai_api import json_response
from udever.server.pipeline import read_body, record_of, service_of, trained_sizes
from udever.server.schemas import Role

REASONS: Mapping[Status, str] = MappingProxyType(
    {"live": "", "loading": "is being loaded", "soon": "coming soon", "failed": "could not be loaded"}
)
"""Why a model cannot be chosen; empty: it can."""
LIMITS: dict[Role, int] = {"query": play.MAX_QUERIES, "document": play.MAX_DOCUMENTS}
LARGEST_FORM_BYTES = 512 * 2**10
"""As many characters as a run takes, three bytes each, percent-encoded, and some more."""
CUTTING = ", or set truncate to end or start"
"""Advice that is for programs."""
ITEM = re.compile(r"(queries|documents)\[(\d+)\]")
router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A model of this server."""

    name: str
    reason: str
    """Why it cannot be chosen; empty: it can."""
    sizes: tuple[int, ...]
    """Empty while it is not loaded."""
    microcredits_per_token: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A run that was answered."""

    played: play.Played
    board: Board
    snippets: tuple[Snippet, ...]
    map_size: tuple[int, int] = (WIDTH, HEIGHT)


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """A run that was refused."""

    fault: Fault
    role: Role | None = None
    """Whose row is at fault, if one is."""
    row: int = 0


@router.get("/playground")
async def page(request: Request, model: str = "", preset: str = "") -> Response:
    """The page, filled with a preset."""
    choices = _choices(request)
    chosen = PRESETS.get(preset) or next(iter(PRESETS.values()))
    draft = Draft.of_preset(chosen, model=_first_choice(request, choices, wanted=model))
    hosted = service_of(request).hosting.models[draft.model]
    counts = {role: await play.count_texts(hosted, draft.rows(role), role=role) for role in ROLES if hosted.loaded}
    return _page(request, draft, choices, counts=counts)


@router.post("/playground")
async def submit(request: Request) -> Response:
    """The page with the form's run, or with a row added or removed if a button asked for that."""
    draft, edited = await _read(request)
    choices = _choices(request)
    if edited:
        return _page(request, draft, choices)
    try:
        outcome = await _run(request, draft, choices)
    except ClientGoneError:
        raise
    except (UdeverError, ValidationError) as error:
        return _page(request, draft, choices, trouble=_trouble(request, error, draft))
    return _page(request, draft, choices, outcome=outcome, counts=_counts(outcome.played, draft))


@router.post("/playground/run")
async def run(request: Request) -> Response:
    """A run as JSON."""
    sessions.check_post(request)
    played = await play.play(request, await read_body(request, play.PlayRequest))
    return json_response(played.describe(), headers={"cache-control": "no-store"})


@router.post("/playground/count")
async def count(request: Request) -> Response:
    """Tokens of each text and the price of a run."""
    sessions.check_post(request)
    counted = await play.count(request, await read_body(request, play.CountRequest))
    return json_response(counted, headers={"cache-control": "no-store"})


async def _read(request: Request) -> tuple[Draft, bool]:
    """The form, and whether a row was added or removed."""
    form = await sessions.read_form(request, largest_bytes=LARGEST_FORM_BYTES)
    draft = Draft(
        model=form.get("model"),
        queries=tuple(map(read_row, form.all("query")[: play.MAX_QUERIES])) or ("",),
        documents=tuple(map(read_row, form.all("document")[: play.MAX_DOCUMENTS])) or ("",),
        size=read_number(form.get("size")) if form.get("sized") == form.get("model") else None,
        preset=form.get("preset"),
    )
    for role in ROLES:
        if form.get("add") == role:
            return (draft.with_row(role) if len(draft.rows(role)) < LIMITS[role] else draft), True
        side, _, index = form.get("remove").partition("-")
        if side == role and (row := read_number(index)) is not None:
            return draft.without_row(role, row), True
    return draft, False


async def _run(request: Request, draft: Draft, choices: Sequence[Choice]) -> Outcome:
    for role in ROLES:
        if not draft.texts(role):
            raise RequestError(f"Write a {role} first.", code="empty_array", param=FIELDS[role])
    queries, documents = draft.texts("query"), draft.texts("document")
    sizes = next((choice.sizes for choice in choices if choice.name == draft.model), ())
    size = sizes[draft.size] if draft.size is not None and draft.size < len(sizes) else None
    ask = play.PlayRequest(model=draft.model, queries=queries, documents=documents, dimensions=size)
    played = await play.play(request, ask)
    base_url, asks_key = str(request.base_url).rstrip("/"), not service_of(request).access.is_open
    return Outcome(
        played=played,
        board=draw(played, queries=_labelled(draft, "query"), documents=_labelled(draft, "document")),
        snippets=snippets(queries, documents, base_url=base_url, model=played.model, key=asks_key),
    )


def _labelled(draft: Draft, role: Role) -> list[Text]:
    pairs = zip(draft.labels(role), draft.texts(role), strict=True)
    return [Text(label=label, text=text) for label, text in pairs]


def _page(
    request: Request,
    draft: Draft,
    choices: Sequence[Choice],
    *,
    counts: dict[Role, list[int]] | None = None,
    outcome: Outcome | None = None,
    trouble: Trouble | None = None,
) -> Response:
    signed_in, welcome = sessions.viewer(request) is not None, play.is_open(request)
    response = render(
        request,
        "playground.html",
        status=trouble.fault.status if trouble else 200,
        draft=draft,
        choices=choices,
        choice=next((choice for choice in choices if choice.name == draft.model), None),
        counts=counts or {},
        outcome=outcome,
        trouble=trouble,
        may_play=signed_in or welcome,
        free=not signed_in and welcome,
        presets=PRESETS,
        markers=play.MARKERS,
        limits=LIMITS,
        max_characters=play.MAX_CHARACTERS,
    )
    if request.method == "POST":
        response.headers["cache-control"] = "no-store"  # it holds what somebody typed
    response.headers.update(trouble.fault.headers if trouble else {})
    return response


def _counts(played: play.Played, draft: Draft) -> dict[Role, list[int]]:
    """Tokens of every row; an empty one has none."""
    readings: dict[Role, Sequence[play.Reading]] = {"query": played.queries, "document": played.documents}
    of_rows = {role: dict(zip(draft.written(role), readings[role], strict=True)) for role in ROLES}
    return {role: [rows[i].tokens if i in rows else 0 for i in range(len(draft.rows(role)))]
            for role, rows in of_rows.items()}  # fmt: skip


def _trouble(request: Request, error: Exception, draft: Draft) -> Trouble:
    """The refusal, and the row that it is about."""
    fault = fault_of(error)
    record_of(request).code = fault.code or ""
    item = ITEM.fullmatch(fault.param or "")
    if item is None:
        return Trouble(fault=fault)
    role = next(role for role, field in FIELDS.items() if field == item[1])
    index = int(item[2])
    message = fault.message.replace(item[0], draft.labels(role)[index]).replace(CUTTING, "")
    return Trouble(fault=replace(fault, message=message), role=role, row=draft.written(role)[index])


def _choices(request: Request) -> tuple[Choice, ...]:
    """Every model of the catalogue; the served ones come first."""
    service, viewer = service_of(request), sessions.viewer(request)
    key, served = viewer.key if viewer else None, service.hosting.models
    return tuple(_choice(listing, served.get(listing.id), key) for listing in listings(service).values())


def _choice(listing: Listing, hosted: Hosted | None, key: Key | None) -> Choice:
    allowed = key is None or hosted is None or key.allows(model=listing.id)
    return Choice(
        name=listing.id,
        reason=REASONS[listing.status] if allowed else "not for your key",
        sizes=tuple(trained_sizes(hosted.loaded.embedder)) if hosted and hosted.loaded else (),
        microcredits_per_token=listing.microcredits_per_token or 0,
    )


def _first_choice(request: Request, choices: Sequence[Choice], *, wanted: str) -> str:
    """A model that can be chosen, in the operator's order; if there is none, one that is served."""
    served = list(service_of(request).hosting.models)
    fine = {choice.name for choice in choices if not choice.reason}
    usable = [name for name in served if name in fine] or served
    return wanted if wanted in usable else usable[0]
