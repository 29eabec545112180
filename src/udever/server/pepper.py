"""The pepper: the server's own secret, without which stolen key digests are worth nothing.

Invariant: it never stands in the database it protects. Beside SQLite it is a random file that only its owner can read;
for PostgreSQL, which replicas on many machines share, it must be given.
Does not know: keys, or where a given pepper comes from.
"""

import os
import secrets
from pathlib import Path
from tempfile import NamedTemporaryFile

from udever.server.account_errors import PepperError
from udever.server.store import parse_url

MIN_CHARACTERS = 16
PEPPER_BYTES = 32


def find_pepper(database_url: str, *, given: str | None = None) -> bytes:
    """The given pepper, or the one in `FILE.pepper` beside a SQLite file, made at first use.

    Raises:
        PepperError: too short, missing for PostgreSQL, unreadable, or readable by others.
        StoreUrlError: not a database URL we know.
    """
    url = parse_url(database_url)
    if given is not None:
        if len(given) < MIN_CHARACTERS:
            raise PepperError(f"the pepper has fewer than {MIN_CHARACTERS} characters", hint="use 32 random ones")
        return given.encode()
    if url.get_backend_name() != "sqlite":
        raise PepperError("PostgreSQL needs a pepper, the same for all replicas", hint="set UDEVER_PEPPER")
    path = Path(f"{url.database}.pepper")
    if not path.exists():
        _make(path)
    return _read(path)


def _make(path: Path) -> None:
    """Write a random pepper under a name of its own, then link it into place: nobody ever sees half of one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=path.parent, prefix=".pepper-") as stream:  # such files are 0600
            stream.write(secrets.token_hex(PEPPER_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
            os.link(stream.name, path)
    except FileExistsError:  # another process was first: its pepper is the one
        return
    except OSError as error:
        raise PepperError(f"cannot make {path}: {error.strerror}", hint="or set UDEVER_PEPPER") from error


def _read(path: Path) -> bytes:
    try:
        if os.name == "posix" and path.stat().st_mode & 0o077:
            raise PepperError(f"{path} can be read by others", hint=f"chmod 600 {path}")
        pepper = path.read_bytes().strip()
    except OSError as error:
        raise PepperError(f"cannot read {path}: {error.strerror}", hint="run udever as its owner") from error
    if len(pepper) < MIN_CHARACTERS:
        raise PepperError(f"{path} holds no pepper", hint="restore the file from a backup")
    return pepper
