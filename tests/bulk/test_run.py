"""A job's output is the embedder's vectors, whatever interrupts it; what differs from an earlier run is refused."""

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from udever import Embedder
from udever.bulk import storage as storage_module
from udever.bulk.dedupe import find_owners
from udever.bulk.job import Options
from udever.bulk.local import run_here
from udever.bulk.manifest import make_manifest
from udever.bulk.plan import Shard
from udever.bulk.run import Run, open_run, prepare
from udever.errors import DimensionsError, FileInputError, JobChangedError, OutputError, UdeverError

Rows = list[dict[str, Any]]


class Killed(BaseException):
    """Nobody catches this on the way."""


@pytest.fixture
def rows(texts: list[str]) -> Rows:
    return [{"id": i, "text": text if i % 40 else None} for i, text in enumerate(texts)]


def vectors_in(folder: Path) -> np.ndarray:
    return np.stack(pq.read_table(folder / "vectors")["embedding"].to_numpy())


def test_the_vectors_are_the_embedders(
    rows: Rows, jsonl: Callable, do: Callable, model: Embedder, tmp_path: Path
) -> None:
    summary = do([jsonl(rows)], tmp_path / "out", shard_rows=60, role="query", max_tokens=20, truncate="start")
    table = pq.read_table(tmp_path / "out" / "vectors")
    kept = [row for row in rows if row["text"]]
    assert table.select(["id", "text"]).to_pylist() == kept
    assert table["_row"].to_pylist() == [row["id"] + 1 for row in kept]
    expected = model.embed([row["text"] for row in kept], "query", max_tokens=20, truncate="start")
    np.testing.assert_allclose(vectors_in(tmp_path / "out"), expected, atol=1e-6)
    assert (summary.rows, summary.vectors, summary.bad_rows, summary.shards) == (250, 243, 7, 5)
    assert summary.reasons == {"null": 7}
    errors = pq.read_table(tmp_path / "out" / "errors.parquet").to_pylist()
    assert [row["row"] for row in errors] == list(range(1, 250, 40))
    assert errors[0]["reason"] == "column 'text' is null"
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["state"], manifest["vectors"], manifest["tokens"]) == ("complete", 243, summary.tokens)


def test_long_texts_are_bad_rows_unless_they_are_cut(jsonl: Callable, do: Callable, tmp_path: Path) -> None:
    path = jsonl([{"text": "fox"}, {"text": "fox " * 50}, {"text": "fox " * 7}])
    assert do([path], tmp_path / "a", max_tokens=10).reasons == {"too_many_tokens": 1}
    [error] = pq.read_table(tmp_path / "a" / "errors.parquet").to_pylist()
    assert (error["row"], error["code"]) == (2, "too_many_tokens")
    assert "limit is 10" in error["reason"]
    assert do([path], tmp_path / "b", max_tokens=10, truncate="end").bad_rows == 0
    assert not (tmp_path / "b" / "errors.parquet").exists()


@pytest.mark.parametrize("options", [{}, {"dedupe": True}, {"format": "npy", "dtype": "int8"}], ids=str)
def test_a_kill_at_any_write_leaves_nothing_to_see_in_the_end(
    options: dict[str, Any], rows: Rows, jsonl: Callable, do: Callable, tree: Callable, tmp_path: Path
) -> None:
    """Right before or right after each rename that a run makes; then again, early in the run that goes on."""
    path, dice = jsonl(rows), random.Random(1)
    whole = do([path], tmp_path / "whole", shard_rows=90, **options)
    expected = tree(tmp_path / "whole")
    replace, left = Path.replace, 0

    def dying(self: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left == 0 and dice.random() < 0.5:
            replace(self, target)
        if left <= 0:
            raise Killed
        return replace(self, target)

    def killed(output: Path, *, at_write: int) -> bool:
        nonlocal left
        left = at_write
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(storage_module.Path, "replace", dying)
            try:
                do([path], output, shard_rows=90, **options)
            except Killed:
                return True
        return False

    for write in count(1):
        output = tmp_path / f"out{write}"
        if not killed(output, at_write=write):
            break
        killed(output, at_write=dice.randrange(1, 6))
        summary = do([path], output, shard_rows=90, **options)
        assert tree(output) == expected, f"killed at write {write}"
        assert (summary.vectors, summary.bad_rows, summary.tokens) == (whole.vectors, whole.bad_rows, whole.tokens)
    assert write > 2 * whole.shards + 3, "each shard, its receipt, two manifests, the scans"


def test_what_is_done_is_not_done_again(
    rows: Rows, jsonl: Callable, do: Callable, model: Embedder, tmp_path: Path
) -> None:
    path = jsonl(rows)
    prepared = prepare([str(path)], Options(shard_rows=50), output=str(tmp_path / "out"))
    run = open_run(prepared, model)
    [stage] = run.stages()
    for _, receipt in zip(range(3), run_here(run, stage, model), strict=False):
        run.add(receipt)
    with pytest.raises(OutputError, match="2 of 5 shards are not done"):
        run.finish()
    done = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "vectors").iterdir()}
    assert do([path], tmp_path / "out", shard_rows=50).shards_done_before >= 3
    assert done.items() <= {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "vectors").iterdir()}.items()
    again = do([path], tmp_path / "out", shard_rows=50)
    assert (again.shards_done_before, again.new_rows, again.vectors) == (5, 0, 243)


def test_a_file_that_was_lost_or_cut_is_made_again(
    rows: Rows, jsonl: Callable, do: Callable, tree: Callable, tmp_path: Path
) -> None:
    path = jsonl(rows)
    do([path], tmp_path / "out", shard_rows=50)
    expected = tree(tmp_path / "out")
    files = sorted((tmp_path / "out" / "vectors").iterdir())
    files[0].unlink()
    files[2].write_bytes(files[2].read_bytes()[:-1])
    assert do([path], tmp_path / "out", shard_rows=50).new_rows == 100
    assert tree(tmp_path / "out") == expected


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"role": "query"}, "--role was document, is query"),
        ({"max_tokens": 9}, "--max-tokens was 2048, is 9"),
        ({"dtype": "int8"}, "--dtype was float32, is int8"),
        ({"columns": ("id",)}, "--columns was id, text, is id"),
        ({"shard_rows": 51, "truncate": "end"}, "--truncate was error, is end; --shard-rows was 50, is 51"),
        ({"template": "{text}"}, "--template was None, is {text}"),
    ],
    ids=str,
)
def test_changed_options_are_refused_and_named(
    changed: dict[str, Any], said: str, rows: Rows, jsonl: Callable, do: Callable, tree: Callable, tmp_path: Path
) -> None:
    path = jsonl(rows)
    options: dict[str, Any] = {"shard_rows": 50}
    do([path], tmp_path / "out", **options)
    before = tree(tmp_path / "out")
    with pytest.raises(JobChangedError) as error:
        do([path], tmp_path / "out", **options | changed)
    assert said in error.value.message
    assert "--force" in error.value.hint
    assert tree(tmp_path / "out") == before
    do([path], tmp_path / "out", force=True, **options | changed)
    do([path], tmp_path / "fresh", **options | changed)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")
    parts = {name for name in before if name.startswith("vectors/")}
    assert parts.isdisjoint(tree(tmp_path / "out")), "a shard of another job has another name"


def test_another_model_is_refused_and_named(
    rows: Rows, jsonl: Callable, do: Callable, make_checkpoint: Callable[..., Path], tmp_path: Path, model: Embedder
) -> None:
    path, other = jsonl(rows), Embedder.load(str(make_checkpoint(seed=1)))
    do([path], tmp_path / "out")
    with pytest.raises(JobChangedError, match=f"the model was .*{model.fingerprint}, is .*{other.fingerprint}"):
        do([path], tmp_path / "out", model=other)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_changed_inputs_are_refused_and_named(ending: str, do: Callable, tree: Callable, tmp_path: Path) -> None:
    def write(name: str, texts: list[str]) -> Path:
        path = tmp_path / f"{name}.{ending}"
        if ending == "parquet":
            pq.write_table(pa.table({"text": texts}), path, compression="none", write_statistics=False)
        else:
            head = "text\n" if ending == "csv" else ""
            path.write_text(head + "".join(f'{{"text": "{t}"}}\n' if ending == "jsonl" else f"{t}\n" for t in texts))
        return path

    a, b, c = write("a", ["fox", "dog"]), write("b", ["cat"]), write("c", ["owl"])
    do([a, b], tmp_path / "out")
    before = tree(tmp_path / "out")
    os.utime(a)
    assert do([a, b], tmp_path / "out").new_rows == 0, "another time is no other content"
    a.rename(tmp_path / f"moved.{ending}")
    assert do([tmp_path / f"moved.{ending}", b], tmp_path / "out").new_rows == 0, "nor is another name"
    (tmp_path / f"moved.{ending}").rename(a)
    assert do([a, b], tmp_path / "out").new_rows == 0

    def refused(*paths: Path) -> str:
        with pytest.raises(JobChangedError) as error:
            do(paths, tmp_path / "out")
        return error.value.message

    assert "inputs are in another order" in refused(b, a)
    assert f"c.{ending} is new" in refused(a, b, c)
    assert f"b.{ending} is gone" in refused(a)
    write("a", ["fox", "dig"])  # as many bytes, another text
    assert f"a.{ending} changed (2 rows" in refused(a, b)
    write("a", ["fox", "dog", "emu"])
    assert "→ 3 rows" in refused(a, b)
    write("a", ["fox", "dog"])
    assert do([a, b], tmp_path / "out").new_rows == 0
    assert tree(tmp_path / "out") == before


def test_what_is_no_bulk_output_is_never_touched(jsonl: Callable, do: Callable, tmp_path: Path) -> None:
    path = jsonl([{"text": "fox"}])
    for name, content in (("vectors/keep.txt", "mine"), ("manifest.json", "{}"), ("manifest.json", "no json")):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        (tmp_path / "out" / name).parent.mkdir(parents=True)
        (tmp_path / "out" / name).write_text(content)
        with pytest.raises(OutputError, match="choose another"):
            do([path], tmp_path / "out", force=True)
        assert (tmp_path / "out" / name).read_text() == content
    with pytest.raises(OutputError, match="is a file"):
        do([path], path)


def test_force_leaves_what_is_not_ours(jsonl: Callable, do: Callable, tmp_path: Path) -> None:
    path = jsonl([{"text": "fox"}])
    do([path], tmp_path / "out")
    (tmp_path / "out" / "README").write_text("mine")
    do([path], tmp_path / "out", force=True, dtype="float16")
    assert (tmp_path / "out" / "README").read_text() == "mine"


def test_another_releases_output_is_replaced_if_forced(jsonl: Callable, do: Callable, tmp_path: Path) -> None:
    path, manifest = jsonl([{"text": "fox"}]), tmp_path / "out" / "manifest.json"
    do([path], tmp_path / "out")
    ours = manifest.read_text()
    manifest.write_text(json.dumps(json.loads(ours) | {"udever_bulk": 0}))
    with pytest.raises(OutputError, match=r"has format 0.*--force"):
        do([path], tmp_path / "out")
    assert do([path], tmp_path / "out", force=True).new_rows == 1
    assert manifest.read_text() == ours


def test_an_output_inside_an_input_folder_is_no_input(jsonl: Callable, do: Callable, tmp_path: Path) -> None:
    jsonl([{"text": "fox"}])
    do([tmp_path], tmp_path / "out")
    assert do([tmp_path], tmp_path / "out").new_rows == 0


def test_each_distinct_text_is_embedded_once_across_shards(
    texts: list[str], jsonl: Callable, do: Callable, tmp_path: Path
) -> None:
    rows = [{"id": i, "text": texts[i % 30] if i % 11 else "fox " * 60} for i in range(400)]
    path = jsonl(rows)
    plain = do([path], tmp_path / "plain", shard_rows=37, max_tokens=40)
    deduped = do([path], tmp_path / "deduped", shard_rows=37, max_tokens=40, dedupe=True)
    kept = {row["text"] for row in rows} - {"fox " * 60}
    assert (deduped.texts, plain.texts) == (len(kept), plain.vectors)
    assert (deduped.vectors, deduped.reasons) == (plain.vectors, plain.reasons)
    np.testing.assert_allclose(vectors_in(tmp_path / "deduped"), vectors_in(tmp_path / "plain"), atol=1e-6)
    tables = [pq.read_table(tmp_path / name / "vectors").drop(["embedding"]) for name in ("plain", "deduped")]
    assert tables[0].equals(tables[1])
    errors = [pq.read_table(tmp_path / name / "errors.parquet") for name in ("plain", "deduped")]
    assert errors[0].equals(errors[1])
    assert {path.name for path in (tmp_path / "deduped" / "_state").iterdir()} == {"done", "scans.json"}


@pytest.mark.parametrize("options", [{}, {"dedupe": True}], ids=str)
def test_bad_rows_are_counted_in_memory_and_kept_on_the_disk(
    options: dict[str, Any], jsonl: Callable, model: Embedder, tmp_path: Path
) -> None:
    path = jsonl([{"text": "" if i % 2 else None} for i in range(20_000)] + [{"text": "fox"}])

    def opened() -> Run:
        return open_run(prepare([str(path)], Options(**options), output=str(tmp_path / "out")), model)

    run = opened()
    for stage in run.stages():
        for receipt in run_here(run, stage, model):
            run.add(receipt)
    assert len(pickle.dumps(run.done)) < 10_000
    summary = run.finish()
    assert (summary.bad_rows, summary.reasons) == (20_000, {"null": 10_000, "empty": 10_000})
    errors = pq.read_table(tmp_path / "out" / "errors.parquet")
    assert errors["row"].to_pylist() == list(range(1, 20_001))
    assert errors["code"].to_pylist() == ["null", "empty"] * 10_000
    again = opened()
    assert len(pickle.dumps(again.done)) < 10_000
    assert again.finish().reasons == summary.reasons


def test_a_manifest_of_many_files_looks_at_each_shard_once(do: Callable, model: Embedder, tmp_path: Path) -> None:
    class Watched(tuple[Shard, ...]):
        looks = 0

        def __iter__(self) -> Iterator[Shard]:
            for shard in super().__iter__():
                Watched.looks += 1
                yield shard

    for index in range(30):
        (tmp_path / f"{index:02}.txt").write_text("fox\n" * (index + 1))
    run = open_run(prepare([str(tmp_path)], Options(shard_rows=10), output=str(tmp_path / "out")), model)
    manifest = make_manifest(run.job, replace(run.plan, shards=Watched(run.plan.shards)))
    assert [item["rows"] for item in manifest["inputs"]] == list(range(1, 31))
    assert Watched.looks == len(run.plan.shards) == 60


@pytest.mark.parametrize("buckets", [1, 3, 10**6])
def test_the_first_row_of_a_text_owns_the_others(buckets: int, monkeypatch: pytest.MonkeyPatch) -> None:
    dice = np.random.default_rng(0)
    keys = dice.integers(0, 5, (1000, 2)).astype(np.uint64)
    monkeypatch.setattr("udever.bulk.dedupe.BUCKET_ROWS", -(-1000 // buckets))
    monkeypatch.setattr("udever.bulk.dedupe.CHUNK_ROWS", 77)
    owners = np.full(1000, -1, np.int64)
    find_owners(keys, owners)
    first: dict[tuple[int, int], int] = {}
    for row, (a, b) in enumerate(keys.tolist()):
        expected = row if not (a or b) else first.setdefault((a, b), row)
        assert owners[row] == expected


@pytest.mark.parametrize("rows", [0, 1])
def test_empty_inputs_and_shards(rows: int, jsonl: Callable, do: Callable, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n" * rows)
    for options in ({}, {"dedupe": True}, {"format": "npy"}):
        summary = do([tmp_path / "a.txt"], tmp_path / "out", force=True, **options)
        assert (summary.rows, summary.vectors, summary.bad_rows) == (rows, 0, rows)


def test_an_empty_file_among_others(jsonl: Callable, do: Callable, tmp_path: Path) -> None:
    jsonl([], "a.jsonl")
    jsonl([{"text": "fox", "id": 1}], "b.jsonl")
    jsonl([b"nonsense"], "c.jsonl")
    summary = do([tmp_path / f"{name}.jsonl" for name in "abc"], tmp_path / "out")
    assert (summary.vectors, summary.reasons) == (1, {"malformed": 1})


def test_a_forced_job_that_cannot_be_leaves_the_old_output(do: Callable, tree: Callable, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\nfox\n")
    do([tmp_path / "a.csv"], tmp_path / "out")
    before = tree(tmp_path / "out")
    (tmp_path / "a.csv").write_text('text\n"fox\n')
    with pytest.raises(FileInputError, match="row 1 opens a quote"):
        do([tmp_path / "a.csv"], tmp_path / "out", force=True)
    assert tree(tmp_path / "out") == before


def test_dimensions_the_model_was_not_trained_for(jsonl: Callable, do: Callable, tmp_path: Path) -> None:
    with pytest.raises(DimensionsError, match="63"):
        do([jsonl([{"text": "fox"}])], tmp_path / "out", dimensions=63)
    assert not (tmp_path / "out").exists()


def test_in_memory(rows: Rows, do: Callable, model: Embedder) -> None:
    with fsspec.open("memory://bulk-run/in/a.jsonl", "wb") as file:
        file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    do(["memory://bulk-run/in"], "memory://bulk-run/out", shard_rows=100)
    fs = fsspec.filesystem("memory")
    found = fs.find("/bulk-run/out/vectors")
    table = pa.concat_tables([pq.read_table(fs.open(path)) for path in sorted(found)])
    expected = model.embed([row["text"] for row in rows if row["text"]], "document")
    np.testing.assert_allclose(np.stack(table["embedding"].to_numpy()), expected, atol=1e-6)
    assert do(["memory://bulk-run/in"], "memory://bulk-run/out", shard_rows=100).new_rows == 0
    fs.pipe("/bulk-run/in/a.jsonl", b'{"id": 1, "text": "other"}\n')
    with pytest.raises(JobChangedError, match="250 rows"):
        do(["memory://bulk-run/in"], "memory://bulk-run/out", shard_rows=100)
    do(["memory://bulk-run/in"], "memory://bulk-run/out", force=True)
    assert len(fs.find("/bulk-run/out/vectors")) == 1


def test_a_storage_whose_package_is_missing_is_named(
    do: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = fsspec.core.url_to_fs

    def missing(url: str) -> Any:
        if url.startswith("gs:"):
            raise ImportError("Install gcsfs")
        return known(url)

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(UdeverError, match="pip install gcsfs"):
        do(["gs://x/y.parquet"], tmp_path / "out")
