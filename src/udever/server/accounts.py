"""The one door to the accounts: a database URL becomes keys, ledger, sign-ups and votes that are ready to use.

Invariant: whatever comes out of `open_accounts` has an up-to-date schema and the right pepper.
Does not know: where the URL and the pepper come from (settings.py), or who asks (HTTP or the command line).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from udever.server.addresses import Addresses
from udever.server.auth import Keys
from udever.server.delegation import OwnKeys
from udever.server.ledger import Ledger
from udever.server.pepper import find_pepper
from udever.server.signin import SignIns
from udever.server.signup import SignUps
from udever.server.store import Store
from udever.server.votes import Votes


@dataclass(frozen=True, kw_only=True)
class Accounts:
    """Everything over one database. A context manager; leaving it closes the connections."""

    store: Store
    keys: Keys
    ledger: Ledger
    signups: SignUps
    signins: SignIns
    own_keys: OwnKeys
    votes: Votes

    def close(self) -> None:
        """Close the database's connections."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_accounts(
    database_url: str,
    *,
    pepper: str | None = None,
    clock: Callable[[], float] = time.time,
    lease_seconds: float = 60.0,
) -> Accounts:
    """Open the accounts of one database, creating and upgrading what is needed.

    Args:
        database_url: `sqlite:///PATH` or `postgresql://…`.
        pepper: None: the one in the file beside a SQLite database.
        clock: seconds since 1970; replicas should agree within a second or so.
        lease_seconds: see `Ledger`.

    Raises:
        StoreUrlError, PepperError, StoreVersionError: it is set up wrongly.
        StoreUnavailableError: the database cannot be reached.
    """
    found = find_pepper(database_url, given=pepper)
    store = Store.open(database_url)
    try:
        store.migrate()
        keys = Keys(store, found, clock=clock)
        keys.check_pepper()
    except BaseException:
        store.close()
        raise
    ledger = Ledger(store, clock=clock, lease_seconds=lease_seconds)
    addresses = Addresses(store, digest=keys.digest, clock=clock)
    return Accounts(
        store=store,
        keys=keys,
        ledger=ledger,
        signups=SignUps(store, keys=keys, ledger=ledger, addresses=addresses),
        signins=SignIns(store, keys=keys, addresses=addresses),
        own_keys=OwnKeys(store, keys=keys, clock=clock),
        votes=Votes(store, digest=keys.digest, clock=clock),
    )
