"""Votes: one for each account, or else address, and model."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select, text

from udever.errors import OptionError
from udever.server.accounts import Accounts
from udever.server.schema import metadata
from udever.server.store import Store
from udever.server.votes import Voter


def test_each_voter_counts_once_a_model(accounts: Accounts, clock: Any) -> None:
    accounts.keys.create(account="acme")
    here, there = Voter(address="203.0.113.5"), Voter(address="203.0.113.6")
    acme = Voter(address="203.0.113.5", account="acme")
    assert accounts.votes.cast("a", voter=here)
    assert not accounts.votes.cast("a", voter=here)
    assert accounts.votes.cast("b", voter=here)
    assert accounts.votes.cast("a", voter=there)
    clock.pass_(60)
    assert accounts.votes.cast("a", voter=acme)
    assert not accounts.votes.cast("a", voter=Voter(address="203.0.113.99", account="acme"))
    assert (accounts.votes.count("a"), accounts.votes.count("b"), accounts.votes.count("c")) == (3, 1, 0)
    assert accounts.votes.has_voted("a", voter=there)
    assert not accounts.votes.has_voted("b", voter=there)
    wanted = accounts.votes.wanted()
    assert [(w.model, w.votes, w.accounts) for w in wanted] == [("a", 3, 1), ("b", 1, 0)]
    assert wanted[0].latest_at.timestamp() == clock.now


def test_a_household_of_ipv6_votes_once(accounts: Accounts) -> None:
    assert accounts.votes.cast("a", voter=Voter(address="2001:db8::1"))
    assert not accounts.votes.cast("a", voter=Voter(address="2001:db8::2"))
    with pytest.raises(OptionError):
        accounts.votes.cast("a", voter=Voter(address="unix:"))


def test_votes_at_once_count_once(accounts: Accounts) -> None:
    with ThreadPoolExecutor(8) as pool:
        cast = list(pool.map(lambda _: accounts.votes.cast("a", voter=Voter(address="203.0.113.5")), range(16)))
    assert sum(cast) == 1
    assert accounts.votes.count("a") == 1


def test_addresses_are_not_stored(accounts: Accounts) -> None:
    accounts.votes.cast("a", voter=Voter(address="203.0.113.5"))
    with accounts.store.read() as connection:
        content = repr([connection.execute(select(table)).all() for table in metadata.sorted_tables])
    assert "203.0.113" not in content


def test_a_database_of_the_first_udever_is_upgraded_with_its_keys(database_url: str) -> None:
    from udever.server.accounts import open_accounts

    with open_accounts(database_url, pepper="a pepper for tests only") as accounts:
        secret, key = accounts.keys.create(account="acme")
        with accounts.store.write() as connection:  # as 0001 left it
            connection.execute(text("DROP TABLE votes"))
            connection.execute(text("ALTER TABLE keys DROP COLUMN made_by"))
            connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    with Store.open(database_url) as store:
        assert store.version() == "0001"
    with open_accounts(database_url, pepper="a pepper for tests only") as accounts:
        assert accounts.keys.authenticate(secret) == key
        assert accounts.votes.cast("a", voter=Voter(address="203.0.113.5", account="acme"))
