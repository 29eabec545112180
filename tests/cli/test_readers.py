"""Input files: what is a text, where it stands, and what is said when a file cannot be read."""

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udever.cli.formats import ReadOptions
from udever.cli.readers import NAMED_SKIPS, Inputs, open_inputs
from udever.errors import FileInputError, OptionError

TEXTS = ["one", "deux, trois", 'quatre "cinq"', "六\u2028七", "  blanks kept  ", "سبعة"]


def read(*paths: Path | str, **options: object) -> list[tuple[str, str]]:
    """(place, text) of every record; places without the folder."""
    inputs = open_inputs([str(path) for path in paths], ReadOptions(**options))
    return [(record.place.rpartition("/")[2], record.text) for record in inputs]


def failure(*paths: Path | str, **options: object) -> FileInputError:
    with pytest.raises(FileInputError) as caught:
        read(*paths, **options)
    assert caught.value.hint, "every complaint names the way out"
    return caught.value


def write_as(kind: str, folder: Path) -> Path:
    path = folder / f"texts.{kind}"
    if kind == "txt":
        path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"n": 1, "text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    elif kind in ("csv", "tsv"):
        out = io.StringIO()
        writer = csv.writer(out, delimiter="," if kind == "csv" else "\t")
        writer.writerows([["id", "text"], *([str(i), text] for i, text in enumerate(TEXTS))])
        path.write_text(out.getvalue(), encoding="utf-8")
    else:
        pq.write_table(pa.table({"id": range(len(TEXTS)), "text": TEXTS}), path)
    return path


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "tsv", "parquet"])
def test_every_format_gives_the_texts_unchanged_with_their_lines(kind: str, tmp_path: Path) -> None:
    first = 2 if kind in ("csv", "tsv") else 1
    expected = [(f"texts.{kind}:{first + i}", text) for i, text in enumerate(TEXTS)]
    assert read(write_as(kind, tmp_path)) == expected


def test_sizes_add_up_to_the_file_for_the_progress_bar(tmp_path: Path) -> None:
    path = write_as("jsonl", tmp_path)
    inputs = open_inputs([str(path)], ReadOptions())
    assert sum(record.size_bytes for record in inputs) == inputs.total_bytes == path.stat().st_size


def test_lines_end_with_lf_or_crlf_and_a_bom_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "dos.txt"
    path.write_bytes("\ufeffeins\r\nzwei\x0bzwei\r\ndrei".encode())
    assert [text for _, text in read(path)] == ["eins", "zwei\x0bzwei", "drei"]


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_any_text_without_line_ends_survives_a_text_file(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("lines") / "x.txt"
    path.write_bytes("\n".join(["first", *texts]).encode())  # a leading U+FEFF would be a byte order mark
    assert [text for _, text in read(path)] == ["first", *texts]


def test_a_csv_field_may_span_lines_and_the_place_is_where_the_row_begins(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('text,n\n"two\nlines",1\n\nlast,2\n')
    assert read(path) == [("x.csv:2", "two\nlines"), ("x.csv:5", "last")]


def test_a_csv_field_may_be_long(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("text\n" + "a" * 300_000 + "\n")
    assert len(read(path)[0][1]) == 300_000


def test_blank_lines_are_empty_texts_unless_skipped(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("a\n\n \nb\n")
    assert read(path) == [("x.txt:1", "a"), ("x.txt:2", ""), ("x.txt:3", " "), ("x.txt:4", "b")]
    inputs = open_inputs([str(path)], ReadOptions(skip_empty=True))
    assert [record.line for record in inputs] == [1, 4]
    assert inputs.skipped.count == 2
    assert inputs.skipped.places[0].endswith("x.txt:2: empty")


def test_skipped_places_are_counted_all_and_named_only_so_many(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("\n" * (NAMED_SKIPS + 7))
    inputs: Inputs = open_inputs([str(path)], ReadOptions(skip_empty=True))
    assert list(inputs) == []
    assert (inputs.skipped.count, len(inputs.skipped.places)) == (NAMED_SKIPS + 7, NAMED_SKIPS)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"text": "a"}\n{"text": \n', ["x.jsonl:2", "not JSON"]),
        (b'{"text": "a"}\n["b"]\n', ["x.jsonl:2", "not a JSON object"]),
        (b'{"body": "a", "title": "t"}\n', ["x.jsonl:1", "'text'", "'body', 'title'"]),
        (b'{"text": null}\n', ["x.jsonl:1", "null", "not a string"]),
        (b'{"text": 3}\n', ["x.jsonl:1", "int", "not a string"]),
        (b'{"text": "a"}\n{"text": "\xff"}\n', ["x.jsonl:2", "not UTF-8", "0xff"]),
        (b"[" * 100_000, ["x.jsonl:1", "not JSON"]),
    ],
)
def test_a_bad_json_line_is_named(content: bytes, said: list[str], tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    message = failure(tmp_path / "x.jsonl").message
    assert all(part in message for part in said), message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("body,title\na,b\n", ["'text'", "'body', 'title'"]),
        ("", ["'text'", "none at all"]),
        ("id,text\n1,a\n2\n", ["x.csv:3", "1 columns"]),
        ("id,text\n1,apples, pears and plums\n", ["x.csv:2", "3 columns"]),
        ("text,text\na,b\n", ["x.csv", "2 columns 'text'"]),
        ('id,text\n1,"a\n', ["x.csv:2"]),
    ],
)
def test_a_bad_table_is_named(content: str, said: list[str], tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(content)
    message = failure(tmp_path / "x.csv").message
    assert all(part in message for part in said), message


def test_parquet_complaints(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"body": ["a"], "n": [1]}), path)
    assert "it has 'body', 'n'" in failure(path).message
    assert "x.parquet:1: 'n' holds int" in failure(path, field="n").message
    pq.write_table(pa.table({"text": ["a", None]}), path)
    assert "x.parquet:2: 'text' holds null" in failure(path).message
    assert read(path, skip_empty=True) == [("x.parquet:1", "a")]
    path.write_bytes(path.read_bytes()[:-9])
    assert "not a readable parquet file" in failure(path).message
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, names=["text", "text"]), path)
    assert "2 columns 'text'" in failure(path).message
    broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    pq.write_table(pa.table({"text": broken}), path)
    assert "'text' is not UTF-8" in failure(path).message


def test_what_windows_calls_unicode_is_told_how_to_convert(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes("good morning\n".encode("utf-16"))
    assert "iconv -f utf-16" in str(failure(path))


def test_patterns_choose_files_of_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("a\n")
    with pytest.raises(OptionError, match="without a folder"):
        read(path, globs=("*.py",))
    with pytest.raises(OptionError, match="--glob is empty"):
        read(tmp_path, globs=("",))


def test_names_that_cannot_be_read(tmp_path: Path) -> None:
    assert "nowhere.txt does not exist" in failure(tmp_path / "nowhere.txt").message
    (tmp_path / "x.docx").write_bytes(b"PK")
    assert ".jsonl" in failure(tmp_path / "x.docx").message
    assert "no file in this folder" in failure(tmp_path).message


def test_the_format_can_be_told(tmp_path: Path) -> None:
    path = tmp_path / "notes.md"
    path.write_text("# a\n\nb\n")
    assert read(path, format="document") == [("notes.md", "# a\n\nb\n")]
    assert read(path, format="txt", skip_empty=True) == [("notes.md:1", "# a"), ("notes.md:3", "b")]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, content in {
        "b.py": b"b = 1\n",
        "a/one.py": b"one = 1\r\n",
        "a/two.rs": b"fn two() {}\n",
        "a/empty.py": b"\n",
        "a/binary.py": b"\0\1",
        "a/latin.py": b"# \xe9\n",
        "a/picture.png": b"\x89PNG",
        "a/rows.jsonl": b'{"text": "row"}\n',
        ".git/config.py": b"hidden",
        "node_modules/x.js": b"theirs",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_a_folder_gives_its_source_files_sorted_and_names_what_it_passes_over(project: Path) -> None:
    inputs = open_inputs([str(project)], ReadOptions())
    records = list(inputs)
    assert [(Path(r.source).relative_to(project).as_posix(), r.line, r.text) for r in records] == [
        ("b.py", None, "b = 1\n"),
        ("a/one.py", None, "one = 1\n"),
        ("a/two.rs", None, "fn two() {}\n"),
    ]
    assert [Path(place.split(": ")[0]).name for place in inputs.skipped.places] == [
        "binary.py",
        "empty.py",
        "latin.py",
    ]


@pytest.mark.parametrize(
    ("glob", "names"),
    [
        ("*.rs", ["two.rs"]),
        ("**/*.rs", ["two.rs"]),
        ("a/*.py", ["one.py"]),
        ("a/**/*.py", ["one.py"]),
        ("*", ["b.py", "one.py", "rows.jsonl", "two.rs"]),
    ],
)
def test_globs(glob: str, names: list[str], project: Path) -> None:
    assert sorted(place for place, _ in read(project, globs=(glob,))) == names


def test_a_folder_of_data_files(project: Path) -> None:
    assert read(project, format="jsonl") == [("rows.jsonl:1", "row")]


def test_stdin_is_lines_and_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("α\nβ\n".encode())))
    assert read() == [("stdin:1", "α"), ("stdin:2", "β")]
    assert "twice" in failure("-", "-").message
    assert "end" in failure("-", format="parquet").hint
