"""What is written reads back: exactly, or as near as its dtype can be; and twice the same is the same bytes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from udever.bulk.formats import FORMATS, Block, keep, output_schema, restore
from udever.bulk.job import Job, Options
from udever.bulk.receipts import Receipt
from udever.bulk.storage import Storage

NUMBERS = st.floats(-1, 1, width=32)


def make_job(dimensions: int = 8, **options: Any) -> Job:
    return Job(
        options=Options(dimensions=dimensions, max_tokens=9, **options),
        model="m",
        fingerprint="udv1-0",
        precision="fp32",
        carried=pa.schema([("id", pa.int64()), ("tags", pa.list_(pa.string()))]),
    )


def make_block(rows: int = 5, dimensions: int = 8) -> Block:
    vectors = np.random.default_rng(0).normal(size=(rows, dimensions)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    table = pa.table({"id": list(range(rows)), "tags": [["a", "ü"]] * rows}, schema=make_job().carried)
    return Block(file="a.csv", numbers=np.arange(10, 10 + rows), table=table, vectors=vectors)


@given(vectors=arrays(np.float32, st.tuples(st.integers(0, 4), st.integers(1, 9)), elements=NUMBERS))
def test_an_int8_is_off_by_half_a_scale_at_most(vectors: np.ndarray) -> None:
    stored = keep(vectors, "int8")
    assert stored.values.dtype == np.int8
    assert stored.scales is not None
    error = np.abs(restore(stored).astype(np.float64) - vectors)
    assert (error <= stored.scales[:, None] * 0.5 * (1 + 1e-5) + 1e-44).all()
    assert (np.abs(stored.values).max(axis=1, initial=0) == 127)[stored.scales > 1e-37].all(), "the whole range is used"


@given(vectors=arrays(np.float32, (3, 4), elements=NUMBERS))
def test_float16_is_the_nearest_and_float32_exact(vectors: np.ndarray) -> None:
    np.testing.assert_array_equal(restore(keep(vectors, "float32")), vectors)
    np.testing.assert_array_equal(restore(keep(vectors, "float16")), vectors.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("format_", ["parquet", "npy", "lance"])
def test_round_trip(format_: Any, dtype: Any, tmp_path: Path) -> None:
    pytest.importorskip("lance", reason="pylance is not installed here") if format_ == "lance" else None
    job, block, storage = make_job(format=format_, dtype=dtype), make_block(), Storage(str(tmp_path))
    writer = FORMATS[format_]
    written = writer.write(storage, "part-0", block, job)
    receipt = Receipt(
        stage="embed", index=0, rows=5, vectors=5, texts=5, tokens=9, reasons={}, files=written.files,
        fragment=written.fragment,
    )  # fmt: skip
    receipt = Receipt.from_json(receipt.to_json([]))
    writer.finish(storage, [receipt], job)
    numbers, vectors = writer.read(storage, receipt)
    np.testing.assert_array_equal(numbers, block.numbers)
    np.testing.assert_array_equal(vectors, restore(keep(block.vectors, dtype)))
    assert {name: facts.bytes for name, facts in receipt.files.items()}.items() <= storage.sizes().items()
    if format_ != "lance":
        again = writer.write(Storage(str(tmp_path / "again")), "part-0", block, job)
        assert again == written, "the same bytes"


def test_a_parquet_file_for_other_programs(tmp_path: Path) -> None:
    job = make_job(dtype="int8")
    FORMATS["parquet"].write(Storage(str(tmp_path)), "part-0", make_block(), job)
    table = pq.read_table(tmp_path / "vectors")
    assert table.column_names == ["id", "tags", "_file", "_row", "embedding", "embedding_scale"]
    assert table.schema.field("embedding").type == pa.list_(pa.int8(), 8)
    assert table["tags"].to_pylist()[0] == ["a", "ü"]
    assert (table["_file"].to_pylist()[0], table["_row"].to_pylist()[0]) == ("a.csv", 10)
    assert json.loads(table.schema.metadata[b"udever"])["fingerprint"] == "udv1-0"


def test_an_int8_takes_a_byte_on_disk(tmp_path: Path) -> None:
    sizes = {}
    for dtype in ("float32", "int8"):
        storage = Storage(str(tmp_path / dtype))
        FORMATS["parquet"].write(storage, "p", make_block(2000, 64), make_job(64, dtype=dtype))
        sizes[dtype] = storage.sizes()["vectors/p.parquet"]
    assert sizes["int8"] < 0.32 * sizes["float32"]


def test_a_shard_without_vectors(tmp_path: Path) -> None:
    for format_ in ("parquet", "npy"):
        job = make_job(format=format_)
        written = FORMATS[format_].write(Storage(str(tmp_path)), "p", make_block(0), job)
        assert written.files
    assert pq.read_table(tmp_path / "vectors" / "p.parquet").schema.equals(output_schema(job))
    assert np.load(tmp_path / "vectors" / "p.npy").shape == (0, 8)


def test_lance_is_one_dataset_in_the_order_of_the_rows(tmp_path: Path, jsonl: Callable, do: Callable) -> None:
    lance = pytest.importorskip("lance", reason="pylance is not installed here")
    rows = [{"id": i, "text": f"fox {i}" if i != 7 else ""} for i in range(40)]
    do([jsonl(rows)], tmp_path / "out", format="lance", shard_rows=9)
    table = lance.dataset(str(tmp_path / "out" / "vectors.lance")).to_table()
    assert table["id"].to_pylist() == [i for i in range(40) if i != 7]
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 64)
