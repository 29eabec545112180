"""Rate windows as arithmetic."""

from hypothesis import given
from hypothesis import strategies as st

from udever.server.windows import MINUTE_US, take

NOW = 1_800_000_000_000_000


def test_a_window_gives_its_limit_at_once_then_refills_evenly() -> None:
    full_us = 0
    for left in (2, 1, 0):
        taking = take(full_us, cost=1, limit=3, now_us=NOW)
        assert taking.fits
        assert (taking.window.limit, taking.window.remaining) == (3, left)
        full_us = taking.full_us
    refused = take(full_us, cost=1, limit=3, now_us=NOW)
    assert not refused.fits
    assert refused.full_us == full_us
    assert (refused.wait_seconds, refused.window.remaining, refused.window.reset_seconds) == (20.0, 0, 60.0)
    assert take(full_us, cost=1, limit=3, now_us=NOW + 20_000_000).fits
    assert not take(full_us, cost=1, limit=3, now_us=NOW + 19_999_999).fits


def test_looking_takes_nothing() -> None:
    used = take(0, cost=5, limit=10, now_us=NOW)
    look = take(used.full_us, cost=0, limit=10, now_us=NOW)
    assert look.window == used.window
    assert look.full_us == used.full_us


def test_a_limit_that_was_lowered_is_in_debt_but_not_below_zero() -> None:
    used = take(0, cost=100, limit=100, now_us=NOW)
    refused = take(used.full_us + MINUTE_US, cost=1, limit=10, now_us=NOW)
    assert not refused.fits
    assert refused.window.remaining == 0


@given(
    limit=st.integers(1, 1_000_000),
    asked=st.lists(st.tuples(st.integers(0, 30_000_000), st.integers(1, 2_000_000)), max_size=30),
)
def test_never_more_than_the_limit_and_its_refill_are_given(limit: int, asked: list[tuple[int, int]]) -> None:
    now_us, full_us, given_units = NOW, 0, 0
    for pause_us, cost in asked:
        now_us += pause_us
        taking = take(full_us, cost=cost, limit=limit, now_us=now_us)
        given_units += cost if taking.fits else 0
        full_us = taking.full_us
        rounding = len(asked) * limit / MINUTE_US  # below one microsecond's worth each time
        assert given_units <= limit * (1 + (now_us - NOW) / MINUTE_US) + rounding
        assert 0 <= taking.window.remaining <= limit
        assert taking.fits == (taking.wait_seconds == 0)


@given(limit=st.integers(1, 1_000_000), used=st.integers(0, 1_000_000), cost=st.integers(1, 1_000_000))
def test_what_is_said_to_remain_can_be_taken_and_after_the_wait_it_fits(limit: int, used: int, cost: int) -> None:
    first = take(0, cost=min(used, limit), limit=limit, now_us=NOW)
    second = take(first.full_us, cost=cost, limit=limit, now_us=NOW)
    assert second.fits == (cost <= first.window.remaining)
    if not second.fits and cost <= limit:
        later = NOW + round(second.wait_seconds * 1e6)
        assert take(first.full_us, cost=cost, limit=limit, now_us=later).fits
