"""The database: URLs, schema upgrades, what happens when it is locked, gone, damaged or too new."""

import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import exc, insert, select, text

from udever.errors import OptionError
from udever.server.account_errors import (
    PepperError,
    StorePermissionError,
    StoreUnavailableError,
    StoreUrlError,
    StoreVersionError,
    UnknownKeyError,
)
from udever.server.accounts import Accounts, open_accounts
from udever.server.errors import fault_of
from udever.server.pepper import find_pepper
from udever.server.schema import accounts as accounts_table
from udever.server.schema import metadata
from udever.server.store import HEAD, MIGRATIONS, Store

PEPPER = "a pepper for tests only"


def test_an_empty_database_gets_the_schema_and_a_second_run_changes_nothing(database_url: str) -> None:
    with Store.open(database_url) as store:
        assert store.version() is None
        store.migrate()
        store.migrate()
        assert store.version() == HEAD
        with store.read() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, metadata) == []


def test_the_newest_migration_is_the_one_the_store_asks_for() -> None:
    assert ScriptDirectory(str(MIGRATIONS)).get_current_head() == HEAD


def test_replicas_that_start_at_once_upgrade_once(database_url: str) -> None:
    start = (
        f"from udever.server.accounts import open_accounts; open_accounts({database_url!r}, pepper={PEPPER!r}).close()"
    )
    starting = [subprocess.Popen([sys.executable, "-c", start], stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for replica in starting:
        _, complaint = replica.communicate(timeout=120)
        assert replica.returncode == 0, complaint
    with Store.open(database_url) as store:
        assert store.version() == HEAD


def test_an_upgrade_that_fails_leaves_nothing_behind(database_url: str) -> None:
    with Store.open(database_url) as store:
        with store.write() as connection:
            connection.execute(text("CREATE TABLE leases (mine INTEGER)"))  # the third table of the migration
        with pytest.raises((StoreUnavailableError, exc.ProgrammingError)):
            store.migrate()
        assert store.version() is None
        with store.read() as connection, pytest.raises((exc.OperationalError, exc.ProgrammingError)):
            connection.execute(select(accounts_table))


def test_a_database_of_a_newer_udever_is_refused(database_url: str) -> None:
    with Store.open(database_url) as store:
        store.migrate()
        with store.write() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(StoreVersionError, match="newer udever"):
            store.migrate()


@pytest.mark.parametrize("statement", ["UPDATE entries SET microcredits = 0", "DELETE FROM entries"])
def test_the_ledger_cannot_be_rewritten(accounts: Accounts, statement: str) -> None:
    accounts.keys.create(account="acme")
    accounts.ledger.topup("acme", microcredits=5)
    with pytest.raises(exc.DBAPIError, match="append-only"), accounts.store.write() as connection:
        connection.execute(text(statement))
    assert accounts.ledger.audit().sound


def test_the_database_itself_refuses_a_negative_balance(accounts: Accounts) -> None:
    row = {"name": "acme", "balance_microcredits": -1, "created_us": 0}
    with pytest.raises(exc.IntegrityError), accounts.store.write() as connection:
        connection.execute(insert(accounts_table).values(row))


def test_an_error_rolls_back(accounts: Accounts) -> None:
    row = {"name": "acme", "balance_microcredits": 1, "created_us": 0}

    def fail_in_the_middle() -> None:
        with accounts.store.write() as connection:
            connection.execute(insert(accounts_table).values(row))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_in_the_middle()
    assert accounts.ledger.balances() == {}


def test_what_a_database_cannot_keep_is_the_callers_fault(accounts: Accounts) -> None:
    """PostgreSQL keeps no NUL in a text; SQLite does."""
    accounts.keys.create(account="acme")
    for ask in (
        lambda: accounts.ledger.topup("acme", microcredits=1, note="a\x00b"),
        lambda: accounts.keys.get("\x00"),
    ):
        with suppress(OptionError, UnknownKeyError):
            ask()
    assert accounts.ledger.audit().sound


@pytest.mark.parametrize("url", ["", "acme", "sqlite://", "sqlite:///:memory:", "mysql://root:geheim@db/x", "http://x"])
def test_other_urls_are_refused_and_passwords_not_repeated(url: str) -> None:
    with pytest.raises(StoreUrlError) as caught:
        Store.open(url)
    assert "geheim" not in str(caught.value)
    assert "postgresql://" in caught.value.hint


def test_a_locked_sqlite_is_unavailable_after_a_while_and_then_works_again(sqlite_url: str, tmp_path: Path) -> None:
    with Store.open(sqlite_url, wait_seconds=0.2) as store:
        store.migrate()
        other = sqlite3.connect(tmp_path / "accounts.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        store.version()  # readers do not wait for writers
        with pytest.raises(StoreUnavailableError, match="locked"), store.write():
            pass
        other.close()
        with store.write():
            pass


def test_writers_of_one_process_wait_their_turn_but_not_forever(sqlite_url: str) -> None:
    with Store.open(sqlite_url, wait_seconds=0.2) as store:
        store.migrate()
        inside, leave = threading.Event(), threading.Event()

        def hold() -> None:
            with store.write():
                inside.set()
                leave.wait()

        holder = threading.Thread(target=hold)
        holder.start()
        inside.wait()
        with pytest.raises(StoreUnavailableError, match="waiting"), store.write():
            pass
        leave.set()
        holder.join()


def test_a_place_where_no_file_can_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    url = f"sqlite:///{tmp_path / 'file' / 'accounts.sqlite'}"
    with pytest.raises(StoreUrlError, match="cannot make"):
        Store.open(url)
    with pytest.raises(PepperError, match="cannot"):
        open_accounts(url)


def test_a_file_that_is_no_database_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "accounts.sqlite"
    path.write_bytes(b"no database at all, " * 100)
    with Store.open(f"sqlite:///{path}") as store, pytest.raises(StoreUnavailableError, match="not a database"):
        store.migrate()


def test_a_full_disk_is_unavailable_and_loses_nothing(sqlite_url: str) -> None:
    with open_accounts(sqlite_url) as accounts:
        _, key = accounts.keys.create(account="acme")
        accounts.ledger.topup("acme", microcredits=100)
        with accounts.store.read() as connection:  # every connection of this pool in turn
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        note = "x" * 100_000
        with pytest.raises(StoreUnavailableError, match="full"):
            accounts.ledger.topup("acme", microcredits=1, note=note)
        assert accounts.ledger.balance("acme") == 100
        assert accounts.ledger.audit().sound
        assert key.account == "acme"


@pytest.mark.postgres
def test_postgres_gone_is_unavailable_and_comes_back(request: pytest.FixtureRequest, postgres_url: str) -> None:
    cluster = request.getfixturevalue("cluster")
    with open_accounts(postgres_url, pepper=PEPPER) as accounts:
        accounts.keys.create(account="acme")
        cluster.stop()
        try:
            for _ in range(2):
                with pytest.raises(StoreUnavailableError):
                    accounts.ledger.topup("acme", microcredits=1)
            with pytest.raises(StoreUnavailableError):
                accounts.store.version()
        finally:
            cluster.start()
        assert _eventually(lambda: accounts.ledger.topup("acme", microcredits=1)) == 1
        assert accounts.ledger.audit().sound


@pytest.mark.postgres
def test_a_postgres_that_became_read_only_is_unavailable_and_comes_back(cluster: Any, postgres_url: str) -> None:
    """As after a failover: what answers now is a standby."""
    with open_accounts(postgres_url, pepper=PEPPER) as accounts:
        accounts.keys.create(account="acme")
        name = _name(postgres_url)
        for read_only in (True, False):
            cluster.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = {'on' if read_only else 'off'}")
            cluster.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
            if read_only:
                with pytest.raises(StoreUnavailableError):  # the connection ends
                    accounts.ledger.topup("acme", microcredits=1)
                with pytest.raises(StoreUnavailableError, match="read-only") as refusal:
                    accounts.ledger.topup("acme", microcredits=1)
                assert accounts.ledger.balance("acme") == 0
                assert fault_of(refusal.value).status == 503
                assert int(fault_of(refusal.value).headers["retry-after"]) >= 1
        assert _eventually(lambda: accounts.ledger.topup("acme", microcredits=1)) == 1
        assert accounts.ledger.audit().sound


@pytest.mark.postgres
def test_a_transaction_that_the_server_ended_is_unavailable(postgres_url: str) -> None:
    with Store.open(postgres_url) as store:

        def sleep_inside() -> None:
            with store.write() as connection:
                connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 50"))
                time.sleep(0.5)
                connection.execute(text("SELECT 1"))

        with pytest.raises(StoreUnavailableError):
            sleep_inside()
        with store.write() as connection:
            assert connection.scalar(text("SELECT 1")) == 1


@pytest.mark.postgres
def test_a_right_that_is_missing_is_said_with_the_way_out(cluster: Any, postgres_url: str) -> None:
    cluster.execute("CREATE ROLE weak LOGIN")
    try:
        open_accounts(postgres_url, pepper=PEPPER).close()
        with pytest.raises(StorePermissionError, match=r"permission denied .* GRANT") as refusal:
            open_accounts(postgres_url.replace("udever@", "weak@"), pepper=PEPPER)
        assert fault_of(refusal.value).status == 503
        assert "GRANT" not in fault_of(refusal.value).message  # that is the operator's business
    finally:
        cluster.execute("DROP ROLE weak")


def _name(postgres_url: str) -> str:
    return postgres_url.partition("@/")[2].partition("?")[0]


def _eventually(action: Callable[[], int]) -> int:
    for _ in range(20):
        try:
            return action()
        except StoreUnavailableError:
            time.sleep(0.1)
    return action()


@pytest.mark.postgres
def test_a_database_without_an_encoding_keeps_every_text(cluster: Any) -> None:
    cluster.execute("CREATE DATABASE bare ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    try:
        with open_accounts(cluster.url("bare"), pepper=PEPPER) as accounts:
            _, key = accounts.keys.create(account="Läden 店", name="ключ")
            [listed] = accounts.keys.list()
        assert (listed.account, listed.name) == (key.account, key.name) == ("Läden 店", "ключ")
    finally:
        cluster.execute("DROP DATABASE bare WITH (FORCE)")


@pytest.mark.postgres
def test_the_old_scheme_of_postgres_urls_is_understood(postgres_url: str) -> None:
    with Store.open(postgres_url.replace("postgresql://", "postgres://")) as store:
        store.version()


def test_no_database_server_there_is_unavailable(tmp_path: Path) -> None:
    with Store.open(f"postgresql://u:geheim@/x?host={tmp_path}") as store:
        with pytest.raises(StoreUnavailableError) as caught:
            store.version()
        assert "geheim" not in str(caught.value)


def test_sqlite_makes_its_pepper_once_for_its_owner_only(sqlite_url: str, tmp_path: Path) -> None:
    pepper = find_pepper(sqlite_url)
    assert find_pepper(sqlite_url) == pepper
    assert len(pepper) == 64
    path = tmp_path / "accounts.sqlite.pepper"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [*tmp_path.iterdir()] == [path]
    path.chmod(0o644)
    with pytest.raises(PepperError, match="chmod 600"):
        find_pepper(sqlite_url)


def test_files_made_here_are_the_owners_only(sqlite_url: str, tmp_path: Path) -> None:
    with open_accounts(sqlite_url) as accounts:
        accounts.keys.create(account="acme")
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert set(modes.values()) == {0o600}, modes


def test_an_empty_pepper_file_is_no_pepper(sqlite_url: str, tmp_path: Path) -> None:
    os.close(os.open(tmp_path / "accounts.sqlite.pepper", os.O_CREAT | os.O_WRONLY, 0o600))
    with pytest.raises(PepperError, match="no pepper"):
        find_pepper(sqlite_url)


def test_postgres_must_be_given_a_pepper_and_a_short_one_is_refused() -> None:
    with pytest.raises(PepperError, match="UDEVER_PEPPER"):
        find_pepper("postgresql://u@h/x")
    with pytest.raises(PepperError, match="fewer than"):
        find_pepper("postgresql://u@h/x", given="short")


def test_another_pepper_than_the_databases_is_found_out_at_start(database_url: str) -> None:
    open_accounts(database_url, pepper=PEPPER).close()
    open_accounts(database_url, pepper=PEPPER).close()
    with pytest.raises(PepperError, match="not the pepper"):
        open_accounts(database_url, pepper="another pepper than before")
