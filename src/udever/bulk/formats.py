"""Vectors and what belongs to them → files: Parquet, Lance or .npy; float32, float16 or int8 with a scale.

Invariant: equal shards give equal bytes (no times, no random names; but Lance names its files and compresses its texts
by chance, so there only the rows are equal). A float16 is the nearest one; an int8 times its row's scale is off by at
most half the scale, which is the row's largest number / 127.
Does not know: where rows come from, or models.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from udever.bulk.job import EMBEDDING, FILE, ROW, SCALE, Dtype, Job, OutputFormat
from udever.bulk.receipts import FileFacts, Receipt
from udever.bulk.storage import Storage, file_digest, stream_digest
from udever.errors import OutputError, UdeverError

FOLDER = "vectors"
LANCE = "vectors.lance"
MOST_INT8 = 127

Vectors = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Block:
    """The rows of one shard that have vectors."""

    file: str
    """The input's name."""
    numbers: NDArray[np.int64]
    """Row numbers in it, from 1."""
    table: pa.Table
    """The carried columns."""
    vectors: Vectors
    """[n, dimensions]"""


class Stored(NamedTuple):
    """Vectors as they are kept."""

    values: NDArray[Any]
    scales: Vectors | None
    """[n], with int8 only."""


class Written(NamedTuple):
    """What a format wrote."""

    files: dict[str, FileFacts]
    fragment: str = ""


class Format(Protocol):
    """One output format."""

    def write(self, storage: Storage, name: str, block: Block, job: Job) -> Written:
        """Write a shard's files; each appears whole or not at all."""

    def read(self, storage: Storage, receipt: Receipt) -> tuple[NDArray[np.int64], Vectors]:
        """(row numbers, vectors) of a shard, as float32."""

    def finish(self, storage: Storage, receipts: Sequence[Receipt], job: Job) -> None:
        """All shards are done: what is left to do."""


def keep(vectors: Vectors, dtype: Dtype) -> Stored:
    """Vectors as a dtype keeps them."""
    if dtype != "int8":
        return Stored(vectors.astype(dtype, copy=False), None)
    scales = np.abs(vectors).max(axis=1, initial=0).astype(np.float32) / np.float32(MOST_INT8)
    divisors = np.where(scales > 0, scales, 1)[:, None]
    return Stored(np.clip(np.rint(vectors / divisors), -MOST_INT8, MOST_INT8).astype(np.int8), scales)


def restore(stored: Stored) -> Vectors:
    """The float32 that are kept."""
    values: Vectors = stored.values.astype(np.float32)
    return values if stored.scales is None else values * stored.scales[:, None]


def output_schema(job: Job) -> pa.Schema:
    """Columns of a Parquet or Lance output; its metadata holds under `udever` what a reader must know."""
    scale = [pa.field(SCALE, pa.float32(), nullable=False)] if job.options.dtype == "int8" else []
    header = {
        "model": job.model,
        "fingerprint": job.fingerprint,
        "role": job.options.role,
        "dimensions": job.dimensions,
        "normalized": True,
        "max_tokens": job.max_tokens,
        "truncate": job.options.truncate,
        "dtype": job.options.dtype,
    }
    return pa.schema(
        [
            *job.carried,
            pa.field(FILE, pa.string(), nullable=False),
            pa.field(ROW, pa.int64(), nullable=False),
            pa.field(EMBEDDING, pa.list_(_ARROW[job.options.dtype], job.dimensions), nullable=False),
            *scale,
        ],
        metadata={"udever": json.dumps(header)},
    )


_ARROW = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8()}


def _table(block: Block, job: Job) -> pa.Table:
    stored = keep(block.vectors, job.options.dtype)
    columns = [
        *block.table.columns,
        pa.array([block.file], pa.string()).take(pa.array(np.zeros(len(block.numbers), np.int64))),
        pa.array(block.numbers),
        pa.FixedSizeListArray.from_arrays(pa.array(stored.values.reshape(-1)), job.dimensions),
    ]
    if stored.scales is not None:
        columns.append(pa.array(stored.scales))
    return pa.table(columns, schema=output_schema(job))


def _read_table(table: pa.Table) -> tuple[NDArray[np.int64], Vectors]:
    vectors = table.column(EMBEDDING).combine_chunks()
    width = vectors.type.list_size
    values = vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    scales = table.column(SCALE).to_numpy() if SCALE in table.column_names else None
    return table.column(ROW).to_numpy(), restore(Stored(values, scales))


class ParquetFormat:
    """`vectors/part-….parquet`: the carried columns, `_file`, `_row`, `embedding` and, with int8, `embedding_scale`."""

    def write(self, storage: Storage, name: str, block: Block, job: Job) -> Written:
        """One file, one row group."""
        target = f"{FOLDER}/{name}.parquet"
        table = _table(block, job)
        with storage.writing(target) as path:
            pq.write_table(table, path, row_group_size=max(1, table.num_rows), **_parquet_options(table.schema))
            facts = _facts_of(path)
        return Written({target: facts})

    def read(self, storage: Storage, receipt: Receipt) -> tuple[NDArray[np.int64], Vectors]:
        """As `Format.read`."""
        [name] = receipt.files
        with _parquet_errors(name), storage.open(name) as file, pq.ParquetFile(file) as parquet:
            names = [n for n in (ROW, EMBEDDING, SCALE) if n in parquet.schema_arrow.names]
            return _read_table(parquet.read(names))

    def finish(self, storage: Storage, receipts: Sequence[Receipt], job: Job) -> None:
        """Nothing is left to do."""


@lru_cache(maxsize=8)
def _parquet_options(schema: pa.Schema) -> Mapping[str, Any]:
    """Vectors are noise to a compressor, so only the rest is compressed; Parquet stores an int8 in four bytes, unless
    a dictionary of the 255 there are brings it back to one."""
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    parquet = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    leaves = [parquet.column(index).path for index in range(len(parquet.names))]
    vector = {leaf for leaf in leaves if leaf.split(".")[0] == EMBEDDING}
    other = [leaf for leaf in leaves if leaf not in vector]
    is_int8 = schema.field(EMBEDDING).type.value_type == pa.int8()
    return {
        "compression": dict.fromkeys(vector, "none") | dict.fromkeys(other, "zstd"),
        "use_dictionary": other + (sorted(vector) if is_int8 else []),
        "write_statistics": other,
    }


class NpyFormat:
    """`vectors/part-….npy` [n, d]; `….rows.npy` [n] row numbers in the input; with int8 `….scale.npy` [n]."""

    def write(self, storage: Storage, name: str, block: Block, job: Job) -> Written:
        """Two or three files."""
        stored = keep(block.vectors, job.options.dtype)
        scales = {} if stored.scales is None else {".scale": stored.scales}
        return save_arrays(storage, f"{FOLDER}/{name}", {"": stored.values, ".rows": block.numbers} | scales)

    def read(self, storage: Storage, receipt: Receipt) -> tuple[NDArray[np.int64], Vectors]:
        """As `Format.read`."""
        loaded: dict[str, Any] = {"scale": None}
        for name in receipt.files:
            with storage.open(name) as file:
                parts = name.rpartition("/")[2].split(".")
                try:
                    loaded[parts[1] if len(parts) == 3 else "values"] = np.load(file)
                except ValueError as error:
                    raise _damaged(name, error) from error
        return loaded["rows"], restore(Stored(loaded["values"], loaded["scale"]))

    def finish(self, storage: Storage, receipts: Sequence[Receipt], job: Job) -> None:
        """Nothing is left to do."""


class LanceFormat:
    """`vectors.lance`: one dataset with Parquet's columns; shards are fragments, committed together at the end."""

    def write(self, storage: Storage, name: str, block: Block, job: Job) -> Written:  # noqa: ARG002
        """One fragment, which no reader sees before `finish`; a shard without vectors has none."""
        if not len(block.numbers):
            return Written({})
        write_fragments = _lance().fragment.write_fragments
        [fragment] = write_fragments(
            _table(block, job), storage.url_of(LANCE), mode="create", max_rows_per_file=len(block.numbers)
        )
        target = f"{LANCE}/data/{fragment.files[0].path}"
        with storage.open(target) as file:
            content = stream_digest(file)
        facts = FileFacts(bytes=storage.size(target), digest=content)
        return Written({target: facts}, json.dumps(fragment.to_json(), sort_keys=True))

    def read(self, storage: Storage, receipt: Receipt) -> tuple[NDArray[np.int64], Vectors]:
        """As `Format.read`, after `finish`."""
        [name] = receipt.files
        for fragment in _lance().dataset(storage.url_of(LANCE)).get_fragments():
            if fragment.metadata.files[0].path == name.rpartition("/")[2]:
                names = [column for column in (ROW, EMBEDDING, SCALE) if column in fragment.schema.names]
                return _read_table(fragment.to_table(columns=names))
        raise OutputError(f"{name} is not part of {LANCE}", hint="run the same bulk command again")

    def finish(self, storage: Storage, receipts: Sequence[Receipt], job: Job) -> None:
        """Commit the fragments in order; remove what killed runs left."""
        lance = _lance()
        fragments = [lance.FragmentMetadata.from_json(receipt.fragment) for receipt in receipts if receipt.fragment]
        lance.LanceDataset.commit(storage.url_of(LANCE), lance.LanceOperation.Overwrite(output_schema(job), fragments))
        wanted = {name for receipt in receipts for name in receipt.files}
        for name in storage.sizes(f"{LANCE}/data").keys() - wanted:
            storage.remove(name)


def save_arrays(storage: Storage, name: str, arrays: Mapping[str, NDArray[Any]]) -> Written:
    """Arrays as NAME.npy, NAME.rows.npy, …: what stands between, and the array."""
    files = {}
    for part, array in arrays.items():
        target = f"{name}{part}.npy"
        with storage.writing(target) as path:
            with path.open("wb") as stream:
                np.save(stream, np.ascontiguousarray(array))
            files[target] = _facts_of(path)
    return Written(files)


FORMATS: dict[OutputFormat, Format] = {"parquet": ParquetFormat(), "npy": NpyFormat(), "lance": LanceFormat()}
"""Name → format."""


def _lance() -> Any:
    try:
        import lance
        import lance.fragment
    except ModuleNotFoundError as error:
        raise UdeverError("Lance output needs the package pylance", hint="pip install 'udever[bulk]'") from error
    return lance


def _facts_of(path: Any) -> FileFacts:
    return FileFacts(bytes=path.stat().st_size, digest=file_digest(path))


@contextmanager
def _parquet_errors(name: str) -> Iterator[None]:
    try:
        yield
    except pa.ArrowException as error:
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> OutputError:
    return OutputError(f"{name} cannot be read: {error}", hint="remove it and run the same bulk command again")
