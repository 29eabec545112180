"""Sign-up: an account, its key and some free credit, for whoever asks, so many a day from one address.

Invariant: all of it happens in one transaction, or nothing; an address is stored only as an HMAC under the pepper.
Does not know: whether the operator has switched it on, or how the address was found (mind proxies).
"""

import ipaddress
import secrets
import time
from collections.abc import Callable

from sqlalchemy import Connection, select, update

from udever.errors import OptionError
from udever.server.account_errors import RateLimitedError
from udever.server.auth import Key, Keys
from udever.server.ledger import Ledger
from udever.server.schema import addresses
from udever.server.store import Store
from udever.server.windows import DAY_US, take

IPV6_SITE_BITS = 64
"""A household has a /64 of IPv6; its addresses count as one."""


class SignUps:
    """Lets strangers in. Thread-safe."""

    def __init__(self, store: Store, *, keys: Keys, ledger: Ledger, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._keys = keys
        self._ledger = ledger
        self._clock = clock

    def sign_up(
        self,
        *,
        address: str,
        microcredits: int,
        per_day: int = 3,
        name: str = "",
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        max_concurrent: int | None = None,
    ) -> tuple[str, Key]:
        """A new account `free-…` with a key and `microcredits` of credit. The secret is returned here and never again.

        Args:
            address: the client's IP address.
            per_day: how many sign-ups an address may make at once; they come back evenly over a day.

        Raises:
            RateLimitedError: `what` is "signups".
            OptionError: not an IP address, or a value that cannot be.
        """
        place = _place(address)
        with self._store.write() as connection:
            self._take(connection, place, per_day=per_day)
            secret, key = self._keys.create_within(
                connection,
                account=f"free-{secrets.token_hex(6)}",
                name=name,
                requests_per_minute=requests_per_minute,
                tokens_per_minute=tokens_per_minute,
                max_concurrent=max_concurrent,
            )
            self._ledger.add(connection, "grant", account=key.account, microcredits=microcredits, note="sign-up")
        return secret, key

    def _take(self, connection: Connection, place: str, *, per_day: int) -> None:
        digest = self._keys.digest(f"address {place}")
        self._store.add_missing(connection, addresses, digest=digest, full_us=0)
        mine = addresses.c.digest == digest
        full_us = connection.execute(select(addresses.c.full_us).where(mine).with_for_update()).scalar_one()
        now_us = int(self._clock() * 1e6)
        taking = take(full_us, cost=1, limit=per_day, now_us=now_us, period_us=DAY_US)
        if not taking.fits:
            raise RateLimitedError("signups", window=taking.window, retry_after_seconds=taking.wait_seconds)
        connection.execute(update(addresses).where(mine).values(full_us=taking.full_us))


def _place(address: str) -> str:
    """The address, or the site it belongs to."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError as error:
        raise OptionError(f"{address!r} is no IP address") from error
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), IPV6_SITE_BITS), strict=False))
