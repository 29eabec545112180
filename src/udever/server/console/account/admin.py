"""`/admin`: accounts and top-ups, votes, and what the models are doing now.

Invariant: for everybody but an admin these addresses do not exist; a secret that was rotated away changes nothing.
Does not know: how money is booked. The queue is that of the replica which answers; the accounts are everybody's.
"""

import logging
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from udever.errors import OptionError
from udever.server.account_errors import (
    DuplicateRequestError,
    HandOnError,
    InsufficientCreditError,
    UnknownAccountError,
)
from udever.server.accounts import Accounts
from udever.server.books import Holder
from udever.server.console import sessions
from udever.server.console.account.entrance import see
from udever.server.console.rendering import render
from udever.server.console.sessions import Form, Viewer
from udever.server.credits import format_credits, to_microcredits
from udever.server.errors import fault_of
from udever.server.hosting import Hosted
from udever.server.pipeline import record_of, service_of
from udever.server.telemetry import Telemetry
from udever.server.votes import Wanted

PAGE = 50
"""Accounts a page."""
RECENT_SECONDS = 60.0
SPARKS = 48
"""Batches in the small picture of how full they were."""
LONGEST_NOTE = 200
ONCE = re.compile(r"topup_[0-9a-f]{24}")
REFUSALS = (OptionError, HandOnError, UnknownAccountError, InsufficientCreditError)
router = APIRouter(include_in_schema=False)
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Pulse:
    """What one model does now."""

    model: str
    state: str
    queued_tokens: int
    drain_seconds: float
    restarts: int
    batches: int
    """In the last minute, as are the rest."""
    texts: int
    tokens: int
    tokens_per_second: float
    """While the model ran."""
    fill: float | None
    """Mean share of a batch's budget that was used; None: no batch."""
    fills: Sequence[float]
    """Of the newest batches, oldest first."""


@dataclass(frozen=True, kw_only=True)
class Desk:
    """What the database says."""

    holders: Sequence[Holder]
    wanted: Sequence[Wanted]
    after: str
    """Where the next page begins; empty: there is none."""


@router.get("/admin")
async def admin_page(request: Request) -> Response:
    """Everything at once."""
    _admin(request)
    return await _show(request)


@router.get("/admin/queue")
async def queue_fragment(request: Request) -> Response:
    """The part that the page asks for again and again."""
    _admin(request)
    return render(request, "queue.html", **_live(request))


@router.post("/admin/topups")
async def topup(request: Request) -> Response:
    """Credit for an account; a negative amount corrects an earlier one."""
    who = _admin(request)
    form = await sessions.read_form(request)
    access, account, note = service_of(request).access, form.get("account"), form.get("note")[:LONGEST_NOTE]
    try:
        who.key.require_current()
        amount = to_microcredits(form.get("credits"))
        if not amount:
            raise OptionError("that would change nothing", hint="give more or less than 0 credits")
        note, once = note or f"by {who.key_id}", _once(form)
        await access.call(partial(access.accounts.ledger.topup, account, microcredits=amount, note=note, once=once))
    except DuplicateRequestError:
        log.info("a top-up was sent twice and booked once")
    except REFUSALS as error:
        fault = fault_of(error)
        record_of(request).code = fault.code or ""
        return await _show(request, status=fault.status, error=str(error), form=form)
    return see("/admin?" + urlencode({"done": account, "credits": format_credits(amount)}) + "#accounts")


def _once(form: Form) -> str:
    """The form's own name, so that a second click books nothing. Raises `OptionError`: it has none."""
    name = form.get("once")
    if not ONCE.fullmatch(name):
        raise OptionError("this form is not complete", hint="reload the page")
    return name


def _admin(request: Request) -> Viewer:
    """Raises `HTTPException` (404) unless an admin is signed in."""
    who = sessions.viewer(request)
    if who is None or not who.admin:
        raise HTTPException(404)
    return who


async def _show(request: Request, *, status: int = 200, error: str = "", form: Form | None = None) -> Response:
    access, asked = service_of(request).access, request.query_params
    search, after = asked.get("q", "").replace("\0", "")[:100], asked.get("after", "").replace("\0", "")[:200]
    desk = await access.call(partial(_gather, access.accounts, search=search, after=after))
    fields = {name: form.get(name) if form else "" for name in ("account", "credits", "note")}
    fields["account"] = fields["account"] or asked.get("topup", "")[:100]
    return render(
        request, "admin.html", status=status, error=error, fields=fields, desk=desk, search=search,
        next_page=f"/admin?q={quote(search)}&after={quote(desk.after)}#accounts" if desk.after else "",
        once=f"topup_{secrets.token_hex(12)}",
        done=asked.get("done", "")[:100], credits=asked.get("credits", "")[:40], **_live(request),
    )  # fmt: skip


def _gather(accounts: Accounts, *, search: str, after: str) -> Desk:
    found = accounts.ledger.holders(search=search, after=after, limit=PAGE + 1)
    shown = found[:PAGE]
    return Desk(holders=shown, wanted=accounts.votes.wanted(), after=shown[-1].account if len(found) > PAGE else "")


def _live(request: Request) -> dict[str, Any]:
    service = service_of(request)
    pulses = [_pulse(hosted, service.telemetry) for hosted in service.hosting.models.values()]
    return {"pulses": pulses, "in_flight": service.telemetry.serving - 1}  # but the one that asks


def _pulse(hosted: Hosted, telemetry: Telemetry) -> Pulse:
    recent = telemetry.recent(hosted.name, seconds=RECENT_SECONDS)
    fills = [stats.tokens / stats.budget_tokens for stats in recent]
    tokens, seconds = sum(stats.tokens for stats in recent), sum(stats.seconds for stats in recent)
    batcher = hosted.loaded.batcher if hosted.loaded else None
    return Pulse(
        model=hosted.name,
        state=hosted.state,
        queued_tokens=batcher.queued_tokens if batcher else 0,
        drain_seconds=batcher.drain_seconds if batcher else 0.0,
        restarts=batcher.restarts if batcher else 0,
        batches=len(recent),
        texts=sum(stats.sequences for stats in recent),
        tokens=tokens,
        tokens_per_second=tokens / seconds if seconds else 0.0,
        fill=sum(fills) / len(fills) if fills else None,
        fills=fills[-SPARKS:],
    )
