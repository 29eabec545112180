"""Debits and their leases while requests run: what is kept, what is given back, what a broken database may not end."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from udever.server.access import Access
from udever.server.account_errors import StoreUnavailableError
from udever.server.accounts import Accounts, open_accounts
from udever.server.auth import Key
from udever.server.ledger import Ledger
from udever.server.settings import Settings
from udever.server.telemetry import Telemetry

CREDIT = 1000
LEASE_SECONDS = 1.6
WORK: dict[str, Any] = {"model": "m", "role": "query", "tokens": 3, "texts": 1, "microcredits": 30}


@pytest.fixture
def other(sqlite_url: str) -> Any:
    """Another replica over the same database, without a keeper."""
    with open_accounts(sqlite_url, lease_seconds=LEASE_SECONDS) as accounts:
        yield accounts


@pytest.fixture
def key(other: Accounts) -> Key:
    _, key = other.keys.create(account="acme")
    other.ledger.topup("acme", microcredits=CREDIT)
    return key


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Access]:
    access = Access(Settings(database_url=url), telemetry=Telemetry(), lease_seconds=LEASE_SECONDS)
    await access.open()
    try:
        yield access
    finally:
        await access.close()


def kinds(accounts: Accounts) -> list[str]:
    return [entry.kind for entry in reversed(accounts.ledger.entries(account="acme"))]


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 60))  # type: ignore[arg-type]


async def outlive_its_lease(access: Access, key: Key, *, other: Accounts) -> None:
    async with access.paid(key, request_id="long", **WORK):
        for _ in range(7):
            await asyncio.sleep(LEASE_SECONDS / 4)
            assert await asyncio.to_thread(other.ledger.recover) == 0


def test_what_was_left_open_is_refunded_when_the_next_process_opens(sqlite_url: str, other: Accounts, key: Key) -> None:
    async def work() -> None:
        other.ledger.admit(key, request_id="left", **WORK)
        await asyncio.sleep(LEASE_SECONDS * 1.1)
        assert other.ledger.balance("acme") == CREDIT - 30
        async with opened(sqlite_url):
            assert other.ledger.balance("acme") == CREDIT

    run(work)
    assert kinds(other) == ["topup", "debit", "refund"]


def test_a_request_that_runs_longer_than_its_lease_is_not_refunded(sqlite_url: str, other: Accounts, key: Key) -> None:
    async def work() -> None:
        async with opened(sqlite_url) as access:
            await outlive_its_lease(access, key, other=other)

    run(work)
    assert kinds(other) == ["topup", "debit", "settlement"]


@pytest.mark.parametrize("error", [ZeroDivisionError("secret"), StoreUnavailableError("locked")], ids=repr)
def test_whatever_happens_to_the_keeper_once_it_keeps_on(
    sqlite_url: str,
    other: Accounts,
    key: Key,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    renew, failures = Ledger.renew, [error]

    def fail_once(self: Ledger, *arguments: Any) -> int:
        if failures:
            raise failures.pop()
        return renew(self, *arguments)

    async def work() -> None:
        async with opened(sqlite_url) as access:
            monkeypatch.setattr(Ledger, "renew", fail_once)
            await outlive_its_lease(access, key, other=other)

    with caplog.at_level(logging.WARNING):
        run(work)
    assert "the leases were not kept" in caplog.text
    assert kinds(other) == ["topup", "debit", "settlement"]


@pytest.mark.parametrize("error", [ZeroDivisionError(), StoreUnavailableError("locked")], ids=repr)
def test_what_was_never_taken_is_not_given_back(
    sqlite_url: str, other: Accounts, key: Key, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred requests that meet a locked database must not come back as hundreds of refunds that wait for it."""
    refunds = list[str]()

    def refuse(self: Ledger, *arguments: Any, **more: Any) -> None:
        raise error

    def refund(self: Ledger, request_id: str, *, reason: str) -> bool:
        refunds.append(request_id)
        raise StoreUnavailableError("locked")

    async def work() -> None:
        monkeypatch.setattr(Ledger, "admit", refuse)
        monkeypatch.setattr(Ledger, "refund", refund)
        async with opened(sqlite_url) as access:

            async def ask(number: int) -> None:
                async with access.paid(key, request_id=f"request {number}", **WORK):
                    raise AssertionError

            answers = await asyncio.gather(*map(ask, range(20)), return_exceptions=True)
            assert answers == [error] * 20
            await asyncio.sleep(0.05)

    run(work)
    assert refunds == []
    assert kinds(other) == ["topup"]


def test_an_error_of_the_work_itself_is_refunded_whatever_it_is(sqlite_url: str, other: Accounts, key: Key) -> None:
    async def work() -> None:
        async with opened(sqlite_url) as access:
            with pytest.raises(StoreUnavailableError):
                async with access.paid(key, request_id="failed", **WORK):
                    raise StoreUnavailableError("another database")

    run(work)
    assert kinds(other) == ["topup", "debit", "refund"]


def test_a_debit_that_cannot_be_closed_is_told_and_expires(
    sqlite_url: str, other: Accounts, key: Key, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: Ledger, *request_ids: str) -> None:
        raise ZeroDivisionError

    async def work() -> None:
        monkeypatch.setattr(Ledger, "settle", fail)
        async with opened(sqlite_url) as access, access.paid(key, request_id="unsettled", **WORK):
            pass

    with caplog.at_level(logging.ERROR):
        run(work)
    assert "debits could not be settled" in caplog.text
    assert other.ledger.audit().open_requests == 1
