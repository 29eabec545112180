"""A tiny model, and bulk runs in this process."""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq
import pytest

from udever import Embedder
from udever.bulk.job import Options
from udever.bulk.local import run_here
from udever.bulk.run import Summary, open_run, prepare

WORDS = ["fox", "zorro", "гора", "敏捷的", "الثعلب", "jump(dog)", "mountain", "ऊँचा"]


@pytest.fixture(scope="session")
def model(tiny_checkpoint: Path) -> Embedder:
    return Embedder.load(str(tiny_checkpoint))


@pytest.fixture(scope="session")
def do(model: Embedder) -> Callable[..., Summary]:
    """do(paths, output, role="query", …) runs a whole job; keywords are `Options`, `force` and `model`."""

    def run(paths: Sequence[object], output: object, *, model: Embedder = model, **options: Any) -> Summary:
        force, kind = options.pop("force", False), options.pop("input_format", None)
        prepared = prepare(
            [str(path) for path in paths], Options(**options), output=str(output), force=force, input_format=kind
        )
        run = open_run(prepared, model)
        for stage in run.stages():
            for receipt in run_here(run, stage, model):
                run.add(receipt)
        return run.finish()

    return run


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, str]]:
    """Every file below a folder but what is remembered of the inputs' times, with a hash of its bytes."""

    def of(folder: Path) -> dict[str, str]:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "scans.json"]
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    return of


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """jsonl(rows, name="in.jsonl") writes objects, bytes as they are."""

    def write(rows: Sequence[Any], name: str = "in.jsonl") -> Path:
        path = tmp_path / name
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    return write


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """250 texts of very different lengths, a few of them twice."""
    return [" ".join(WORDS[(i * k) % len(WORDS)] for k in range(1 + i % 9)) + f" {i % 200}" for i in range(250)]


class Network(io.FileIO):
    """A file far away."""

    error: ClassVar[OSError] = TimeoutError("no answer")
    fails: ClassVar[Iterator[bool]]
    """Whether each of the next reads fails; those after them do not."""

    def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
        if next(Network.fails, False):
            raise Network.error
        return super().read(-1 if size is None else size)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> type[Network]:
    """Shards are read through it."""
    monkeypatch.setattr(Network, "error", Network.error)
    monkeypatch.setattr(Network, "fails", iter(()), raising=False)
    monkeypatch.setattr("udever.bulk.reading.open_input", Network)
    monkeypatch.setattr(
        "udever.bulk.reading.open_parquet",
        lambda path: pq.ParquetFile(Network(path), pre_buffer=False, buffer_size=4096),
    )
    return Network
