"""`udever bulk`: files of any size → vectors in files; stop it anywhere, run it again, and it goes on.

Invariant: stdout carries the summary under --json and nothing else; a run with bad rows ends with code 3 and says how
many there are, why, and where they are named.
Does not know: how work is planned, done or written (udever.bulk).
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from udever.cli import BAD_ROWS, OK
from udever.cli.options import JsonFlag, ModelChoice, Role, Runtime, Shaping, load, refuse_unknown_options
from udever.errors import OptionError

if TYPE_CHECKING:
    from udever.bulk.embed import Tick
    from udever.bulk.job import Options
    from udever.bulk.receipts import Receipt
    from udever.bulk.run import Run, Summary

Engine = Literal["local", "ray"]
OutputFormat = Literal["parquet", "lance", "npy"]
InputFormat = Literal["parquet", "jsonl", "csv", "tsv", "txt"]
Dtype = Literal["float32", "float16", "int8"]

_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Texts:
    """Which texts are embedded."""

    text_column: Annotated[str | None, Parameter(help='Column that holds the text. Default: "text".')] = None
    template: Annotated[
        str | None, Parameter(help=r'Make the text of several columns: "{title}\n{body}".', show_default=False)
    ] = None
    role: Annotated[Role, Parameter(help="What the texts are to a search.")] = "document"
    input_format: Annotated[InputFormat | None, Parameter(help="How to read all inputs; default: by their ending.")] = (
        None
    )
    dedupe: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Embed each distinct text of all inputs once.")
    ] = False


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Writing:
    """How vectors are written."""

    format: Annotated[OutputFormat, Parameter(help="Files of parquet or npy, or one Lance dataset.")] = "parquet"
    dtype: Annotated[Dtype, Parameter(help="Numbers of a vector; int8 has a scale for each row.")] = "float32"
    columns: Annotated[
        tuple[str, ...],
        Parameter(negative=(), show_default=False, help="Columns to keep: NAME,NAME or none. Default: all."),
    ] = ()
    shard_rows: Annotated[
        int | None, Parameter(help="Rows of a file of the output; what a kill can cost. Default: 8192.")
    ] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What --engine ray takes."""

    address: Annotated[
        str | None,
        Parameter(help="ray: host:port, auto, ray://…; default: RAY_ADDRESS, else a cluster on this machine alone."),
    ] = None
    workers: Annotated[
        str | None, Parameter(help="ray: how many, or MIN:MAX of a cluster that scales. Default: as many as fit.")
    ] = None
    cpus_per_worker: Annotated[int | None, Parameter(help="ray: CPUs, and threads, of a worker. Default: 1.")] = None
    gpus_per_worker: Annotated[
        float | None, Parameter(help="ray: GPUs of a worker. Default: 1 under --device cuda, else 0.")
    ] = None


FEW_SHAPES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
"""oneDNN keeps code for each number of tokens that it has met, 1,024 times unless told before its first product: some
400 MB that a run of millions of rows grows by, for shapes that hardly come again."""


def bulk(
    *inputs: Annotated[str, Parameter(help="parquet, jsonl, csv, tsv, txt; folders, globs, URLs (s3://…).")],
    output: Annotated[str, Parameter(name=("--output", "-o"), help="Folder or URL of the output.")],
    texts: Texts = Texts(),
    choice: ModelChoice = ModelChoice(),  # noqa: B008
    runtime: Runtime = Runtime(),  # noqa: B008
    shaping: Shaping = Shaping(),  # noqa: B008
    batch_tokens: Annotated[int | None, Parameter(help="Tokens of a batch: speed and memory, not the vectors.")] = None,
    writing: Writing = Writing(),
    engine: Annotated[Engine, Parameter(help="This machine, or a Ray cluster.")] = "local",
    cluster: Cluster = Cluster(),
    force: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Start over, whatever an earlier run has done.")
    ] = False,
    progress: Annotated[bool | None, Parameter(help="A progress bar on stderr; default: on a terminal.")] = None,
    as_json: JsonFlag = False,
) -> int:
    """Embed files of any size into a folder; run it again after an interrupt and it goes on where it was.

    Rows without a text that can be embedded are named in errors.parquet of the output.
    """
    from udever.bulk.run import open_run, prepare

    refuse_unknown_options(inputs, command="bulk")
    if batch_tokens is not None and batch_tokens < 1:
        raise OptionError(f"--batch-tokens is {batch_tokens}; it must be at least 1")
    options = _options(texts, shaping, writing)
    runner = _runner(engine, cluster, choice, runtime)
    prepared = prepare(inputs, options, output=output, input_format=texts.input_format, force=force)
    os.environ.setdefault(*FEW_SHAPES)
    # On a cluster this process embeds nothing: it may have no GPU.
    model = load(choice.model, runtime if engine == "local" else replace(runtime, device="auto"))
    started = time.perf_counter()
    run = open_run(prepared, model)
    _say_what_is_done(run)
    with _progress(run, shown=sys.stderr.isatty() if progress is None else progress) as tick:
        for stage in run.stages():
            for receipt in runner(run, stage, model, batch_tokens=batch_tokens, tick=tick):
                run.add(receipt)
    summary = run.finish()
    _report(summary, run, seconds=time.perf_counter() - started, as_json=as_json)
    return BAD_ROWS if summary.bad_rows else OK


def _runner(
    engine: Engine, cluster: Cluster, choice: ModelChoice, runtime: Runtime
) -> "Callable[..., Iterator[Receipt]]":
    if engine == "local":
        given = [name for name, value in asdict(cluster).items() if value is not None]
        if given:
            raise OptionError(f"--{given[0].replace('_', '-')} is for --engine ray", hint="pass --engine ray too")
        from udever.bulk.local import run_here

        return run_here
    from udever.bulk.cluster.connection import require_ray
    from udever.bulk.cluster.pool import ModelSource, Pool
    from udever.bulk.cluster.runner import run_on_ray

    gpus = float(runtime.device.startswith("cuda")) if cluster.gpus_per_worker is None else cluster.gpus_per_worker
    pool = Pool(
        address=cluster.address,
        workers=None if cluster.workers is None else _workers(cluster.workers),
        cpus_per_worker=1 if cluster.cpus_per_worker is None else cluster.cpus_per_worker,
        gpus_per_worker=gpus,
    )
    source = ModelSource(name=choice.model, device=runtime.device, revision=runtime.revision)
    require_ray()
    return partial(run_on_ray, source=source.on_nodes(pool), pool=pool.checked())


def _workers(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    try:
        return int(low), int(high or low)
    except ValueError:
        raise OptionError(f"--workers {text} is no number", hint="like 4, or 1:16") from None


def _options(texts: Texts, shaping: Shaping, writing: Writing) -> "Options":
    from udever.bulk.job import Options
    from udever.bulk.plan import SHARD_ROWS

    if texts.template is not None and texts.text_column is not None:
        raise OptionError("--text-column and --template exclude each other", hint="pass one")
    template = None if texts.template is None else re.sub(r"\\[nt\\]", lambda m: _ESCAPES[m.group()], texts.template)
    return Options(
        text_column=texts.text_column or "text",
        template=template,
        role=texts.role,
        dimensions=shaping.dimensions,
        max_tokens=shaping.max_tokens,
        truncate=shaping.truncate,
        columns=_names(writing.columns),
        format=writing.format,
        dtype=writing.dtype,
        dedupe=texts.dedupe,
        shard_rows=SHARD_ROWS if writing.shard_rows is None else writing.shard_rows,
    )


def _names(columns: Sequence[str]) -> tuple[str, ...] | None:
    names = [name for group in columns for name in group.split(",") if name]
    if not names:
        return None
    return () if names == ["none"] else tuple(dict.fromkeys(names))


def _say_what_is_done(run: "Run") -> None:
    if run.before:
        print(f"{run.before:,} of {len(run.plan.shards):,} shards are done already", file=sys.stderr)


@contextmanager
def _progress(run: "Run", *, shown: bool) -> "Iterator[Tick]":
    """A bar over rows, with rows and tokens a second and the time that is left."""
    if not shown:
        yield lambda _rows, _tokens: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} rows"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rates]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # On a terminal the summary takes the bar's place; elsewhere (--progress in a log) its last state stays.
    with Progress(*columns, console=Console(stderr=True), transient=sys.stderr.isatty()) as bar:
        task = bar.add_task("bulk", total=run.plan.rows, completed=run.rows_done, rates="")
        started, rows_done, tokens_done = time.perf_counter(), 0, 0

        def tick(rows: int, tokens: int) -> None:
            nonlocal rows_done, tokens_done
            rows_done, tokens_done = rows_done + rows, tokens_done + tokens
            seconds = max(time.perf_counter() - started, 1e-9)
            rates = f"{rows_done / seconds:,.0f} rows/s, {tokens_done / seconds:,.0f} tokens/s"
            bar.update(task, advance=rows, rates=rates)

        yield tick


def _report(summary: "Summary", run: "Run", *, seconds: float, as_json: bool) -> None:
    job = run.job
    where = run.storage.url.rstrip("/")
    if summary.bad_rows:
        reasons = ", ".join(f"{count:,} × {code}" for code, count in summary.reasons.items())
        rows = "row" if summary.bad_rows == 1 else "rows"
        print(f"{summary.bad_rows:,} bad {rows} ({reasons}): see {where}/errors.parquet", file=sys.stderr)
    speed = f"{summary.new_rows / seconds:,.0f} rows/s, {summary.new_tokens / seconds:,.0f} tokens/s"
    print(
        f"{summary.vectors:,} vector{'' if summary.vectors == 1 else 's'} → {run.storage.url}"
        f" ({summary.vectors} × {job.dimensions} {job.options.dtype}, {job.model}, {job.precision}): {seconds:.1f} s, "
        + (speed if summary.new_rows else "nothing was left to do"),
        file=sys.stderr,
    )
    if as_json:
        print(json.dumps(_facts(summary, run, seconds), ensure_ascii=False))


def _facts(summary: "Summary", run: "Run", seconds: float) -> dict[str, Any]:
    job = run.job
    return asdict(summary) | {
        "output": run.storage.url,
        "model": job.model,
        "fingerprint": job.fingerprint,
        "precision": job.precision,
        "dimensions": job.dimensions,
        "seconds": round(seconds, 3),
        "rows_per_second": round(summary.new_rows / seconds, 1),
        "tokens_per_second": round(summary.new_tokens / seconds, 1),
    }
