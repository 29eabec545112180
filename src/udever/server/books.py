"""Reading the ledger: balances, usage, statements, and whether the books balance.

Invariant: nothing here writes; usage is the sum of debits and refunds, so it agrees with the balances exactly.
Does not know: limits, leases in force, or how a report is printed.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, Select, and_, case, exists, func, not_, or_, select

from udever.errors import OptionError
from udever.server.account_errors import UnknownAccountError
from udever.server.schema import EntryKind, accounts, entries, keys, leases
from udever.server.store import Store
from udever.server.windows import DAY_US

Grouping = Literal["day", "account", "key", "model", "role"]
EPOCH = date(1970, 1, 1)

_GROUPS: dict[str, ColumnElement[Any]] = {
    "day": (entries.c.created_us - entries.c.created_us % DAY_US).label("day"),
    "account": entries.c.account.label("account"),
    "key": entries.c.key_id.label("key"),
    "model": entries.c.model.label("model"),
    "role": entries.c.role.label("role"),
}
_SUMS = (
    func.sum(case((entries.c.kind == "debit", 1), else_=-1)).label("requests"),
    func.sum(entries.c.texts).label("texts"),
    func.sum(entries.c.tokens).label("tokens"),
    func.sum(-entries.c.microcredits).label("microcredits"),
)


@dataclass(frozen=True, kw_only=True)
class UsageRow:
    """What was used, net of refunds. A field that was not grouped by is None."""

    day: date | None = None
    """In UTC."""
    account: str | None = None
    key: str | None = None
    """The key's id."""
    model: str | None = None
    role: str | None = None
    requests: int
    texts: int
    tokens: int
    microcredits: int

    def describe(self) -> dict[str, Any]:
        """For JSON: without the fields that were not grouped by."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(v) if isinstance(v, date) else v for name, v in values.items() if v is not None}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the ledger."""

    id: int
    account: str
    kind: EntryKind
    microcredits: int
    request_id: str | None
    key_id: str | None
    model: str | None
    role: str | None
    tokens: int
    texts: int
    note: str
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Holder:
    """An account in the operator's list."""

    account: str
    balance_microcredits: int
    keys: int
    """Those that are not revoked."""
    created_at: datetime
    last_at: datetime | None
    """Of its newest entry."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Whether the books balance."""

    unbalanced: tuple[str, ...]
    """Accounts whose balance is not the sum of their entries."""
    unanswered: tuple[str, ...]
    """Request ids whose debit has no lease and not exactly one of settlement and refund."""
    open_requests: int
    """Debits with a lease: running now, or waiting to be recovered."""

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.unbalanced and not self.unanswered


class Books:
    """The ledger of one database, for reading. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def balance(self, account: str) -> int:
        """Microcredits left. Raises `UnknownAccountError`."""
        with self._store.read() as connection:
            balance: int | None = connection.scalar(
                select(accounts.c.balance_microcredits).where(accounts.c.name == account)
            )
        if balance is None:
            raise UnknownAccountError(account)
        return balance

    def balances(self) -> dict[str, int]:
        """Microcredits left, by account, in alphabetical order."""
        query = select(accounts.c.name, accounts.c.balance_microcredits).order_by(accounts.c.name)
        with self._store.read() as connection:
            return {row.name: row.balance_microcredits for row in connection.execute(query)}

    def usage(
        self,
        *,
        since: date | None = None,
        until: date | None = None,
        group_by: Sequence[Grouping] = ("day", "model", "key"),
        account: str | None = None,
    ) -> list[UsageRow]:
        """What was used from `since` to `until`, both inclusive, in UTC; in the order of the grouping.

        A refund counts on the day it was made. Rows in which everything was refunded are left out.

        Raises:
            OptionError: a grouping that does not exist.
        """
        unknown = [group for group in group_by if group not in get_args(Grouping)]
        if unknown:
            raise OptionError(f"no grouping {unknown[0]!r}", hint=f"there are {', '.join(get_args(Grouping))}")
        groups = [_GROUPS[group] for group in group_by]
        query = _within(select(*groups, *_SUMS).where(entries.c.kind.in_(["debit", "refund"])), since, until)
        if account is not None:
            query = query.where(entries.c.account == account)
        with self._store.read() as connection:
            rows = connection.execute(query.group_by(*groups).order_by(*groups)).mappings().all()
        # without any grouping, SQL answers one row of nulls where there is nothing to sum
        return [_usage_row(dict(row)) for row in rows if row["requests"] or row["tokens"] or row["microcredits"]]

    def holders(self, *, search: str = "", after: str = "", limit: int = 100) -> list[Holder]:
        """Accounts whose names contain `search` and come behind `after`, in alphabetical order."""
        number = select(func.count()).where(keys.c.account == accounts.c.name, keys.c.revoked_us.is_(None))
        last = select(entries.c.created_us).where(entries.c.account == accounts.c.name).order_by(entries.c.id.desc())
        query = (
            select(accounts, number.scalar_subquery().label("keys"), last.limit(1).scalar_subquery().label("last_us"))
            .where(accounts.c.name > after, accounts.c.name.icontains(search, autoescape=True))
            .order_by(accounts.c.name)
            .limit(limit)
        )
        with self._store.read() as connection:
            rows = connection.execute(query).all()
        return [
            Holder(
                account=row.name,
                balance_microcredits=row.balance_microcredits,
                keys=row.keys,
                created_at=datetime.fromtimestamp(row.created_us / 1e6, tz=UTC),
                last_at=None if row.last_us is None else datetime.fromtimestamp(row.last_us / 1e6, tz=UTC),
            )
            for row in rows
        ]

    def entries(
        self, *, account: str, limit: int = 100, kinds: Collection[EntryKind] = get_args(EntryKind)
    ) -> list[Entry]:
        """An account's last entries of these kinds, newest first."""
        mine = select(entries).where(entries.c.account == account, entries.c.kind.in_(kinds))
        query = mine.order_by(entries.c.id.desc()).limit(limit)
        with self._store.read() as connection:
            rows = [dict(row) for row in connection.execute(query).mappings()]
        return [Entry(created_at=datetime.fromtimestamp(row.pop("created_us") / 1e6, tz=UTC), **row) for row in rows]

    def audit(self) -> Audit:
        """Check every account and every request; each of the three answers is consistent in itself."""
        total = select(func.coalesce(func.sum(entries.c.microcredits), 0)).where(entries.c.account == accounts.c.name)
        with self._store.read() as connection:
            balance = accounts.c.balance_microcredits
            unbalanced = connection.scalars(
                select(accounts.c.name).where(or_(balance != total.scalar_subquery(), balance < 0))
            ).all()
            return Audit(
                unbalanced=tuple(unbalanced),
                unanswered=tuple(str(row.request_id) for row in connection.execute(_unanswered())),
                open_requests=connection.scalar(select(func.count()).select_from(leases)) or 0,
            )


def _within(query: Select[Any], since: date | None, until: date | None) -> Select[Any]:
    if since is not None:
        query = query.where(entries.c.created_us >= (since - EPOCH) // timedelta(days=1) * DAY_US)
    if until is not None:
        query = query.where(entries.c.created_us < ((until - EPOCH) // timedelta(days=1) + 1) * DAY_US)
    return query


def _usage_row(row: dict[str, Any]) -> UsageRow:
    if "day" in row:
        row["day"] = EPOCH + timedelta(microseconds=row["day"])
    sums = ("requests", "texts", "tokens", "microcredits")  # PostgreSQL sums to a decimal number
    values: dict[str, Any] = {name: int(value) if name in sums else value for name, value in row.items()}
    return UsageRow(**values)


def _unanswered() -> Select[Any]:
    debit, closing = entries.alias("debit"), entries.alias("closing")
    is_open = exists().where(leases.c.request_id == debit.c.request_id)
    closings = (
        select(func.count())
        .where(closing.c.request_id == debit.c.request_id, closing.c.kind.in_(["settlement", "refund"]))
        .scalar_subquery()
    )
    wrong = or_(and_(is_open, closings != 0), and_(not_(is_open), closings != 1))
    return select(debit.c.request_id).where(debit.c.kind == "debit", wrong)
