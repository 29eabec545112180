"""The accounts database: connections, transactions, schema upgrades; SQLite by default, PostgreSQL by URL.

Invariant: a write transaction sees no other writer's half-done work and waits its turn at most `wait_seconds`; whatever
makes the database unusable comes out as `StoreUnavailableError`, and what it cannot keep as `OptionError`, never as a
driver's error.
Does not know: keys, credits, or where its URL comes from.

    SQLite      WAL, synchronous=NORMAL: a commit survives a killed process; a power cut may lose the last ones, but
                never corrupts. Writers take BEGIN IMMEDIATE, behind a lock within this process: SQLite's own waiting
                sleeps up to 100 ms at a time, a lock does not. Only the owner may read a file made here.
    PostgreSQL  read committed; rows that a decision rests on are locked by the caller.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, exc, func, inspect, make_url, select, text
from sqlalchemy.dialects import postgresql, sqlite

from udever.errors import OptionError
from udever.server.account_errors import (
    StorePermissionError,
    StoreUnavailableError,
    StoreUrlError,
    StoreVersionError,
)

MIGRATIONS = Path(__file__).parent / "migrations"
HEAD = "0002"
"""The newest migration; a database that has it needs no upgrade, and then alembic is not even imported."""
UPGRADE_LOCK = 0x7564_6576_6572
"""PostgreSQL advisory lock under which one replica upgrades while the others wait."""
INSUFFICIENT_PRIVILEGE = "42501"
"""PostgreSQL's code for a right that the user lacks; the driver counts it among the errors of programs."""


class Store:
    """One database. Thread-safe; every method opens and closes its own transaction."""

    def __init__(self, engine: Engine, *, wait_seconds: float) -> None:
        self._engine = engine
        self._wait_seconds = wait_seconds
        self.is_sqlite = engine.dialect.name == "sqlite"
        self._reader = engine if self.is_sqlite else engine.execution_options(isolation_level="AUTOCOMMIT")
        self._writing = threading.Lock()

    @classmethod
    def open(cls, url: str, *, wait_seconds: float = 5.0) -> Self:
        """Prepare to connect to `sqlite:///PATH`, `postgresql://…` or `postgres://…`; a missing SQLite file is created.

        Raises:
            StoreUrlError: another kind of URL, or none; or a place where no file can be made.
        """
        parsed = parse_url(url)
        connect = _connect_sqlite if parsed.get_backend_name() == "sqlite" else _connect_postgres
        return cls(connect(parsed, wait_seconds), wait_seconds=wait_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection outside any transaction: each statement sees one consistent state, two may see two."""
        with _unavailable(), self._reader.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A write transaction: committed at the end, rolled back by any exception."""
        with _unavailable(), self._turn(), self._engine.connect() as connection:
            if self.is_sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection
            connection.commit()

    def add_missing(self, connection: Connection, table: Table, /, **row: Any) -> bool:
        """Insert a row unless its primary key is there, also when two writers do so at once; whether it was missing."""
        insert = sqlite.insert if self.is_sqlite else postgresql.insert
        statement = insert(table).values(**row).on_conflict_do_nothing().returning(*table.primary_key)
        return connection.execute(statement).first() is not None

    def migrate(self) -> None:
        """Bring the schema up to date. Any number of replicas may do so at once: one does it, the others wait.

        Raises:
            StoreVersionError: the schema is newer than this program.
            StoreUnavailableError: the database cannot be reached.
        """
        if self.version() == HEAD:
            return
        with self.write() as connection:
            if not self.is_sqlite:
                connection.execute(text("SET LOCAL lock_timeout = 0"))
                connection.execute(select(func.pg_advisory_xact_lock(UPGRADE_LOCK)))
            _upgrade(connection)

    def version(self) -> str | None:
        """The last migration this database has seen; None before the first."""
        with self.read() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            version: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
            return version

    def _turn(self) -> AbstractContextManager[None]:
        return self._sqlite_turn() if self.is_sqlite else nullcontext()

    @contextmanager
    def _sqlite_turn(self) -> Iterator[None]:
        if not self._writing.acquire(timeout=self._wait_seconds):
            raise StoreUnavailableError("too many writers are waiting")
        try:
            yield
        finally:
            self._writing.release()


def parse_url(url: str) -> URL:
    """A database URL with the driver we use in it.

    Raises:
        StoreUrlError: says which URLs are possible, and never repeats a password.
    """
    hint = "use sqlite:///PATH or postgresql://USER@HOST/NAME"
    try:
        parsed = make_url(url)
    except exc.ArgumentError as error:
        raise StoreUrlError("this is not a database URL", hint=hint) from error
    if parsed.drivername == "sqlite" and parsed.database not in (None, "", ":memory:"):
        return parsed
    if parsed.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    raise StoreUrlError(f"{parsed.render_as_string()} is no database udever can use", hint=hint)


def _connect_sqlite(url: URL, wait_seconds: float) -> Engine:
    path = Path(str(url.database))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.touch(mode=0o600)
    except OSError as error:
        raise StoreUrlError(f"cannot make {path}: {error.strerror}", hint="choose a place you may write to") from error
    engine = create_engine(
        url,
        connect_args={"timeout": wait_seconds, "isolation_level": None},  # None: we say BEGIN ourselves
        pool_size=8,
        max_overflow=56,
        pool_use_lifo=True,
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")

    return engine


def _connect_postgres(url: URL, wait_seconds: float) -> Engine:
    milliseconds = int(wait_seconds * 1000)
    return create_engine(
        url,
        connect_args={
            "connect_timeout": max(int(wait_seconds), 2),
            "tcp_user_timeout": 2 * milliseconds,  # a server that vanished without a word
            "options": f"-c lock_timeout={milliseconds} -c idle_in_transaction_session_timeout=60000 -c timezone=UTC",
            "application_name": "udever",
            "client_encoding": "utf8",  # whatever the database's: of SQL_ASCII psycopg would give bytes
        },
        pool_size=8,
        max_overflow=24,
        pool_timeout=wait_seconds,
        pool_use_lifo=True,
    )


def _upgrade(connection: Connection) -> None:
    """Run the migrations in the transaction of `connection`: all of them or none."""
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:  # the database's revision is none of ours
        raise StoreVersionError(
            "the accounts database was written by a newer udever", hint="upgrade udever, or use another database"
        ) from error


@contextmanager
def _unavailable() -> Iterator[None]:
    """Locked, full, read-only, gone or damaged databases and an exhausted pool, in our words."""
    try:
        yield
    except exc.TimeoutError as error:
        raise StoreUnavailableError("no connection became free in time") from error
    except exc.DataError as error:
        raise OptionError("the database cannot keep one of these values", hint="is there a NUL character?") from error
    except (exc.DatabaseError, exc.InterfaceError) as error:
        cause = " ".join(str(error.orig).split())
        if getattr(error.orig, "sqlstate", None) == INSUFFICIENT_PRIVILEGE:
            raise StorePermissionError(cause) from error
        # Internal: in PostgreSQL's words also a database that is read-only now, or a transaction it has ended
        away = isinstance(error, (exc.OperationalError, exc.InternalError, exc.InterfaceError))
        if away or type(error) is exc.DatabaseError:
            raise StoreUnavailableError(cause) from error
        raise
