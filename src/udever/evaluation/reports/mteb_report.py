"""mteb's results → the table of MTEB(eng, v1), a table task by task, and one for each task in several languages.

Invariant: category means follow mteb_tasks.py: a model with a missing task has no mean, and a note names the task.
Does not know: files, other protocols, or how a table is drawn.
"""

from collections.abc import Mapping, Sequence

from udever.catalog.published import Benchmark, author_tasks, benchmarks
from udever.evaluation.reports import mteb_tasks as mteb
from udever.evaluation.reports.mteb_files import MAIN, PROTOCOL
from udever.evaluation.reports.tables import (
    Column,
    Line,
    Row,
    Table,
    mean_cell,
    named,
    rows_of,
    subset_column,
    subsets_of,
    task_column,
    tasks_of,
)
from udever.evaluation.results import Score

SUMMARY = "mteb-eng-v1"
"""The benchmark whose columns are the categories of mteb_tasks.py."""

TASKS_ABOUT = (
    "mteb's main score of each task, times 100; for the pair classification of MTEB(eng, v1) the average precision of"
    " the cosine. Of a task of MTEB(eng, v1) the English subset, of any other the mean over its subsets."
)


def summary_rows(lines: Sequence[Line]) -> tuple[list[Row], list[str]]:
    """The measured rows of MTEB(eng, v1) and notes on what is missing; no rows if none of the 56 was measured."""
    rows, notes = [], []
    for line in lines:
        means = mteb.averages(counted(line))
        cells = [mean_cell(means.value, means.present, of=len(mteb.TASKS))]
        cells += [mean_cell(mean.value, len(mean.scores), of=mean.tasks) for mean in means.categories]
        if means.present:
            rows.append(Row(name=line.name, kind=line.kind, cells=tuple(cells)))
            notes += _missing(line, means)
    return rows, notes


def counted(line: Line) -> Mapping[str, float]:
    """Task → score times 100, of what counts for MTEB(eng, v1): its tasks in one subset each."""
    return {
        task: 100 * subsets[mteb.subset_of(task)].value
        for task, subsets in line.tasks.items()
        if mteb.counts(task) and mteb.subset_of(task) in subsets
    }


def detail_tables(lines: Sequence[Line], against: Sequence[str]) -> list[Table]:
    """Task by task, then each task in several subsets; beside the authors' own scores of the models in `against`."""
    shown = [*lines, *author_lines(against)]
    tasks = sorted(tasks_of(lines), key=lambda task: (mteb.TASKS.index(task) if task in mteb.TASKS else 99, task))
    whole = Table(
        id="mteb-tasks",
        title="MTEB, task by task",
        protocol=PROTOCOL,
        about=TASKS_ABOUT,
        metric=MAIN,
        scale=100,
        decimals=2,
        columns=tuple(tasks),
        rows=rows_of(shown, [_column(task, shown) for task in tasks]),
        drawn=False,
    )
    return [whole, *(_by_subset(task, shown) for task in tasks if len(subsets_of(task, lines)) > 1)]


def author_lines(against: Sequence[str]) -> list[Line]:
    """The authors' own scores, of the models they are known of."""
    return [
        Line(
            name=model,
            kind="published",
            source=_source(benchmarks()["loading"], model),
            tasks={
                task: {subset: _author_score(value, known.cosine_ap) for subset, value in known.subsets.items()}
                for task, known in author_tasks()[model].items()
            },
        )
        for model in against
        if model in author_tasks()
    ]


def _author_score(value: float, cosine_ap: float | None) -> Score:
    if cosine_ap is None:
        return Score(metric=MAIN, value=value / 100, count=0)
    return Score(metric="cosine_ap", value=cosine_ap / 100, count=0, metrics={MAIN: value / 100})


def _source(benchmark: Benchmark, model: str) -> str:
    return benchmark.rows[model].source


def _column(task: str, lines: Sequence[Line]) -> Column:
    return subset_column(task, mteb.subset_of(task)) if mteb.counts(task) else task_column(task, lines)


def _by_subset(task: str, lines: Sequence[Line]) -> Table:
    subsets = subsets_of(task, lines)
    return Table(
        id=f"mteb-{task}",
        title=f"MTEB: {task}",
        protocol=PROTOCOL,
        about="mteb's main score of each subset, times 100.",
        metric=MAIN,
        scale=100,
        decimals=2,
        columns=subsets,
        rows=rows_of(lines, [subset_column(task, subset) for subset in subsets]),
    )


def _missing(line: Line, means: mteb.Averages) -> list[str]:
    parts = [
        f"all {mean.tasks} of {mean.category}" if not mean.scores else f"{named(mean.missing)} ({mean.category})"
        for mean in means.categories
        if mean.missing
    ]
    forums = mteb.missing_forums(line.tasks)
    parts += [f"of CQADupstack's twelve forums {named(forums)}"] if forums else []
    return [f"{line.name}: no mean where a task is missing. Missing: {'; '.join(parts)}."] if parts else []
