"""`udever keys`: make, list, limit, revoke and rotate API keys, and give credit, directly in the accounts database.

Invariant: a secret is printed once, on stdout and by itself, when it is made; nothing else about it goes there.
Does not know: how keys are stored, or whether a server is running; a running one obeys at once.
"""

import json
import re
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from udever.cli.database import DatabaseChoice, open_database
from udever.cli.options import JsonFlag, Role, Truncate
from udever.errors import OptionError
from udever.server.credits import format_credits, to_microcredits

if TYPE_CHECKING:
    from udever.server.auth import Key

app = App(
    name="keys", help="Make, list, limit, revoke and rotate API keys; give accounts credit.", help_format="plaintext"
)

DURATION = re.compile(r"(\d{1,6})([smhd])")
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
COLUMNS = ("key", "account", "name", "status", "scopes", "limits", "credits")

Limit = int | Literal["none"]
KeyName = Annotated[str, Parameter(help="The key's id (key-…) or the visible start of its secret (udk-…).")]


@app.command
def create(
    *,
    account: Annotated[str, Parameter(help="Who pays; a new account is made for a new name.")],
    name: Annotated[str, Parameter(help="What the key is for.")] = "",
    model: Annotated[
        tuple[str, ...], Parameter(negative=(), help="Model it may use; repeat for more. Default: all.")
    ] = (),
    role: Annotated[tuple[Role, ...], Parameter(negative=(), help="Role it may use. Default: both.")] = (),
    truncate: Annotated[Truncate | None, Parameter(help="What over-long inputs that do not say meet.")] = None,
    expires: Annotated[str | None, Parameter(help="When it ends: 90d, 12h, or a date. Default: never.")] = None,
    requests_per_minute: Annotated[int | None, Parameter(help="Default: no limit.")] = None,
    tokens_per_minute: Annotated[int | None, Parameter(help="Default: no limit.")] = None,
    max_concurrent: Annotated[int | None, Parameter(help="Requests at the same time. Default: no limit.")] = None,
    admin: Annotated[bool, Parameter(negative=(), help="May use the admin endpoints.")] = False,
    credits: Annotated[Decimal | None, Parameter(help="Give the account this much credit, too.")] = None,
    choice: DatabaseChoice = DatabaseChoice(),  # noqa: B008  frozen
    as_json: JsonFlag = False,
) -> None:
    """Make a key and print its secret, once: KEY=$(udever keys create --account NAME)."""
    amount = 0 if credits is None else to_microcredits(credits)
    if amount < 0:
        raise OptionError(f"--credits {credits} would take credit away", hint="udever keys topup does that")
    expires_at = None if expires is None else _moment(expires)
    with open_database(choice, create=True) as accounts:
        with accounts.store.write() as connection:  # all or nothing: no key stays whose secret was not shown
            secret, key = accounts.keys.create_within(
                connection,
                account=account,
                name=name,
                models=model or None,
                roles=role or None,
                truncate=truncate,
                expires_at=expires_at,
                requests_per_minute=requests_per_minute,
                tokens_per_minute=tokens_per_minute,
                max_concurrent=max_concurrent,
                admin=admin,
            )
            if amount:
                note = "udever keys create"
                accounts.ledger.add(connection, "topup", account=account, microcredits=amount, note=note)
        balance = accounts.ledger.balance(account)
    _show_secret(secret, key, as_json=as_json, balance_microcredits=balance)


@app.command(name="list")
def list_(
    *,
    account: Annotated[str | None, Parameter(help="Only the keys of this account.")] = None,
    choice: DatabaseChoice = DatabaseChoice(),  # noqa: B008
    as_json: JsonFlag = False,
) -> None:
    """List the keys with their scopes and limits, and their accounts' credits."""
    with open_database(choice) as accounts:
        keys = accounts.keys.list(account=account)
        balances = accounts.ledger.balances()
    now = datetime.now(tz=UTC)
    if as_json:
        extra = [{"status": key.status(now), "balance_microcredits": balances[key.account]} for key in keys]
        print(json.dumps([key.describe() | more for key, more in zip(keys, extra, strict=True)]))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for heading in COLUMNS:
        amount = heading == "credits"
        whole = heading not in ("account", "name", "scopes")
        table.add_column(heading, justify="right" if amount else "left", no_wrap=whole, overflow="fold")
    for key in keys:
        who = (f"{key.id}\n{key.prefix}…", key.account, key.name, _status(key, now))
        table.add_row(*who, _scopes(key), _limits(key), format_credits(balances[key.account]))
    Console(highlight=False, markup=False).print(table)


@app.command
def limit(
    key: KeyName,
    /,
    *,
    requests_per_minute: Annotated[Limit | None, Parameter(help="A number, or none.")] = None,
    tokens_per_minute: Annotated[Limit | None, Parameter(help="A number, or none.")] = None,
    max_concurrent: Annotated[Limit | None, Parameter(help="A number, or none.")] = None,
    model: Annotated[tuple[str, ...], Parameter(negative=(), help="Only these models from now on; repeatable.")] = (),
    role: Annotated[tuple[Role, ...], Parameter(negative=(), help="Only these roles from now on.")] = (),
    all_models: Annotated[bool, Parameter(negative=(), help="All models from now on.")] = False,
    all_roles: Annotated[bool, Parameter(negative=(), help="Both roles from now on.")] = False,
    choice: DatabaseChoice = DatabaseChoice(),  # noqa: B008
    as_json: JsonFlag = False,
) -> None:
    """Change a key's limits and scopes, from its next request on; what is not named stays as it is."""
    if (model and all_models) or (role and all_roles):
        raise OptionError("--all-models excludes --model, and --all-roles excludes --role")
    limits = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "max_concurrent": max_concurrent,
    }
    changes: dict[str, Any] = {name: None if n == "none" else n for name, n in limits.items() if n is not None}
    changes |= {"models": model or None} if model or all_models else {}
    changes |= {"roles": role or None} if role or all_roles else {}
    if not changes:
        raise OptionError("nothing to change", hint="say what, such as --requests-per-minute 600")
    with open_database(choice) as accounts:
        changed = accounts.keys.change(key, **changes)
    if as_json:
        print(json.dumps(changed.describe()))
        return
    scopes, limited = (", ".join(shown.split("\n")) for shown in (_scopes(changed), _limits(changed)))
    print(f"{changed.id}: limits {limited}; scopes {scopes}")


@app.command
def revoke(
    key: KeyName,
    /,
    *,
    choice: DatabaseChoice = DatabaseChoice(),  # noqa: B008
    as_json: JsonFlag = False,
) -> None:
    """Refuse a key from now on, for good."""
    with open_database(choice) as accounts:
        revoked = accounts.keys.revoke(key)
    print(json.dumps(revoked.describe()) if as_json else f"{revoked.id} is revoked")


@app.command
def rotate(
    key: KeyName,
    /,
    *,
    grace: Annotated[str, Parameter(help="How long the old secret still works: 24h, 7d, 0s.")] = "24h",
    choice: DatabaseChoice = DatabaseChoice(),  # noqa: B008
    as_json: JsonFlag = False,
) -> None:
    """Give a key a new secret and print it, once; scopes, limits and usage stay with the key."""
    seconds = _duration(grace)
    if seconds is None:
        raise OptionError(f"{grace!r} is no duration", hint="use a number and s, m, h or d: 24h")
    with open_database(choice) as accounts:
        secret, rotated = accounts.keys.rotate(key, grace_seconds=seconds)
    _show_secret(secret, rotated, as_json=as_json)


@app.command
def topup(
    account: Annotated[str, Parameter(help="The account's name.")],
    credits: Annotated[Decimal, Parameter(help="How much; a negative amount corrects an earlier one.")],
    /,
    *,
    note: Annotated[str, Parameter(help="Kept with the entry.")] = "",
    once: Annotated[
        str | None, Parameter(help="A name, such as an invoice's; under it the account is given this credit once.")
    ] = None,
    choice: DatabaseChoice = DatabaseChoice(),  # noqa: B008
    as_json: JsonFlag = False,
) -> None:
    """Give an account credit. A credit is a million microcredits, in which prices are counted."""
    amount = to_microcredits(credits)
    with open_database(choice) as accounts:
        if once is None:
            balance = accounts.ledger.topup(account, microcredits=amount, note=note)
        else:
            balance = accounts.ledger.topup_once(account, microcredits=amount, note=note, once=once)
    if as_json:
        print(json.dumps({"account": account, "balance_microcredits": balance}))
    else:
        print(f"{account} has {format_credits(balance)} credits")


def _duration(spoken: str) -> int | None:
    """Seconds; None if it is no duration."""
    match = DURATION.fullmatch(spoken)
    return int(match[1]) * UNIT_SECONDS[match[2]] if match else None


def _moment(spoken: str) -> datetime:
    seconds = _duration(spoken)
    if seconds is not None:
        return datetime.now(tz=UTC) + timedelta(seconds=seconds)
    try:
        moment = datetime.fromisoformat(spoken)
    except ValueError as error:
        raise OptionError(f"{spoken!r} is no time", hint="use 90d, 12h, 2030-01-31 or 2030-01-31T12:00Z") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _show_secret(secret: str, key: "Key", *, as_json: bool, **facts: Any) -> None:
    if as_json:
        print(json.dumps({"secret": secret, **key.describe(), **facts}))
        return
    print(f"{key.id} of account {key.account}: keep its secret, it is not shown again.", file=sys.stderr, flush=True)
    print(secret)


def _status(key: "Key", now: datetime) -> str:
    status = key.status(now)
    return f"active until\n{key.expires_at:%Y-%m-%d}" if status == "active" and key.expires_at else status


def _scopes(key: "Key") -> str:
    parts = ["admin"] if key.admin else []
    return "\n".join([*parts, *(key.models or ()), *(key.roles or ())]) or "all"


def _limits(key: "Key") -> str:
    limits = {"req/min": key.requests_per_minute, "tok/min": key.tokens_per_minute, "at once": key.max_concurrent}
    return "\n".join(f"{limit:,} {unit}" for unit, limit in limits.items() if limit is not None) or "none"
