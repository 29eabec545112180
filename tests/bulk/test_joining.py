"""A join reads of other shards' vectors what it needs, here and far away."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from udever.bulk.joining import Owned
from udever.bulk.storage import Storage

SHARDS = 40


@pytest.fixture
def spread(jsonl: Callable[..., Path]) -> Path:
    """Shards of 50 rows: 25 texts of their own, and one of each of 25 shards before."""
    return jsonl(
        [
            {"text": f"fox {shard} {row}" if row < 25 else f"fox {max(shard - row + 24, 0)} {row - 25}"}
            for shard in range(SHARDS)
            for row in range(50)
        ]
    )


def test_texts_all_over_the_job_cost_no_more_than_they_hold(
    spread: Path, do: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"shard_rows": 50, "dedupe": True, "columns": ()}
    do([spread], tmp_path / "here", **options)
    read_bytes = 0
    cat_file, open_ = MemoryFileSystem.cat_file, MemoryFileSystem._open

    def is_counted(path: str) -> bool:
        return "/distinct/" in path and path.endswith(".npy") and not path.endswith(".rows.npy")

    def counting_cat(self: Any, path: str, *args: Any, **kwargs: Any) -> bytes:
        nonlocal read_bytes
        data: bytes = cat_file(self, path, *args, **kwargs)
        read_bytes += len(data) * is_counted(path)
        return data

    def counting_open(self: Any, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        nonlocal read_bytes
        file = open_(self, path, mode, **kwargs)
        read_bytes += len(file.getbuffer()) * (mode == "rb" and is_counted(path))
        return file

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counting_cat)
    monkeypatch.setattr(MemoryFileSystem, "_open", counting_open)
    monkeypatch.setattr("udever.bulk.joining.GAP_BYTES", 0)  # vectors of these shards lie near each other
    summary = do([spread], "memory://bulk-joining/out", **options)
    assert (summary.vectors, summary.texts) == (50 * SHARDS, 25 * SHARDS)
    assert 0 < read_bytes < 1.2 * 50 * SHARDS * 64 * 4
    fs = fsspec.filesystem("memory")
    there = {path.rpartition("/")[2]: fs.cat_file(path) for path in fs.find("/bulk-joining/out/vectors")}
    assert there == {path.name: path.read_bytes() for path in (tmp_path / "here" / "vectors").iterdir()}


@pytest.mark.parametrize("url", ["memory://bulk-joining", ""], ids=["memory", "here"])
def test_vectors_in_any_order(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("udever.bulk.joining.GAP_BYTES", 5 * 4 * 3)
    storage, vectors = Storage(url or str(tmp_path)), np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    for name, array in (("a.npy", vectors), ("a.rows.npy", np.arange(0, 120, 2))):
        with storage.writing(name) as path:
            np.save(path, array)
    owned = Owned(storage, "a")
    np.testing.assert_array_equal(owned.numbers, np.arange(0, 120, 2))
    for places in ([0], [59, 0, 59], [7, 7, 8, 13, 30, 14, 1], list(range(60))):
        np.testing.assert_array_equal(owned.vectors(np.array(places)), vectors[places])


def test_a_large_file_is_not_read_for_three_vectors(tmp_path: Path) -> None:
    np.lib.format.open_memmap(tmp_path / "a.npy", mode="w+", dtype=np.float32, shape=(1 << 16, 1 << 10))  # of holes
    np.save(tmp_path / "a.rows.npy", np.arange(1 << 16))
    owned = Owned(Storage(str(tmp_path)), "a")
    tracemalloc.start()
    try:
        assert owned.vectors(np.array([65_000, 3, 3])).shape == (3, 1024)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
