"""Sign-up: a key with free credit for strangers, so many a day from one address."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select

from udever.errors import OptionError
from udever.server.account_errors import RateLimitedError
from udever.server.accounts import Accounts
from udever.server.schema import metadata


def test_a_stranger_gets_an_account_a_key_and_credit(accounts: Accounts) -> None:
    secret, key = accounts.signups.sign_up(address="203.0.113.5", microcredits=500, name="me", requests_per_minute=9)
    assert accounts.keys.authenticate(secret) == key
    assert key.account.startswith("free-")
    assert (key.name, key.requests_per_minute, key.admin) == ("me", 9, False)
    assert accounts.ledger.balance(key.account) == 500
    assert [entry.kind for entry in accounts.ledger.entries(account=key.account)] == ["grant"]
    assert accounts.ledger.audit().sound


def test_an_address_may_sign_up_so_often_a_day(accounts: Accounts, clock: Any) -> None:
    def sign_up(address: str) -> None:
        accounts.signups.sign_up(address=address, microcredits=500, per_day=2)

    sign_up("203.0.113.5")
    sign_up("203.0.113.5")
    with pytest.raises(RateLimitedError) as caught:
        sign_up("203.0.113.5")
    assert (caught.value.what, caught.value.limit, caught.value.retry_after_seconds) == ("signups", 2, 43_200.0)
    sign_up("203.0.113.6")
    clock.pass_(43_200)
    sign_up("203.0.113.5")
    assert len(accounts.ledger.balances()) == 4  # the refused one left no account behind


def test_a_household_of_ipv6_is_one_address_and_so_is_a_mapped_one(accounts: Accounts) -> None:
    for first, same in (("2001:db8::1", "2001:db8::ffff:1"), ("::ffff:203.0.113.5", "203.0.113.5")):
        accounts.signups.sign_up(address=first, microcredits=1, per_day=1)
        with pytest.raises(RateLimitedError):
            accounts.signups.sign_up(address=same, microcredits=1, per_day=1)
    accounts.signups.sign_up(address="2001:db8:0:1::1", microcredits=1, per_day=1)


def test_addresses_are_not_stored(accounts: Accounts) -> None:
    accounts.signups.sign_up(address="203.0.113.5", microcredits=500)
    with accounts.store.read() as connection:
        content = repr([connection.execute(select(table)).all() for table in metadata.sorted_tables])
    assert "203.0.113" not in content


def test_signing_up_at_once_keeps_the_limit(accounts: Accounts) -> None:
    def sign_up(_: int) -> bool:
        try:
            accounts.signups.sign_up(address="203.0.113.5", microcredits=500)
        except RateLimitedError:
            return False
        return True

    with ThreadPoolExecutor(10) as pool:
        assert sum(pool.map(sign_up, range(10))) == 3


def test_what_is_no_address_is_refused(accounts: Accounts) -> None:
    with pytest.raises(OptionError, match="unix:"):
        accounts.signups.sign_up(address="unix:", microcredits=1)
