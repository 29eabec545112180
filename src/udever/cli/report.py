"""`udever report`: result files → tables on the terminal, and a folder with Markdown, CSV, JSON and figures.

Invariant: stdout holds the tables or, with --json, one JSON object; which files were written is said on stderr.
Does not know: how results are read, averaged or drawn (udever.evaluation).
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from udever.cli.options import JsonFlag
from udever.evaluation.reports.tables import grid as text_grid
from udever.evaluation.reports.tables import is_wide

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as Grid

    from udever.evaluation.reports.report import Report
    from udever.evaluation.reports.tables import Table

SHOWN_LINES = 24
"""Lines of a table that the terminal shows; longer ones stand in the files."""


def report(
    *results: Annotated[
        Path,
        Parameter(help="Files or folders that udever evaluate or mteb wrote. Default: the published tables alone."),
    ],
    against: Annotated[
        str | None,
        Parameter(
            help="Published models to show beside them, with commas; none for no published numbers."
            " Default: the Udever family and text-embedding-ada-002."
        ),
    ] = None,
    output: Annotated[
        Path | None, Parameter(name=("--output", "-o"), help="Folder for report.md, .csv, .json and figures.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Tables and figures of results, beside the published numbers that were measured the same way."""
    from udever.evaluation.reports.files import as_json as to_json
    from udever.evaluation.reports.gather import gather
    from udever.evaluation.reports.report import build

    made = build(gather(results), against=chosen(against))
    if output is not None:  # before the reader of stdout can go away
        _write(made, output)
    if as_json:
        print(json.dumps(to_json(made), ensure_ascii=False))
    else:
        _show(made, files=output is not None)


def chosen(against: str | None) -> tuple[str, ...]:
    """The published models that a comma-separated option means."""
    from udever.catalog.published import REFERENCES, choose

    if against is None:
        return REFERENCES
    names = [name.strip() for name in against.split(",") if name.strip()]
    return () if names == ["none"] else choose(names)


def _write(made: "Report", output: Path) -> None:
    from udever.evaluation.reports.files import has_figures, write

    files = write(made, output)
    print(f"{len(files)} files → {output}", file=sys.stderr)
    if not has_figures():
        print("no figures: they need matplotlib (pip install 'udever[eval]')", file=sys.stderr)


def _show(made: "Report", *, files: bool) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    left_out = []
    for table in made.tables:
        if len(text_grid(table)) > SHOWN_LINES:
            left_out.append(table.title)
        else:
            _show_table(console, table)
    for note in made.notes:
        console.print(note)
    if left_out:
        where = "in report.md" if files else "with --output or --json"
        console.print(f"Longer tables stand {where}: {', '.join(left_out)}")


def _show_table(console: "Console", table: "Table") -> None:
    console.print(table.title, style="cyan bold")
    console.print(f"{table.about} Protocol: {table.protocol}; metric: {table.metric}.", style="dim")
    console.print(_turned(table) if is_wide(table) else _upright(table))
    for note in table.notes:
        console.print(note, style="dim")
    console.print()


def _upright(table: "Table") -> "Grid":
    """Models below each other: what was measured in bold, then what is published, then the baselines."""
    grid = _grid(["", *(table.short or table.columns)])
    kind = "measured"
    for row in table.rows:
        if row.kind != kind:
            kind = row.kind
            grid.add_row(f"{kind}:", style="dim")
        cells = (cell.text(table.decimals) for cell in row.cells)
        grid.add_row(row.name, *cells, style="bold" if kind == "measured" else None)
    return grid


def _turned(table: "Table") -> "Grid":
    head, *body = text_grid(table)
    grid = _grid(head)
    for line in body:
        grid.add_row(*line)
    return grid


def _grid(headings: Sequence[str]) -> "Grid":
    from rich.table import Table as Grid

    grid = Grid(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for index, heading in enumerate(headings):
        grid.add_column(heading, justify="right" if index else "left", no_wrap=not index)
    return grid
