"""The accounts database on the command line: which one, and opening it.

Invariant: no secret comes from the command line, where every user of the machine could read it.
Does not know: what is done with keys and ledger; importing this module imports no SQLAlchemy.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from udever.cli.options import needing
from udever.errors import OptionError, UdeverError

if TYPE_CHECKING:
    from udever.server.accounts import Accounts


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DatabaseChoice:
    """Which database, as `udever serve` would choose it."""

    database: Annotated[str | None, Parameter(help="sqlite:///PATH or postgresql://…; default: the server's own.")] = (
        None
    )
    """A URL without a password; None: UDEVER_DATABASE_URL, the settings file or the default."""
    config: Annotated[Path | None, Parameter(help="The server's settings file (TOML).")] = None
    """None: UDEVER_CONFIG, or none."""


def open_database(choice: DatabaseChoice, *, create: bool = False) -> "Accounts":
    """Open the accounts; only with `create` may a SQLite file be new.

    Raises:
        OptionError: a password in the URL, or settings that cannot be.
        AccountError: the database or its pepper cannot be used.
        UdeverError: the service's packages are not installed, or there is no database yet.
    """
    with needing("server", what="the accounts database"):
        from udever.server.accounts import open_accounts
        from udever.server.settings import load_settings
        from udever.server.store import parse_url
    if choice.database and parse_url(choice.database).password:
        raise OptionError("a password in --database can be seen by others", hint="use UDEVER_DATABASE_URL or ~/.pgpass")
    settings = load_settings({"database_url": choice.database, "config": choice.config})
    url = parse_url(settings.database_url)
    if not create and url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        raise UdeverError(f"there is no accounts database {url.database}", hint="udever keys create makes it")
    return open_accounts(settings.database_url, pepper=settings.pepper)
