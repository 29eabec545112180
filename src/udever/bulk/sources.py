"""Files, folders, globs and URLs → the files to read: where they are, how they are read, what tells their state.

    find(["data/", "s3://bucket/*.parquet"])

Invariant: equal arguments over equal files give equal lists, in order. No file is opened.
Does not know: what is in a file (heads.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from udever.bulk.storage import file_system, is_local
from udever.errors import FileInputError

InputFormat = Literal["parquet", "jsonl", "csv", "tsv", "txt"]

SUFFIXES: dict[str, InputFormat] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "txt",
}
"""File name ending → format."""
COMPRESSIONS = frozenset({".gz", ".bz2", ".xz", ".zst"})
"""Endings behind the format's of text files that are unpacked while they are read."""
DELIMITERS: dict[str, str] = {"csv": ",", "tsv": "\t"}
MAGIC = frozenset("*?[")
_STATES = (
    "ETag",
    "etag",
    "md5Hash",
    "crc32c",
    "generation",
    "blob_id",
    "content_md5",
    "LastModified",
    "mtime",
    "created",
)
_CONTENTS = ("ETag", "etag", "md5Hash", "blob_id", "content_md5")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file that was found."""

    name: str
    """As the user named it, or what its folder was named and the rest."""
    path: str
    """Absolute path of this machine, or URL."""
    format: InputFormat
    bytes: int
    state: str
    """What the file system says that changes when the file does; empty: nothing but its size."""
    content: str
    """A name of the content that an object store knows by itself; empty: it must be read."""


def find(paths: Sequence[str], *, format: InputFormat | None = None, besides: str = "") -> list[Found]:
    """Every file behind the paths, in their order; a folder's and a glob's files by name.

    Args:
        format: read all of them as this, whatever they end in.
        besides: a path below which nothing is an input (the output).

    Raises:
        FileInputError: a path without files, a name whose format is unknown, a file that is named twice.
    """
    found = [file for path in paths for file in _behind(path, format, besides)]
    if not found:
        raise FileInputError("no input", hint="name files, folders or globs")
    seen: set[str] = set()
    for file in found:
        if file.path in seen:
            raise FileInputError(f"{file.name} is named twice", hint="each file is embedded once")
        seen.add(file.path)
    return found


def open_input(path: str) -> Any:
    """The bytes of an input, unpacked, as an open file."""
    import fsspec

    return fsspec.open(path, "rb", compression="infer").open()


def open_parquet(path: str) -> pq.ParquetFile:
    """A parquet file whose row groups are read in a stream, not at once."""
    fs, inner = file_system(path)
    return pq.ParquetFile(inner if is_local(fs) else fs.open(inner, "rb"), pre_buffer=False, buffer_size=1 << 20)


def _behind(path: str, format_: InputFormat | None, besides: str) -> list[Found]:
    fs, inner = file_system(path)
    fs.invalidate_cache()
    one = fs.isfile(inner)
    infos = [fs.info(inner)] if one else _many(fs, path, inner, besides)
    files = []
    for info in infos:
        name = info["name"]
        kind = format_ or format_of(name)
        if kind is None and MAGIC.isdisjoint(path) and not one:
            continue  # a folder holds other things too
        if kind is None:
            raise FileInputError(
                f"{_shown(path, inner, name)}: no way to tell its format (known endings: {', '.join(SUFFIXES)})",
                hint="pass --input-format",
            )
        files.append(_found(fs, info, name=_shown(path, inner, name), format_=kind))
    if not files:
        raise FileInputError(f"{path}: no file here ends in {', '.join(SUFFIXES)}", hint="pass --input-format")
    return files


def _many(fs: Any, path: str, inner: str, besides: str) -> list[dict[str, Any]]:
    """The files of a folder or a glob, hidden ones and those below `besides` left out."""
    if fs.isdir(inner):
        found, root = fs.find(inner, detail=True), inner.rstrip("/") + "/"
    elif not MAGIC.isdisjoint(inner):
        found, root = fs.glob(inner, detail=True), ""
    else:
        raise FileInputError(f"{path} does not exist", hint="check the name; quote it if it holds blanks")
    files = [
        info | {"name": name}
        for name, info in sorted(found.items())
        if info["type"] == "file" and not (besides and name.startswith(besides.rstrip("/") + "/"))
    ]
    files = [info for info in files if not root or not _hidden(info["name"].removeprefix(root))]
    if not files:
        raise FileInputError(f"{path} holds no file", hint="check the folder or the pattern")
    return files


def _hidden(below: str) -> bool:
    return any(part.startswith((".", "_")) for part in below.split("/"))


def format_of(name: str) -> InputFormat | None:
    """The format a file's name ends in."""
    path = Path(name)
    if path.suffix.lower() in COMPRESSIONS:
        path = path.with_suffix("")
        return kind if (kind := SUFFIXES.get(path.suffix.lower())) != "parquet" else None
    return SUFFIXES.get(path.suffix.lower())


def _found(fs: Any, info: Mapping[str, Any], *, name: str, format_: InputFormat) -> Found:
    local = is_local(fs)
    size = int(info["size"] or 0)
    states = [f"{key}={info[key]}" for key in _STATES if info.get(key)]
    contents = [] if local else [f"{key}={info[key]}" for key in _CONTENTS if info.get(key)]
    return Found(
        name=name,
        path=info["name"] if local else fs.unstrip_protocol(info["name"]),
        format=format_,
        bytes=size,
        state=f"{size} {states[0]}" if states else "",
        content=f"{size} {contents[0]}" if contents else "",
    )


def _shown(path: str, inner: str, name: str) -> str:
    """The file as a continuation of what the user wrote."""
    if name == inner:
        return path
    root = inner.rstrip("/") + "/"
    return f"{path.rstrip('/')}/{name.removeprefix(root)}" if name.startswith(root) else name
