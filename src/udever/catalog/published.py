"""The published numbers that a measurement is compared with.

    for benchmark in benchmarks().values(): row = benchmark.rows["udever-bloom-1b1"]

Invariant: a number that nobody verified is absent, not zero and not null; every row names its source, every benchmark
its protocol, and values keep the scale that the source prints (`Benchmark.scale`).
Does not know: measured results, or how a table looks.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from udever.errors import OptionError

CATALOG = Path(__file__).parent
PUBLISHED = "published.yaml"
AUTHOR_TASKS = "author_tasks.yaml"

FAMILY = ("udever-bloom-560m", "udever-bloom-1b1", "udever-bloom-3b", "udever-bloom-7b1")
REFERENCES = (*FAMILY, "text-embedding-ada-002")
"""What results are compared with if nobody says otherwise."""


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One model on one benchmark."""

    model: str
    values: Mapping[str, float]
    """Column → value, in the benchmark's scale; a column that is not verified is absent."""
    source: str
    """Where the numbers stand, for a reader."""
    note: str = ""
    """What a reader must know, e.g. that the source's columns are shifted."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Numbers of several models that were measured alike, so that they may stand side by side."""

    id: str
    title: str
    protocol: str
    """As in `Result.protocol`: only such results may stand in the same table."""
    metric: str
    about: str
    """The protocol for a reader, with metric and scale."""
    scale: int
    """1 or 100: a score of 0 to 1 times this is in the source's scale."""
    decimals: int
    columns: tuple[str, ...]
    short: tuple[str, ...] = ()
    """Shorter names of the columns; empty: the same."""
    average: str = ""
    """The column that is the mean of the others (MTEB: of the tasks); empty if there is none."""
    rows: Mapping[str, PublishedRow] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """A model that numbers are published of."""

    name: str
    about: str
    hub: str = ""
    """Its id on the Hugging Face hub, if `Embedder.load` takes it."""


@dataclass(frozen=True, kw_only=True)
class AuthorTask:
    """The authors' own score on one MTEB task, times 100."""

    split: str
    subsets: Mapping[str, float]
    """Subset → mteb's main score; "default" where the task has no subsets."""
    cosine_ap: float | None = None
    """Average precision of the cosine, for pair classification."""


@cache
def benchmarks() -> Mapping[str, Benchmark]:
    """Id → benchmark, in the order of the catalogue."""
    raw = _load(PUBLISHED)
    return {name: _benchmark(name, entry, raw["sources"]) for name, entry in raw["benchmarks"].items()}


@cache
def models() -> Mapping[str, PublishedModel]:
    """Name → model, in the order of the catalogue."""
    return {name: PublishedModel(name=name, **entry) for name, entry in _load(PUBLISHED)["models"].items()}


@cache
def author_tasks() -> Mapping[str, Mapping[str, AuthorTask]]:
    """Model → MTEB task → the authors' own score."""
    return {
        model: {task: _author_task(entry) for task, entry in tasks.items()}
        for model, tasks in _load(AUTHOR_TASKS).items()
    }


def choose(names: Iterable[str]) -> tuple[str, ...]:
    """Published models by name or hub id, in any case, each once.

    Raises:
        OptionError: there are no published numbers of that name; the message lists the names there are.
    """
    by_name = {key.casefold(): name for name, model in models().items() for key in (name, model.hub) if key}
    return tuple(dict.fromkeys(_chosen(name, by_name) for name in names))


def _chosen(name: str, by_name: Mapping[str, str]) -> str:
    if name.casefold() in by_name:
        return by_name[name.casefold()]
    close = get_close_matches(name.casefold(), by_name, n=1)
    meant = f"did you mean {by_name[close[0]]}? " if close else ""
    raise OptionError(f"no published numbers of {name!r}", hint=f"{meant}there are those of {', '.join(models())}")


def _load(name: str) -> dict[str, Any]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where PyYAML has libyaml
    content: dict[str, Any] = yaml.load((CATALOG / name).read_text(encoding="utf-8"), Loader=loader)
    return content


def _benchmark(name: str, entry: Mapping[str, Any], sources: Mapping[str, str]) -> Benchmark:
    columns = tuple(entry["columns"])
    rows = {model: _row(model, row, columns, sources) for model, row in entry["rows"].items()}
    short = tuple(entry.get("short", ()))
    return Benchmark(id=name, **{**entry, "columns": columns, "short": short, "rows": rows})


def _row(model: str, row: Mapping[str, Any], columns: tuple[str, ...], sources: Mapping[str, str]) -> PublishedRow:
    """A full row is a list in the order of the columns, one with gaps names them."""
    values = row["values"]
    named = values if isinstance(values, dict) else dict(zip(columns, values, strict=True))
    return PublishedRow(model=model, values=named, source=sources[row["source"]], note=row.get("note", ""))


def _author_task(entry: Mapping[str, Any]) -> AuthorTask:
    subsets = entry["subsets"] if "subsets" in entry else {"default": entry["main"]}
    return AuthorTask(split=entry["split"], subsets=subsets, cosine_ap=entry.get("cosine_ap"))
