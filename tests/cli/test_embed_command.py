"""`udever embed`: what is written equals `Embedder.embed`, errors name file and line, nothing half-written stays."""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from udever import Embedder

TEXTS = ["the quick fox", "el zorro marrón", "敏捷的棕色狐狸", "def jump(fox): pass", "the quick fox", "الثعلب"]


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Embedder:
    return Embedder.load(str(tiny_checkpoint))


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


def vectors_of(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".parquet":
        return np.array(pq.read_table(path)["embedding"].to_pylist(), np.float32)
    rows = path.read_text(encoding="utf-8").splitlines()
    return np.array([json.loads(row)["embedding"] for row in rows], np.float32)


@pytest.mark.parametrize("ending", ["npy", "parquet", "jsonl"])
def test_the_file_holds_what_the_embedder_gives(
    ending: str, lines: Path, model: Embedder, udever: Callable, tiny: tuple[str, str]
) -> None:
    output = lines.with_name(f"out.{ending}")
    outcome = udever("embed", lines, *tiny, "--output", output, "--json")
    assert outcome.code == 0, outcome.err
    expected = model.embed(TEXTS, role="document")
    np.testing.assert_allclose(vectors_of(output), expected, atol=1e-6)
    summary = json.loads(outcome.out)
    assert (summary["texts"], summary["dimensions"], summary["skipped"]) == (6, 64, 0)
    assert summary["fingerprint"] == model.fingerprint
    assert "6 texts" in outcome.err


def test_many_blocks_keep_their_order(
    tmp_path: Path, model: Embedder, udever: Callable, tiny: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("udever.cli.embed.BLOCK_TEXTS", 4)
    texts = [f"{'fox ' * (i % 7)}{i}" for i in range(23)]
    (tmp_path / "x.txt").write_text("\n".join(texts))
    assert udever("embed", tmp_path / "x.txt", *tiny, "-o", tmp_path / "x.parquet").code == 0
    table = pq.read_table(tmp_path / "x.parquet")
    assert table["text"].to_pylist() == texts
    assert table["line"].to_pylist() == list(range(1, 24))
    np.testing.assert_allclose(vectors_of(tmp_path / "x.parquet"), model.embed(texts, role="document"), atol=1e-6)


def test_options_reach_the_embedder(lines: Path, model: Embedder, udever: Callable, tiny: tuple[str, str]) -> None:
    output = lines.with_name("out.npy")
    options = ("--role", "query", "--raw", "--max-tokens", 5, "--truncate", "start", "--batch-tokens", 16)
    assert udever("embed", lines, *tiny, "-o", output, *options).code == 0
    expected = model.embed(TEXTS, role="query", normalize=False, max_tokens=5, truncate="start")
    np.testing.assert_allclose(np.load(output), expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(np.linalg.norm(expected, axis=1), 1)


def test_dimensions_of_the_built_in_model(lines: Path, udever: Callable) -> None:
    output = lines.with_name("out.parquet")
    assert udever("embed", lines, "-o", output, "--dimensions", 64).code == 0
    vectors = vectors_of(output)
    assert vectors.shape == (6, 64)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    header = json.loads(pq.read_schema(output).metadata[b"udever"])
    assert (header["model"], header["dimensions"], header["normalized"]) == ("udever-nano", 64, True)


def test_without_output_jsonl_goes_to_stdout(model: Embedder, udever: Callable, tiny: tuple[str, str]) -> None:
    outcome = udever("embed", *tiny, stdin="\n".join(TEXTS).encode())
    rows = [json.loads(line) for line in outcome.out.splitlines()]
    assert [(row["source"], row["line"], row["text"]) for row in rows] == [
        ("stdin", i, text) for i, text in enumerate(TEXTS, start=1)
    ]
    np.testing.assert_allclose([row["embedding"] for row in rows], model.embed(TEXTS, role="document"), atol=1e-6)


def test_a_folder_and_a_file_together(tmp_path: Path, udever: Callable, tiny: tuple[str, str]) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("x = 1\n")
    (tmp_path / "src" / "empty.py").write_text("")
    (tmp_path / "more.csv").write_text("id,body\n1,hello\n")
    output = tmp_path / "out.jsonl"
    outcome = udever(
        "embed", tmp_path / "src", tmp_path / "more.csv", *tiny, "--field", "body", "--no-text", "-o", output
    )
    assert outcome.code == 0, outcome.err
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(Path(row["source"]).name, row["line"]) for row in rows] == [("a.py", None), ("more.csv", 2)]
    assert "text" not in rows[0]
    assert "empty.py: empty" in outcome.err


def test_a_file_with_a_dash_stands_behind_a_double_dash(
    tmp_path: Path, udever: Callable, tiny: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-x.txt").write_text("fox\n")
    assert udever("embed", *tiny, "-o", "x.npy", "--", "-x.txt", "-", stdin=b"two\n").code == 0
    assert np.load("x.npy").shape == (2, 64)
    refused = udever("embed", *tiny, "-x.txt")
    assert (refused.code, refused.out) == (2, "")
    assert "./-x.txt" in refused.err


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (b"a\n\nb\n", (), ["x.txt:2:", "--skip-empty"]),
        (b"a\nb\n" + b"fox " * 99, ("--max-tokens", 20), ["x.txt:3:", "limit is 20", "--truncate end"]),
        (b"a\n\xff\n", (), ["x.txt:2:", "not UTF-8"]),
    ],
)
def test_errors_name_file_and_line_and_leave_no_file(
    content: bytes, options: tuple, said: list[str], tmp_path: Path, udever: Callable, tiny: tuple[str, str]
) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    outcome = udever("embed", tmp_path / "x.txt", *tiny, "-o", tmp_path / "x.npy", *options)
    assert outcome.code == 1
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1
    assert all(part in outcome.err for part in said), outcome.err
    assert "truncate=" not in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


def test_the_line_is_right_in_later_blocks_and_files(
    tmp_path: Path, udever: Callable, tiny: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("udever.cli.embed.BLOCK_TEXTS", 4)
    (tmp_path / "a.txt").write_text("fox\n" * 9)
    (tmp_path / "b.jsonl").write_text('{"text": "fox"}\n' * 6 + '{"text": "\\ud800"}\n' + '{"text": "fox"}\n' * 20)
    outcome = udever("embed", tmp_path / "a.txt", tmp_path / "b.jsonl", *tiny, "-o", tmp_path / "x.npy")
    assert outcome.code == 1
    assert "b.jsonl:7:" in outcome.err


def test_skip_empty_says_what_it_left_out(tmp_path: Path, udever: Callable, tiny: tuple[str, str]) -> None:
    (tmp_path / "x.txt").write_text("a\n\nb\n")
    outcome = udever("embed", tmp_path / "x.txt", *tiny, "-o", tmp_path / "x.npy", "--skip-empty", "--json")
    assert np.load(tmp_path / "x.npy").shape == (2, 64)
    assert json.loads(outcome.out)["skipped"] == 1
    assert "x.txt:2: empty" in outcome.err


def test_no_text_at_all_is_an_empty_output(tmp_path: Path, udever: Callable, tiny: tuple[str, str]) -> None:
    assert udever("embed", "-", *tiny, "-o", tmp_path / "x.npy").code == 0
    assert np.load(tmp_path / "x.npy").shape == (0, 64)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("nowhere.txt",), 1, "nowhere.txt does not exist"),
        (("-", "--output", "x.csv"), 2, ".npy, .parquet, .jsonl"),
        (("-", "--json"), 2, "--output"),
        (("-", "--model", "no-such-model-anywhere"), 1, "no-such-model-anywhere"),
        (("-", "--device", "abacus"), 2, "abacus"),
        (("-", "--dimensions", "63"), 2, "63"),
        (("-", "--dimensions", "-5", "-o", "x.parquet"), 2, "-5"),
        (("-", "--output", "/proc/x.npy"), 2, "/proc/x.npy: cannot be written"),
    ],
)
def test_refusals(
    arguments: tuple[str, ...], code: int, said: str, udever: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    outcome = udever("embed", *arguments)
    assert (outcome.code, outcome.out) == (code, ""), outcome.err
    assert said in outcome.err
    assert outcome.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_progress_is_a_bar_on_stderr(lines: Path, udever: Callable, tiny: tuple[str, str]) -> None:
    outcome = udever("embed", lines, *tiny, "-o", lines.with_name("x.npy"), "--progress")
    assert (outcome.code, outcome.out) == (0, "")
    assert "100%" in outcome.err
    assert "100%" not in udever("embed", lines, *tiny, "-o", lines.with_name("x.npy")).err, "no bar in a pipe"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_killed_run_leaves_nothing(
    number: signal.Signals, code: int, tmp_path: Path, tiny: tuple[str, str], interrupted: Callable
) -> None:
    outcome = interrupted(
        ["embed", "-", *tiny, "--output", tmp_path / "x.npy"],
        lambda: any(path.suffix == ".tmp" for path in tmp_path.iterdir()),
        number,
        stdin=b"the quick fox\n" * 3000,
    )
    assert (outcome.code, outcome.err) == (code, "interrupted\n" if number == signal.SIGINT else "")
    assert list(tmp_path.iterdir()) == []
