"""What a report is made of: lines of scores that become rows of cells.

    Line (task → subset → score, measured or published) ──columns──→ Row (cells) ──→ Table (rows of one protocol)

Invariant: a cell without a value says why if a part of it is there ("9/10"), and a mean over subsets exists only if the
row has all of them.
Does not know: protocols, files, or how a table is drawn.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from udever.evaluation.results import Score

WIDE = 9
"""Columns from which on a table is turned for a reader: a row each, and a column for each model."""

Kind = Literal["measured", "published", "baseline"]
ORDER: Mapping[Kind, int] = {"measured": 0, "published": 1, "baseline": 2}
"""Of the rows in a table."""

NOTHING = "–"
"""Stands where there is no number."""
SHOWN_NAMES = 6
"""Missing tasks or subsets that a note names; of more, so many and the number of the others."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number, or why there is none."""

    value: float | None = None
    """In the table's scale."""
    note: str = ""
    """ "9/10" where a part is missing."""
    count: int = 0
    """Queries, pairs or texts behind it; 0 where nobody says."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Other metrics of the same run, 0 to 1."""

    def text(self, decimals: int) -> str:
        """For a reader: the number, or "–", or "– 9/10"."""
        return f"{NOTHING} {self.note}".rstrip() if self.value is None else f"{self.value:.{decimals}f}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model, measured or published, or a baseline."""

    name: str
    kind: Kind
    cells: tuple[Cell, ...]
    """One a column."""
    source: str = ""
    """Of published numbers."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of one protocol."""

    id: str
    """Short, for scripts; `results.slug(id)` names its figure."""
    title: str
    protocol: str
    about: str
    """How everything in it was measured, and its scale, for a reader."""
    metric: str
    scale: int
    """1 or 100: what scores of 0 to 1 were multiplied by."""
    decimals: int
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    short: tuple[str, ...] = ()
    """Shorter names of the columns, for where there is little room; empty: the same."""
    drawn: bool = True
    """Whether it makes a figure: a long list of unlike tasks does not."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """What one row has. The common form of measured results and the authors' own scores."""

    name: str
    kind: Kind
    tasks: Mapping[str, Mapping[str, Score]]
    """Task → subset ("" if it has none) → score."""
    source: str = ""


def grid(table: Table) -> list[list[str]]:
    """A table as text, its headings first; turned if it is wide, so that it fits on a page."""
    body = [[_label(row), *(cell.text(table.decimals) for cell in row.cells)] for row in table.rows]
    lines = [["", *table.columns], *body]
    return [list(column) for column in zip(*lines, strict=True)] if is_wide(table) else lines


def is_wide(table: Table) -> bool:
    """Whether its columns stand better below each other."""
    return len(table.columns) >= WIDE


def _label(row: Row) -> str:
    return row.name if row.kind == "measured" else f"{row.name} ({row.kind})"


Column = Callable[[Line], Cell]
"""How a column takes its cell from a line."""


def rows_of(lines: Sequence[Line], columns: Sequence[Column]) -> tuple[Row, ...]:
    """The lines that have something in some column; models first, baselines last."""
    rows = [
        Row(name=line.name, kind=line.kind, source=line.source, cells=tuple(column(line) for column in columns))
        for line in sorted(lines, key=lambda line: ORDER[line.kind])
    ]
    return tuple(row for row in rows if any(cell.value is not None or cell.note for cell in row.cells))


def subset_column(task: str, subset: str, *, scale: int = 100) -> Column:
    """One subset of a task."""
    return lambda line: score_cell(line.tasks.get(task, {}).get(subset), scale=scale)


def task_column(task: str, lines: Sequence[Line], *, scale: int = 100) -> Column:
    """The mean over the subsets that any of the measured lines has."""
    wanted = subsets_of(task, lines)
    if len(wanted) == 1:
        return subset_column(task, wanted[0], scale=scale)

    def cell(line: Line) -> Cell:
        there = [score for subset, score in line.tasks.get(task, {}).items() if subset in wanted]
        mean = fmean(score.value for score in there) * scale if len(there) == len(wanted) else None
        return mean_cell(mean, len(there), of=len(wanted), count=sum(score.count for score in there))

    return cell


def score_cell(score: Score | None, *, scale: int) -> Cell:
    """One score, or nothing."""
    return Cell() if score is None else Cell(value=score.value * scale, count=score.count, metrics=score.metrics)


def mean_cell(mean: float | None, present: int, *, of: int, count: int = 0) -> Cell:
    """A mean; where it has no value and a part is there, how much."""
    return Cell(value=mean, note=f"{present}/{of}" if mean is None and present else "", count=count)


def tasks_of(lines: Sequence[Line]) -> tuple[str, ...]:
    """In the order of the results."""
    return tuple(dict.fromkeys(task for line in lines for task in line.tasks))


def subsets_of(task: str, lines: Sequence[Line]) -> tuple[str, ...]:
    """Those that any measured line has, in the order of the results."""
    measured = [line.tasks.get(task, {}) for line in lines if line.kind == "measured"]
    return tuple(dict.fromkeys(subset for subsets in measured for subset in subsets))


def metric_of(task: str, lines: Sequence[Line]) -> str:
    """The main metric of a task."""
    return next(score.metric for line in lines for score in line.tasks.get(task, {}).values())


def lacking(task: str, lines: Sequence[Line]) -> str:
    """A note that says which measured line lacks which subsets of a task; empty if none does."""
    wanted = subsets_of(task, lines)
    parts = []
    for line in (line for line in lines if task in line.tasks and line.kind == "measured"):
        missing = [subset for subset in wanted if subset not in line.tasks[task]]
        parts += [f"{line.name} lacks {named(missing)}"] if missing else []
    return f"{task}: {'; '.join(parts)}." if parts else ""


def named(missing: Sequence[str]) -> str:
    """Names in a note, not too many."""
    if len(missing) <= SHOWN_NAMES + 1:
        return ", ".join(missing)
    return f"{', '.join(missing[:SHOWN_NAMES])} and {len(missing) - SHOWN_NAMES} more"
