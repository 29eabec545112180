"""Keys in the hands of a key: nothing it does for other keys may give anybody more than it has."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from udever.errors import OptionError
from udever.server import delegation
from udever.server.account_errors import EndedKeyError, HandOnError, InvalidKeyError, UnknownKeyError
from udever.server.accounts import Accounts
from udever.server.auth import Key
from udever.server.delegation import may_manage


@pytest.fixture
def owner(accounts: Accounts) -> Key:
    """A key without limits or scopes."""
    return accounts.keys.create(account="acme", name="owner")[1]


def test_a_key_makes_others_of_its_account(accounts: Accounts, owner: Key) -> None:
    secret, made = accounts.own_keys.create(owner, name="web", models=["m"], roles=["query"], requests_per_minute=60)
    assert accounts.keys.authenticate(secret) == made
    assert (made.account, made.name, made.models, made.roles) == ("acme", "web", ("m",), ("query",))
    assert (made.requests_per_minute, made.admin, made.made_by) == (60, False, owner.id)


def test_an_admins_page_makes_no_admin(accounts: Accounts) -> None:
    _, boss = accounts.keys.create(account="acme", admin=True)
    assert not accounts.own_keys.create(boss)[1].admin


BEYOND: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"models": ["a"]}, {}),
    ({"models": ["a"]}, {"models": ["a", "b"]}),
    ({"roles": ["query"]}, {"models": ["a"]}),
    ({"roles": ["query"]}, {"roles": ["document"]}),
    ({"requests_per_minute": 10}, {"requests_per_minute": 1}),
    ({"tokens_per_minute": 10}, {"requests_per_minute": 1, "tokens_per_minute": 10}),
    ({"max_concurrent": 1}, {"max_concurrent": 1}),
]


@pytest.mark.parametrize(("own", "asked"), BEYOND)
def test_no_key_is_made_beyond_its_maker(accounts: Accounts, own: dict[str, Any], asked: dict[str, Any]) -> None:
    _, manager = accounts.keys.create(account="acme", **own)
    with pytest.raises(HandOnError):
        accounts.own_keys.create(manager, **asked)
    assert accounts.keys.list() == [manager]


def test_no_key_outlives_its_maker(accounts: Accounts, clock: Any) -> None:
    ends = datetime.fromtimestamp(clock.now, tz=UTC) + timedelta(days=1)
    _, manager = accounts.keys.create(account="acme", expires_at=ends)
    for later in (None, ends + timedelta(seconds=1)):
        with pytest.raises(HandOnError, match="later end"):
            accounts.own_keys.create(manager, expires_at=later)
    assert accounts.own_keys.create(manager, expires_at=ends)[1].expires_at == ends


@pytest.mark.parametrize("method", ["change", "rotate", "revoke"])
def test_keys_of_other_accounts_do_not_exist(accounts: Accounts, owner: Key, method: str) -> None:
    secret, other = accounts.keys.create(account="other")
    for name in (other.id, other.prefix, "key-nobody", "a\x00b"):
        with pytest.raises((UnknownKeyError, OptionError)) as caught:
            getattr(accounts.own_keys, method)(owner, name)
        assert "other" not in str(caught.value)
    assert accounts.keys.authenticate(secret) == other


@pytest.mark.parametrize("method", ["change", "rotate", "revoke"])
def test_an_admin_key_is_out_of_reach(accounts: Accounts, owner: Key, method: str) -> None:
    secret, boss = accounts.keys.create(account="acme", admin=True)
    with pytest.raises(HandOnError, match="admin"):
        getattr(accounts.own_keys, method)(owner, boss.id)
    assert accounts.keys.authenticate(secret) == boss


@pytest.mark.parametrize("method", ["change", "rotate", "revoke"])
@pytest.mark.parametrize("own", [{"models": ["a"]}, {"roles": ["query"]}, {"requests_per_minute": 10}])
def test_a_weaker_key_manages_no_stronger_one(accounts: Accounts, owner: Key, method: str, own: dict[str, Any]) -> None:
    _, weak = accounts.keys.create(account="acme", **own)
    assert not may_manage(weak, owner)
    with pytest.raises(HandOnError):
        getattr(accounts.own_keys, method)(weak, owner.id)
    assert accounts.keys.get(owner.id) == owner


def test_a_limited_key_lowers_and_rotates_itself_and_raises_nothing(accounts: Accounts) -> None:
    _, mine = accounts.keys.create(account="acme", requests_per_minute=10)
    _, sibling = accounts.keys.create(account="acme", requests_per_minute=5)
    assert accounts.own_keys.change(mine, mine.id, requests_per_minute=8).requests_per_minute == 8
    for more in (9, None):
        with pytest.raises(HandOnError, match="requests per minute"):
            accounts.own_keys.change(mine, mine.id, requests_per_minute=more)
    with pytest.raises(HandOnError):
        accounts.own_keys.rotate(mine, sibling.id)
    _, rotated = accounts.own_keys.rotate(mine, mine.id, grace_seconds=0)
    accounts.own_keys.revoke(rotated, mine.id)


def test_a_secret_that_was_rotated_away_manages_nothing(accounts: Accounts, owner: Key) -> None:
    leaked = accounts.keys.get(owner.id)
    secret, rotated = accounts.own_keys.rotate(owner, owner.id, grace_seconds=3600)
    with pytest.raises(HandOnError, match="rotated away"):
        accounts.own_keys.rotate(leaked, owner.id, grace_seconds=0)  # else a thief would lock its owner out
    with pytest.raises(HandOnError, match="rotated away"):
        accounts.own_keys.create(leaked)
    assert accounts.keys.authenticate(secret) == rotated
    accounts.own_keys.create(rotated)


def test_a_manager_that_ended_meanwhile_does_nothing(accounts: Accounts, owner: Key) -> None:
    accounts.keys.revoke(owner.id)
    with pytest.raises(EndedKeyError):
        accounts.own_keys.create(owner)
    with pytest.raises(EndedKeyError):
        accounts.own_keys.revoke(owner, owner.id)
    _, narrowed = accounts.keys.create(account="acme")
    accounts.keys.change(narrowed.id, models=["a"])
    with pytest.raises(HandOnError):  # it is held to what it is now, not to what it was when somebody signed in
        accounts.own_keys.create(narrowed)


def test_an_account_has_so_many_keys(
    open_with: Callable[..., Accounts], clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delegation, "MOST_KEYS", 5)
    replicas = [open_with(), open_with()]
    _, owner = replicas[0].keys.create(account="acme")

    def make(number: int) -> str | None:
        try:
            return replicas[number % 2].own_keys.create(owner)[1].id
        except OptionError:
            return None

    with ThreadPoolExecutor(6) as pool:
        made = [key_id for key_id in pool.map(make, range(12)) if key_id]
    assert len(made) == 4
    replicas[0].own_keys.revoke(owner, made[0])
    assert make(0) is None  # else making and revoking in turn would fill the table
    clock.pass_(86_401)
    assert make(0)


def test_two_keys_that_manage_each_other_at_once_do_not_block(open_with: Callable[..., Accounts]) -> None:
    replicas = [open_with(), open_with()]
    both = [replicas[0].keys.create(account="acme")[1] for _ in range(2)]

    def rename(number: int) -> None:
        one, other = both[number % 2], both[1 - number % 2]
        replicas[number % 2].own_keys.change(one, other.id, name=f"n{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(rename, range(24)))
    assert {key.name[0] for key in replicas[0].keys.list()} == {"n"}


LIMIT = st.none() | st.integers(1, 3)
POWERS = st.fixed_dictionaries(
    {
        "models": st.none() | st.lists(st.sampled_from("ab"), min_size=1, unique=True),
        "roles": st.none() | st.lists(st.sampled_from(["query", "document"]), min_size=1, unique=True),
        "requests_per_minute": LIMIT,
        "tokens_per_minute": LIMIT,
        "max_concurrent": LIMIT,
    }
)


def _can(keys: list[Key]) -> set[tuple[str, str]]:
    return {(m, r) for key in keys for m in "abc" for r in ("query", "document") if key.allows(model=m, role=r)}


def _sum(keys: list[Key], limit: str) -> float:
    return sum(float("inf") if getattr(key, limit) is None else getattr(key, limit) for key in keys)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    own=POWERS, steps=st.lists(st.tuples(st.sampled_from(["create", "change"]), st.integers(0, 3), POWERS), max_size=6)
)
def test_whatever_it_tries_all_its_keys_together_never_gain(
    open_with: Callable[..., Accounts], own: dict[str, Any], steps: list[tuple[str, int, dict[str, Any]]]
) -> None:
    accounts = open_with()
    try:
        _, manager = accounts.keys.create(account=f"acme {id(steps)} {len(accounts.ledger.balances())}", **own)
        for what, which, asked in steps:
            mine = accounts.keys.list(account=manager.account)
            try:
                if what == "create":
                    accounts.own_keys.create(accounts.keys.get(manager.id), **asked)
                else:
                    accounts.own_keys.change(accounts.keys.get(manager.id), mine[which % len(mine)].id, **asked)
            except HandOnError:
                assert accounts.keys.list(account=manager.account) == mine
            now = accounts.keys.list(account=manager.account)
            assert _can(now) <= _can([manager])
            for limit in ("requests_per_minute", "tokens_per_minute", "max_concurrent"):
                assert _sum(now, limit) <= _sum([manager], limit)
            assert not any(key.admin for key in now)
    finally:
        accounts.close()


def test_what_they_raise_for_a_dead_key(accounts: Accounts, owner: Key) -> None:
    _, dead = accounts.own_keys.create(owner)
    accounts.own_keys.revoke(owner, dead.id)
    for method in (accounts.own_keys.change, accounts.own_keys.rotate):
        with pytest.raises(EndedKeyError) as caught:
            method(owner, dead.id)
        assert isinstance(caught.value, InvalidKeyError)
    accounts.own_keys.revoke(owner, dead.id)
