"""`udever usage`: what was used, summed from the ledger as a table, CSV or JSON; and whether its books add up.

Invariant: the sums are those of the ledger, net of refunds; an empty CSV still has its header.
Does not know: how the ledger is kept.
"""

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from udever.cli.database import DatabaseChoice, open_database
from udever.cli.options import JsonFlag
from udever.errors import OptionError, UdeverError
from udever.server.credits import format_credits

if TYPE_CHECKING:
    from udever.server.books import UsageRow

SHOWN = 5
SUMS = ("requests", "texts", "tokens", "microcredits")

Grouping = Literal["day", "account", "key", "model", "role"]


class BooksError(UdeverError):
    """The ledger contradicts itself."""

    code = "books_unsound"


def usage(
    *,
    by: Annotated[tuple[Grouping, ...], Parameter(negative=(), help="What to sum by; repeat for more.")] = (
        "day",
        "model",
        "key",
    ),
    since: Annotated[date | None, Parameter(help="First day, in UTC: 2030-01-31. Default: the beginning.")] = None,
    until: Annotated[date | None, Parameter(help="Last day, inclusive. Default: today.")] = None,
    account: Annotated[str | None, Parameter(help="Only this account.")] = None,
    as_csv: Annotated[
        bool, Parameter(name="--csv", negative=(), show_default=False, help="Print CSV on stdout.")
    ] = False,
    check: Annotated[
        bool,
        Parameter(negative=(), show_default=False, help="Only check the books; exit code 1 if they do not add up."),
    ] = False,
    choice: DatabaseChoice = DatabaseChoice(),  # noqa: B008  frozen
    as_json: JsonFlag = False,
) -> None:
    """Show requests, texts, tokens and credits used, by day, model and key.

    Days are in UTC; what was refunded is not counted. With --check: every balance must be the sum of its entries, and
    every debit be settled or refunded once, or still run.
    """
    if check:
        _check(choice, as_json=as_json)
        return
    if as_csv and as_json:
        raise OptionError("--csv and --json exclude each other")
    by = tuple(dict.fromkeys(by))
    with open_database(choice) as accounts:
        rows = accounts.ledger.usage(since=since, until=until, group_by=by, account=account)
    if as_json:
        print(json.dumps([row.describe() for row in rows]))
    elif as_csv:
        table = csv.writer(sys.stdout, lineterminator="\n")
        table.writerow([*by, *SUMS])
        table.writerows(_cells(row, by) for row in rows)
    else:
        _print_table(rows, by)


def _check(choice: DatabaseChoice, *, as_json: bool) -> None:
    """Raises BooksError: they do not add up."""
    with open_database(choice) as accounts:
        audit = accounts.ledger.audit()
    if as_json:
        print(json.dumps(asdict(audit)))
    elif audit.sound:
        print(f"the books add up; {audit.open_requests} requests are open")
    if not audit.sound:
        wrong = [f"account {name}" for name in audit.unbalanced] + [f"request {one}" for one in audit.unanswered]
        raise BooksError(
            f"the books do not add up: {', '.join(wrong[:SHOWN])}{' …' * (len(wrong) > SHOWN)}",
            hint="--json lists all of them; restore a backup, or correct with udever keys topup",
        )


def _cells(row: "UsageRow", by: Sequence[str]) -> list[Any]:
    return [getattr(row, name) for name in (*by, *SUMS)]


def _print_table(rows: "list[UsageRow]", by: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in by:
        table.add_column(heading, no_wrap=True)
    for heading in ("requests", "texts", "tokens", "credits"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        *cells, microcredits = _cells(row, by)
        groups, counts = cells[: len(by)], cells[len(by) :]
        table.add_row(*map(str, groups), *(f"{count:,}" for count in counts), format_credits(microcredits))
    Console(highlight=False, markup=False).print(table)
