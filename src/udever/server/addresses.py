"""How often an address may do something that needs no key: one stored window for each address and purpose.

Invariant: an address is stored only as an HMAC under the pepper, and counts the same on every replica.
Does not know: what is counted, or how the address was found (mind proxies).
"""

import ipaddress
import time
from collections.abc import Callable

from sqlalchemy import Connection, select, update

from udever.errors import OptionError
from udever.server.account_errors import LimitKind, RateLimitedError
from udever.server.schema import addresses
from udever.server.store import Store
from udever.server.windows import take

IPV6_SITE_BITS = 64
"""A household has a /64 of IPv6; its addresses count as one."""
PURPOSES: dict[LimitKind, str] = {"signups": "address", "signins": "sign-in from"}
"""What is counted → what stands before the address in its digest, so that the windows do not mix."""


class Addresses:
    """The windows of all addresses, within transactions of the caller.

    Args:
        digest: an HMAC under the pepper (`Keys.digest`).
    """

    def __init__(self, store: Store, *, digest: Callable[[str], bytes], clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._digest = digest
        self._clock = clock

    def take(self, connection: Connection, what: LimitKind, *, address: str, limit: int, period_us: int) -> None:
        """Count one.

        Raises:
            RateLimitedError: that would be more than `limit` in one period.
            OptionError: not an IP address.
        """
        digest = self._name(what, address)
        self._store.add_missing(connection, addresses, digest=digest, full_us=0)
        mine = addresses.c.digest == digest
        full_us = connection.execute(select(addresses.c.full_us).where(mine).with_for_update()).scalar_one()
        now_us = int(self._clock() * 1e6)
        taking = take(full_us, cost=1, limit=limit, now_us=now_us, period_us=period_us)
        if not taking.fits:
            raise RateLimitedError(what, window=taking.window, retry_after_seconds=taking.wait_seconds)
        connection.execute(update(addresses).where(mine).values(full_us=taking.full_us))

    def give_back(self, connection: Connection, what: LimitKind, *, address: str, limit: int, period_us: int) -> None:
        """Undo one `take`: it was not of the kind that is counted."""
        mine = addresses.c.digest == self._name(what, address)
        earlier_us = addresses.c.full_us - period_us // limit
        connection.execute(update(addresses).where(mine).values(full_us=earlier_us))

    def _name(self, what: LimitKind, address: str) -> bytes:
        return self._digest(f"{PURPOSES[what]} {place_of(address)}")


def place_of(address: str) -> str:
    """The address, or the site it belongs to. Raises `OptionError`: not an IP address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError as error:
        raise OptionError(f"{address!r} is no IP address") from error
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), IPV6_SITE_BITS), strict=False))
