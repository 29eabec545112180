"""`udever embed`: texts of files, folders or stdin → vectors in a file or on stdout.

    for block in model.embed_iter(feed): writer.write(feed.take(len(block)), block)

Invariant: row i of the output belongs to the i-th text read; an error about a text names its file and line.
Does not know: file formats (readers.py, writers.py) or how texts become vectors (udever.Embedder).
"""

import json
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from cyclopts import Parameter

from udever.cli.formats import STDIN, Format, ReadOptions, Record
from udever.cli.options import CLI_HINTS, JsonFlag, ModelChoice, Role, Runtime, Shaping, load, refuse_unknown_options
from udever.cli.readers import Inputs, open_inputs
from udever.errors import FileInputError, InputError, OptionError

if TYPE_CHECKING:
    from udever import Embedder
    from udever.cli.writers import Header

BLOCK_TEXTS = 512
"""Texts embedded between two writes: enough to sort by length, few enough that the bar moves."""

SHOWN_SKIPPED = 10
"""Left-out files and lines that are named on stderr; `--json` names more."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class InputChoice:
    """Where the texts stand in the inputs."""

    field: Annotated[str, Parameter(help="Key (jsonl) or column (csv, tsv, parquet) that holds the text.")] = "text"
    format: Annotated[
        Format | None, Parameter(help="How to read files and stdin; default: by the file's ending, stdin as txt.")
    ] = None
    glob: Annotated[
        tuple[str, ...],
        Parameter(
            negative=(),
            show_default=False,
            help='Files to take from a folder, like "*.py"; repeatable. Default: code and prose.',
        ),
    ] = ()
    skip_empty: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Leave out nulls and texts without a visible character.")
    ] = False

    def read_options(self) -> ReadOptions:
        """As the readers take them."""
        return ReadOptions(field=self.field, format=self.format, globs=self.glob, skip_empty=self.skip_empty)


def embed(
    *files: Annotated[
        str,
        Parameter(
            help="txt, jsonl, csv, tsv, parquet, or folders; - or none: lines of stdin.",
            allow_leading_hyphen=True,  # or `-` would be an unknown option
        ),
    ],
    output: Annotated[
        Path | None,
        Parameter(name=("--output", "-o"), help="OUT.npy, OUT.parquet or OUT.jsonl; default: jsonl to stdout."),
    ] = None,
    role: Annotated[Role, Parameter(help="What the texts are to a search.")] = "document",
    choice: ModelChoice = ModelChoice(),  # noqa: B008  frozen
    inputs: InputChoice = InputChoice(),
    shaping: Shaping = Shaping(),  # noqa: B008
    raw: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Keep the raw hidden states instead of unit vectors.")
    ] = False,
    text: Annotated[bool, Parameter(help="Write the texts beside the vectors (parquet, jsonl).")] = True,
    runtime: Runtime = Runtime(),  # noqa: B008
    batch_tokens: Annotated[int | None, Parameter(help="Tokens of a batch: speed and memory, not the vectors.")] = None,
    progress: Annotated[bool | None, Parameter(help="A progress bar on stderr; default: on a terminal.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Embed the texts of files, folders or stdin.

    A line of a .txt, a row of a .jsonl, .csv, .tsv or .parquet, a file of a folder is one text. The output appears
    under its name when it is complete, and not before.
    """
    from udever.cli.writers import check_output, open_writer

    refuse_unknown_options(files, command="embed")
    if as_json and output is None:
        raise OptionError("--json prints its summary where the vectors go", hint="pass --output too")
    check_output(output, [file for file in files if file != STDIN])
    source = open_inputs(files, inputs.read_options())
    _say_if_waiting(source)
    started = time.perf_counter()
    model = load(choice.model, runtime)
    load_seconds = time.perf_counter() - started
    keywords = {**shaping.keywords(), "role": role, "normalize": not raw, "block_texts": BLOCK_TEXTS}
    if batch_tokens is not None:
        keywords["batch_tokens"] = batch_tokens
    header, feed = _header(model, keywords), _Feed(source)
    blocks = model.embed_iter(feed.texts(), **keywords)  # refuses options that cannot be before anything is written
    started = time.perf_counter()
    with (
        open_writer(output, header, with_text=text) as writer,
        _progress(source, shown=sys.stderr.isatty() if progress is None else progress) as bar,
    ):
        count = 0
        for records, vectors in _with_records(blocks, feed):
            writer.write(records, vectors)
            bar.update(records)
            count += len(records)
    seconds = time.perf_counter() - started
    _report(
        {
            "model": model.name,
            "fingerprint": model.fingerprint,
            "precision": model.precision,
            "device": model.device,
            "role": role,
            "texts": count,
            "dimensions": header.dimensions,
            "normalized": not raw,
            "output": str(output) if output else None,
            "skipped": source.skipped.count,
            "skipped_places": source.skipped.places,
            "load_seconds": round(load_seconds, 3),
            "seconds": round(seconds, 3),
            "texts_per_second": round(count / seconds, 1),
        },
        as_json=as_json,
    )


def _with_records(blocks: Iterator[Any], feed: "_Feed") -> Iterator[tuple[list[Record], Any]]:
    """(records, float32 [len(records), d]) block by block, in order."""
    try:
        for vectors in blocks:
            yield feed.take(len(vectors)), vectors
    except InputError as error:
        raise _placed(error, feed) from error


class _Feed:
    """Hands out texts and keeps their records until the vectors come back."""

    def __init__(self, source: Inputs) -> None:
        self._source = source
        self._waiting: deque[Record] = deque()
        self._taken = 0

    def texts(self) -> Iterator[str]:
        for record in self._source:
            self._waiting.append(record)
            yield record.text

    def take(self, count: int) -> list[Record]:
        self._taken += count
        return [self._waiting.popleft() for _ in range(count)]

    def at(self, index: int) -> Record:
        return self._waiting[index - self._taken]


def _placed(error: InputError, feed: _Feed) -> InputError:
    """The library counts texts; a person looks for a line in a file."""
    index = getattr(error, "index", None)
    if index is None:
        return error
    message = error.message.replace(f"text {index}", "the text", 1)
    return FileInputError(f"{feed.at(index).place}: {message}", hint=CLI_HINTS.get(error.code, error.hint))


def _header(model: "Embedder", keywords: dict[str, Any]) -> "Header":
    from udever import __version__
    from udever.cli.writers import Header

    return Header(
        model=model.name,
        fingerprint=model.fingerprint,
        role=keywords["role"],
        dimensions=keywords["dimensions"] or model.dimensions,
        normalized=keywords["normalize"],
        max_tokens=keywords["max_tokens"] or model.max_tokens,
        truncate=keywords["truncate"],
        udever_version=__version__,
    )


def _say_if_waiting(source: Inputs) -> None:
    if any(file.path == STDIN for file in source.files) and sys.stdin.isatty():
        print("reading texts from the terminal, one a line; Ctrl-D ends", file=sys.stderr)


class _Bar(Protocol):
    def update(self, records: Sequence[Record]) -> None: ...


class _NoBar:
    def update(self, records: Sequence[Record]) -> None:
        """Nothing to show."""


@contextmanager
def _progress(source: Inputs, *, shown: bool) -> Iterator[_Bar]:
    """A bar over the bytes of the input (its number of texts is unknown until the end)."""
    if not shown:
        yield _NoBar()
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
        TextColumn("{task.fields[texts]:,} texts"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # On a terminal the summary takes the bar's place; elsewhere (--progress in a log) its last state stays.
    with Progress(*columns, console=Console(stderr=True), transient=sys.stderr.isatty()) as progress:
        task = progress.add_task("embed", total=source.total_bytes, texts=0)

        class Bar:
            texts = 0

            def update(self, records: Sequence[Record]) -> None:
                self.texts += len(records)
                progress.update(task, advance=sum(record.size_bytes for record in records), texts=self.texts)

        yield Bar()


def _report(summary: dict[str, Any], *, as_json: bool) -> None:
    for place in summary["skipped_places"][:SHOWN_SKIPPED]:
        print(f"skipped {place}", file=sys.stderr)
    if summary["skipped"] > SHOWN_SKIPPED:
        print(f"skipped {summary['skipped'] - SHOWN_SKIPPED:,} more", file=sys.stderr)
    print(
        f"{summary['texts']:,} text{'' if summary['texts'] == 1 else 's'} → {summary['output'] or 'stdout'}"
        f" ({summary['texts']} × {summary['dimensions']}, {summary['model']}, {summary['precision']},"
        f" {summary['device']}): {summary['seconds']:.1f} s, {summary['texts_per_second']:,.0f} texts/s",
        file=sys.stderr,
    )
    if as_json:
        print(json.dumps(summary, ensure_ascii=False))
