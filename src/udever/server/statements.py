"""The ledger's SQL, built once, so that SQLAlchemy finds each statement compiled.

Invariant: a statement says by its name what it does to the books; amounts and times come as parameters.
Does not know: in which order and under which conditions they are run (ledger.py).
"""

from itertools import product
from typing import Any

from sqlalchemy import Executable, Insert, Table, bindparam, delete, func, insert, select, update

from udever.server.schema import accounts, entries, keys, leases

STATE = (
    select(keys, accounts.c.balance_microcredits)
    .join_from(keys, accounts, keys.c.account == accounts.c.name)
    .where(keys.c.id == bindparam("of_key"))
    .with_for_update(key_share=True)  # serialises the requests of one account; new entries still may refer to it
)
"""A key and its account's balance, for deciding on a request."""
RUNNING = select(func.count()).where(leases.c.key_id == bindparam("of_key"), leases.c.expires_us > bindparam("now_us"))

BALANCE = select(accounts.c.balance_microcredits).where(accounts.c.name == bindparam("of_account"))
LOCKED_BALANCE = BALANCE.with_for_update(key_share=True)
CHANGE_BALANCE = (
    update(accounts)
    .where(accounts.c.name == bindparam("of_account"))
    .values(balance_microcredits=accounts.c.balance_microcredits + bindparam("change"))
)
MOVE_WINDOWS = (
    update(keys)
    .where(keys.c.id == bindparam("of_key"))
    .values(requests_full_us=bindparam("requests_us"), tokens_full_us=bindparam("tokens_us"))
)


def _insert(table: Table, prefix: str) -> Insert:
    """With parameters of its own names, so that it can share a statement with others."""
    return insert(table).values({c.name: bindparam(f"{prefix}_{c.name}") for c in table.columns if c.name != "id"})


ENTER = _insert(entries, "entry")
LEASE = _insert(leases, "lease")

CLOSE = delete(leases).where(leases.c.request_id == bindparam("closing")).returning(*leases.c)
"""End a lease; answers what it was, if it still was."""
CLOSE_THESE = delete(leases).where(leases.c.request_id.in_(bindparam("closing", expanding=True))).returning(*leases.c)
CLOSE_EXPIRED = CLOSE.where(leases.c.expires_us <= bindparam("now_us"))
EXPIRED = select(leases.c.request_id).where(leases.c.expires_us <= bindparam("now_us")).order_by(leases.c.expires_us)
BOOKED = select(entries.c.microcredits).where(
    entries.c.request_id == bindparam("named"), entries.c.kind == bindparam("of_kind")
)
"""What was booked under a name."""
RENEW = update(leases).where(leases.c.holder == bindparam("me")).values(expires_us=bindparam("until_us"))
RENEW_THESE = RENEW.where(leases.c.request_id.in_(bindparam("these", expanding=True)))


def _at_once(pay: bool, move: bool) -> Executable:
    parts = [*([CHANGE_BALANCE] if pay else []), *([MOVE_WINDOWS] if move else []), ENTER]
    return LEASE.add_cte(*(part.cte(f"part_{number}") for number, part in enumerate(parts)))


BOOK_AT_ONCE = {choice: _at_once(*choice) for choice in product((False, True), repeat=2)}
"""(pay?, move the windows?) → everything that admits a request as one statement, for a database behind a network."""

_BLANK: dict[str, Any] = {
    **dict.fromkeys(("request_id", "key_id", "model", "role")),
    **dict.fromkeys(("microcredits", "tokens", "texts"), 0),
    "note": "",
}


def entry(kind: str, *, created_us: int, **fields: Any) -> dict[str, Any]:
    """The parameters of ENTER; what is not given is blank."""
    return {f"entry_{name}": v for name, v in {**_BLANK, "kind": kind, "created_us": created_us, **fields}.items()}


def lease(**fields: Any) -> dict[str, Any]:
    """The parameters of LEASE."""
    return {f"lease_{name}": value for name, value in fields.items()}
