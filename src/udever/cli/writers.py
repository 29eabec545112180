"""Vectors into a file or onto stdout, block by block.

    with open_writer(output, header) as writer: writer.write(records, vectors)

Invariant: the output exists complete or not at all: it grows under a temporary name in the same folder and takes its
own name only when the `with` block ends without an exception. What stood under that name before stays until then.
Memory does not grow with the number of vectors.
Does not know: where texts come from or how vectors are made.
"""

import io
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from udever.cli.formats import Record
from udever.errors import OptionError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a reader of the vectors must know; stored in the metadata of a parquet file under the key `udever`."""

    model: str
    fingerprint: str
    role: str
    dimensions: int
    """Numbers a vector has."""
    normalized: bool
    max_tokens: int
    truncate: str
    udever_version: str


class Writer(Protocol):
    """One output format."""

    def write(self, records: Sequence[Record], vectors: "Vectors") -> None:
        """Append vectors [n, d] and the n records they belong to."""

    def close(self) -> None:
        """Write what can only be written at the end. The file itself stays open."""


def check_output(output: Path | None, inputs: Sequence[str]) -> None:
    """Refuse, before any work is done, an output that cannot be written.

    Raises:
        OptionError: unknown ending, missing or read-only folder, or one of the inputs.
    """
    if output is None:
        return
    if output.suffix.lower() not in WRITERS:
        raise OptionError(f"--output {output}: unknown ending {output.suffix!r}", hint=f"use {', '.join(WRITERS)}")
    folder = output.resolve().parent
    if not folder.is_dir():
        raise OptionError(f"--output {output}: the folder {folder} does not exist", hint=f"mkdir -p {folder}")
    if output.is_dir() or not os.access(folder, os.W_OK):
        raise OptionError(f"--output {output}: cannot be written", hint="choose another name or folder")
    if output.exists() and any(Path(name).exists() and output.samefile(name) for name in inputs):
        raise OptionError(f"--output {output} is one of the inputs", hint="choose another name")


@contextmanager
def open_writer(output: Path | None, header: Header, *, with_text: bool) -> Iterator[Writer]:
    """A writer of the format that `output` ends in; None: jsonl on stdout."""
    if output is None:
        yield JsonlWriter(_StdoutBytes(), header, with_text=with_text)
        return
    target = output.resolve()  # through a symbolic link, so that the link stays
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with _created(temporary, output) as file:
            writer = WRITERS[target.suffix.lower()](file, header, with_text=with_text)
            try:
                yield writer
            finally:
                writer.close()  # after a failure too: an open ParquetWriter would complain later; its file goes anyway
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _created(temporary: Path, output: Path) -> BinaryIO:
    try:
        return temporary.open("xb")
    except OSError as error:  # a folder may say that it can be written to, and not be one for files: /proc
        hint = "choose another name or folder"
        raise OptionError(f"--output {output}: cannot be written ({error.strerror})", hint=hint) from error


class _StdoutBytes(io.RawIOBase):
    """UTF-8 bytes to whatever stdout is, in whatever locale."""

    def write(self, data: Any, /) -> int:
        sys.stdout.buffer.write(data)
        return len(data)


class NpyWriter:
    """`.npy`, float32 [n, d] in C order. The texts are not kept."""

    def __init__(self, file: BinaryIO, header: Header, *, with_text: bool) -> None:  # noqa: ARG002
        self._file, self._dimensions, self._rows = file, header.dimensions, 0
        self._header_bytes = self._write_header()

    def write(self, records: Sequence[Record], vectors: "Vectors") -> None:  # noqa: ARG002
        """Append the vectors."""
        self._file.write(vectors.astype("<f4", copy=False).tobytes())
        self._rows += len(vectors)

    def close(self) -> None:
        """The number of rows is known only now; NumPy pads the header so that it fits where the first one was."""
        self._file.seek(0)
        if self._write_header() != self._header_bytes:
            raise RuntimeError("the .npy header changed its size")

    def _write_header(self) -> int:
        from numpy.lib import format as npy

        description = {"descr": "<f4", "fortran_order": False, "shape": (self._rows, self._dimensions)}
        npy.write_array_header_1_0(self._file, description)
        return self._file.tell()


class ParquetWriter:
    """`.parquet`: source, line, text (unless left out), embedding (fixed-size list of float32)."""

    def __init__(self, file: BinaryIO, header: Header, *, with_text: bool) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._with_text = with_text
        self._width = header.dimensions
        text = [pa.field("text", pa.string(), nullable=False)] if with_text else []
        self._schema = pa.schema(
            [
                pa.field("source", pa.string(), nullable=False),
                pa.field("line", pa.int64()),
                *text,
                pa.field("embedding", pa.list_(pa.float32(), header.dimensions), nullable=False),
            ],
            metadata={"udever": json.dumps(asdict(header))},
        )
        # Vectors are noise to a compressor, and a dictionary of floats only costs.
        self._writer = pq.ParquetWriter(file, self._schema, use_dictionary=["source"])

    def write(self, records: Sequence[Record], vectors: "Vectors") -> None:
        """Append one row group."""
        import pyarrow as pa

        flat = pa.array(vectors.reshape(-1))
        columns: dict[str, Any] = {
            "source": [record.source for record in records],
            "line": [record.line for record in records],
            "text": [record.text for record in records],
            "embedding": pa.FixedSizeListArray.from_arrays(flat, self._width),
        }
        wanted = {name: columns[name] for name in self._schema.names}
        self._writer.write_table(pa.table(wanted, schema=self._schema))

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()


class JsonlWriter:
    """`.jsonl`: {"source", "line", "text" (unless left out), "embedding"} a line; the numbers read back exactly."""

    def __init__(self, file: Any, header: Header, *, with_text: bool) -> None:  # noqa: ARG002
        self._file, self._with_text = file, with_text

    def write(self, records: Sequence[Record], vectors: "Vectors") -> None:
        """Append one line a record."""
        for record, numbers in zip(records, vectors.tolist(), strict=True):
            row: dict[str, Any] = {"source": record.source, "line": record.line}
            if self._with_text:
                row["text"] = record.text
            head = json.dumps(row, ensure_ascii=False)
            embedding = ", ".join([f"{number:.9g}" for number in numbers])  # nine digits name a float32
            self._file.write(f'{head[:-1]}, "embedding": [{embedding}]}}\n'.encode())

    def close(self) -> None:
        """Nothing is left to write."""


WRITERS: dict[str, Callable[..., Writer]] = {".npy": NpyWriter, ".parquet": ParquetWriter, ".jsonl": JsonlWriter}
"""File name ending → writer(file, header, with_text=…)."""
