"""The ledger: what each account has, what each request cost, and whether it may run at all.

`admit` checks the key's limits and debits the request before the work, in one transaction; `settle` or `refund` closes
it.
Invariant: entries are only ever added; an account's balance is the sum of its entries and never negative; every debit
has one lease until it has one settlement or one refund. A lease outlives its process by at most `lease_seconds`: what a
killed process left open, `recover` refunds.
Does not know: secrets (auth.py), prices (the caller says the microcredits), or what a request computes.
"""

import re
import secrets
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, exc

from udever.errors import OptionError
from udever.server import statements as sql
from udever.server.account_errors import (
    DuplicateRequestError,
    InsufficientCreditError,
    InvalidKeyError,
    RateLimitedError,
    UnknownAccountError,
)
from udever.server.auth import Key, check_usable
from udever.server.books import Books
from udever.server.schema import EntryKind
from udever.server.store import Store
from udever.server.windows import Taking, Window, Windows, take

ONCE = re.compile(r"[^\s\x00-\x1f\x7f]{1,100}")
"""A client's name for a top-up: without spaces, so that no other name, and no request's id, is stored alike."""
LARGEST_BALANCE = 2**53
"""In microcredits: nine billion credits, the largest number that every JSON reader keeps exact."""

Takings = tuple[Taking | None, Taking | None]
"""What the windows of requests and of tokens gave; None where the key has no such limit."""


@dataclass(frozen=True, kw_only=True)
class Admission:
    """A request that may run, and is paid for."""

    request_id: str
    balance_microcredits: int
    """The account's balance after the debit."""
    windows: Windows
    """The key's windows after this request."""

    @property
    def requests(self) -> Window | None:
        """The key's requests per minute; None: it has no such limit."""
        return self.windows.requests

    @property
    def tokens(self) -> Window | None:
        """The key's tokens per minute; None: it has no such limit."""
        return self.windows.tokens


class Ledger(Books):
    """The ledger of one database, and the requests that this process has open. Thread-safe.

    Args:
        lease_seconds: how long a request stays open after the last `renew`; call `renew` and `recover` every quarter.
    """

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time, lease_seconds: float = 60.0) -> None:
        super().__init__(store)
        self._clock = clock
        self._lease_us = int(lease_seconds * 1e6)
        self._holder = secrets.token_hex(8)

    def admit(
        self, key: Key, *, request_id: str, model: str, role: str, tokens: int, texts: int, microcredits: int
    ) -> Admission:
        """Let a request run: take it from the key's windows and its cost from the account, or leave all as it was.

        Args:
            request_id: new for each request; never a client's.
            tokens: markers included, as counted after truncation.
            microcredits: the price of all of it; 0 is free, and booked all the same.

        Raises:
            RateLimitedError, InsufficientCreditError: a limit, or the balance, does not allow it now.
            InvalidKeyError: the key was revoked or has expired since it was authenticated.
            DuplicateRequestError: the request id is taken.
        """
        now_us = self._now_us()
        request = {"request_id": request_id, "key_id": key.id, "model": model, "role": role}
        with self._store.write() as connection:
            state = _state(connection, key, now_us=now_us)
            windows = _take(connection, state, tokens=tokens, now_us=now_us)
            if state.balance_microcredits < microcredits:
                raise InsufficientCreditError(
                    balance_microcredits=state.balance_microcredits, needed_microcredits=microcredits
                )
            work = {**request, "account": state.account, "tokens": tokens, "texts": texts}
            self._book(connection, {**work, "microcredits": microcredits}, windows=windows)
        left = state.balance_microcredits - microcredits
        return Admission(request_id=request_id, balance_microcredits=left, windows=_as_windows(windows))

    def settle(self, *request_ids: str) -> frozenset[str]:
        """The requests were answered: their debits stand. Those of them that had not been closed before."""
        with self._store.write() as connection:
            leases = connection.execute(sql.CLOSE_THESE, {"closing": request_ids}).all()
            if leases:
                now_us = self._now_us()
                closed = (
                    {"account": lease.account, "request_id": lease.request_id, **_no_work(lease)} for lease in leases
                )
                connection.execute(sql.ENTER, [sql.entry("settlement", created_us=now_us, **one) for one in closed])
        return frozenset(lease.request_id for lease in leases)

    def refund(self, request_id: str, *, reason: str) -> bool:
        """The request was not answered: give its cost back. False if it was closed before.

        What it took from the key's windows stays taken: failing is not free for the server.
        """
        with self._store.write() as connection:
            lease = connection.execute(sql.CLOSE, {"closing": request_id}).one_or_none()
            if lease is not None:
                self._give_back(connection, lease, note=reason)
        return lease is not None

    def renew(self, request_ids: Collection[str] | None = None) -> int:
        """Keep requests open that this object admitted: those named, or all. Returns how many were still open.

        Name those that are really running: one whose end was missed, because its task was cancelled while `admit` ran
        or the database was away when it was settled, then expires and is refunded.
        """
        if request_ids is not None and not request_ids:
            return 0
        statement, these = (sql.RENEW, {}) if request_ids is None else (sql.RENEW_THESE, {"these": list(request_ids)})
        with self._store.write() as connection:
            until_us = self._now_us() + self._lease_us
            return connection.execute(statement, {"me": self._holder, "until_us": until_us, **these}).rowcount

    def recover(self) -> int:
        """Refund the requests whose lease has expired: their process died or was cut off. Returns how many.

        Any number of replicas may do so at once, and may be killed doing it: each refund is a transaction of its own.
        """
        with self._store.read() as connection:
            expired = connection.scalars(sql.EXPIRED, {"now_us": self._now_us()}).all()
        return sum(self._recover_one(request_id) for request_id in expired)

    def topup(self, account: str, *, microcredits: int, note: str = "", once: str | None = None) -> int:
        """Add credit; a negative amount corrects an earlier one. Returns the new balance.

        Args:
            once: a name for this top-up, under which none can be booked again.

        Raises:
            UnknownAccountError: no such account.
            InsufficientCreditError: a correction beyond the balance.
            OptionError: the balance would be larger than LARGEST_BALANCE.
            DuplicateRequestError: one of this name was booked before.
        """
        with self._store.write() as connection:
            return self.add(connection, "topup", account=account, microcredits=microcredits, note=note, once=once)

    def topup_once(self, account: str, *, microcredits: int, note: str = "", once: str) -> int:
        """`topup` under a name of the client's, such as an invoice's, which is the account's alone.

        One that was booked before is not booked again. Returns the balance after either.

        Raises:
            OptionError: the name cannot be, or another amount was booked under it.
        """
        if not ONCE.fullmatch(once):
            raise OptionError("the name of a top-up must be 1 to 100 characters without spaces")
        try:
            return self.topup(account, microcredits=microcredits, note=note, once=f"once {once} {account}")
        except DuplicateRequestError as error:
            if error.microcredits != microcredits:
                raise OptionError(
                    f"under the name {once!r} another amount was booked: {error.microcredits or 0:,} microcredits",
                    hint="a new top-up needs a new name",
                ) from error
            return self.balance(account)

    def add(
        self,
        connection: Connection,
        kind: EntryKind,
        *,
        account: str,
        microcredits: int,
        note: str,
        once: str | None = None,
    ) -> int:
        """Book money that belongs to no request, within a transaction of the caller; the rest as `topup`."""
        balance: int | None = connection.scalar(sql.LOCKED_BALANCE, {"of_account": account})
        if balance is None:
            raise UnknownAccountError(account)
        booked: int | None = connection.scalar(sql.BOOKED, {"named": once, "of_kind": kind}) if once else None
        if booked is not None:  # said before the balance is: after a correction it may not allow a second one
            raise DuplicateRequestError(once or "", microcredits=booked)
        if balance + microcredits < 0:
            raise InsufficientCreditError(balance_microcredits=balance, needed_microcredits=-microcredits)
        if balance + microcredits > LARGEST_BALANCE:
            raise OptionError(f"an account holds at most {LARGEST_BALANCE:,} microcredits")
        try:
            self._enter(connection, kind, account=account, microcredits=microcredits, note=note, request_id=once)
        except exc.IntegrityError as error:  # a request has one entry of each kind
            raise DuplicateRequestError(once or "") from error
        connection.execute(sql.CHANGE_BALANCE, {"of_account": account, "change": microcredits})
        return balance + microcredits

    def _recover_one(self, request_id: str) -> bool:
        with self._store.write() as connection:
            expired = {"closing": request_id, "now_us": self._now_us()}
            lease = connection.execute(sql.CLOSE_EXPIRED, expired).one_or_none()
            if lease is not None:  # else it was renewed or closed in between
                self._give_back(connection, lease, note="its process ended")
        return lease is not None

    def _book(self, connection: Connection, request: dict[str, Any], *, windows: Takings) -> None:
        """Take the money, move the windows, enter the debit and its lease."""
        now_us, cost = self._now_us(), request["microcredits"]
        requests_us, tokens_us = (taking.full_us if taking else 0 for taking in windows)
        pay = {"of_account": request["account"], "change": -cost} if cost else {}
        move = {"of_key": request["key_id"], "requests_us": requests_us, "tokens_us": tokens_us} if any(windows) else {}
        debit = sql.entry("debit", created_us=now_us, **request | {"microcredits": -cost})
        lease = sql.lease(**request, holder=self._holder, expires_us=now_us + self._lease_us)
        steps = ((sql.CHANGE_BALANCE, pay), (sql.MOVE_WINDOWS, move), (sql.ENTER, debit), (sql.LEASE, lease))
        try:
            if self._store.is_sqlite:
                for statement, values in steps:
                    if values:
                        connection.execute(statement, values)
            else:  # one round trip instead of four
                connection.execute(sql.BOOK_AT_ONCE[bool(pay), bool(move)], pay | move | debit | lease)
        except exc.IntegrityError as error:
            if "request_id" not in str(error.orig):  # which constraint it was, in the words of either database
                raise
            raise DuplicateRequestError(request["request_id"]) from error

    def _give_back(self, connection: Connection, lease: Row[Any], *, note: str) -> None:
        work = _no_work(lease) | {"tokens": -lease.tokens, "texts": -lease.texts}
        request = {"account": lease.account, "request_id": lease.request_id, "microcredits": lease.microcredits}
        self._enter(connection, "refund", **request, **work, note=note)
        if lease.microcredits:
            connection.execute(sql.CHANGE_BALANCE, {"of_account": lease.account, "change": lease.microcredits})

    def _enter(self, connection: Connection, kind: EntryKind, **fields: Any) -> None:
        connection.execute(sql.ENTER, sql.entry(kind, created_us=self._now_us(), **fields))

    def _now_us(self) -> int:
        return int(self._clock() * 1e6)


def _no_work(lease: Row[Any]) -> dict[str, Any]:
    """What a settlement repeats of its debit: all but the amounts, so that sums count them once."""
    return {"key_id": lease.key_id, "model": lease.model, "role": lease.role}


def _state(connection: Connection, key: Key, *, now_us: int) -> Row[Any]:
    """The key's row with its account's balance, both locked for this transaction."""
    state = connection.execute(sql.STATE, {"of_key": key.id}).one_or_none()
    if state is None:
        raise InvalidKeyError("unknown")
    check_usable(state, now_us=now_us)
    return state


def _ask(state: Row[Any], *, requests: int, tokens: int, now_us: int) -> Takings:
    def ask(limit: int | None, full_us: int, cost: int) -> Taking | None:
        return None if limit is None else take(full_us, cost=cost, limit=limit, now_us=now_us)

    return (
        ask(state.requests_per_minute, state.requests_full_us, requests),
        ask(state.tokens_per_minute, state.tokens_full_us, tokens),
    )


def _take(connection: Connection, state: Row[Any], *, tokens: int, now_us: int) -> Takings:
    """What the windows give for one request. Raises `RateLimitedError` with the windows as they stand."""
    asked = _ask(state, requests=1, tokens=tokens, now_us=now_us)
    kinds: tuple[Literal["requests", "tokens"], ...] = ("requests", "tokens")
    for kind, taking in zip(kinds, asked, strict=True):
        if taking is not None and not taking.fits:
            raise RateLimitedError(
                kind,
                window=taking.window,
                retry_after_seconds=taking.wait_seconds,
                retryable=kind == "requests" or tokens <= taking.window.limit,
                standing=_standing(state, now_us=now_us),
            )
    if state.max_concurrent is not None:
        running = connection.scalar(sql.RUNNING, {"of_key": state.id, "now_us": now_us}) or 0
        if running >= state.max_concurrent:  # how long the running ones will take is not known here: say a second
            window = Window(limit=state.max_concurrent, remaining=0, reset_seconds=1.0)
            standing = _standing(state, now_us=now_us)
            raise RateLimitedError("concurrent", window=window, retry_after_seconds=1.0, standing=standing)
    return asked


def _standing(state: Row[Any], *, now_us: int) -> Windows:
    return _as_windows(_ask(state, requests=0, tokens=0, now_us=now_us))


def _as_windows(takings: Takings) -> Windows:
    requests, tokens = takings
    return Windows(requests=requests.window if requests else None, tokens=tokens.window if tokens else None)
