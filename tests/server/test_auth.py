"""Keys: shown once, stored as digests, scoped, limited in time, rotated, revoked."""

import hmac
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, text

from udever.errors import OptionError
from udever.server import auth
from udever.server.account_errors import EndedKeyError, InvalidKeyError, ScopeError, UnknownKeyError
from udever.server.accounts import Accounts
from udever.server.schema import metadata, secrets


def _reason(accounts: Accounts, secret: str) -> str:
    with pytest.raises(InvalidKeyError) as caught:
        accounts.keys.authenticate(secret)
    assert secret not in str(caught.value) or not secret
    return caught.value.reason


def test_a_new_key_lets_in_and_says_what_it_may_do(accounts: Accounts, clock: Any) -> None:
    ends = datetime.fromtimestamp(clock.now + 100, tz=UTC)
    secret, key = accounts.keys.create(
        account="acme", name="web", models=["udever-nano"], roles=["query"], truncate="end", expires_at=ends,
        requests_per_minute=60, tokens_per_minute=10_000, max_concurrent=4, admin=True,
    )  # fmt: skip
    assert re.fullmatch(r"udk-[A-Za-z0-9]{40}", secret)
    assert accounts.keys.authenticate(secret) == key == accounts.keys.get(key.id) == accounts.keys.get(key.prefix)
    assert secret.startswith(key.prefix)
    assert (key.account, key.name, key.models, key.roles) == ("acme", "web", ("udever-nano",), ("query",))
    assert (key.truncate, key.expires_at, key.admin) == ("end", ends, True)
    assert (key.requests_per_minute, key.tokens_per_minute, key.max_concurrent) == (60, 10_000, 4)
    assert key.created_at == datetime.fromtimestamp(clock.now, tz=UTC)
    assert key.describe()["expires_at"] == ends.isoformat()


def test_by_default_a_key_has_no_limits_and_every_scope(accounts: Accounts) -> None:
    _, key = accounts.keys.create(account="acme")
    assert key.allows(model="any/model", role="document")
    key.require_scope(model="any/model", role="query")
    limits = (key.models, key.roles, key.truncate, key.expires_at, key.requests_per_minute, key.max_concurrent)
    assert limits == (None,) * 6
    assert not key.admin


def test_the_database_holds_no_secret_and_nothing_that_gives_it_away(accounts: Accounts) -> None:
    secret, key = accounts.keys.create(account="acme")
    with accounts.store.read() as connection:
        content = repr([connection.execute(select(table)).all() for table in metadata.sorted_tables])
        digest = bytes(connection.execute(select(secrets.c.digest)).scalar_one())
    assert key.prefix in content
    assert secret[len(key.prefix) :] not in content
    assert digest == hmac.digest(b"a pepper for tests only", secret.encode(), "sha256")
    assert secret not in repr(key)


@pytest.mark.parametrize(
    "wrong",
    ["", "udk-", "sk-proj-1234", "udk-" + "a" * 40, "udk-" + "a" * 39, "udk-" + "ä" * 40, "\ud800", "x" * 100_000,
     "' OR 1=1 --"],
)  # fmt: skip
def test_other_strings_are_unknown(accounts: Accounts, wrong: str) -> None:
    accounts.keys.create(account="acme")
    assert _reason(accounts, wrong) == "unknown"


def test_one_wrong_letter_is_unknown_even_with_the_right_prefix(accounts: Accounts) -> None:
    secret, key = accounts.keys.create(account="acme")
    for place in (len(key.prefix), len(secret) - 1):
        other = "a" if secret[place] != "a" else "b"
        assert _reason(accounts, secret[:place] + other + secret[place + 1 :]) == "unknown"
    assert _reason(accounts, secret + "\n") == "unknown"


def test_digests_are_compared_in_constant_time_also_for_unknown_prefixes(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, _ = accounts.keys.create(account="acme")
    compared: list[tuple[int, int]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return hmac.compare_digest(a, b)

    monkeypatch.setattr(auth, "hmac", type("hmac", (), {"compare_digest": compare, "digest": hmac.digest}))
    accounts.keys.authenticate(secret)
    _reason(accounts, "udk-" + "a" * 40)
    _reason(accounts, "nonsense")
    assert compared == [(32, 32)] * 3


def test_an_expired_key_is_refused_and_says_so_only_to_its_owner(accounts: Accounts, clock: Any) -> None:
    ends = datetime.fromtimestamp(clock.now + 100, tz=UTC)
    secret, key = accounts.keys.create(account="acme", expires_at=ends)
    clock.pass_(99)
    accounts.keys.authenticate(secret)
    clock.pass_(1)
    assert _reason(accounts, secret) == "expired"
    assert _reason(accounts, secret[:-1] + ("a" if secret[-1] != "a" else "b")) == "unknown"
    assert key.status(ends) == "expired"
    assert key.status(ends - timedelta(seconds=1)) == "active"


def test_revocation_holds_at_once_in_every_replica(open_with: Callable[..., Accounts], clock: Any) -> None:
    here, there = open_with(), open_with()
    secret, key = here.keys.create(account="acme")
    there.keys.authenticate(secret)
    revoked = here.keys.revoke(key.id)
    assert revoked.status(datetime.now(tz=UTC)) == "revoked"
    assert _reason(there, secret) == "revoked"
    clock.pass_(5)
    assert here.keys.revoke(key.prefix) == revoked  # again changes nothing, not even the time


def test_rotation_gives_the_same_key_a_new_secret_and_the_old_one_some_grace(accounts: Accounts, clock: Any) -> None:
    old, key = accounts.keys.create(account="acme", name="web", requests_per_minute=3)
    new, rotated = accounts.keys.rotate(key.prefix, grace_seconds=60)
    assert new != old
    assert rotated.id == key.id
    assert (rotated.name, rotated.requests_per_minute) == ("web", 3)
    assert accounts.keys.authenticate(new) == rotated
    clock.pass_(59)
    assert accounts.keys.authenticate(old).id == key.id
    shown = [accounts.keys.authenticate(old), accounts.keys.recall(key.prefix), accounts.keys.authenticate(new)]
    assert [key.current for key in shown] == [False, False, True]
    clock.pass_(1)
    assert _reason(accounts, old) == "expired"
    assert accounts.keys.authenticate(new).id == key.id
    assert [k.prefix for k in accounts.keys.list()] == [rotated.prefix]
    assert accounts.keys.get(key.prefix) == rotated  # the old prefix still names the key


def test_a_second_rotation_does_not_lengthen_the_first_ones_grace(accounts: Accounts, clock: Any) -> None:
    first, key = accounts.keys.create(account="acme")
    second, _ = accounts.keys.rotate(key.id, grace_seconds=10)
    third, _ = accounts.keys.rotate(key.id, grace_seconds=60)
    clock.pass_(10)
    assert _reason(accounts, first) == "expired"
    accounts.keys.authenticate(second)
    accounts.keys.rotate(key.id, grace_seconds=0)
    assert {_reason(accounts, second), _reason(accounts, third)} == {"expired"}


def test_revoking_ends_rotated_secrets_too_and_a_dead_key_cannot_be_rotated(accounts: Accounts) -> None:
    old, key = accounts.keys.create(account="acme")
    new, _ = accounts.keys.rotate(key.id)
    accounts.keys.revoke(key.id)
    assert [_reason(accounts, old), _reason(accounts, new)] == ["revoked", "revoked"]
    for method in (accounts.keys.rotate, accounts.keys.change):
        with pytest.raises(EndedKeyError) as caught:
            method(key.id)
        assert caught.value.reason == "revoked"


CHANGES = {
    "name": "new", "models": ("a", "b"), "roles": ("document",), "truncate": "end",
    "requests_per_minute": 7, "tokens_per_minute": 8, "max_concurrent": 9,
}  # fmt: skip


def test_everything_but_who_pays_and_administers_can_be_changed_and_changed_back(accounts: Accounts) -> None:
    secret, key = accounts.keys.create(account="acme", name="old", truncate="start", max_concurrent=1)
    for field, value in CHANGES.items():
        changed = accounts.keys.change(key.id, **{field: value})
        assert {name: v for name, v in vars(changed).items() if v != getattr(key, name)} == {field: value}
        assert accounts.keys.authenticate(secret) == changed == accounts.keys.get(key.prefix)
        assert accounts.keys.change(key.id, **{field: getattr(key, field)}) == key
    assert accounts.keys.change(key.id) == key


def test_an_end_can_be_moved_but_not_into_the_past(accounts: Accounts, clock: Any) -> None:
    def at(seconds: float) -> datetime:
        return datetime.fromtimestamp(clock.now + seconds, tz=UTC)

    _, key = accounts.keys.create(account="acme", expires_at=at(100))
    assert accounts.keys.change(key.id, expires_at=at(200)).expires_at == at(200)
    clock.pass_(150)
    with pytest.raises(OptionError, match="past"):
        accounts.keys.change(key.id, expires_at=at(-1))
    assert accounts.keys.change(key.id, expires_at=None).expires_at is None


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", "a\x00b"), ("models", []), ("roles", ["passage"]), ("truncate", "middle"), ("requests_per_minute", 0),
     ("tokens_per_minute", -1), ("max_concurrent", 2**60)],
)  # fmt: skip
def test_a_change_that_cannot_be_changes_nothing(accounts: Accounts, field: str, value: Any) -> None:
    _, key = accounts.keys.create(account="acme", models=["a"], requests_per_minute=5)
    with pytest.raises(OptionError):
        accounts.keys.change(key.id, **{"name": "other", field: value})
    assert accounts.keys.get(key.id) == key


def test_changes_at_once_lose_nothing(open_with: Callable[..., Accounts]) -> None:
    replicas = [open_with(), open_with()]
    _, key = replicas[0].keys.create(account="acme")
    changes: list[dict[str, Any]] = [{field: value} for field, value in CHANGES.items()]
    with ThreadPoolExecutor(7) as pool:
        list(pool.map(lambda n: replicas[n % 2].keys.change(key.id, **changes[n]), range(len(changes))))
    assert {name: getattr(replicas[0].keys.get(key.id), name) for name in CHANGES} == CHANGES


def test_a_session_recalls_a_key_as_long_as_its_secret_works(accounts: Accounts, clock: Any) -> None:
    _, key = accounts.keys.create(account="acme")
    assert accounts.keys.recall(key.prefix) == key
    _, rotated = accounts.keys.rotate(key.id, grace_seconds=10)
    assert accounts.keys.recall(key.prefix).id == accounts.keys.recall(rotated.prefix).id == key.id
    clock.pass_(10)
    with pytest.raises(InvalidKeyError):
        accounts.keys.recall(key.prefix)
    accounts.keys.revoke(key.id)
    for prefix in (rotated.prefix, "udk-nobody00", "", "\x00"):
        with pytest.raises((InvalidKeyError, OptionError)):
            accounts.keys.recall(prefix)


@pytest.mark.parametrize("grace_seconds", [-1, 1e9, float("inf"), float("nan")])
def test_an_impossible_grace_changes_nothing(accounts: Accounts, grace_seconds: float) -> None:
    secret, key = accounts.keys.create(account="acme")
    with pytest.raises(OptionError, match="grace"):
        accounts.keys.rotate(key.id, grace_seconds=grace_seconds)
    assert accounts.keys.authenticate(secret) == key


def test_rotating_at_once_leaves_one_secret_without_an_end(open_with: Callable[..., Accounts]) -> None:
    replicas = [open_with(), open_with()]
    _, key = replicas[0].keys.create(account="acme")

    def rotate(number: int) -> str:
        return replicas[number % 2].keys.rotate(key.id, grace_seconds=0)[0]

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(rotate, range(8)))
    current = [secret for secret in made if secret.startswith(replicas[0].keys.get(key.id).prefix)]
    assert len(current) == 1
    replicas[0].keys.authenticate(current[0])
    assert {_reason(replicas[1], secret) for secret in made if secret not in current} == {"expired"}


@pytest.mark.parametrize("method", ["get", "change", "revoke", "rotate"])
def test_an_unknown_key_is_named_but_a_pasted_secret_is_not_repeated(accounts: Accounts, method: str) -> None:
    secret, key = accounts.keys.create(account="acme")
    with pytest.raises(UnknownKeyError, match="key-nobody"):
        getattr(accounts.keys, method)("key-nobody")
    with pytest.raises(UnknownKeyError) as caught:
        getattr(accounts.keys, method)(secret)
    assert secret not in str(caught.value)
    assert key.prefix in str(caught.value)


def test_scopes(accounts: Accounts) -> None:
    _, key = accounts.keys.create(account="acme", models=["a", "b"], roles=["document"])
    key.require_scope(model="b", role="document")
    key.require_scope()
    for scope, what in (({"model": "c", "role": "document"}, "model"), ({"model": "a", "role": "query"}, "role")):
        with pytest.raises(ScopeError) as caught:
            key.require_scope(**scope)
        assert caught.value.what == what
        assert caught.value.value == scope[what]
        assert not key.allows(**scope)
    with pytest.raises(ScopeError) as refused:
        key.require_admin()
    assert refused.value.what == "admin"


def test_keys_are_listed_by_age_and_account(accounts: Accounts, clock: Any) -> None:
    names = []
    for account in ("acme", "other", "acme"):
        names.append(accounts.keys.create(account=account)[1].id)
        clock.pass_(1)
    accounts.keys.revoke(names[0])
    assert [key.id for key in accounts.keys.list()] == names
    assert [key.id for key in accounts.keys.list(account="acme")] == [names[0], names[2]]


@pytest.mark.parametrize(
    ("field", "value"),
    [("account", ""), ("account", " x"), ("account", "a\nb"), ("account", "a" * 101), ("name", "a\x00b"),
     ("models", []), ("models", [""]), ("roles", []), ("roles", ["passage"]), ("truncate", "middle"),
     ("expires_at", datetime(2001, 1, 1, tzinfo=UTC)), ("expires_at", datetime(2100, 1, 1)),
     ("requests_per_minute", 0), ("tokens_per_minute", -1), ("max_concurrent", 2**60)],
)  # fmt: skip
def test_impossible_values_are_refused_and_leave_nothing(accounts: Accounts, field: str, value: Any) -> None:
    with pytest.raises(OptionError):
        accounts.keys.create(**{"account": "acme", field: value})
    assert accounts.keys.list() == []
    assert accounts.ledger.balances() == {}


def test_odd_but_possible_names_are_kept(accounts: Accounts) -> None:
    name = "Größe 東京 '; DROP TABLE keys; --"
    _, key = accounts.keys.create(account=name, name=name, models=["owner/model"])
    assert accounts.keys.list() == [key]
    assert key.account == key.name == name


def test_secrets_do_not_repeat(accounts: Accounts) -> None:
    made = {accounts.keys.create(account="acme")[0] for _ in range(50)}
    assert len(made) == 50
    with accounts.store.read() as connection:
        assert connection.execute(text("SELECT count(DISTINCT digest) FROM secrets")).scalar_one() == 50
