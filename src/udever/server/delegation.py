"""What a key may do for the keys of its account: make, change, rotate and revoke them, without ever gaining by it.

Whoever holds a key must not get more out of it than its owner put in: no second helping of a limit, no key that
outlives it or may use more, no secret of a stronger key. Hence

    account     only the key's own; a key of another one is as unknown as one that does not exist
    admin       no key is made an admin's here, and only an admin touches an admin's key
    scopes      models, roles and end of the other key lie within those of the key that manages it, before and after
    limits      a key that has a limit makes no keys and manages only itself: two keys would have twice its limit;
                its own limits it may lower
    secret      one that was rotated away, perhaps because it leaked, manages nothing while it still works

Invariant: every rule is checked in the transaction that does it, against both keys as they stand there.
Does not know: HTTP, or that an operator may do all this without rules (auth.py).
"""

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Unpack

from sqlalchemy import Connection, func, or_, select

from udever.errors import OptionError
from udever.server.account_errors import EndedKeyError, HandOnError, UnknownKeyError
from udever.server.auth import DAY_SECONDS, Key, Keys, find
from udever.server.key_fields import LIMITS, KeyChanges
from udever.server.schema import accounts, keys
from udever.server.store import Store

MOST_KEYS = 100
"""Of one account: those that work and those made in the last day, so that making and revoking in turn ends too."""


class OwnKeys:
    """The keys of an account in the hands of one of them, `manager`. Thread-safe.

    Every method raises `UnknownKeyError` for a key that is not the account's, `HandOnError` for what the manager may
    not do, and `EndedKeyError` if the manager itself was revoked or has expired meanwhile; further errors as in `Keys`.
    """

    def __init__(self, store: Store, *, keys: Keys, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._keys = keys
        self._clock = clock

    def create(self, manager: Key, **fields: Unpack[KeyChanges]) -> tuple[str, Key]:
        """A new key of the account. The secret is returned here and never again.

        Raises:
            OptionError: a value that cannot be, or too many keys.
        """
        with self._store.write() as connection:
            manager = self._current(connection, manager)
            self._check_room(connection, manager.account)
            secret, key = self._keys.create_within(
                connection, **fields, account=manager.account, admin=False, made_by=manager.id
            )
            require_within(manager, key)  # else the transaction ends here, and there is no such key
        return secret, key

    def change(self, manager: Key, key: str, /, **changes: Unpack[KeyChanges]) -> Key:
        """Change a key's name, scopes or limits."""
        with self._store.write() as connection:
            manager = self._current(connection, manager, managing=key)
            changed = self._keys.change_within(connection, key, **changes)
            require_within(manager, changed)
        return changed

    def rotate(self, manager: Key, name: str, *, grace_seconds: float = DAY_SECONDS) -> tuple[str, Key]:
        """A new secret for a key; the old ones work for another `grace_seconds`."""
        with self._store.write() as connection:
            self._current(connection, manager, managing=name)
            return self._keys.rotate_within(connection, name, grace_seconds=grace_seconds)

    def revoke(self, manager: Key, name: str) -> Key:
        """Refuse a key from now on, for good."""
        with self._store.write() as connection:
            self._current(connection, manager, managing=name)
            return self._keys.revoke_within(connection, name)

    def _current(self, connection: Connection, manager: Key, *, managing: str | None = None) -> Key:
        """The managing key as it stands now, allowed to manage that one as it stands now; neither changes meanwhile."""
        managed = find(connection, managing or manager.id)
        if managed.account != manager.account:
            raise UnknownKeyError(managing or "")
        both = select(keys.c.id).where(keys.c.id.in_([manager.id, managed.id])).order_by(keys.c.id)
        connection.execute(both.with_for_update())  # in one order, or two that manage each other would block for ever
        current = find(connection, manager.id)
        status = current.status(datetime.fromtimestamp(self._clock(), tz=UTC))
        if status != "active":
            raise EndedKeyError(status)
        if current.prefix != manager.prefix:
            raise HandOnError("anything, since its secret was rotated away")
        require_within(current, find(connection, managed.id))
        return current

    def _check_room(self, connection: Connection, account: str) -> None:
        row = select(accounts.c.name).where(accounts.c.name == account)
        connection.execute(row.with_for_update(key_share=True))  # after the keys, as the ledger does
        now_us = int(self._clock() * 1e6)
        works = keys.c.revoked_us.is_(None) & or_(keys.c.expires_us.is_(None), keys.c.expires_us > now_us)
        counted = or_(works, keys.c.created_us > now_us - int(DAY_SECONDS * 1e6))
        number = connection.scalar(select(func.count()).where(keys.c.account == account, counted)) or 0
        if number >= MOST_KEYS:
            raise OptionError(f"an account has at most {MOST_KEYS} keys", hint="revoke some, and try again tomorrow")


def may_manage(manager: Key, key: Key) -> bool:
    """Whether `require_within` would let it: for showing what can be done."""
    return key.account == manager.account and not _beyond(manager, key)


def require_within(manager: Key, key: Key) -> None:
    """Raises `HandOnError` if `key` may do anything that `manager` may not, or would give it more of what it may."""
    beyond = _beyond(manager, key)
    if beyond:
        raise HandOnError(beyond)


def _beyond(manager: Key, key: Key) -> str:
    """The first rule that is broken, or nothing."""
    itself = manager.id == key.id
    rules = (
        (manager.admin or not key.admin, "an admin key"),
        (not manager.limits or itself, "other keys, since it has limits itself"),
        (_subset(key.models, manager.models), "other models"),
        (_subset(key.roles, manager.roles), "another role"),
        (_ends_by(key.expires_at, manager.expires_at), "a later end"),
        *((_at_most(getattr(key, name), getattr(manager, name)), f"more {_spoken(name)}") for name in LIMITS),
    )
    return next((what for holds, what in rules if not holds), "")


def _subset(inner: Iterable[str] | None, outer: Iterable[str] | None) -> bool:
    return outer is None or (inner is not None and set(inner) <= set(outer))


def _ends_by(inner: datetime | None, outer: datetime | None) -> bool:
    return outer is None or (inner is not None and inner <= outer)


def _at_most(inner: int | None, outer: int | None) -> bool:
    return outer is None or (inner is not None and inner <= outer)


def _spoken(limit: str) -> str:
    return {"max_concurrent": "concurrent requests"}.get(limit, limit.replace("_", " "))
