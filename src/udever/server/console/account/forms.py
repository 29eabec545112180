"""A form about a key becomes what `OwnKeys` takes, and a key becomes what its form shows.

Invariant: what a form leaves empty means no limit or no narrower scope, but never more than the managing key has.
Does not know: what is allowed (delegation.py), or that there is a browser.
"""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta

from udever.errors import OptionError
from udever.server.auth import Key
from udever.server.console.sessions import Form
from udever.server.key_fields import LIMITS, ROLES, KeyChanges

LIFETIMES = (("", "never"), ("7", "in 7 days"), ("30", "in 30 days"), ("90", "in 90 days"), ("365", "in a year"))
"""(days, in words): when a new key ends."""
GRACES = (("86400", "24 hours"), ("604800", "7 days"), ("3600", "an hour"), ("0", "no longer"))
"""(seconds, in words): how long a rotated secret still works."""
UNITS = (
    ("requests_per_minute", "Requests a minute"),
    ("tokens_per_minute", "Tokens a minute"),
    ("max_concurrent", "Requests at once"),
)


def read_changes(form: Form, *, manager: Key) -> KeyChanges:
    """Name, scopes and limits. Raises `OptionError`: a limit that is no whole number."""
    models, roles = form.all("models"), form.all("roles")
    return KeyChanges(
        name=form.get("name"),
        models=_narrowed(models, manager.models),
        roles=None if set(roles) == set(ROLES) and manager.roles is None else _narrowed(roles, manager.roles),
        requests_per_minute=_limit(form, "requests_per_minute"),
        tokens_per_minute=_limit(form, "tokens_per_minute"),
        max_concurrent=_limit(form, "max_concurrent"),
    )


def read_end(form: Form, *, manager: Key) -> datetime | None:
    """When a new key ends: as chosen, and with its manager if nothing is. Raises `OptionError`: another choice."""
    days = _choice(form.get("days"), [days for days, _ in LIFETIMES], what="lifetime")
    return datetime.now(UTC) + timedelta(days=int(days)) if days else manager.expires_at


def read_grace(form: Form) -> float:
    """How long the old secret still works. Raises `OptionError`: not one of the choices."""
    return float(_choice(form.get("grace"), [seconds for seconds, _ in GRACES], what="overlap"))


def model_choices(served: Collection[str], *, manager: Key, key: Key | None = None) -> list[str]:
    """The models a form offers: those served here that the manager may use, and those the key has already."""
    own = set(key.models or ()) if key else set()
    return sorted(own | {model for model in served if manager.allows(model=model)} | set(manager.models or ()))


def shown(key: Key | None, form: Form | None = None) -> dict[str, object]:
    """What stands in the fields: what was just sent, else the key's own, else nothing."""
    if form is not None:
        return {
            "name": form.get("name"),
            "models": form.all("models"),
            "roles": form.all("roles"),
            "days": form.get("days"),
            **{limit: form.get(limit) for limit in LIMITS},
        }
    limits = {limit: getattr(key, limit, None) or "" for limit in LIMITS}
    models, roles = (key.models or (), key.roles or ()) if key else ((), ())
    return {"name": key.name if key else "", "models": models, "roles": roles, "days": "", **limits}


def _narrowed(chosen: list[str], widest: tuple[str, ...] | None) -> list[str] | None:
    """Nothing chosen: all that the manager has."""
    return chosen or (None if widest is None else list(widest))


def _limit(form: Form, name: str) -> int | None:
    spoken = form.get(name).replace(",", "")
    if not spoken:
        return None
    if not (spoken.isascii() and spoken.isdigit() and len(spoken) <= 12):
        raise OptionError(f"{spoken[:20]!r} is no limit", hint="use a whole number, or leave the field empty")
    return int(spoken)


def _choice(given: str, choices: Collection[str], *, what: str) -> str:
    if given not in choices:
        raise OptionError(f"no {what} {given[:20]!r}", hint="choose one of those in the form")
    return given
