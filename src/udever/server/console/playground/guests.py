"""How much visitors without a key may do: so many requests and tokens a minute from one address, and from all together.

Invariant: memory is bounded; an address is forgotten only when its windows are full again, or when so many others have
come since that the guests' common window holds them all back anyway.
Does not know: who may be a guest at all, or how the address was found (mind proxies).
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

from udever.errors import OptionError
from udever.server.account_errors import RateLimitedError
from udever.server.addresses import place_of
from udever.server.windows import Taking, take

MAX_WINDOWS = 20_000
TOGETHER = 20
"""All guests together may do this many times what one may."""
EVERYONE = "everyone"
NOWHERE = "nowhere"
"""The place of a client that has no IP address: one that comes through a local socket."""

Limited = Literal["requests", "tokens"]


class Guests:
    """Windows of one kind of request, by address. For one event loop."""

    def __init__(
        self,
        *,
        requests_per_minute: int,
        tokens_per_minute: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        max_windows: int = MAX_WINDOWS,
    ) -> None:
        self._limits: dict[Limited, int | None] = {"requests": requests_per_minute, "tokens": tokens_per_minute}
        self._clock = clock
        self._max_windows = max_windows
        self._full_us: OrderedDict[tuple[str, Limited], int] = OrderedDict()
        """(place, what) → when the window is full again; the one used last stands last."""

    def __len__(self) -> int:
        """Windows that are kept."""
        return len(self._full_us)

    def admit(self, address: str | None, *, tokens: int = 0) -> None:
        """Take a request of so many tokens from the windows of its address and of everyone, or leave all as it was.

        Raises:
            RateLimitedError: one of them does not allow it now.
        """
        now_us = int(self._clock() * 1e6)
        costs = {"requests": 1, "tokens": tokens}
        takings = {
            (who, what): self._ask(who, what, cost=costs[what], now_us=now_us)
            for who in (_place(address), EVERYONE)
            for what, limit in self._limits.items()
            if limit is not None and costs[what]
        }
        for (_, what), taking in takings.items():
            if not taking.fits:
                raise _limited(what, taking, retryable=costs[what] <= taking.window.limit)
        for key, taking in takings.items():
            self._full_us[key] = taking.full_us
            self._full_us.move_to_end(key)
        self._forget(now_us)

    def _ask(self, who: str, what: Limited, *, cost: int, now_us: int) -> Taking:
        limit = (self._limits[what] or 0) * (TOGETHER if who == EVERYONE else 1)
        return take(self._full_us.get((who, what), 0), cost=cost, limit=limit, now_us=now_us)

    def _forget(self, now_us: int) -> None:
        """Those that are full again, as far as they stand in front; and the ones unused for longest, if there are too
        many: everyone's are used each time, so they stay.
        """
        while self._full_us:
            key, full_us = next(iter(self._full_us.items()))
            if full_us > now_us and len(self._full_us) <= self._max_windows:
                return
            del self._full_us[key]


def _limited(what: Limited, taking: Taking, *, retryable: bool) -> RateLimitedError:
    return RateLimitedError(what, window=taking.window, retry_after_seconds=taking.wait_seconds, retryable=retryable)


def _place(address: str | None) -> str:
    try:
        return place_of(address or "")
    except OptionError:
        return NOWHERE
