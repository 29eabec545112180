"""`udever keys` and `udever usage` through the real command line, on a real database."""

import csv
import io
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from sqlalchemy import update

from udever.cli import main
from udever.server.account_errors import InvalidKeyError
from udever.server.accounts import Accounts, open_accounts
from udever.server.credits import format_credits
from udever.server.schema import accounts as accounts_table

PEPPER = "a pepper for tests only"


class Outcome(NamedTuple):
    """What a shell would see."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def udever(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """udever("keys", "list") runs `udever keys list` without any settings of this machine."""
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("UDEVER_DATABASE_URL", "UDEVER_PEPPER", "UDEVER_CONFIG"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object) -> Outcome:
        capfd.readouterr()
        return Outcome(main([str(argument) for argument in arguments]), *capfd.readouterr())

    return run


@pytest.fixture
def here(database_url: str, udever: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> str:
    """The test's database, as the environment of a server would name it."""
    monkeypatch.setenv("UDEVER_DATABASE_URL", database_url)
    monkeypatch.setenv("UDEVER_PEPPER", PEPPER)
    return database_url


@pytest.fixture
def opened(here: str) -> Any:
    with open_accounts(here, pepper=PEPPER) as accounts:
        yield accounts


def _spend(accounts: Accounts, secret: str, **work: Any) -> None:
    key, request_id = accounts.keys.authenticate(secret), str(uuid4())
    defaults: dict[str, Any] = {"model": "udever-nano", "role": "query", "tokens": 10, "texts": 2, "microcredits": 30}
    accounts.ledger.admit(key, request_id=request_id, **defaults | work)
    accounts.ledger.settle(request_id)


def test_create_prints_the_secret_alone_on_stdout(udever: Callable[..., Outcome], opened: Accounts) -> None:
    made = udever("keys", "create", "--account", "acme")
    assert made.code == 0
    assert re.fullmatch(r"udk-[A-Za-z0-9]{40}\n", made.out)
    key = opened.keys.authenticate(made.out.strip())
    assert key.account == "acme"
    assert key.id in made.err
    assert made.out.strip() not in made.err


@pytest.mark.parametrize(("credits", "said"), [("-5", "would take credit away"), ("9007199254", "holds at most")])
def test_a_key_whose_secret_is_not_shown_is_not_made(
    credits: str, said: str, udever: Callable[..., Outcome], opened: Accounts
) -> None:
    udever("keys", "create", "--account", "acme", "--credits", "1")
    failed = udever("keys", "create", "--account", "acme", f"--credits={credits}")
    assert (failed.code, failed.out) == (2, "")
    assert said in failed.err
    assert len(opened.keys.list()) == 1
    assert opened.ledger.balance("acme") == 10**6


def test_create_with_everything(udever: Callable[..., Outcome], opened: Accounts) -> None:
    made = udever(
        "keys", "create", "--account", "acme", "--name", "web", "--model", "a/b", "--model", "c", "--role", "query",
        "--truncate", "end", "--expires", "90d", "--requests-per-minute", 60, "--tokens-per-minute", 9000,
        "--max-concurrent", 4, "--admin", "--credits", "12.5", "--json",
    )  # fmt: skip
    assert made.code == 0, made.err
    key = opened.keys.authenticate(made.json["secret"])
    assert {name: made.json[name] for name in key.describe()} == json.loads(json.dumps(key.describe()))
    assert made.json["balance_microcredits"] == 12_500_000
    assert (key.models, key.roles, key.truncate, key.admin) == (("a/b", "c"), ("query",), "end", True)
    assert (key.requests_per_minute, key.tokens_per_minute, key.max_concurrent) == (60, 9000, 4)
    assert key.expires_at is not None
    assert abs(key.expires_at - datetime.now(tz=UTC) - timedelta(days=90)) < timedelta(minutes=1)


def test_list_shows_keys_and_credits_but_no_secret(udever: Callable[..., Outcome], opened: Accounts) -> None:
    secret, key = opened.keys.create(account="acme", name="[bold]web", models=["m"], requests_per_minute=60)
    _, other = opened.keys.create(account="other", expires_at=datetime(2100, 1, 1, tzinfo=UTC))
    opened.keys.revoke(other.id)
    opened.ledger.topup("acme", microcredits=2_500_000)
    listed = udever("keys", "list")
    assert secret not in listed.out
    for shown in (key.id, key.prefix, "[bold]web", "active", "revoked", "60 req/min", "2.5"):
        assert shown in listed.out
    as_json = udever("keys", "list", "--json", "--account", "acme")
    assert secret not in as_json.out
    assert [(row["id"], row["status"], row["balance_microcredits"]) for row in as_json.json] == [
        (key.id, "active", 2_500_000)
    ]


def test_revoke(udever: Callable[..., Outcome], opened: Accounts) -> None:
    secret, key = opened.keys.create(account="acme")
    assert udever("keys", "revoke", key.prefix).out == f"{key.id} is revoked\n"
    assert udever("keys", "revoke", key.id, "--json").json["revoked_at"]
    with pytest.raises(InvalidKeyError):
        opened.keys.authenticate(secret)


def test_rotate(udever: Callable[..., Outcome], opened: Accounts) -> None:
    old, key = opened.keys.create(account="acme")
    new = udever("keys", "rotate", key.id).out.strip()
    assert {opened.keys.authenticate(secret).id for secret in (old, new)} == {key.id}
    newest = udever("keys", "rotate", key.id, "--grace", "0s", "--json").json["secret"]
    opened.keys.authenticate(newest)
    with pytest.raises(InvalidKeyError):
        opened.keys.authenticate(new)


def test_limit_changes_what_is_named(udever: Callable[..., Outcome], opened: Accounts) -> None:
    secret, key = opened.keys.create(account="acme", tokens_per_minute=9, models=["a"], roles=["query"])
    changed = udever("keys", "limit", key.prefix, "--requests-per-minute", 1200, "--model", "a/b", "--model", "c")
    assert changed.out == f"{key.id}: limits 1,200 req/min, 9 tok/min; scopes a/b, c, query\n"
    freed = ("--tokens-per-minute", "none", "--requests-per-minute", "none", "--all-models", "--all-roles")
    assert udever("keys", "limit", key.id, *freed).out == f"{key.id}: limits none; scopes all\n"
    assert udever("keys", "limit", key.id, "--max-concurrent", 3, "--json").json["max_concurrent"] == 3
    now = opened.keys.authenticate(secret)
    assert (now.limits, now.models, now.roles) == ({"max_concurrent": 3}, None, None)


def test_topup_counts_in_credits(udever: Callable[..., Outcome], opened: Accounts) -> None:
    opened.keys.create(account="acme")
    assert udever("keys", "topup", "acme", "1234.567", "--note", "invoice 7").out == "acme has 1,234.567 credits\n"
    assert udever("keys", "topup", "acme", "-0.000001", "--json").json == {
        "account": "acme", "balance_microcredits": 1_234_566_999,
    }  # fmt: skip
    assert opened.ledger.entries(account="acme")[1].note == "invoice 7"


def test_a_topup_with_a_name_may_be_repeated(udever: Callable[..., Outcome], opened: Accounts) -> None:
    opened.keys.create(account="acme")
    for _ in range(2):
        assert udever("keys", "topup", "acme", "25", "--once", "invoice-7").out == "acme has 25 credits\n"
    assert udever("keys", "topup", "acme", "25", "--once", "invoice-8").out == "acme has 50 credits\n"
    wrong = udever("keys", "topup", "acme", "26", "--once", "invoice-7")
    assert (wrong.code, "another amount" in wrong.err) == (2, True)


def test_usage_as_table_csv_and_json(udever: Callable[..., Outcome], opened: Accounts) -> None:
    secret, key = opened.keys.create(account="acme")
    opened.ledger.topup("acme", microcredits=10**9)
    _spend(opened, secret)
    _spend(opened, secret, tokens=5000, microcredits=1_250_000)
    _spend(opened, secret, model='odd, "name"')
    today = str(datetime.now(tz=UTC).date())
    table = udever("usage").out
    for shown in (today, key.id, "udever-nano", "5,010", "1.25003"):
        assert shown in table
    rows = list(csv.reader(io.StringIO(udever("usage", "--csv").out)))
    assert rows == [
        ["day", "model", "key", "requests", "texts", "tokens", "microcredits"],
        [today, 'odd, "name"', key.id, "1", "2", "10", "30"],
        [today, "udever-nano", key.id, "2", "4", "5010", "1250030"],
    ]
    assert udever("usage", "--by", "account", "--json").json == [
        {"account": "acme", "requests": 3, "texts": 6, "tokens": 5020, "microcredits": 1_250_060}
    ]


def test_books_that_do_not_add_up_are_told(udever: Callable[..., Outcome], opened: Accounts) -> None:
    secret = udever("keys", "create", "--account", "acme", "--credits", "1").out.strip()
    _spend(opened, secret)
    sound = udever("usage", "--check")
    assert (sound.code, sound.out) == (0, "the books add up; 0 requests are open\n")
    with opened.store.write() as connection:
        balance = accounts_table.c.balance_microcredits
        connection.execute(update(accounts_table).values(balance_microcredits=balance + 1))
    wrong = udever("usage", "--check", "--json")
    assert wrong.code == 1
    assert json.loads(wrong.out)["unbalanced"] == ["acme"]
    assert "the books do not add up: account acme" in wrong.err


def test_usage_of_other_days_is_empty_but_has_its_header(udever: Callable[..., Outcome], opened: Accounts) -> None:
    secret, _ = opened.keys.create(account="acme")
    _spend(opened, secret, microcredits=0)
    past = ("--until", "2020-01-01")
    assert udever("usage", "--csv", "--by", "model", *past).out == "model,requests,texts,tokens,microcredits\n"
    assert udever("usage", "--json", "--since", "2099-01-01").json == []
    assert udever("usage", "--json", "--since", "2020-01-01", "--account", "acme").json != []
    assert udever("usage", "--json", "--account", "nobody").json == []
    assert udever("usage", *past).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (("keys", "create"), 2, "--account"),
        (("keys", "create", "--account", "x", "--role", "passage"), 2, "passage"),
        (("keys", "create", "--account", "x", "--expires", "soon"), 2, "no time"),
        (("keys", "create", "--account", "x", "--expires", "2001-01-01"), 2, "past"),
        (("keys", "create", "--account", "x", "--max-concurrent", "0"), 2, "limit"),
        (("keys", "create", "--account", "x", "--credits", "0.0000001"), 2, "no amount"),
        (("keys", "create", "--account", "x", "--credits", "inf"), 2, "credits"),
        (("keys", "revoke", "key-nobody"), 1, "no key 'key-nobody'"),
        (("keys", "rotate", "key-nobody"), 1, "no key 'key-nobody'"),
        (("keys", "rotate", "key-nobody", "--grace", "soon"), 2, "no duration"),
        (("keys", "limit", "key-nobody", "--max-concurrent", "1"), 1, "no key 'key-nobody'"),
        (("keys", "limit", "key-nobody"), 2, "nothing to change"),
        (("keys", "limit", "key-nobody", "--max-concurrent", "many"), 2, "many"),
        (("keys", "limit", "key-nobody", "--model", "a", "--all-models"), 2, "excludes"),
        (("keys", "topup", "nobody", "1"), 1, "no account 'nobody'"),
        (("usage", "--csv", "--json"), 2, "exclude"),
        (("usage", "--by", "week"), 2, "week"),
        (("keys", "list", "--database", "mysql://x/y"), 1, "no database udever can use"),
        (("keys", "list", "--database", "postgresql://u:geheim@h/x"), 2, "seen by others"),
    ],
)
def test_what_goes_wrong_is_one_line(
    udever: Callable[..., Outcome], opened: Accounts, arguments: tuple[str, ...], code: int, complaint: str
) -> None:
    opened.keys.create(account="acme")
    outcome = udever(*arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert re.fullmatch(r"error: .*\n", outcome.err)
    assert complaint in outcome.err
    assert "geheim" not in outcome.err
    assert [key.account for key in opened.keys.list()] == ["acme"]


def test_only_create_makes_a_database(udever: Callable[..., Outcome], tmp_path: Path) -> None:
    path = tmp_path / "new" / "accounts.sqlite"
    missing = udever("keys", "list", "--database", f"sqlite:///{path}")
    assert (missing.code, missing.out) == (1, "")
    assert "udever keys create" in missing.err
    assert not path.parent.exists()
    assert udever("keys", "create", "--account", "a", "--database", f"sqlite:///{path}").code == 0
    assert udever("keys", "list", "--database", f"sqlite:///{path}").code == 0


def test_the_settings_file_of_the_server_names_the_database(udever: Callable[..., Outcome], tmp_path: Path) -> None:
    path, config = tmp_path / "accounts.sqlite", tmp_path / "udever.toml"
    config.write_text(f'database_url = "sqlite:///{path}"\npepper = "{PEPPER}"\n')
    secret = udever("keys", "create", "--account", "a", "--config", config).out.strip()
    with open_accounts(f"sqlite:///{path}", pepper=PEPPER) as accounts:
        assert accounts.keys.authenticate(secret).account == "a"


@pytest.mark.parametrize(
    ("microcredits", "shown"),
    [(0, "0"), (1, "0.000001"), (-2_500_000, "-2.5"), (10_000_000, "10"), (1_234_567_000_000, "1,234,567")],
)
def test_credits_are_shown_exactly(microcredits: int, shown: str) -> None:
    assert format_credits(microcredits) == shown
