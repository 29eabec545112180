"""Published and own numbers as a page shows them: tables with their sources, diagrams across tasks and languages.

Invariant: numbers stand side by side only under one protocol; each names its source and how it was measured; what is
not published is a gap.
Does not know: HTML beyond its diagrams.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from types import MappingProxyType

from markupsafe import Markup

from udever.catalog.languages import language_name
from udever.catalog.manifests import ModelManifest, Published, Results, load_catalog
from udever.catalog.published import Benchmark, benchmarks
from udever.server.console.models import charts
from udever.server.console.models.charts import Series, key_mark

NAMES = MappingProxyType({"text-embedding-ada-002": "OpenAI ada-002"})
COLUMNS = MappingProxyType({"ecom": "E-commerce", "video": "Entertainment video", "medical": "Medical"})
METRICS = MappingProxyType({"mrr": "MRR", "mrr@10": "MRR@10", "recall@1000": "Recall@1000"})
MTEB_METRICS = MappingProxyType(
    {
        "Average": "mean of 56 tasks", "Classification": "accuracy", "Clustering": "V-measure",
        "Pair classification": "average precision", "Reranking": "MAP", "Retrieval": "nDCG@10", "STS": "Spearman",
        "Summarisation": "Spearman",
    }
)  # fmt: skip
LOADING = "loading"
FEW = 16
"""Results of more labels are drawn one line each, in columns."""
PARTS = 3
LONGEST_BESIDE = 22
"""Characters that a name may have to stand beside its bar."""
KEPT = 256
"""Drawings and tables that are kept: published numbers do not change while the service runs."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A diagram, perhaps in several parts that stand side by side."""

    title: str
    note: str
    legend: tuple[tuple[Markup, str], ...]
    parts: tuple[Markup, ...]
    wide: bool = False
    """Takes the page's whole width."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A number, or its absence."""

    text: str
    note: str
    """Protocol and source, for whoever asks; empty without a number."""
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """One column of a benchmark, for several models."""

    label: str
    metric: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class Group:
    """One benchmark."""

    title: str
    about: str
    rows: tuple[Row, ...]


def model_name(row: str) -> str:
    """What a row of published.yaml is called on a page."""
    return NAMES.get(row) or _titles().get(row, row)


@cache
def _titles() -> dict[str, str]:
    manifests = load_catalog().values()
    return {manifest.published_numbers.row: manifest.title for manifest in manifests if manifest.published_numbers}


def column_name(column: str) -> str:
    """What a column of published.yaml is called on a page."""
    return COLUMNS.get(column, column)


@lru_cache(KEPT)
def groups(rows: tuple[str, ...], names: tuple[str, ...]) -> tuple[Group, ...]:
    """The benchmarks of these names with a row for each column that one of the models has a number in.

    Args:
        rows: models' names in published.yaml; "" for one that has none there.
    """
    made = (_group(benchmarks()[name], rows) for name in names)
    return tuple(group for group in made if group.rows)


def figures(manifest: ModelManifest) -> list[Figure]:
    """All diagrams of a model's page."""
    numbers = manifest.published_numbers
    own = sorted((_own(results, manifest.title) for results in manifest.results), key=lambda figure: figure.wide)
    return [*(_published(numbers) if numbers else ()), *own]


@lru_cache(KEPT)
def _published(numbers: Published) -> tuple[Figure, ...]:
    rows = (numbers.row, *numbers.references)
    drawn = (benchmark_figure(name, rows) for name in numbers.benchmarks)
    return (*(figure for figure in drawn if figure), *_loading(numbers.row))


@lru_cache(KEPT)
def benchmark_figure(name: str, rows: tuple[str, ...], *, own: bool = True) -> Figure | None:
    """Grouped bars; None if there is nothing to draw.

    Args:
        rows: models' names in published.yaml; each keeps its colour also where others have no numbers.
        own: draw only what the first model has a number for.
    """
    benchmark = benchmarks()[name]
    columns = _columns(benchmark, rows[:1] if own else rows)
    series = _series(benchmark, rows, columns)
    if not series:
        return None
    svg = charts.bars(
        list(map(column_name, columns)), series, title=_title(benchmark, series), description=benchmark.about,
        maximum=benchmark.scale, decimals=benchmark.decimals,
    )  # fmt: skip
    return Figure(title=benchmark.title, note=benchmark.about, legend=_legend(series), parts=(svg,))


@lru_cache(KEPT)
def dots_figure(name: str, rows: tuple[str, ...]) -> Figure | None:
    """A mark a model on one line a column: for models that are close together."""
    benchmark = benchmarks()[name]
    columns = _columns(benchmark, rows)
    series = _series(benchmark, rows, columns)
    if not series:
        return None
    svg = charts.dots(
        list(map(column_name, columns)), series, title=_title(benchmark, series), description=benchmark.about,
        decimals=benchmark.decimals,
    )  # fmt: skip
    return Figure(
        title=benchmark.title, note=benchmark.about, legend=_legend(series, dot=True), parts=(svg,), wide=True
    )


def _group(benchmark: Benchmark, rows: Sequence[str]) -> Group:
    def has(column: str) -> bool:
        return any(column in benchmark.rows[row].values for row in rows if row in benchmark.rows)

    return Group(
        title=benchmark.title,
        about=benchmark.about,
        rows=tuple(_row(benchmark, column, rows) for column in _ordered(benchmark) if has(column)),
    )


def _row(benchmark: Benchmark, column: str, rows: Sequence[str]) -> Row:
    values = [benchmark.rows[row].values.get(column) if row in benchmark.rows else None for row in rows]
    known = [value for value in values if value is not None]
    best = max(known) if len(known) > 1 else None
    return Row(
        label=column_name(column),
        metric=METRICS.get(benchmark.metric) or MTEB_METRICS.get(column, benchmark.metric),
        cells=tuple(_cell(benchmark, row, value, best=value == best) for row, value in zip(rows, values, strict=True)),
    )


def _cell(benchmark: Benchmark, row: str, value: float | None, *, best: bool) -> Cell:
    if value is None:
        return Cell(text="", note="")
    published = benchmark.rows[row]
    note = " ".join(filter(None, (benchmark.about, f"Source: {published.source.rstrip('.')}.", published.note)))
    return Cell(text=f"{value:.{benchmark.decimals}f}", note=note, best=best)


def _columns(benchmark: Benchmark, rows: Sequence[str]) -> list[str]:
    """Those in which one of the models has a number, the average first."""
    known = {column for row in rows if row in benchmark.rows for column in benchmark.rows[row].values}
    return [column for column in _ordered(benchmark) if column in known]


def _ordered(benchmark: Benchmark) -> list[str]:
    return sorted(benchmark.columns, key=lambda column: column != benchmark.average)


def _title(benchmark: Benchmark, series: Sequence[Series]) -> str:
    return f"{benchmark.title}: {', '.join(one.name for one in series)}"


def _series(benchmark: Benchmark, rows: Sequence[str], columns: Sequence[str]) -> list[Series]:
    found = [
        Series(
            name=model_name(row), number=number,
            values=[benchmark.rows[row].values.get(column) for column in columns],
        )
        for number, row in enumerate(rows)
        if row in benchmark.rows
    ]  # fmt: skip
    return [one for one in found if any(value is not None for value in one.values)]


def _loading(row: str) -> list[Figure]:
    """What other tools make of the model: a reason to have roles done right."""
    benchmark = benchmarks()[LOADING]
    values = benchmark.rows[row].values if row in benchmark.rows else {}
    if len(values) < len(benchmark.columns):
        return []
    svg = charts.bars(
        ("With markers, as here", "Without markers, by a generic loader"),
        (Series(name=model_name(row), values=[values[column] for column in benchmark.columns]),),
        title=benchmark.title, description=benchmark.about, maximum=benchmark.scale, decimals=benchmark.decimals,
    )  # fmt: skip
    note = f"{benchmark.about} Source: {benchmark.rows[row].source}."
    return [Figure(title="What leaving the markers out costs", note=note, legend=(), parts=(svg,))]


@lru_cache(KEPT)
def _own(results: Results, title: str) -> Figure:
    scores = sorted(((language_name(name), value) for name, value in results.scores), key=lambda pair: -pair[1])
    maximum = 1.0 if scores[0][1] <= 1 else max(100.0, scores[0][1])
    length = -(-len(scores) // (PARTS if len(scores) > FEW else 1))
    parts = tuple(
        _part(scores[start : start + length], title=f"{title}: {results.protocol}", maximum=maximum)
        for start in range(0, len(scores), length)
    )
    heading, _, note = results.protocol.replace("->", "→").partition(", ")
    return Figure(title=_sentence(heading), note=_sentence(note), legend=(), parts=parts, wide=len(parts) > 1)


def _part(scores: Sequence[tuple[str, float]], *, title: str, maximum: float) -> Markup:
    """One line a score; long names stand above their bar."""
    decimals = 3 if maximum == 1 else 1
    labels, values = [name for name, _ in scores], [value for _, value in scores]
    if max(map(len, labels)) > LONGEST_BESIDE:
        one = Series(name=title, values=values)
        return charts.bars(labels, (one,), title=title, maximum=maximum, decimals=decimals)
    return charts.ranking(labels, values, title=title, maximum=maximum, decimals=decimals)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _legend(series: Sequence[Series], *, dot: bool = False) -> tuple[tuple[Markup, str], ...]:
    return tuple((key_mark(one.number or 0, dot=dot), one.name) for one in series) if len(series) > 1 else ()
