"""Votes: who wants a model that is not served yet.

Invariant: an account, or else an address, counts once a model, also when it votes twice at once; an address is stored
only as an HMAC under the pepper.
Does not know: which models there are, or how the address was found (mind proxies).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import func, select

from udever.server.addresses import place_of
from udever.server.schema import votes
from udever.server.store import Store


@dataclass(frozen=True, kw_only=True)
class Voter:
    """Who asks."""

    address: str
    account: str | None = None
    """Of the key it came with; then the address does not count."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A model that somebody wants."""

    model: str
    votes: int
    accounts: int
    """How many of the votes are accounts' and not addresses'."""
    latest_at: datetime


class Votes:
    """The votes of one database. Thread-safe.

    Args:
        digest: an HMAC under the pepper (`Keys.digest`).
    """

    def __init__(self, store: Store, *, digest: Callable[[str], bytes], clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._digest = digest
        self._clock = clock

    def cast(self, model: str, *, voter: Voter) -> bool:
        """Count a vote; False if this voter was counted before. Raises `OptionError`: not an IP address."""
        row = {"model": model, "voter": self._name(voter), "account": voter.account}
        with self._store.write() as connection:
            return self._store.add_missing(connection, votes, **row, created_us=int(self._clock() * 1e6))

    def count(self, model: str) -> int:
        """How many want this model."""
        with self._store.read() as connection:
            return connection.scalar(select(func.count()).where(votes.c.model == model)) or 0

    def has_voted(self, model: str, *, voter: Voter) -> bool:
        """Whether this voter is among them. Raises `OptionError`: not an IP address."""
        mine = select(votes.c.model).where(votes.c.model == model, votes.c.voter == self._name(voter))
        with self._store.read() as connection:
            return connection.execute(mine).one_or_none() is not None

    def wanted(self) -> list[Wanted]:
        """Every model with votes, the most wanted first."""
        total = func.count().label("votes")
        query = select(
            votes.c.model,
            total,
            func.count(votes.c.account).label("accounts"),
            func.max(votes.c.created_us).label("us"),
        )
        with self._store.read() as connection:
            rows = connection.execute(query.group_by(votes.c.model).order_by(total.desc(), votes.c.model)).all()
        return [
            Wanted(
                model=row.model,
                votes=row.votes,
                accounts=row.accounts,
                latest_at=datetime.fromtimestamp(row.us / 1e6, tz=UTC),
            )
            for row in rows
        ]

    def _name(self, voter: Voter) -> bytes:
        if voter.account is not None:
            return self._digest(f"vote of account {voter.account}")
        return self._digest(f"vote from {place_of(voter.address)}")
