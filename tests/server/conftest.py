"""Real databases for the accounts: a SQLite file, or a database in a private PostgreSQL cluster, for each test anew.

The cluster lives in a folder of its own and listens on a Unix socket there only. PostgreSQL refuses to run as root, so
root starts it as the user `postgres`.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psycopg
import pytest

from udever.server.accounts import Accounts, open_accounts

PEPPER = "a pepper for tests only"
NO_POSTGRES = "PostgreSQL is not installed here (Debian: apt install postgresql)"


@dataclass
class Clock:
    """A clock that moves when told."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Cluster:
    """A private PostgreSQL server."""

    programs: Path
    folder: Path
    numbers: Iterator[int] = field(default_factory=count)

    def run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs as the user it accepts."""
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
        log = self.folder / "output.log"
        with log.open("ab") as output:
            done = subprocess.run(
                [*as_user, str(self.programs / program), *arguments],
                stdout=output, stderr=output, cwd=self.folder, timeout=60, check=False,
            )  # fmt: skip
        assert done.returncode == 0, log.read_text()

    def create(self) -> None:
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
        data = str(self.folder / "data")
        self.run("initdb", "-D", data, "-U", "udever", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")

    def start(self) -> None:
        options = f"-c listen_addresses='' -k {self.folder} -c fsync=off -c max_connections=200"
        self.run("pg_ctl", "start", "-w", "-D", str(self.folder / "data"), "-o", options)

    def stop(self) -> None:
        self.run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", str(self.folder / "data"))

    def url(self, database: str) -> str:
        return f"postgresql://udever@/{database}?host={self.folder}"

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement.encode())


def _programs() -> Path | None:
    """The folder of initdb and pg_ctl; Debian keeps them out of the PATH."""
    found = shutil.which("initdb")
    candidates = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return candidates[-1] if candidates and (candidates[-1] / "pg_ctl").exists() else None


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One PostgreSQL server for the whole run; skips where there is none."""
    programs = _programs()
    if programs is None:
        pytest.skip(NO_POSTGRES)
    folder = Path(tempfile.mkdtemp(prefix="udever-pg-"))  # short: a socket's path has at most 107 characters
    cluster = Cluster(programs=programs, folder=folder)
    try:
        cluster.create()
        cluster.start()
        yield cluster
        cluster.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(cluster: Cluster) -> Iterator[str]:
    """An empty PostgreSQL database."""
    name = f"test_{next(cluster.numbers)}"
    cluster.execute(f"CREATE DATABASE {name}")
    yield cluster.url(name)
    cluster.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'accounts.sqlite'}"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest) -> str:
    """An empty database: each test runs once on SQLite and once on PostgreSQL."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def clock() -> Clock:
    """The accounts' clock."""
    return Clock()


@pytest.fixture
def open_with(database_url: str, clock: Clock) -> Iterator[Callable[..., Accounts]]:
    """Open the test's database, as often as wanted: each is like one more replica."""
    opened: list[Accounts] = []

    def open_(**options: object) -> Accounts:
        opened.append(open_accounts(database_url, pepper=PEPPER, clock=clock, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield open_
    for accounts in opened:
        accounts.close()


@pytest.fixture
def accounts(open_with: Callable[..., Accounts]) -> Accounts:
    """The accounts of a fresh database."""
    return open_with()
