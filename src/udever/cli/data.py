"""`udever data`: published files of training data → a store of examples; what a store holds.

Invariant: stdout carries the result and nothing else; what was dropped, and why, is always said.
Does not know: formats (data/importing.py) or how a store lies on disk (data/examples.py).
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from udever.cli.options import JsonFlag
from udever.errors import OptionError

if TYPE_CHECKING:
    from udever.training.data.examples import ExampleStore
    from udever.training.data.importing import ImportJob
    from udever.training.data.ms_marco import Sources
    from udever.training.data.rows import Reading

app = App(name="data", help="Import training data; look at what was imported.", help_format="plaintext")

FormatName = Literal["columns", "labelled", "flagembedding", "tevatron", "wide", "nli", "msmarco", "triples"]
SHOWN_BAD = 10
"""Bad rows that are named on stderr; `--json` names more."""
SHOWN_CHARACTERS = 100
"""Of a text."""

Store = Annotated[Path, Parameter(help="A folder that udever data import made.")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Selection:
    """What to take of the inputs."""

    columns: Annotated[
        str, Parameter(show_default=False, help="QUERY,POSITIVE[,NEGATIVE…]; default: by their names.")
    ] = ""
    symmetric: Annotated[
        bool | None, Parameter(help="Both sides are of one kind, so both are queries; default: by the format.")
    ] = None
    negatives: Annotated[int | None, Parameter(help="Keep the first N hard negatives of each; default: all.")] = None
    limit: Annotated[int | None, Parameter(help="Stop after so many examples.")] = None
    min_score: Annotated[float | None, Parameter(help="labelled: pairs count as positives from this score on.")] = None
    pivot: Annotated[str | None, Parameter(help="wide: the language the others ask for; default: English.")] = None
    contradictions: Annotated[
        bool, Parameter(negative=(), show_default=False, help="nli: contradicted sentences become hard negatives.")
    ] = False
    exclude: Annotated[
        tuple[Path, ...],
        Parameter(negative=(), show_default=False, help="File whose texts to keep out, as of a dev set; repeatable."),
    ] = ()
    skip_bad: Annotated[
        bool,
        Parameter(negative=(), show_default=False, help="Count bad rows instead of stopping at the first."),
    ] = False


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class MsMarcoFiles:
    """Where the texts behind MS MARCO's ids are."""

    collection: Annotated[Path | None, Parameter(help="msmarco: lines pid <tab> passage.")] = None
    queries: Annotated[Path | None, Parameter(help="msmarco: lines qid <tab> query.")] = None
    scores: Annotated[
        Path | None, Parameter(help="msmarco: a cross-encoder's scores, pickle or qid <tab> pid <tab> score.")
    ] = None
    margin: Annotated[float, Parameter(help="msmarco: how far below the positives' scores negatives must be.")] = 3.0
    per_system: Annotated[int, Parameter(help="msmarco: negatives taken from each system.")] = 5
    systems: Annotated[
        str, Parameter(show_default=False, help="msmarco: whose negatives to take, commas between; default: all.")
    ] = ""

    def sources(self) -> "Sources | None":
        """As the library takes them; None if no ids are to be looked up."""
        from udever.training.data.ms_marco import Sources

        if self.collection is None or self.queries is None:
            if any(path is not None for path in (self.collection, self.queries, self.scores)):
                raise OptionError("--collection and --queries belong together", hint="pass both")
            return None
        if self.per_system < 1:
            raise OptionError(f"--per-system is {self.per_system}", hint="pass 1 or more")
        return Sources(
            collection=self.collection,
            queries=self.queries,
            scores=self.scores,
            margin=self.margin,
            per_system=self.per_system,
            systems=_listed(self.systems),
        )


@app.command(name="import")
def import_(
    *inputs: Annotated[Path, Parameter(help="jsonl, tsv, csv (all also .gz) or parquet files of one format.")],
    output: Annotated[Path, Parameter(name=("--output", "-o"), help="The folder to make.")],
    model: Annotated[str, Parameter(name=("--model", "-m"), help="What will be trained: its tokenizer is used.")],
    format: Annotated[FormatName | None, Parameter(help="Default: by the first file's columns.")] = None,
    task: Annotated[
        str | None, Parameter(help="Name of the task; {column} takes a row's value. Default: the first file's name.")
    ] = None,
    max_tokens: Annotated[int, Parameter(help="Longest text, two markers included; longer ones are cut.")] = 300,
    selection: Selection = Selection(),
    ms_marco: MsMarcoFiles = MsMarcoFiles(),
    overwrite: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Replace a store of that name.")
    ] = False,
    progress: Annotated[bool | None, Parameter(help="A progress bar on stderr; default: on a terminal.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Read training data into a store: texts once, tokenised, and which answers which.

    Formats: columns (sentence-transformers: anchor, positive, negative_1, …), labelled, flagembedding, tevatron, nli
    (AllNLI), msmarco, triples, wide (a language a column). The store appears when it is complete, and not before.
    """
    if not inputs:
        raise OptionError("no file to import", hint="udever data import FILE… --output STORE --model BASE")
    from udever.training.data.importing import ImportJob, import_examples, tokenizer_of
    from udever.training.data.layouts import Choices
    from udever.training.data.rows import Reading

    reading = Reading(skip_bad=selection.skip_bad)
    choices = Choices(
        task=task if task is not None else inputs[0].name.partition(".")[0],
        symmetric=selection.symmetric,
        columns=_listed(selection.columns),
        min_score=selection.min_score,
        pivot=selection.pivot,
        contradictions=selection.contradictions,
        reading=reading,
    )
    job = ImportJob(
        inputs=inputs,
        format=format,
        choices=choices,
        max_tokens=max_tokens,
        negatives=selection.negatives,
        limit=selection.limit,
        ms_marco=ms_marco.sources(),
        exclude=selection.exclude,
        overwrite=overwrite,
    )
    tokenizer = tokenizer_of(model)
    started = time.perf_counter()
    with _progress(job, reading, shown=sys.stderr.isatty() if progress is None else progress):
        about = import_examples(job, output, tokenizer=tokenizer)
    _report(about, output, reading, seconds=time.perf_counter() - started, as_json=as_json)


@app.command
def info(store: Store, /, *, as_json: JsonFlag = False) -> None:
    """Say what a store holds, and what it was made of."""
    opened = _open(store)
    if as_json:
        print(json.dumps(opened.about, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in _facts(opened.about).items():
        grid.add_row(name, value)
    Console(highlight=False, markup=False).print(grid)


@app.command
def show(
    store: Store,
    /,
    *,
    count: Annotated[int, Parameter(help="How many examples.")] = 5,
    first: Annotated[int, Parameter(help="The first of them, counted from 0.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Print examples: query, positives, hard negatives. With --json one object a line, texts whole."""
    if count < 1 or first < 0:
        raise OptionError(f"--count {count} --first {first} shows nothing", hint="pass --count 1 --first 0 or more")
    opened = _open(store)
    for index in range(first, min(first + count, len(opened))):
        print(json.dumps(_example(opened, index), ensure_ascii=False) if as_json else _shown(opened, index))


def _open(store: Path) -> "ExampleStore":
    from udever.training.data.examples import ExampleStore

    return ExampleStore.open(store)


def _listed(joined: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in joined.split(",") if part.strip())


def _facts(about: Mapping[str, Any]) -> dict[str, str]:
    options, tasks, dropped = about.get("options", {}), about["tasks"], about["dropped"]
    facts = {
        "examples": f"{about['examples']:,} ({about['without_negatives']:,} without hard negatives)",
        "tasks": ", ".join(f"{name} {count:,}" for name, count in tasks.items()),
        "texts": f"{about['texts']:,}, {about['tokens']:,} tokens",
        "longest": f"{about['max_tokens']} tokens with markers; {about['cut_texts']:,} texts were cut to that",
        "dropped": ", ".join(f"{count:,} × {why}" for why, count in dropped.items()) or "nothing",
        "options": ", ".join(f"{name} {value}" for name, value in options.items() if name != "task"),
        "sources": "\n".join(f"{source['file']}  sha256 {source['sha256']}" for source in about.get("sources", ())),
        "tokenizer": about["tokenizer"],
        "digest": about["digest"],
        "made by": f"udever {about['udever']}",
    }
    return {name: value for name, value in facts.items() if value}


def _example(store: "ExampleStore", index: int) -> dict[str, Any]:
    example = store.example(index)
    return {
        "query": store.text(example.query),
        "positives": [store.text(text_id) for text_id in example.positives],
        "negatives": [store.text(text_id) for text_id in example.negatives],
        "scores": None if example.scores is None else list(example.scores),
        "task": example.task,
        "symmetric": example.symmetric,
    }


def _shown(store: "ExampleStore", index: int) -> str:
    example = _example(store, index)
    kind = f"{example['task']}, symmetric" if example["symmetric"] else example["task"]
    lines = [f"{index:,}  {kind}", f"  query     {_short(example['query'])}"]
    texts = [("positive", text) for text in example["positives"]] + [
        ("negative", text) for text in example["negatives"]
    ]
    scores = example["scores"] or [None] * len(texts)
    for (name, text), score in zip(texts, scores, strict=True):
        lines.append(f"  {name}  {'' if score is None else f'{score:.3g}  '}{_short(text)}")
    return "\n".join(lines)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 1] + "…"


@contextmanager
def _progress(job: "ImportJob", reading: "Reading", *, shown: bool) -> Iterator[None]:
    """A bar over the bytes of the inputs."""
    if not shown:
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("importing"), BarColumn(), TaskProgressColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=sys.stderr.isatty()) as bar:
        task = bar.add_task("import", total=job.total_bytes())
        update: Callable[[int], None] = lambda done: bar.update(task, completed=done)  # noqa: E731
        reading.on_bytes = update
        yield


def _report(about: Mapping[str, Any], output: Path, reading: "Reading", *, seconds: float, as_json: bool) -> None:
    for complaint in reading.bad[:SHOWN_BAD]:
        print(f"skipped {complaint}", file=sys.stderr)
    if reading.bad_count > SHOWN_BAD:
        print(f"skipped {reading.bad_count - SHOWN_BAD:,} more bad rows", file=sys.stderr)
    for why, count in about["dropped"].items():
        print(f"dropped {count:,} × {why}", file=sys.stderr)
    if about["cut_texts"]:
        print(f"cut {about['cut_texts']:,} texts to {about['max_tokens']} tokens", file=sys.stderr)
    print(
        f"{about['examples']:,} examples, {about['texts']:,} texts, {about['tokens']:,} tokens → {output}"
        f" ({about['options']['format']}): {seconds:.1f} s",
        file=sys.stderr,
    )
    if as_json:
        more = {"output": str(output), "seconds": round(seconds, 3), "bad_rows": reading.bad}
        print(json.dumps({**about, **more}, ensure_ascii=False))
