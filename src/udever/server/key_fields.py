"""What a new key may be like: the fields a caller gives, checked and turned into a row.

Invariant: no row leaves here that the rest of the accounts could not work with.
Does not know: secrets, or the database.
"""

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Required, TypedDict

from udever.errors import OptionError

NAME = re.compile(r"[^\s\x00-\x1f\x7f](?:[^\x00-\x1f\x7f]{0,98}[^\s\x00-\x1f\x7f])?")
ROLES = ("query", "document")
TRUNCATIONS = ("error", "end", "start")
LIMITS = ("requests_per_minute", "tokens_per_minute", "max_concurrent")
LARGEST_LIMIT = 1_000_000_000


class KeyFields(TypedDict, total=False):
    """What `Keys.create` takes; only the account is needed. The meanings are those of `Key`."""

    account: Required[str]
    name: str
    models: Iterable[str] | None
    roles: Iterable[str] | None
    truncate: str | None
    expires_at: datetime | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_concurrent: int | None
    admin: bool


def new_row(fields: KeyFields, *, key_id: str, now_us: int) -> dict[str, Any]:
    """A new row of the keys. Raises `OptionError` for the first value that cannot be."""
    expires_at, models, roles = fields.get("expires_at"), fields.get("models"), fields.get("roles")
    row = {
        "id": key_id,
        "account": fields["account"],
        "name": fields.get("name", ""),
        "models": None if models is None else list(models),
        "roles": None if roles is None else list(roles),
        "truncate": fields.get("truncate"),
        "admin": fields.get("admin", False),
        **{limit: fields.get(limit) for limit in LIMITS},
        "requests_full_us": 0,
        "tokens_full_us": 0,
        "created_us": now_us,
        "expires_us": None if expires_at is None else to_us(expires_at),
    }
    _check(row)
    return row


def _check(row: dict[str, Any]) -> None:
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
        (row["expires_us"] is None or row["expires_us"] > row["created_us"], "the expiry lies in the past"),
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
