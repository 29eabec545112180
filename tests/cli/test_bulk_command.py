"""`udever bulk` and `udever verify`: exit codes, summaries, and a run that is killed at random moments."""

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from udever import Embedder


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "in.parquet"
    texts = [f"{'the quick fox ' * (i % 7)}{i % 150}" for i in range(200)]
    pq.write_table(pa.table({"id": range(200), "title": [f"T{i}" for i in range(200)], "text": texts}), path)
    return path


def tree(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_vectors_and_summary(table: Path, udever: Callable, tiny: tuple[str, str], tmp_path: Path) -> None:
    output = tmp_path / "out"
    options = ("--columns", "id", "--columns", "title", "--shard-rows", 64, "--role", "query")
    outcome = udever("bulk", table, *tiny, "--output", output, *options, "--json")
    assert outcome.code == 0, outcome.err
    written = pq.read_table(output / "vectors")
    assert written.column_names == ["id", "title", "_file", "_row", "embedding"]
    expected = Embedder.load(tiny[1]).embed(pq.read_table(table)["text"].to_pylist(), "query")
    np.testing.assert_allclose(np.stack(written["embedding"].to_numpy()), expected, atol=1e-6)
    summary = json.loads(outcome.out)
    assert (summary["vectors"], summary["bad_rows"], summary["shards"], summary["dimensions"]) == (200, 0, 4, 64)
    assert "200 vectors →" in outcome.err
    assert "rows/s" in outcome.err
    again = udever("bulk", table, *tiny, "-o", output, *options)
    assert (again.code, again.out) == (0, "")
    assert "4 of 4 shards are done already" in again.err
    assert "nothing was left to do" in again.err
    checked = udever("verify", output, *tiny, "--json", "--rows", 50)
    assert checked.code == 0, checked.err
    assert json.loads(checked.out)["replayed"] == 50


def test_bad_rows_have_an_exit_code_of_their_own(udever: Callable, tiny: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "a"}\nnonsense\n{"text": null}\n{"text": "' + "fox " * 40 + '"}\n{"text": "b"}\n')
    outcome = udever("bulk", path, *tiny, "-o", tmp_path / "out", "--max-tokens", 20, "--json")
    assert outcome.code == 3
    assert json.loads(outcome.out)["reasons"] == {"malformed": 1, "null": 1, "too_many_tokens": 1}
    assert "3 bad rows" in outcome.err
    assert "errors.parquet" in outcome.err
    assert pq.read_table(tmp_path / "out" / "errors.parquet")["row"].to_pylist() == [2, 3, 4]
    assert udever("bulk", path, *tiny, "-o", tmp_path / "out", "--max-tokens", 20).code == 3, "said again"
    assert udever("verify", tmp_path / "out", *tiny).code == 0


def test_a_template_as_a_shell_passes_it(table: Path, udever: Callable, tiny: tuple[str, str], tmp_path: Path) -> None:
    options = ("--template", r"{title}\n{text}\\n", "--columns", "none", "--dtype", "float16", "--dedupe")
    assert udever("bulk", table, *tiny, "-o", tmp_path / "out", *options).code == 0
    written = pq.read_table(tmp_path / "out" / "vectors")
    assert written.column_names == ["_file", "_row", "embedding"]
    rows = pq.read_table(table).to_pylist()
    expected = Embedder.load(tiny[1]).embed([f"{row['title']}\n{row['text']}\\n" for row in rows], "document")
    np.testing.assert_allclose(np.stack(written["embedding"].to_numpy()), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("nowhere.parquet",), 1, "nowhere.parquet does not exist"),
        (("{in}", "--text-column", "body"), 1, "no column 'body'"),
        (("{in}", "--text-column", "a", "--template", "{text}"), 2, "exclude each other"),
        (("{in}", "--template", "text"), 2, "names no column"),
        (("{in}", "--format", "npy", "--columns", "id"), 2, "npy holds vectors only"),
        (("{in}", "--batch-tokens", "0"), 2, "--batch-tokens is 0; it must be at least 1"),
        (("{in}", "--shard-rows", "0"), 2, "shard_rows is 0"),
        (("{in}", "--dtype", "float64"), 2, "float64"),
        (("{in}", "--dimensions", "63"), 2, "63"),
        (("{in}", "--max-tokens", "1"), 2, "max_tokens is 1"),
        (("{in}", "--modle", "x"), 2, "--modle"),
        ((), 1, "no input"),
    ],
)
def test_refusals_leave_no_output(
    arguments: tuple[str, ...],
    code: int,
    said: str,
    table: Path,
    udever: Callable,
    tiny: tuple[str, str],
    tmp_path: Path,
) -> None:
    output = tmp_path / "out"
    outcome = udever("bulk", *[str(table) if a == "{in}" else a for a in arguments], *tiny, "-o", output)
    assert (outcome.code, outcome.out) == (code, ""), outcome.err
    assert said in outcome.err
    assert outcome.err.count("\n") == 1
    assert not output.exists()


def test_another_job_is_refused_until_forced(
    table: Path, udever: Callable, tiny: tuple[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert udever("bulk", table, *tiny, "-o", output).code == 0
    refused = udever("bulk", table, *tiny, "-o", output, "--role", "query", "--dtype", "int8")
    assert refused.code == 1
    assert "--role was document, is query; --dtype was float32, is int8" in refused.err
    assert udever("bulk", table, *tiny, "-o", output, "--role", "query", "--force").code == 0
    wrong = udever("verify", output)
    assert wrong.code == 1
    assert "differs: the model was" in wrong.err


def test_the_same_file_read_as_something_else_is_another_job(
    udever: Callable, tiny: tuple[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "dump.txt"
    path.write_text('{"text": "a fox"}\n{"text": "a dog"}\n')
    output = tmp_path / "out"
    job = ("bulk", path, *tiny, "-o", output, "--columns", "none", "--input-format")
    assert udever(*job, "txt").code == 0
    refused = udever(*job, "jsonl")
    assert refused.code == 1
    assert "dump.txt was read as txt, is read as jsonl" in refused.err
    assert udever(*job, "jsonl", "--force").code == 0


def test_progress_shows_rows_and_speeds(table: Path, udever: Callable, tiny: tuple[str, str], tmp_path: Path) -> None:
    outcome = udever("bulk", table, *tiny, "-o", tmp_path / "out", "--progress")
    assert "200 of 200 rows" in outcome.err
    assert "tokens/s" in outcome.err
    assert "100%" in outcome.err
    assert "100%" not in udever("bulk", table, *tiny, "-o", tmp_path / "out").err, "no bar in a pipe"


@pytest.fixture
def long_job(tiny: tuple[str, str], tmp_path: Path) -> Callable[[str], list[str]]:
    """The arguments of a job of 48 shards into a folder."""
    dice = random.Random(0)
    texts = [
        " ".join(dice.choices(["fox", "jump", "гора", "敏捷的"], k=20)) if dice.random() > 0.01 else ""
        for _ in range(1200)
    ]
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": range(1200), "text": texts}), path, row_group_size=500)
    return lambda name: ["bulk", str(path), *tiny, "--shard-rows", "25", "--output", str(tmp_path / name)]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_kill_9_at_random_moments(long_job: Callable[[str], list[str]], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "udever"]
    assert subprocess.run([*command, *long_job("whole")], check=False, capture_output=True).returncode == 3
    dice, kills = random.Random(), 0
    for _ in range(3):
        with subprocess.Popen([*command, *long_job("killed")], stderr=subprocess.PIPE) as process:
            wait_until_more(process, tmp_path / "killed")
            time.sleep(dice.random() * 0.1)
            process.kill()
            process.wait()
            kills += process.returncode == -signal.SIGKILL
    assert kills >= 2, "it ended before it could be killed"
    ended = subprocess.run([*command, *long_job("killed")], check=False, capture_output=True, text=True)
    assert ended.returncode == 3
    assert "shards are done already" in ended.stderr
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")
    assert done(tmp_path / "whole") == 48


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_is_said_in_one_line_and_leaves_no_half_file(
    long_job: Callable[[str], list[str]], tmp_path: Path, interrupted: Callable
) -> None:
    outcome = interrupted(long_job("out"), lambda: done(tmp_path / "out") > 0)
    assert (outcome.code, outcome.err) == (130, "interrupted\n")
    assert not list((tmp_path / "out" / "_state" / "tmp").iterdir())
    parts = {path.stem for path in (tmp_path / "out" / "vectors").iterdir()}
    assert {path.stem for path in (tmp_path / "out" / "_state" / "done").iterdir()} == parts


def done(output: Path) -> int:
    folder = output / "_state" / "done"
    return sum(1 for _ in folder.iterdir()) if folder.exists() else 0


def wait_until_more(process: "subprocess.Popen[bytes]", output: Path) -> None:
    """Until it has done a shard, or has ended."""
    before = done(output)
    wait_until(lambda: process.poll() is not None or done(output) > before)


def wait_until(condition: Callable[[], bool], *, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)
