"""From published files of training data to a store of examples: what `udever data import` does.

    summary = import_examples(job, output, tokenizer=tokenizer_of("bigscience/bloom-560m"))

Invariant: the store appears complete or not at all; memory stays flat but for what text_index.py and lookups.py say,
and for NLI, which is grouped by sentence.
Does not know: the command line, or how a row becomes an example (data/layouts.py, data/nli.py, data/ms_marco.py).
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from udever.engine.locating import locate
from udever.errors import ExamplesError, OptionError
from udever.tokenizer import MIN_TOKENS, UdeverTokenizer
from udever.training.data.layouts import LAYOUTS, Choices, read_layout
from udever.training.data.ms_marco import MsMarco, Sources, is_ms_marco, read_text_triples
from udever.training.data.nli import is_nli, read_nli
from udever.training.data.rows import Reading, Row, columns_of, kind_of, read_lines, read_rows
from udever.training.data.store_writer import StoreWriter, TextExample, check_target, new_store
from udever.training.data.text_index import digest_of

BLOCK_EXAMPLES = 2048
"""Examples tokenised and written at once."""
ENDINGS = ".!?。！？।"
"""Left out where a text is compared with those to be kept out."""

Columns = list[str]
FirstRow = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Format:
    """How files can be read."""

    summary: str
    """What they look like, for help and errors."""
    fits: Callable[[Columns, FirstRow], bool]
    """Whether a file of these columns, with this first row, is of the format."""
    symmetric: bool = False
    """Whether both sides are of one kind, unless the user says otherwise."""


def _never(_columns: Columns, _first: FirstRow) -> bool:
    return False


FORMATS: dict[str, Format] = {
    **{name: Format(summary=x.summary, fits=x.fits, symmetric=x.symmetric) for name, x in LAYOUTS.items()},
    "nli": Format(summary="premise, hypothesis and label (0: entailment): AllNLI, SNLI", fits=is_nli, symmetric=True),
    "msmarco": Format(
        summary="ids: sentence-transformers' hard negatives (jsonl), qid pid pid triples, or qrels", fits=is_ms_marco
    ),
    "triples": Format(summary="query, positive and negative in a tsv without a header", fits=_never),
}
"""Name → format."""


@dataclass(frozen=True, kw_only=True)
class ImportJob:
    """What to read and how."""

    inputs: tuple[Path, ...]
    format: str | None = None
    """None: by the first file's columns."""
    choices: Choices
    max_tokens: int = 300
    """Longest text, both markers included; longer ones are cut at the end."""
    negatives: int | None = None
    """Keep the first so many of each example; None: all."""
    limit: int | None = None
    """Stop after so many examples."""
    ms_marco: Sources | None = None
    """Where the texts behind ids are."""
    exclude: tuple[Path, ...] = ()
    """Files whose texts must be no query and no positive."""
    overwrite: bool = False
    """Take the place of a store of the output's name."""

    def files(self) -> list[Path]:
        """Everything that is read."""
        return [*self.inputs, *(self.ms_marco.files() if self.ms_marco else ()), *self.exclude]

    def total_bytes(self) -> int:
        """Of all files."""
        return sum(path.stat().st_size for path in self.files() if path.is_file())


def tokenizer_of(name: str) -> UdeverTokenizer:
    """The tokenizer of a model or of a folder with a tokenizer.json; a base BLOOM's gets the markers.

    Raises:
        ModelError: there is no such model, or its tokenizer cannot be read.
    """
    return locate(name, as_base=True).tokenizer(add_markers=True)


def import_examples(job: ImportJob, output: Path, *, tokenizer: UdeverTokenizer) -> dict[str, Any]:
    """Read everything into a new store at `output`. `job.choices.reading` tells how far it is.

    Returns:
        what the store's `store.json` says.

    Raises:
        ExamplesError: names the file and line, or what is missing or in the way.
        OptionError: options that contradict each other.
    """
    check_target(output, overwrite=job.overwrite)
    for path in job.files():
        if not path.is_file():
            raise ExamplesError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}", hint="name the files")
    name = job.format or ("columns" if job.choices.columns else guess_format(job.inputs[0]))
    job = _checked(replace(job, format=name))
    kept_out = _texts_to_keep_out(job.exclude, job.choices.reading)
    with new_store(
        output,
        tokenizer=tokenizer,
        max_tokens=job.max_tokens,
        max_negatives=job.negatives,
        overwrite=job.overwrite,
    ) as writer:
        examples = _without(kept_out, _examples(job, writer.work), writer)
        for block in _blocks(examples, BLOCK_EXAMPLES):
            writer.add(block, limit=None if job.limit is None else job.limit - writer.examples)
            if job.limit is not None and writer.examples >= job.limit:
                break
        writer.dropped += job.choices.dropped
        writer.dropped["bad row"] += job.choices.reading.bad_count
        writer.about = {"options": _described(job), "sources": [_source(path) for path in job.files()]}
    return writer.about


def guess_format(path: Path) -> str:
    """The one format that a file can be of.

    Raises:
        ExamplesError: none or several fit; says what was found and what can be chosen.
    """
    kind = kind_of(path)
    if kind == "tsv":
        cells = next((line for _, line in read_lines(path, Reading())), "").split()
        if len(cells) in (3, 4) and all(cell.isdigit() for cell in cells):
            return "msmarco"
    columns, first = columns_of(path)
    fitting = [name for name, format_ in FORMATS.items() if format_.fits(columns, first)]
    if len(fitting) == 1:
        return fitting[0]
    what = f"could be {' or '.join(fitting)}" if fitting else "is of no known format"
    choices = "; ".join(f"{name}: {FORMATS[name].summary}" for name in fitting or FORMATS)
    raise ExamplesError(
        f"{path} {what}; its columns are {', '.join(map(repr, columns)) or 'none'}",
        hint=f"pass --columns QUERY,POSITIVE[,NEGATIVE…], or --format ({choices})",
    )


def _checked(job: ImportJob) -> ImportJob:
    """The job with all that follows from its format.

    Raises:
        OptionError: options that contradict each other or the format.
    """
    name, choices = job.format, job.choices
    if name not in FORMATS:
        raise OptionError(f"format {name!r} does not exist", hint=f"one of {', '.join(FORMATS)}")
    by_row = name in LAYOUTS
    for holds, complaint, way_out in (
        (
            job.max_tokens >= MIN_TOKENS,
            f"max_tokens is {job.max_tokens}",
            f"at least {MIN_TOKENS}: markers and a token",
        ),
        (job.negatives is None or job.negatives >= 0, f"negatives is {job.negatives}", "at least 0"),
        (job.limit is None or job.limit > 0, f"limit is {job.limit}", "at least 1"),
        (len(choices.columns) != 1, "one column is no pair", "--columns QUERY,POSITIVE[,NEGATIVE…]"),
        (name != "msmarco" or job.ms_marco, f"{job.inputs[0]} holds ids", "pass --collection and --queries"),
        (name == "msmarco" or not job.ms_marco, f"format {name} has no ids to look up", "leave --collection out"),
        (by_row or "{" not in choices.task, f"format {name} has no columns for a task's name", "pass a plain --task"),
        (name == "nli" or not choices.contradictions, f"format {name} has no contradictions", "leave them out"),
        (name == "labelled" or choices.min_score is None, f"format {name} has no score", "leave --min-score out"),
        (name == "wide" or choices.pivot is None, f"format {name} has no languages", "leave --pivot out"),
    ):
        if not holds:
            raise OptionError(complaint, hint=way_out)
    symmetric = FORMATS[name].symmetric if choices.symmetric is None else choices.symmetric
    return replace(job, choices=replace(choices, symmetric=symmetric))


def _examples(job: ImportJob, work: Path) -> Iterator[TextExample]:
    choices = job.choices
    if job.ms_marco is not None:
        return chain.from_iterable(map(MsMarco(job.ms_marco, choices, work=work).read, job.inputs))
    if job.format == "triples":
        return chain.from_iterable(read_text_triples(path, choices) for path in job.inputs)
    rows: Iterator[Row] = chain.from_iterable(map(partial(read_rows, reading=choices.reading), job.inputs))
    if job.format == "nli":
        return read_nli(rows, choices)
    return read_layout(LAYOUTS[job.format or ""], rows, choices)


def _texts_to_keep_out(paths: Iterable[Path], reading: Reading) -> set[bytes]:
    found: set[bytes] = set()
    for path in paths:
        for row in read_rows(path, reading):
            found.update(map(_alike, _strings(row.values)))
    return found


def _without(kept_out: set[bytes], examples: Iterator[TextExample], writer: StoreWriter) -> Iterator[TextExample]:
    for example in examples:
        if kept_out and any(_alike(text) in kept_out for text in (example.query, *example.positives)):
            writer.dropped["text that is kept out"] += 1
        else:
            yield example


def _alike(text: str) -> bytes:
    """Equal for texts that differ in case, blanks and the final stop only."""
    return digest_of(" ".join(text.lower().split()).rstrip(ENDINGS).encode("utf-8", "replace"))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _blocks(examples: Iterator[TextExample], size: int) -> Iterator[list[TextExample]]:
    while block := list(islice(examples, size)):
        yield block


def _described(job: ImportJob) -> dict[str, Any]:
    """The options, for `store.json`."""
    choices, sources = job.choices, job.ms_marco
    told = {
        "format": job.format,
        "task": choices.task,
        "symmetric": choices.symmetric,
        "columns": list(choices.columns) or None,
        "min_score": choices.min_score,
        "pivot": choices.pivot,
        "contradictions": choices.contradictions or None,
        "negatives": job.negatives,
        "limit": job.limit,
    }
    if sources is not None:
        told |= {"margin": sources.margin if sources.scores else None, "per_system": sources.per_system}
        told |= {"systems": list(sources.systems) or None}
    return {name: value for name, value in told.items() if value is not None}


def _source(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        return {"file": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
