"""Gathered results and published numbers → tables in which everything was measured alike.

    report = build(gather(paths), against=("udever-bloom-1b1", "text-embedding-ada-002"))

Invariant: a table holds one protocol, so a published number stands only beside numbers that were measured the same way;
where a part of a mean is missing there is no mean, and a note names what is missing.
Does not know: files (gather.py reads them, files.py writes them), figures, the terminal.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from udever.catalog.published import Benchmark, benchmarks
from udever.evaluation.reports.gather import ROW_SETTINGS, Entry, Gathered
from udever.evaluation.reports.mteb_files import PROTOCOL as MTEB
from udever.evaluation.reports.mteb_report import SUMMARY, detail_tables, summary_rows
from udever.evaluation.reports.tables import (
    ORDER,
    Cell,
    Line,
    Row,
    Table,
    lacking,
    mean_cell,
    metric_of,
    rows_of,
    subset_column,
    subsets_of,
    task_column,
    tasks_of,
)
from udever.evaluation.results import Score

MODEL = "model"
"""`Score.system` of what is measured; every other system is a baseline."""
BASELINES = {"bm25": "BM25"}
"""Names for readers; others are shown as they are."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All tables, and what a reader needs to know of the rows."""

    tables: tuple[Table, ...]
    models: tuple[Mapping[str, object], ...] = ()
    """Of each measured row: its name, and the model, fingerprint and settings behind it."""
    notes: tuple[str, ...] = ()


def build(gathered: Gathered, *, against: Sequence[str]) -> Report:
    """All tables of the results, with the published rows of the models in `against` (names of `published.models`).

    Without any result: the published tables alone.
    """
    protocols = dict.fromkeys(entry.result.protocol for entry in gathered.entries)
    tables: list[Table] = []
    if not protocols:
        tables = [_beside_published(benchmark, [], [], against) for benchmark in benchmarks().values()]
    for protocol in sorted(protocols, key=_rank):
        tables += _tables(protocol, lines_of(gathered.entries, protocol), against)
    return Report(
        tables=tuple(table for table in tables if table.rows), models=_models(gathered.entries), notes=gathered.notes
    )


def lines_of(entries: Iterable[Entry], protocol: str) -> list[Line]:
    """The measured rows of a protocol and its baselines; a baseline is the same in every result of a task."""
    scores: dict[tuple[str, str], dict[str, dict[str, Score]]] = {}
    for entry in (entry for entry in entries if entry.result.protocol == protocol):
        for score in entry.result.scores:
            row = (entry.row if score.system == MODEL else "", score.system)
            scores.setdefault(row, {}).setdefault(entry.result.task, {}).setdefault(score.subset, score)
    return [
        Line(name=row, kind="measured", tasks=tasks)
        if system == MODEL
        else Line(name=BASELINES.get(system, system), kind="baseline", tasks=tasks)
        for (row, system), tasks in scores.items()
    ]


def _rank(protocol: str) -> tuple[int, str]:
    """MTEB, then what has published numbers, then the others by name."""
    published = [MTEB, *(benchmark.protocol for benchmark in benchmarks().values())]
    return (published.index(protocol) if protocol in published else len(published), protocol)


def _tables(protocol: str, lines: Sequence[Line], against: Sequence[str]) -> list[Table]:
    if protocol == MTEB:
        rows, notes = summary_rows(lines)
        summary = [_beside_published(benchmarks()[SUMMARY], rows, notes, against)] if rows else []
        return [*summary, *detail_tables(lines, against)]
    fitting = [benchmark for benchmark in benchmarks().values() if benchmark.protocol == protocol]
    return [table for benchmark in fitting for table in _measured(benchmark, lines, against)] or _others(
        protocol, lines
    )


def _models(entries: Iterable[Entry]) -> tuple[Mapping[str, object], ...]:
    known: dict[tuple[str, str], Mapping[str, object]] = {}
    for row, result in ((entry.row, entry.result) for entry in entries):
        settings = {name: result.settings[name] for name in ROW_SETTINGS if name in result.settings}
        facts = {"row": row, "model": result.model, "fingerprint": result.fingerprint, **settings}
        known.setdefault((row, result.fingerprint), facts)
    return tuple(known.values())


# Benchmarks with published numbers


def _measured(benchmark: Benchmark, lines: Sequence[Line], against: Sequence[str]) -> list[Table]:
    """One table, or none if nothing measured fits into it."""
    rows, notes = [], []
    for line in lines:
        cells, strange = _cells(benchmark, line)
        if any(cell.value is not None for cell in cells.values()):
            rows.append(Row(name=line.name, kind=line.kind, cells=tuple(cells[column] for column in benchmark.columns)))
        if strange and line.kind == "measured":
            notes.append(f"{line.name}: {', '.join(strange)} has no column here and is left out.")
    return [_beside_published(benchmark, rows, notes, against)] if rows else []


def _cells(benchmark: Benchmark, line: Line) -> tuple[dict[str, Cell], list[str]]:
    """Column → cell, by the name of the subset (of the task, where it has no subsets); and names without a column."""
    found = {
        (subset or task).casefold(): score for task, subsets in line.tasks.items() for subset, score in subsets.items()
    }
    wanted = [column for column in benchmark.columns if column != benchmark.average]
    cells = {column: _cell(found.get(column.casefold()), benchmark) for column in wanted}
    if benchmark.average:
        values = [cell.value for cell in cells.values() if cell.value is not None]
        mean = fmean(values) if len(values) == len(wanted) else None
        cells[benchmark.average] = mean_cell(mean, len(values), of=len(wanted))
    return cells, sorted(found.keys() - {column.casefold() for column in wanted})


def _cell(score: Score | None, benchmark: Benchmark) -> Cell:
    if score is None:
        return Cell()
    value = {**score.metrics, score.metric: score.value}.get(benchmark.metric)
    return Cell(value=None if value is None else value * benchmark.scale, count=score.count, metrics=score.metrics)


def _beside_published(benchmark: Benchmark, rows: Sequence[Row], notes: Sequence[str], against: Sequence[str]) -> Table:
    """Rows of the benchmark's own protocol, with the published ones and what is to be known of them."""
    published = [benchmark.rows[model] for model in against if model in benchmark.rows]
    beside = [
        Row(
            name=row.model,
            kind="published",
            cells=tuple(Cell(value=row.values.get(column)) for column in benchmark.columns),
            source=row.source,
        )
        for row in published
    ]
    return Table(
        id=benchmark.id,
        title=benchmark.title,
        protocol=benchmark.protocol,
        about=benchmark.about,
        metric=benchmark.metric,
        scale=benchmark.scale,
        decimals=benchmark.decimals,
        columns=benchmark.columns,
        short=benchmark.short,
        rows=tuple(sorted([*rows, *beside], key=lambda row: ORDER[row.kind])),
        notes=(*notes, *(f"{row.model}: {row.note}" for row in published if row.note)),
    )


# Every other protocol


def _others(protocol: str, lines: Sequence[Line]) -> list[Table]:
    """A column for each task, then a table for each task in several subsets."""
    tasks = tasks_of(lines)
    metrics = {task: metric_of(task, lines) for task in tasks}
    alike = len(set(metrics.values())) == 1
    several = {task: len(subsets_of(task, lines)) for task in tasks if len(subsets_of(task, lines)) > 1}
    means = ", ".join(f"{task} ({number})" for task, number in several.items())
    whole = Table(
        id=protocol,
        title=protocol,
        protocol=protocol,
        about="Scores times 100." + (f" Means over subsets: {means}." if means else ""),
        metric=next(iter(metrics.values())) if alike else "main metric of each task",
        scale=100,
        decimals=1,
        columns=tasks if alike else tuple(f"{task}, {metrics[task]}" for task in tasks),
        rows=rows_of(lines, [task_column(task, lines) for task in tasks]),
        notes=tuple(note for note in (lacking(task, lines) for task in several) if note),
    )
    return [whole, *(_by_subset(protocol, task, lines) for task in several)]


def _by_subset(protocol: str, task: str, lines: Sequence[Line]) -> Table:
    subsets = subsets_of(task, lines)
    return Table(
        id=f"{protocol}-{task}",
        title=f"{protocol}: {task}",
        protocol=protocol,
        about="Scores times 100.",
        metric=metric_of(task, lines),
        scale=100,
        decimals=1,
        columns=subsets,
        rows=rows_of(lines, [subset_column(task, subset) for subset in subsets]),
    )
