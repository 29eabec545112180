"""Output files: complete or absent, and what was written reads back bit for bit."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from udever.cli.formats import Record
from udever.cli.writers import Header, check_output, open_writer
from udever.errors import OptionError

HEADER = Header(
    model="m",
    fingerprint="udv1-0",
    role="document",
    dimensions=5,
    normalized=True,
    max_tokens=9,
    truncate="error",
    udever_version="0",
)
RECORDS = [Record(f"text {i} é\n", "a.py" if i == 3 else "x.txt", None if i == 3 else i, 1) for i in range(7)]
VECTORS = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32) * np.float32(1e-3)


def write(path: Path, *, with_text: bool = True, rows: int = 7) -> None:
    with open_writer(path, HEADER, with_text=with_text) as writer:
        for start in range(0, rows, 3):
            writer.write(RECORDS[start : start + 3], VECTORS[start : start + 3])


def write_until(failure: type[BaseException], path: Path) -> None:
    with open_writer(path, HEADER, with_text=True) as writer:
        writer.write(RECORDS, VECTORS)
        assert path.read_bytes() == b"old", "nothing is seen before the end"
        raise failure


def test_npy_round_trip(tmp_path: Path) -> None:
    write(tmp_path / "x.npy")
    loaded = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert loaded.dtype == np.float32
    assert np.array_equal(loaded, VECTORS)


def test_parquet_round_trip_with_the_model_in_its_metadata(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.column_names == ["source", "line", "text", "embedding"]
    assert np.array_equal(np.array(table["embedding"].to_pylist(), np.float32), VECTORS)
    assert table["text"].to_pylist() == [record.text for record in RECORDS]
    assert table["line"].to_pylist() == [record.line for record in RECORDS]
    assert json.loads(table.schema.metadata[b"udever"])["fingerprint"] == "udv1-0"
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[5]"


def test_jsonl_round_trip(tmp_path: Path) -> None:
    write(tmp_path / "x.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["source"], row["line"], row["text"]) for row in rows] == [(r.source, r.line, r.text) for r in RECORDS]
    assert np.array_equal(np.array([row["embedding"] for row in rows], np.float32), VECTORS)


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl"])
def test_texts_can_be_left_out(name: str, tmp_path: Path) -> None:
    write(tmp_path / name, with_text=False)
    assert b"text 1" not in (tmp_path / name).read_bytes()


@pytest.mark.parametrize("name", ["x.npy", "x.parquet", "x.jsonl"])
def test_no_texts_make_a_valid_empty_file(name: str, tmp_path: Path) -> None:
    write(tmp_path / name, rows=0)
    if name == "x.npy":
        assert np.load(tmp_path / name).shape == (0, 5)
    elif name == "x.parquet":
        assert pq.read_table(tmp_path / name).num_rows == 0
    else:
        assert (tmp_path / name).read_bytes() == b""


@pytest.mark.parametrize("name", ["x.npy", "x.parquet", "x.jsonl"])
@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_what_was_there_before(name: str, failure: type[BaseException], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"old")
    with pytest.raises(failure):
        write_until(failure, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"old"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "x.npy").symlink_to(tmp_path / "there" / "real.npy")
    write(tmp_path / "x.npy")
    assert (tmp_path / "x.npy").is_symlink()
    assert len(np.load(tmp_path / "there" / "real.npy")) == 7


def test_the_new_file_has_ordinary_permissions(tmp_path: Path) -> None:
    write(tmp_path / "x.npy")
    (tmp_path / "other").touch()
    assert (tmp_path / "x.npy").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_outputs_that_cannot_be_written_are_refused_beforehand(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("")
    (tmp_path / "folder.npy").mkdir()
    for name, said in {
        "x.csv": "unknown ending '.csv'",
        "x": "unknown ending ''",
        "no/x.npy": "does not exist",
        "folder.npy": "cannot be written",
        "in.jsonl": "one of the inputs",
    }.items():
        with pytest.raises(OptionError, match=said):
            check_output(tmp_path / name, [str(tmp_path / "in.jsonl")])
    check_output(tmp_path / "new.NPY", [])
    check_output(None, [])
