"""What is read and written of a shard depends on its rows, not on where reading began or what failed before."""

import errno
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from udever.bulk.formats import FORMATS, Block, output_schema
from udever.bulk.heads import describe
from udever.bulk.job import Job, Options, carried_columns
from udever.bulk.plan import Shard, make_plan
from udever.bulk.reading import Reader
from udever.bulk.rows import load
from udever.bulk.sources import find
from udever.bulk.storage import Storage
from udever.errors import UdeverError

GROUPS = (10_500, 3_001, 7_499)
TAGS = pa.dictionary(pa.int8(), pa.string())


def long_texts(rows: int) -> list[str]:
    """About 300 characters each, none twice, none bad: rows that are left out have the others copied."""
    dice = random.Random(0)
    return [f"{dice.getrandbits(1200):0301x}" for _ in range(rows)]


def write_groups(path: Path, groups: Sequence[int]) -> None:
    """Columns that an Arrow writer lays out in different ways, in row groups of these sizes."""
    rows, start = sum(groups), 0
    table = pa.table(
        {
            "id": range(rows),
            "text": long_texts(rows),
            "score": pa.array([i / 7 if i % 3 else None for i in range(rows)]),
            "words": [[f"w{i % 1000}", None] * (i % 3) if i % 11 else None for i in range(rows)],
            "page": pa.array([{"url": f"u{i // 2}", "depth": i % 5} for i in range(rows)]),
            "tag": pa.array([f"{i // 5000}-{i % 20}" for i in range(rows)]).cast(TAGS),
        }
    )
    with pq.ParquetWriter(path, table.schema) as writer:
        for count in groups:
            writer.write_table(table.slice(start, count), row_group_size=count)
            start += count


@pytest.mark.parametrize("format_", ["parquet", "lance"])
def test_a_shard_is_written_the_same_wherever_reading_began(format_: Any, tmp_path: Path) -> None:
    """Of a Lance output the rows are the same: Lance itself compresses texts by chance."""
    lance = pytest.importorskip("lance", reason="pylance is not installed here") if format_ == "lance" else None
    write_groups(tmp_path / "a.parquet", GROUPS)
    options = Options(format=format_, dimensions=1, max_tokens=9)
    inputs = [describe(found) for found in find([str(tmp_path / "a.parquet")])]
    carried = carried_columns(inputs, options)
    plan = make_plan(inputs, limits=options.limits, columns=carried.names)
    assert len(plan.shards) == 4
    job = Job(options=options, model="m", fingerprint="f", precision="fp32", carried=carried)

    def reader() -> Reader:
        return Reader(text_columns=("text",), carried=carried, texts_only=True)

    def written(shard: Shard, reader: Reader, name: str) -> Any:
        loaded = load(reader.read(shard), options)
        vectors = np.zeros((len(loaded.texts), 1), np.float32)
        block = Block(file="a.parquet", numbers=loaded.numbers, table=loaded.table, vectors=vectors)
        output = tmp_path / name / str(shard.index)
        done = FORMATS[format_].write(Storage(str(output)), "part", block, job)
        if format_ == "parquet":
            return done.files
        fragment = lance.FragmentMetadata.from_json(done.fragment)
        commit = lance.LanceOperation.Overwrite(output_schema(job), [fragment])
        return lance.LanceDataset.commit(output / "vectors.lance", commit).to_table()

    one = reader()
    through = [written(shard, one, "through") for shard in plan.shards]
    for shard, expected in reversed(list(zip(plan.shards, through, strict=True))):
        fresh = reader()
        assert written(shard, fresh, "fresh") == expected, shard.cut
        assert written(shard, one, "back") == expected, shard.cut
        fresh.close()
    one.close()


def test_a_dictionary_that_its_index_cannot_count(tmp_path: Path) -> None:
    """Row groups have one each; a shard of several holds all of their values."""
    tags = [f"{i // 100}-{i % 100}" for i in range(500)]
    with pq.ParquetWriter(tmp_path / "a.parquet", pa.schema([("text", TAGS)])) as writer:
        for start in range(0, 500, 100):
            writer.write_table(pa.table({"text": pa.array(tags[start : start + 100]).cast(TAGS)}))
    [item] = [describe(found) for found in find([str(tmp_path / "a.parquet")])]
    [shard] = make_plan([item], limits=Options().limits, columns=("text",)).shards
    reader = Reader(text_columns=("text",), carried=item.schema, texts_only=True)
    raw = reader.read(shard)
    reader.close()
    assert raw.values == [tags]
    assert raw.table.schema == pa.schema([("text", TAGS)])
    assert raw.table["text"].to_pylist() == tags


@pytest.mark.parametrize(
    "error",
    [TimeoutError("it took too long"), ConnectionResetError(errno.ECONNRESET, "reset by peer"), OSError("no answer")],
    ids=str,
)
@pytest.mark.parametrize("then", [1, 2, 0])
@pytest.mark.parametrize("ending", ["txt", "parquet"])
def test_a_network_that_fails_once_costs_one_read(
    error: OSError, then: int, ending: str, network: Any, tmp_path: Path
) -> None:
    """Whoever reads a shard may try again, or go on with any other."""
    path, texts = tmp_path / f"a.{ending}", [str(i) for i in range(27_000)]
    values = [texts[start : start + 9000] for start in (0, 9000, 18_000)]
    if ending == "txt":
        path.write_text("".join(f"{text}\n" for text in texts))
    else:
        pq.write_table(pa.table({"text": texts}), path, row_group_size=9000)
    plan = make_plan([describe(*find([str(path)]))], limits=Options(shard_rows=9000).limits, columns=("text",))
    reader = Reader(text_columns=("text",), carried=pa.schema([]), texts_only=True)
    assert reader.read(plan.shards[0]).values == [values[0]]
    network.error, network.fails = error, iter([True])
    with pytest.raises(OSError) as raised:
        reader.read(plan.shards[1])
    assert not isinstance(raised.value, UdeverError), "that would say that trying again is of no use"
    assert raised.value.strerror, "else the command line takes it for a bug"
    assert reader.read(plan.shards[then]).values == [values[then]]
    reader.close()


def test_a_damaged_page_is_told_in_one_line_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"fox {i}" for i in range(2000)]}), path, compression="none")
    data = path.read_bytes()
    path.write_bytes(data[:4] + b"\xff" * 56 + data[60:])
    [shard] = make_plan([describe(*find([str(path)]))], limits=Options().limits, columns=("text",)).shards
    with pytest.raises(OSError, match=r"cannot be read: .*page header") as raised:
        Reader(text_columns=("text",), carried=pa.schema([]), texts_only=True).read(shard)
    assert raised.value.filename == str(path)
    assert "\n" not in str(raised.value)


def test_a_kill_between_shards_of_long_rows(do: Callable, tree: Callable, tmp_path: Path) -> None:
    """The run that goes on begins to read where the other one was in the middle."""
    write_groups(tmp_path / "a.parquet", GROUPS)
    job = {"template": "{id}"}
    do([tmp_path / "a.parquet"], tmp_path / "whole", **job)
    replace, left = Path.replace, 7

    def dying(self: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left <= 0:
            raise Killed
        return replace(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(Killed):
            do([tmp_path / "a.parquet"], tmp_path / "out", **job)
    assert do([tmp_path / "a.parquet"], tmp_path / "out", **job).shards_done_before == 2
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


class Killed(BaseException):
    """Nobody catches this on the way."""
