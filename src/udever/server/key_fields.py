"""What a key may be like: the fields a caller gives, checked and turned into a row, or into changes of one.

Invariant: no row leaves here that the rest of the accounts could not work with.
Does not know: secrets, or the database.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Required, TypedDict

from udever.errors import OptionError

NAME = re.compile(r"[^\s\x00-\x1f\x7f](?:[^\x00-\x1f\x7f]{0,98}[^\s\x00-\x1f\x7f])?")
ROLES = ("query", "document")
TRUNCATIONS = ("error", "end", "start")
LIMITS = ("requests_per_minute", "tokens_per_minute", "max_concurrent")
LARGEST_LIMIT = 1_000_000_000


class KeyChanges(TypedDict, total=False):
    """What of a key can be changed later: a field that is left out stays, None takes a limit or scope away."""

    name: str
    models: Iterable[str] | None
    roles: Iterable[str] | None
    truncate: str | None
    expires_at: datetime | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_concurrent: int | None


class KeyFields(KeyChanges, total=False):
    """What `Keys.create` takes; only the account is needed. The meanings are those of `Key`."""

    account: Required[str]
    admin: bool
    made_by: str | None


_UNSAID = {"name": "", "truncate": None, "models": None, "roles": None, "expires_us": None, **dict.fromkeys(LIMITS)}


def new_row(fields: KeyFields, *, key_id: str, now_us: int) -> dict[str, Any]:
    """A new row of the keys. Raises `OptionError` for the first value that cannot be."""
    row = {
        **_UNSAID,
        "id": key_id,
        "account": fields["account"],
        "admin": fields.get("admin", False),
        "made_by": fields.get("made_by"),
        "requests_full_us": 0,
        "tokens_full_us": 0,
        "created_us": now_us,
        **_stored(fields),
    }
    _check(row, now_us=now_us)
    return row


def changed_values(row: Mapping[str, Any], changes: KeyChanges, *, now_us: int) -> dict[str, Any]:
    """The columns of `row` that change. Raises `OptionError` for the first value that cannot be."""
    values = _stored(changes)
    ends = {} if "expires_us" in values else {"expires_us": None}  # an end that stays was checked when it was set
    _check({**row, **values, **ends}, now_us=now_us)
    return values


def _stored(fields: KeyChanges) -> dict[str, Any]:
    """The fields that were given, as the database keeps them."""
    values: dict[str, Any] = {name: fields[name] for name in ("name", "truncate", *LIMITS) if name in fields}  # type: ignore[literal-required]
    if "models" in fields:
        values["models"] = None if fields["models"] is None else list(fields["models"])
    if "roles" in fields:
        values["roles"] = None if fields["roles"] is None else list(fields["roles"])
    if "expires_at" in fields:
        values["expires_us"] = None if fields["expires_at"] is None else to_us(fields["expires_at"])
    return values


def _check(row: Mapping[str, Any], *, now_us: int) -> None:
    limits = [row[limit] for limit in LIMITS if row[limit] is not None]
    rules = (
        (NAME.fullmatch(row["account"]), "the account's name must be 1 to 100 printable characters"),
        (not row["name"] or NAME.fullmatch(row["name"]), "the key's name must be at most 100 printable characters"),
        (
            row["models"] is None or (row["models"] and all(row["models"])),
            "models must be names; leave them out to allow all",
        ),
        (row["roles"] is None or row["roles"], "roles must be given or left out, which allows both"),
        (set(row["roles"] or ()) <= set(ROLES), f"the roles are {' and '.join(ROLES)}"),
        (row["truncate"] in (None, *TRUNCATIONS), f"truncate must be one of {', '.join(TRUNCATIONS)}"),
        (row["expires_us"] is None or row["expires_us"] > now_us, "the expiry lies in the past"),
        (all(0 < limit <= LARGEST_LIMIT for limit in limits), f"a limit must be between 1 and {LARGEST_LIMIT:,}"),
    )
    for holds, meaning in rules:
        if not holds:
            raise OptionError(meaning)


def to_us(moment: datetime) -> int:
    """Microseconds since 1970. Raises `OptionError` for a time without a time zone."""
    if moment.tzinfo is None:
        raise OptionError(f"{moment.isoformat()} has no time zone", hint="append Z or +00:00")
    return round(moment.timestamp() * 1e6)
