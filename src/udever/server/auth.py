"""API keys: made, shown once, checked, changed, rotated, revoked.

A secret is `udk-` and 40 random letters and digits. The first 8 of them stay visible and find the row; of the whole
only an HMAC-SHA-256 under the server's pepper is stored, and compared in constant time.
Invariant: a secret leaves this module once, from `create` or `rotate`, and is never stored, logged or put in an error;
a revoked key is refused from the next call on, for nothing is cached.
Does not know: HTTP headers, credits (ledger.py), or where the pepper comes from (pepper.py).
"""

import hashlib
import hmac
import re
import secrets as random_source
import string
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Unpack

from sqlalchemy import Connection, Row, bindparam, insert, or_, select, update

from udever.errors import OptionError
from udever.server.account_errors import (
    EndedKeyError,
    HandOnError,
    InvalidKeyError,
    PepperError,
    ScopeError,
    UnknownKeyError,
)
from udever.server.key_fields import LIMITS, KeyChanges, KeyFields, changed_values, new_row
from udever.server.schema import accounts, facts, keys, secrets
from udever.server.store import Store

ALPHABET = string.ascii_letters + string.digits
SECRET = re.compile(r"udk-[A-Za-z0-9]{40}")
PREFIX_CHARACTERS = len("udk-") + 8
NOBODY = hashlib.sha256(b"no key has this digest").digest()
"""Compared with when a prefix is unknown, so that the answer takes as long as for a wrong secret."""
DAY_SECONDS = 86_400.0
LONGEST_GRACE_SECONDS = 366 * DAY_SECONDS

Status = Literal["active", "expired", "revoked"]


@dataclass(frozen=True, kw_only=True)
class Key:
    """What a key may do. Holds no secret."""

    id: str
    """Stays the same when the secret is rotated; usage is booked under it."""
    account: str
    name: str
    prefix: str
    """The visible part of the secret: of the one just used, else of the newest."""
    models: tuple[str, ...] | None
    """Models it may use; None: all."""
    roles: tuple[str, ...] | None
    """Roles it may use; None: both."""
    truncate: str | None
    """What to do with over-long inputs that do not say; None: the server's default."""
    admin: bool
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_concurrent: int | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    made_by: str | None
    """Id of the key that made it over HTTP; None: the command line or a sign-up did."""
    current: bool
    """Whether it was shown with its newest secret, not with one that was rotated away, perhaps because it leaked."""

    def allows(self, *, model: str | None = None, role: str | None = None) -> bool:
        """Whether it may use this model and this role; None asks for neither."""
        within_models = model is None or self.models is None or model in self.models
        return within_models and (role is None or self.roles is None or role in self.roles)

    def require_scope(self, *, model: str | None = None, role: str | None = None) -> None:
        """Raises `ScopeError` unless it may use this model and this role."""
        if not self.allows(model=model):
            raise ScopeError("model", value=model or "")
        if not self.allows(role=role):
            raise ScopeError("role", value=role or "")

    @property
    def limits(self) -> dict[str, int]:
        """The limits that it has, by name."""
        return {name: limit for name in LIMITS if (limit := getattr(self, name)) is not None}

    def require_admin(self) -> None:
        """Raises `ScopeError` unless it is an admin key."""
        if not self.admin:
            raise ScopeError("admin")

    def require_current(self) -> None:
        """Raises `HandOnError` if its secret was rotated away: such a one changes nothing while it still works."""
        if not self.current:
            raise HandOnError("anything, since its secret was rotated away")

    def status(self, now: datetime) -> Status:
        """What it is worth at this time."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"

    def describe(self) -> dict[str, Any]:
        """For JSON: the key, not the secret it was shown with."""
        described = {name: v for name, v in asdict(self).items() if name != "current"}
        return {name: v.isoformat() if isinstance(v, datetime) else v for name, v in described.items()}


_AUTHENTICATE = (
    select(secrets.c.prefix, secrets.c.digest, secrets.c.expires_us.label("secret_expires_us"), keys)
    .join_from(secrets, keys, secrets.c.key_id == keys.c.id)
    .where(secrets.c.prefix == bindparam("prefix"))
)
_DESCRIBE = select(secrets.c.prefix, keys).join_from(
    keys, secrets, (secrets.c.key_id == keys.c.id) & secrets.c.expires_us.is_(None)
)


class Keys:
    """The keys of one database under one pepper. Thread-safe."""

    def __init__(self, store: Store, pepper: bytes, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._pepper = pepper
        self._clock = clock

    def check_pepper(self) -> None:
        """Raises `PepperError` if this database's keys were stored under another pepper; the first one is noted."""
        with self._store.write() as connection:
            self._store.add_missing(connection, facts, name="pepper", value=self.digest("pepper"))
            noted = connection.scalar(select(facts.c.value).where(facts.c.name == "pepper"))
        if not hmac.compare_digest(bytes(noted or b""), self.digest("pepper")):
            raise PepperError(
                "this is not the pepper that the database was set up with",
                hint="no key would work; restore the old one",
            )

    def create(self, **fields: Unpack[KeyFields]) -> tuple[str, Key]:
        """Make a key, and its account if there is none of this name. The secret is returned here and never again.

        Raises:
            OptionError: a value that cannot be; names it.
        """
        with self._store.write() as connection:
            return self.create_within(connection, **fields)

    def create_within(self, connection: Connection, **fields: Unpack[KeyFields]) -> tuple[str, Key]:
        """`create`, within a transaction of the caller."""
        now_us = self._now_us()
        row = new_row(fields, key_id=f"key-{_random(12)}", now_us=now_us)
        self._store.add_missing(connection, accounts, name=row["account"], balance_microcredits=0, created_us=now_us)
        connection.execute(insert(keys).values(row))
        return self._new_secret(connection, row["id"])

    def authenticate(self, secret: str) -> Key:
        """Whose secret this is.

        Raises:
            InvalidKeyError: unknown, revoked or expired.
        """
        well_formed = SECRET.fullmatch(secret) is not None
        row = self._look_up(secret[:PREFIX_CHARACTERS] if well_formed else "")
        stored = NOBODY if row is None else bytes(row.digest)
        if not hmac.compare_digest(self.digest(secret), stored) or row is None:
            raise InvalidKeyError("unknown")
        return self._if_usable(row)

    def recall(self, prefix: str) -> Key:
        """The key of somebody who has authenticated before with the secret of this prefix, while that secret works.

        Raises:
            InvalidKeyError: unknown, revoked or expired.
        """
        row = self._look_up(prefix)
        if row is None:
            raise InvalidKeyError("unknown")
        return self._if_usable(row)

    def list(self, *, account: str | None = None) -> "list[Key]":
        """All keys, or those of one account, oldest first; revoked and expired ones too."""
        query = _DESCRIBE.order_by(keys.c.created_us, keys.c.id)
        with self._store.read() as connection:
            rows = connection.execute(query if account is None else query.where(keys.c.account == account)).all()
        return [_key(row) for row in rows]

    def get(self, name: str) -> Key:
        """The key of this id or visible prefix, also of a rotated one. Raises `UnknownKeyError`."""
        with self._store.read() as connection:
            return find(connection, name)

    def change(self, key: str, /, **changes: Unpack[KeyChanges]) -> Key:
        """Change what the key may do, from its next request on; what is not named stays as it is.

        Raises:
            UnknownKeyError: no such key.
            EndedKeyError: it is revoked or has expired.
            OptionError: a value that cannot be; names it.
        """
        with self._store.write() as connection:
            return self.change_within(connection, key, **changes)

    def change_within(self, connection: Connection, key: str, /, **changes: Unpack[KeyChanges]) -> Key:
        """`change`, within a transaction of the caller."""
        locked = self._lock(connection, key)
        values = changed_values(locked._asdict(), changes, now_us=self._now_us())
        if values:
            connection.execute(update(keys).where(keys.c.id == locked.id).values(values))
        return find(connection, locked.id)

    def revoke(self, name: str) -> Key:
        """Refuse the key from now on, for good. Raises `UnknownKeyError`."""
        with self._store.write() as connection:
            return self.revoke_within(connection, name)

    def revoke_within(self, connection: Connection, name: str) -> Key:
        """`revoke`, within a transaction of the caller."""
        key = find(connection, name)
        mine = update(keys).where(keys.c.id == key.id, keys.c.revoked_us.is_(None))
        connection.execute(mine.values(revoked_us=self._now_us()))
        return find(connection, key.id)

    def rotate(self, name: str, *, grace_seconds: float = DAY_SECONDS) -> tuple[str, Key]:
        """A new secret for the same key; the old ones work for another `grace_seconds`, unless they end sooner.

        Raises:
            UnknownKeyError: no such key.
            EndedKeyError: it is revoked or has expired.
            OptionError: a grace below zero or above a year.
        """
        with self._store.write() as connection:
            return self.rotate_within(connection, name, grace_seconds=grace_seconds)

    def rotate_within(self, connection: Connection, name: str, *, grace_seconds: float) -> tuple[str, Key]:
        """`rotate`, within a transaction of the caller."""
        if not 0 <= grace_seconds <= LONGEST_GRACE_SECONDS:
            raise OptionError("the grace time must be between 0 and a year", hint="0 ends the old secret at once")
        ends_us = self._now_us() + int(grace_seconds * 1e6)
        locked = self._lock(connection, name)
        still_longer = or_(secrets.c.expires_us.is_(None), secrets.c.expires_us > ends_us)
        connection.execute(
            update(secrets).where(secrets.c.key_id == locked.id, still_longer).values(expires_us=ends_us)
        )
        return self._new_secret(connection, locked.id)

    def digest(self, secret: str) -> bytes:
        """What is stored in place of a secret: its HMAC-SHA-256 under the pepper."""
        return hmac.digest(self._pepper, secret.encode("utf-8", "replace"), "sha256")

    def _new_secret(self, connection: Connection, key_id: str) -> tuple[str, Key]:
        secret = f"udk-{_random(40)}"
        row = {"prefix": secret[:PREFIX_CHARACTERS], "key_id": key_id, "digest": self.digest(secret)}
        connection.execute(insert(secrets).values(**row, created_us=self._now_us()))
        return secret, find(connection, key_id)

    def _look_up(self, prefix: str) -> Row[Any] | None:
        with self._store.read() as connection:
            return connection.execute(_AUTHENTICATE, {"prefix": prefix}).one_or_none()

    def _if_usable(self, row: Row[Any]) -> Key:
        check_usable(row, now_us=self._now_us())
        if row.secret_expires_us is not None and row.secret_expires_us <= self._now_us():
            raise InvalidKeyError("expired")
        return _key(row, current=row.secret_expires_us is None)

    def _lock(self, connection: Connection, name: str) -> Row[Any]:
        """The key's row, for this transaction alone."""
        key = find(connection, name)
        locked = connection.execute(select(keys).where(keys.c.id == key.id).with_for_update()).one()
        try:
            check_usable(locked, now_us=self._now_us())
        except InvalidKeyError as error:
            raise EndedKeyError(error.reason) from error
        return locked

    def _now_us(self) -> int:
        return int(self._clock() * 1e6)


def check_usable(row: Row[Any], *, now_us: int) -> None:
    """Raises `InvalidKeyError` if this row of the keys is revoked or has expired."""
    if row.revoked_us is not None:
        raise InvalidKeyError("revoked")
    if row.expires_us is not None and row.expires_us <= now_us:
        raise InvalidKeyError("expired")


def to_datetime(moment_us: int | None) -> datetime | None:
    """The other way, in UTC."""
    return None if moment_us is None else datetime.fromtimestamp(moment_us / 1e6, tz=UTC)


def find(connection: Connection, name: str) -> Key:
    """The key of this id or visible prefix. Raises `UnknownKeyError`."""
    by_prefix = select(secrets.c.key_id).where(secrets.c.prefix == name).scalar_subquery()
    row = connection.execute(_DESCRIBE.where(or_(keys.c.id == name, keys.c.id == by_prefix))).one_or_none()
    if row is None:
        raise UnknownKeyError(name[:PREFIX_CHARACTERS] if name.startswith("udk-") else name)
    return _key(row)


def _key(row: Row[Any], *, current: bool = True) -> Key:
    return Key(
        id=row.id,
        account=row.account,
        name=row.name,
        prefix=row.prefix,
        models=None if row.models is None else tuple(row.models),
        roles=None if row.roles is None else tuple(row.roles),
        truncate=row.truncate,
        admin=row.admin,
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        max_concurrent=row.max_concurrent,
        created_at=datetime.fromtimestamp(row.created_us / 1e6, tz=UTC),
        expires_at=to_datetime(row.expires_us),
        revoked_at=to_datetime(row.revoked_us),
        made_by=row.made_by,
        current=current,
    )


def _random(characters: int) -> str:
    return "".join(random_source.choice(ALPHABET) for _ in range(characters))
