"""Rows of every format → texts; what has no embedding is named with its row, a stable code and the reason."""

import gzip
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from udever.bulk.heads import describe
from udever.bulk.job import Options, carried_columns, template_columns
from udever.bulk.plan import make_plan
from udever.bulk.reading import Reader
from udever.bulk.rows import REASONS, load
from udever.bulk.sources import find
from udever.errors import FileInputError, OptionError

Row = tuple[int, str]


def read(path: Path, **options: Any) -> tuple[list[Row], list[Row], list[dict[str, Any]]]:
    """((row, text)…, (row, code)…, carried columns)"""
    chosen = Options(**options)
    inputs = [describe(found) for found in find([str(path)])]
    carried = carried_columns(inputs, chosen)
    plan = make_plan(inputs, limits=chosen.limits, columns=(*chosen.text_columns, *carried.names))
    reader = Reader(text_columns=chosen.text_columns, carried=carried, texts_only=chosen.template is None)
    texts: list[Row] = []
    bad: list[Row] = []
    columns: list[dict[str, Any]] = []
    for shard in plan.shards:
        loaded = load(reader.read(shard), chosen)
        texts += zip(loaded.numbers.tolist(), loaded.texts, strict=True)
        bad += [(row.row, row.code) for row in loaded.bad]
        columns += loaded.table.to_pylist()
        assert loaded.table.num_rows == len(loaded.texts) or not carried.names
    reader.close()
    assert {code for _, code in bad} <= REASONS.keys()
    return texts, bad, columns


SIZES = pytest.mark.parametrize("shard_rows", [1, 2, 100])


@SIZES
def test_txt(shard_rows: int, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffeins \r\n\nзwei\u2028x\n".encode() + b"\xff\n" + b"last")
    texts, bad, columns = read(path, shard_rows=shard_rows)
    assert texts == [(1, "eins "), (3, "зwei\u2028x"), (5, "last")]
    assert bad == [(2, "empty"), (4, "not_utf8")]
    assert columns[0] == {"text": "eins "}


@SIZES
def test_jsonl(shard_rows: int, jsonl: Callable[..., Path]) -> None:
    rows = [
        {"text": "a", "n": 1, "x": {"k": [1]}},
        {"text": None, "n": 2, "x": 2},
        b"",
        b"nonsense",
        b"[1]",
        b'"\xff"',
        {"text": 5, "n": 3},
        {"n": 4},
        {"text": "", "n": 5},
        b'{"text": "\\ud800", "n": 6}',
        {"text": "z\x00\u2028", "n": None, "x": None},
    ]
    texts, bad, columns = read(jsonl(rows), shard_rows=shard_rows)
    assert texts == [(1, "a"), (11, "z\x00\u2028")]
    assert bad == [
        (2, "null"), (4, "malformed"), (5, "malformed"), (6, "not_utf8"), (7, "not_a_text"), (8, "null"), (9, "empty"),
        (10, "not_a_text"),
    ]  # fmt: skip
    assert columns == [{"text": "a", "n": 1, "x": '{"k": [1]}'}, {"text": "z\x00\u2028", "n": None, "x": None}]


def test_a_value_of_another_type_than_the_first_rows_is_a_bad_row(jsonl: Callable[..., Path]) -> None:
    rows = [{"text": "a", "n": 1}] * 1000 + [
        {"text": "b", "n": "one"},
        {"text": "c", "n": 2**70},
        {"text": "d", "n": 2},
    ]
    texts, bad, _ = read(jsonl(rows))
    assert bad == [(1001, "column_type"), (1002, "column_type")]
    assert len(texts) == 1001
    assert read(jsonl(rows), columns=())[1] == [], "a column that is left out is not looked at"


@SIZES
@pytest.mark.parametrize("packed", [False, True])
def test_csv(shard_rows: int, packed: bool, tmp_path: Path) -> None:
    data = b'\xef\xbb\xbfid,"te""xt"\r\n1,"two\nlines"\r\n\r\n2\r\n3,\r\n"4"x,b\r\n5,\xff\r\n6,"a,b"'
    path = tmp_path / ("a.csv.gz" if packed else "a.csv")
    path.write_bytes(gzip.compress(data) if packed else data)
    texts, bad, columns = read(path, text_column='te"xt', shard_rows=shard_rows)
    assert texts == [(1, "two\nlines"), (7, "a,b")]
    assert bad == [(3, "malformed"), (4, "empty"), (5, "malformed"), (6, "not_utf8")]
    assert columns == [{"id": "1", 'te"xt': "two\nlines"}, {"id": "6", 'te"xt': "a,b"}]


def test_tsv(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("id\ttext\n1\ta,b\n")
    assert read(tmp_path / "a.tsv")[0] == [(1, "a,b")]


@SIZES
def test_parquet(shard_rows: int, tmp_path: Path) -> None:
    values = ["a", None, "", "émoji 😀", "z"]
    table = pa.table({"id": range(5), "text": pa.array(values), "tags": [["x"]] * 5, "unused": range(5)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    texts, bad, columns = read(tmp_path / "a.parquet", shard_rows=shard_rows, columns=("tags", "id"))
    assert texts == [(1, "a"), (4, "émoji 😀"), (5, "z")]
    assert bad == [(2, "null"), (3, "empty")]
    assert columns[1] == {"tags": ["x"], "id": 3}


def test_parquet_with_a_dictionary_and_with_wrong_bytes(tmp_path: Path) -> None:
    wrong = pa.array([b"a", b"\xff", None]).view(pa.string())
    pq.write_table(pa.table({"text": wrong}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet")[1] == [(2, "not_utf8"), (3, "null")]
    pq.write_table(pa.table({"text": pa.array(["b", "b"]).dictionary_encode()}), tmp_path / "b.parquet")
    assert read(tmp_path / "b.parquet")[0] == [(1, "b"), (2, "b")]


def test_templates(tmp_path: Path, jsonl: Callable[..., Path]) -> None:
    rows = [
        {"title": "T", "body": "B", "year": 1999},
        {"title": None, "body": "B", "year": None},
        {"title": None, "body": None, "year": None},
        {"title": "", "body": "", "year": None},
        {"title": ["x"], "body": "B", "year": 1},
        {"title": "{body}", "body": "{}", "year": 2.5},
    ]
    texts, bad, _ = read(jsonl(rows), template="{title}\n{body} {{{year}}}")
    assert texts == [(1, "T\nB {1999}"), (2, "\nB {}"), (6, "{body}\n{} {2.5}")]
    assert bad == [(3, "null"), (4, "empty"), (5, "not_a_text")]
    pq.write_table(pa.table({"d": [date(2020, 1, 2)], "n": [1], "ok": [True]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", template="{d} {n} {ok} {n}")[0] == [(1, "2020-01-02 1 True 1")]


@pytest.mark.parametrize("template", ["plain", "{}", "{a.b", "{a!r}", "{a:3}"])
def test_templates_that_cannot_be(template: str) -> None:
    with pytest.raises(OptionError, match="template"):
        Options(template=template).checked()


def test_a_template_names_each_column_once() -> None:
    assert template_columns("{a}{b}{a}{{c}}") == ("a", "b")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"text_column": "body"}, r"no column 'body'; it has 'id', 'text'"),
        ({"text_column": "id"}, r"holds int64, not text"),
        ({"template": "{id} {x}"}, r"no column 'x'"),
        ({"columns": ("id", "x")}, r"no column 'x'"),
    ],
)
def test_columns_are_checked_before_anything_is_read(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(FileInputError, match=said):
        read(tmp_path / "a.parquet", **options)


def test_inputs_must_agree_on_the_columns_that_are_kept(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "text": ["a"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": ["1"], "text": ["b"]}), tmp_path / "b.parquet")
    with pytest.raises(FileInputError, match=r"'id' is int64 in .*a\.parquet, string in .*b\.parquet"):
        read(tmp_path)
    assert [text for _, text in read(tmp_path, columns=("text",))[0]] == ["a", "b"]


def test_a_column_that_the_output_adds_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "embedding": [1]}), tmp_path / "a.parquet")
    with pytest.raises(OptionError, match="'embedding', which the output adds"):
        read(tmp_path / "a.parquet")


def test_a_parquet_file_with_a_large_row_group_is_read_in_any_order(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [str(i) for i in range(100)]}), tmp_path / "a.parquet", row_group_size=60)
    [found] = find([str(tmp_path / "a.parquet")])
    plan = make_plan([describe(found)], limits=Options(shard_rows=7).limits, columns=("text",))
    reader = Reader(text_columns=("text",), carried=pa.schema([]), texts_only=True)
    for shard in [*reversed(plan.shards), *plan.shards, *plan.shards[::3]]:
        assert reader.read(shard).values == [[str(i) for i in range(shard.cut.start, shard.cut.stop)]]
    reader.close()


@pytest.mark.parametrize("ending", ["txt", "parquet"])
def test_a_file_that_changes_while_it_is_read_is_noticed(ending: str, tmp_path: Path) -> None:
    def write(text: str) -> None:
        if ending == "txt":
            path.write_text(f"{text}\n")
        else:
            pq.write_table(pa.table({"text": [text]}), path)

    path = tmp_path / f"a.{ending}"
    write("a" * 20)
    plan = make_plan([describe(*find([str(path)]))], limits=Options().limits, columns=("text",))
    write("b" * (20 if ending == "txt" else 21))
    reader = Reader(text_columns=("text",), carried=pa.schema([]), texts_only=True)
    with pytest.raises(FileInputError, match=r"changed while it was read"):
        reader.read(plan.shards[0])
    reader.close()
