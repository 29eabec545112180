"""`/account`: what an account has, what it used, and its keys.

Invariant: everything here is the viewer's own account; the name of no account comes from a request.
Does not know: who may do what with a key (delegation.py), or how a chart is drawn (models/charts.py).
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from udever.server.accounts import Accounts
from udever.server.auth import Key
from udever.server.books import Entry, UsageRow
from udever.server.console import sessions
from udever.server.console.account.entrance import to_sign_in
from udever.server.console.account.forms import LIFETIMES, UNITS, model_choices, shown
from udever.server.console.account.usage_chart import ModelTotal, totals, usage_chart
from udever.server.console.rendering import render
from udever.server.console.sessions import Form, Viewer
from udever.server.delegation import may_manage
from udever.server.pipeline import service_of
from udever.server.schema import EntryKind

PERIODS = (7, 30, 90)
"""Days."""
PERIOD = 30
ENTRIES = 20
ENDED_KEYS = 20
MONEY: tuple[EntryKind, ...] = ("topup", "grant", "debit", "refund")
"""What an account's holder wants to see: a settlement moves nothing."""
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What makes a spreadsheet compute a text instead of showing it."""
CSV_COLUMNS = ("day", "model", "key", "key_name", "requests", "texts", "tokens", "microcredits")
router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, kw_only=True)
class Overview:
    """What the page shows."""

    balance_microcredits: int
    keys: Sequence[Key]
    usage: Sequence[UsageRow]
    """By day, model and key."""
    entries: Sequence[Entry]

    @property
    def totals(self) -> list[ModelTotal]:
        """Of the period, by model."""
        return totals(self.usage)


@router.get("/account")
async def account_page(request: Request) -> Response:
    """Balance, usage, keys, ledger."""
    who = sessions.viewer(request)
    return to_sign_in(request) if who is None else await show(request, who)


@router.get("/account/usage.csv")
async def usage_csv(request: Request, since: date | None = None, until: date | None = None) -> Response:
    """The same numbers for a spreadsheet; days are UTC and inclusive."""
    who = sessions.viewer(request)
    if who is None:
        return to_sign_in(request)
    access = service_of(request).access
    rows = await access.call(partial(access.accounts.ledger.usage, account=who.account, since=since, until=until))
    keys = await access.call(partial(access.accounts.keys.list, account=who.account))
    names = {key.id: key.name for key in keys}
    table = ((row.day, row.model, row.key, names.get(row.key or "", ""), *_sums(row)) for row in rows)
    headers = {
        "content-disposition": 'attachment; filename="udever-usage.csv"',
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
    }
    return Response(as_csv(CSV_COLUMNS, table), headers=headers, media_type="text/csv; charset=utf-8")


async def show(
    request: Request,
    who: Viewer,
    *,
    status: int = 200,
    error: str = "",
    form: Form | None = None,
    secret: str = "",
    made: Key | None = None,
) -> Response:
    """The page; after a form with what came of it.

    Args:
        form: what was sent and refused.
        secret: of the key that was just made or rotated.
    """
    service, today = service_of(request), datetime.now(UTC).date()
    days = _period(request.query_params.get("days", ""))
    overview = await service.access.call(
        partial(_gather, service.access.accounts, account=who.account, since=today - timedelta(days=days - 1))
    )
    now = datetime.now(UTC)
    working = [key for key in overview.keys if key.status(now) == "active"]
    ended = [key for key in reversed(overview.keys) if key.status(now) != "active"]
    return render(
        request, "account.html", status=status, error=error, secret=secret, made=made,
        overview=overview, working=working, ended=ended[:ENDED_KEYS], ended_count=len(ended), now=now,
        names={key.id: key.name or key.prefix for key in overview.keys}, manageable=_manageable(who, working),
        may_create=not who.key.limits and who.key.current, current=who.key.current,
        fields=shown(None, form), lifetimes=LIFETIMES, units=UNITS,
        models=model_choices(service.hosting.models, manager=who.key),
        days=days, periods=PERIODS, since=today - timedelta(days=days - 1), until=today,
        chart=usage_chart(overview.usage, until=today, days=days),
    )  # fmt: skip


def as_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table for a spreadsheet, in which no text is a formula."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(columns)
    table.writerows([harmless(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return text.getvalue()


def harmless(text: str) -> str:
    """The text, with an apostrophe before it if a spreadsheet would compute it."""
    return f"'{text}" if text.lstrip(" ").startswith(FORMULA) else text


def _gather(accounts: Accounts, *, account: str, since: date) -> Overview:
    ledger = accounts.ledger
    return Overview(
        balance_microcredits=ledger.balance(account),
        keys=accounts.keys.list(account=account),
        usage=ledger.usage(account=account, since=since),
        entries=ledger.entries(account=account, limit=ENTRIES, kinds=MONEY),
    )


def _manageable(who: Viewer, keys: Iterable[Key]) -> set[str]:
    return {key.id for key in keys if may_manage(who.key, key)}


def _sums(row: UsageRow) -> tuple[Any, ...]:
    return row.requests, row.texts, row.tokens, row.microcredits


def _period(spoken: str) -> int:
    return next((days for days in PERIODS if str(days) == spoken), PERIOD)
