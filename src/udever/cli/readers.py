"""Input files as a stream of texts, each knowing the place it came from.

    inputs = open_inputs(paths, options);  for record in inputs: record.text, record.place

Invariant: all files are found, and their formats known, before the first is read; memory does not grow with the input.
Does not know: how a format is read (formats.py), models, vectors, or what becomes of the texts.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from udever.cli.formats import FORMATS, STDIN, Format, ReadOptions, Record
from udever.errors import FileInputError, OptionError

SUFFIXES: dict[str, Format] = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
"""File name ending → format, where the command line does not say."""

_SUFFIXES = """
    .py .pyi .js .mjs .jsx .ts .tsx .java .kt .scala .go .rs .c .h .cc .cpp .hpp .cs .swift .rb .php .pl .lua .r .jl
    .sh .bash .sql .hs .ml .ex .erl .clj .lisp .dart .zig .html .css .vue .svelte .md .rst .txt .tex
"""
SOURCE_SUFFIXES = frozenset(_SUFFIXES.split())
"""What a folder gives when no --glob says otherwise: source code and prose."""

SKIPPED_FOLDERS = frozenset(["__pycache__", "node_modules", "venv", "site-packages"])
"""Never entered, like every folder whose name begins with a dot."""

NAMED_SKIPS = 100
"""Left-out places that are remembered by name; the rest is only counted."""


class Input(NamedTuple):
    """One file to read."""

    path: str
    format: Format
    may_be_skipped: bool
    """It was found in a folder, nobody named it: without text it is passed over instead of an error."""


@dataclass(kw_only=True)
class Skipped:
    """What was left out."""

    count: int = 0
    places: list[str] = field(default_factory=list)
    """`place: reason` of the first `NAMED_SKIPS`."""

    def add(self, place: str) -> None:
        """Count one more."""
        self.count += 1
        if len(self.places) < NAMED_SKIPS:
            self.places.append(place)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The texts of all inputs, in order. Iterate once."""

    options: ReadOptions
    files: list[Input]
    total_bytes: int | None
    """None when stdin is among the inputs."""
    skipped: Skipped
    """Fills while iterating."""

    def __iter__(self) -> Iterator[Record]:
        for file in self.files:
            for record in self._records(file):
                drops_empty = self.options.skip_empty or file.may_be_skipped
                if drops_empty and not record.text.strip():
                    self.skipped.add(f"{record.place}: empty")
                else:
                    yield record

    def _records(self, file: Input) -> Iterator[Record]:
        try:
            yield from FORMATS[file.format](file.path, self.options)
        except FileInputError as error:
            if not file.may_be_skipped:
                raise
            self.skipped.add(error.message)


def open_inputs(paths: Sequence[str], options: ReadOptions) -> Inputs:
    """Find every file behind `paths` (files, folders, `-`; none: stdin) without reading any.

    Raises:
        FileInputError: a path that does not exist, a name whose format is unknown, a folder without a matching file.
        OptionError: patterns without a folder, or an empty one.
    """
    if options.globs and not any(path != STDIN and Path(path).is_dir() for path in paths):
        raise OptionError(f"--glob {options.globs[0]!r} without a folder", hint="it chooses files of a folder")
    if "" in options.globs:
        raise OptionError("--glob is empty", hint='pass a pattern such as "*.py"')
    files = [file for path in paths or [STDIN] for file in _found(path, options)]
    stdins = sum(file.path == STDIN for file in files)
    if stdins > 1:
        raise FileInputError("stdin is named twice", hint="it can be read once")
    total = None if stdins else sum(Path(file.path).stat().st_size for file in files)
    return Inputs(options=options, files=files, total_bytes=total, skipped=Skipped())


def _found(path: str, options: ReadOptions) -> list[Input]:
    if path == STDIN:
        return [Input(STDIN, options.format or "txt", may_be_skipped=False)]
    if Path(path).is_dir():
        kind = options.format or "document"
        return [Input(found, kind, may_be_skipped=kind == "document") for found in _walk(path, options)]
    return [Input(path, _format_of(path, options), may_be_skipped=False)]


def _format_of(path: str, options: ReadOptions) -> Format:
    if not Path(path).exists():
        raise FileInputError(f"{path} does not exist", hint="check the name; quote it if it holds blanks")
    format_ = options.format or SUFFIXES.get(Path(path).suffix.lower())
    if format_ is None:
        raise FileInputError(
            f"{path}: no way to tell where one text ends (known endings: {', '.join(SUFFIXES)})",
            hint="pass --format txt for a text a line, or --format document for one text a file",
        )
    return format_


def _walk(folder: str, options: ReadOptions) -> list[str]:
    """Files below a folder, sorted; hidden folders and `SKIPPED_FOLDERS` are left out, linked folders not followed."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in SKIPPED_FOLDERS)
        for name in sorted(names):
            path = Path(parent, name)
            if path.is_file() and _wanted(path.relative_to(folder), options):
                found.append(str(path))
    if not found:
        wanted = " or ".join(options.globs) or options.format or "source code or prose"
        raise FileInputError(f"{folder}: no file in this folder is {wanted}", hint='try --glob "*.log", or --glob "*"')
    return found


def _wanted(path: Path, options: ReadOptions) -> bool:
    if options.globs:
        return any(_matches(path, pattern) for pattern in options.globs)
    if options.format and options.format != "document":
        return SUFFIXES.get(path.suffix.lower()) == options.format
    return path.suffix.lower() in SOURCE_SUFFIXES


def _matches(path: Path, pattern: str) -> bool:
    """Shell patterns; `*.py` is found at any depth, and so is `src/**/*.py` below `src`."""
    pattern = pattern.replace("**/", "")
    return path.match(pattern) or fnmatch(path.as_posix(), pattern)
