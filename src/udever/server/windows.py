"""Rate windows: how much of a limit is left, as arithmetic on one integer.

A window is a bucket that holds `limit` units and refills evenly over one period; all that is stored of it is the moment
at which it will be full again (the generic cell rate algorithm, ITU-T I.371). A burst may use the whole limit at once.
Invariant: over any time T no more than `limit · (1 + T / period)` units are taken.
Does not know: keys, databases or the clock; times are integer microseconds (`_us`) of the caller's clock.
"""

from dataclasses import dataclass

MINUTE_US = 60_000_000
DAY_US = 86_400_000_000
SECOND_US = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Window:
    """What the rate-limit headers say."""

    limit: int
    """Units per period."""
    remaining: int
    """Units that could be taken at once now."""
    reset_seconds: float
    """Time until the whole limit is available again."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Both windows of a key; None where it has no such limit."""

    requests: Window | None
    """Requests per minute."""
    tokens: Window | None
    """Tokens per minute."""


@dataclass(frozen=True, kw_only=True)
class Taking:
    """The outcome of asking for `cost` units."""

    fits: bool
    full_us: int
    """The window's new state; the old one if it does not fit."""
    window: Window
    """After the taking, or as it stands if it does not fit."""
    wait_seconds: float
    """Time until this cost would fit; 0 if it does."""


def take(full_us: int, *, cost: int, limit: int, now_us: int, period_us: int = MINUTE_US) -> Taking:
    """Ask a window for `cost` units (0: only look). `full_us` is its stored state; 0 is a window never used."""
    debt_us = max(full_us - now_us, 0)
    needed_us = cost * period_us // limit
    over_us = debt_us + needed_us - period_us
    fits = over_us <= 0 or not cost
    if fits:
        debt_us += needed_us
    free_us = max(period_us - debt_us, 0)  # a limit lowered meanwhile may leave a debt above one period
    return Taking(
        fits=fits,
        full_us=now_us + debt_us if fits else full_us,
        window=Window(limit=limit, remaining=free_us * limit // period_us, reset_seconds=debt_us / SECOND_US),
        wait_seconds=0.0 if fits else over_us / SECOND_US,
    )
