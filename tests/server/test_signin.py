"""Sign-in: wrong keys are counted by address, right ones are not."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select

from udever.server.account_errors import InvalidKeyError, RateLimitedError
from udever.server.accounts import Accounts
from udever.server.schema import metadata
from udever.server.signin import FAILURES

HERE, THERE = "203.0.113.5", "203.0.113.6"


def _fails(accounts: Accounts, *, address: str = HERE) -> str:
    with pytest.raises((InvalidKeyError, RateLimitedError)) as caught:
        accounts.signins.sign_in("udk-" + "a" * 40, address=address)
    return caught.value.code


def test_a_right_key_always_gets_in(accounts: Accounts) -> None:
    secret, key = accounts.keys.create(account="acme")
    for _ in range(3 * FAILURES):
        assert accounts.signins.sign_in(secret, address=HERE) == key


def test_an_address_that_is_wrong_too_often_waits_also_with_the_right_key(accounts: Accounts, clock: Any) -> None:
    secret, key = accounts.keys.create(account="acme")
    assert [_fails(accounts) for _ in range(FAILURES)] == ["invalid_api_key"] * FAILURES
    with pytest.raises(RateLimitedError, match="sign-ins") as caught:
        accounts.signins.sign_in(secret, address=HERE)
    assert caught.value.what == "signins"
    assert accounts.signins.sign_in(secret, address=THERE) == key
    clock.pass_(caught.value.retry_after_seconds + 0.001)
    assert accounts.signins.sign_in(secret, address=HERE) == key
    accounts.signups.sign_up(address=HERE, microcredits=1)  # another window


def test_wrong_keys_at_once_get_no_further(accounts: Accounts) -> None:
    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(lambda _: _fails(accounts), range(3 * FAILURES)))
    assert codes.count("invalid_api_key") == FAILURES


def test_no_address_and_no_attempt_is_stored(accounts: Accounts) -> None:
    _fails(accounts)
    with accounts.store.read() as connection:
        content = repr([connection.execute(select(table)).all() for table in metadata.sorted_tables])
    assert HERE not in content
    assert "aaaa" not in content
