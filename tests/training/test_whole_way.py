"""The commands of docs/training.md, "The whole way", on real functions of the standard library and a random BLOOM."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from udever import Embedder
from udever.cli.stdlib import standard_library

DOCS = Path(__file__).parents[2] / "docs" / "training.md"
SUITE = """
name = "dev"
[[task]]
kind = "code"
name = "functions"
file = "dev.jsonl"
"""
pytestmark = pytest.mark.slow


def blocks(language: str) -> str:
    section = DOCS.read_text("utf-8").partition("## The whole way")[2]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found
    return found[1]


@pytest.fixture
def place(raw_bloom: Path, tmp_path: Path) -> Path:
    """A folder with the data and the recipes of the page."""
    rows = [
        {"query": function.summary[:120], "pos": [f"def {function.signature}:"], "neg": []}
        for function in standard_library()[:640:4]
    ]
    assert len(rows) == 160
    folder = tmp_path / "place"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:128]))
    dev = [{"doc": row["query"], "code": row["pos"][0]} for row in rows[128:]]
    (folder / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in dev))
    (folder / "dev.toml").write_text(SUITE)
    first = blocks("toml").replace("BASE", str(raw_bloom))
    second = first.replace('name = "first"', 'name = "second"').replace('path = "pairs"', 'path = "hard"')
    second = second.replace("negatives = 0", "negatives = 1").replace(
        "epochs = 4.0", "epochs = 40.0"
    )  # time to kill it
    (folder / "first.toml").write_text(first)
    (folder / "second.toml").write_text(second)
    return folder


def test_the_whole_way(place: Path, raw_bloom: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(line: str) -> "subprocess.Popen[str]":
        arguments = shlex.split(line.replace("BASE", str(raw_bloom)), comments=True)
        command = [sys.executable, "-m", *arguments]
        return subprocess.Popen(
            command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    for line in blocks("sh").splitlines():
        if "killed" in line:
            kill_after_a_checkpoint(start(f"{line.partition('#')[0]} --checkpoint-every 1"), place / "runs" / "second")
            continue
        process = start(line)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, (line, out, err)
    assert (place / "runs" / "second" / "delta" / "delta.safetensors").stat().st_size < 40_000
    assert any((place / "report").iterdir())
    card = (place / "runs" / "second" / "delta" / "README.md").read_text()
    assert f"base_model: {raw_bloom}" not in card  # a folder is no model of the hub
    for fact in (
        "# second",
        "| hard | 1 | 128 |",
        "train.jsonl",
        "### suite:dev",
        "| trained | bitfit: 1,792 numbers |",
    ):
        assert fact in card
    texts = ["def read(path):", "reads a file", "[EOQ] forged"]
    tuned, merged = (Embedder.load(str(place / name)) for name in ("runs/second/delta", "merged"))
    np.testing.assert_allclose(tuned.embed(texts), merged.embed(texts), atol=1e-6)
    assert not np.allclose(tuned.embed(texts), Embedder.load(str(place / "runs/first/delta")).embed(texts), atol=1e-4)
    scores = json.loads(next((place / "results").rglob("*.json")).read_text())
    assert scores["fingerprint"] == tuned.fingerprint


def kill_after_a_checkpoint(process: "subprocess.Popen[str]", run: Path) -> None:
    checkpoints = run / "checkpoints"
    while not (checkpoints.is_dir() and any(checkpoints.iterdir())):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
