"""verify finds nothing on a sound output, and names exactly what is wrong with another."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from udever import Embedder
from udever.bulk.formats import keep, restore
from udever.bulk.storage import Storage, file_digest
from udever.bulk.verify import MOST_SHARDS, Report, allowed, sample, verify
from udever.errors import OutputError


@pytest.fixture
def output(texts: list[str], jsonl: Callable, do: Callable, tmp_path: Path) -> Path:
    do(
        [jsonl([{"id": i, "text": text if i % 50 else ""} for i, text in enumerate(texts)])],
        tmp_path / "out",
        shard_rows=60,
    )
    return tmp_path / "out"


def differences(output: Path, model: Embedder, **options: Any) -> list[str]:
    return verify(Storage(str(output)), model, **options).differences


@pytest.mark.parametrize(
    "options",
    [
        {"role": "query", "max_tokens": 12, "truncate": "start"},
        {"dtype": "float16", "template": "{id}: {text}", "columns": ("id",)},
        {"dtype": "int8", "dedupe": True},
        {"format": "npy", "dtype": "int8"},
        {"format": "lance", "dtype": "float16", "max_tokens": 12},
    ],
    ids=str,
)
def test_a_sound_output(
    options: dict[str, Any], texts: list[str], jsonl: Callable, do: Callable, model: Embedder, tmp_path: Path
) -> None:
    pytest.importorskip("lance", reason="pylance is not installed here") if options.get("format") == "lance" else None
    path = jsonl([{"id": i, "text": text if i % 50 else ""} for i, text in enumerate(texts)])
    summary = do([path], tmp_path / "out", shard_rows=60, **options)
    report = verify(Storage(str(tmp_path / "out")), model, rows=10**6)
    assert report.differences == []
    assert (report.replayed, report.files > 0) == (summary.vectors, True)


def test_a_changed_vector_is_found_and_named(output: Path, model: Embedder) -> None:
    """Even where whoever changed it changed the manifest too."""
    path = sorted((output / "vectors").iterdir())[1]
    table = pq.read_table(path)
    values = np.stack(table["embedding"].to_numpy())
    values[7] = values[8]
    changed = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 64)
    place = table.schema.get_field_index("embedding")
    pq.write_table(table.set_column(place, table.schema.field(place), changed), path)
    found = differences(output, model)
    assert f"vectors/{path.name} had" in found[0] or f"vectors/{path.name}: its bytes changed" in found[0]

    manifest = json.loads((output / "manifest.json").read_text())
    [entry] = [file for file in manifest["files"] if file["name"].endswith(path.name)]
    entry |= {"bytes": path.stat().st_size, "digest": file_digest(path)}
    (output / "manifest.json").write_text(json.dumps(manifest))
    receipt = output / "_state" / "done" / f"{path.stem}.json"
    raw = json.loads(receipt.read_text())
    raw["files"][f"vectors/{path.name}"] = {"bytes": entry["bytes"], "digest": entry["digest"]}
    receipt.write_text(json.dumps(raw))
    [difference] = differences(output, model)
    row = table["_row"].to_pylist()[7]
    assert f"vectors/{path.name}, vector 7 (" in difference
    assert f"in.jsonl, row {row})" in difference
    assert "cosine" in difference


def test_files_that_are_gone_cut_changed_or_foreign(output: Path, model: Embedder) -> None:
    files = sorted((output / "vectors").iterdir())
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-9])
    raw = bytearray(files[2].read_bytes())
    raw[len(raw) // 2] ^= 1
    files[2].write_bytes(raw)
    (output / "vectors" / "part-x.parquet").write_bytes(b"")
    (output / "errors.parquet").unlink()
    found = differences(output, model, rows=0)
    assert [name in text for name, text in zip([f.name for f in files[:3]], found, strict=False)] == [True] * 3
    assert ["is missing" in found[0], "bytes, has" in found[1], "its bytes changed" in found[2]] == [True] * 3
    assert found[3:] == [
        "vectors/part-x.parquet is not part of the output",
        "errors.parquet names 0 bad rows, the manifest counts 5",
    ]


def test_another_model(output: Path, model: Embedder, make_checkpoint: Callable[..., Path]) -> None:
    other = Embedder.load(str(make_checkpoint(seed=1)))
    report = verify(Storage(str(output)), other, rows=100)
    assert model.fingerprint in report.differences[0]
    assert other.fingerprint in report.differences[0]
    assert len(report.differences) + report.more == 101, "and each row that was looked at"
    narrow = Embedder.load(str(make_checkpoint(width=32)))
    assert any("64" in text for text in differences(output, narrow)[1:])


def test_changed_or_missing_inputs(output: Path, model: Embedder, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:-1], '{"id": 1, "text": "other"}\n']))
    [found] = differences(output, model)
    assert found.startswith("input ")
    assert "in.jsonl changed (250 rows" in found
    path.unlink()
    [found] = differences(output, model)
    assert "in.jsonl does not exist" in found


def test_an_output_that_is_not_finished(output: Path, model: Embedder, tmp_path: Path) -> None:
    manifest = json.loads((output / "manifest.json").read_text())
    (output / "manifest.json").write_text(json.dumps(manifest | {"state": "running"}))
    assert "not finished" in differences(output, model)[0]
    with pytest.raises(OutputError, match="no output of udever bulk"):
        differences(tmp_path / "nowhere", model)


def test_samples_are_spread_and_always_the_same() -> None:
    sizes = [0, 5, *[100] * 200]
    chosen = sample(sizes, 640)
    assert chosen == sample(sizes, 640)
    assert len(chosen) == MOST_SHARDS
    assert sum(map(len, chosen.values())) == 640
    assert all(len(set(places)) == len(places) and max(places) < sizes[index] for index, places in chosen.items())
    assert sample([3, 0, 2], 10) == {0: [0, 1, 2], 2: [0, 1]}
    assert sample([3], 0) == sample([], 9) == {}


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_what_a_dtype_rounds_away_is_allowed_and_no_more(dtype: Any) -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 32)).astype(np.float32)
    stored = restore(keep(vectors, dtype))
    limits = [allowed(vector, dtype=dtype, precision="fp32") for vector in vectors]
    assert (np.abs(stored - vectors).max(axis=1) <= limits).all()
    assert max(limits) < {"float32": 2e-5, "float16": 3e-3, "int8": 3e-2}[dtype]


def test_a_report_names_so_many_differences() -> None:
    report = Report()
    for index in range(30):
        report.add(str(index))
    assert (len(report.differences), report.more) == (20, 10)
