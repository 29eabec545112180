"""Which files are inputs, in which order, and what a name or a head says of them."""

from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from udever.bulk.heads import describe
from udever.bulk.sources import find
from udever.errors import FileInputError, OptionError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.txt", "a.jsonl", "sub/c.txt", ".hidden/d.txt", "_state/e.txt", "sub/.f.txt", "g.md", "h.csv.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "x"}\n')
    return tmp_path


def test_a_folder_gives_its_files_by_name_hidden_and_unknown_ones_left_out(folder: Path) -> None:
    found = find([str(folder)])
    assert [file.name.removeprefix(f"{folder}/") for file in found] == ["a.jsonl", "b.txt", "h.csv.gz", "sub/c.txt"]
    assert [file.format for file in found] == ["jsonl", "txt", "csv", "txt"]
    assert all(Path(file.path).is_absolute() and file.bytes == 14 for file in found)


def test_globs_and_files_keep_the_order_they_are_named_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    found = find(["sub/c.txt", "*.jsonl", "b.*"])
    assert [Path(file.path).name for file in found] == ["c.txt", "a.jsonl", "b.txt"]
    assert found[0].name == "sub/c.txt"
    assert [file.name for file in find(["g.md"], format="txt")] == ["g.md"]
    (folder / "x[1].txt").write_text("a file whose name looks like a pattern\n")
    assert [file.bytes for file in find(["x[1].txt"])] == [39]


def test_the_output_is_no_input(folder: Path) -> None:
    assert len(find([str(folder)], besides=str(folder / "sub"))) == 3


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["nowhere.txt"], "nowhere.txt does not exist"),
        (["g.md"], "g.md: no way to tell its format"),
        (["*.nothing"], "holds no file"),
        (["b.txt", "b.*"], "b.txt is named twice"),
        ([".hidden/.."], "named twice|"),
        ([], "no input"),
    ],
)
def test_refusals(paths: list[str], said: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    if said.endswith("|"):
        assert find(paths)
        return
    with pytest.raises(FileInputError, match=said.replace(".", r"\.")):
        find(paths)


def test_a_protocol_nobody_knows_is_refused() -> None:
    with pytest.raises(OptionError, match="nope://"):
        find(["nope://x/y.txt"])


def test_a_url_keeps_its_protocol() -> None:
    with fsspec.open("memory://bulk-sources/a.txt", "wb") as file:
        file.write(b"x\n")
    [found] = find(["memory://bulk-sources/*.txt"])
    assert found.path == "memory://bulk-sources/a.txt".replace("memory://", "memory:///") or found.path.startswith(
        "memory://"
    )
    assert describe(found).schema.names == ["text"]


def test_the_types_of_jsonl_columns_come_from_its_first_rows(jsonl: Callable[..., Path]) -> None:
    rows = [
        {"t": "a", "i": 1, "f": 1, "b": True, "m": 1, "n": None, "o": {"x": 1}, "bi": True},
        {"t": None, "i": 2, "f": 1.5, "b": None, "m": "x", "late": 1, "bi": 1},
        b"broken",
    ]
    described = describe(*find([str(jsonl(rows))]))
    assert dict(zip(described.schema.names, described.schema.types, strict=True)) == {
        "t": pa.string(), "i": pa.int64(), "f": pa.float64(), "b": pa.bool_(), "m": pa.string(), "n": pa.string(),
        "o": pa.string(), "late": pa.int64(), "bi": pa.string(),
    }  # fmt: skip
    assert described.json_columns == {"m", "o", "bi"}


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"a,a\n1,2\n", "two columns are called 'a'"), (b"a,\xff\n", "header is not UTF-8"), (b'"a"b,c\n', "malformed")],
)
def test_csv_headers_that_cannot_be(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(FileInputError, match=said):
        describe(*find([str(tmp_path / "a.csv")]))


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(FileInputError, match=r"a\.parquet: not a readable parquet file"):
        describe(*find([str(tmp_path / "a.parquet")]))
