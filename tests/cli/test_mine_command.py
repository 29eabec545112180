"""`udever mine`: a store in, a store with hard negatives out, and what is said about it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from udever.training.data.examples import ExampleStore

PETS = ["fox", "dog", "wolf", "cat", "山", "zorro"]


@pytest.fixture
def store(tmp_path: Path, udever: Callable, tiny: tuple[str, str]) -> Path:
    path = tmp_path / "pets.jsonl"
    rows = [{"query": f"what is a {pet}", "pos": [f"the {pet} is here"], "neg": [f"no {pet}"]} for pet in PETS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert udever("data", "import", path, *tiny, "-o", tmp_path / "pets").code == 0
    return tmp_path / "pets"


def test_mine_makes_a_store_and_sums_up(store: Path, tmp_path: Path, udever: Callable, tiny: tuple[str, str]) -> None:
    outcome = udever("mine", store, "-o", tmp_path / "hard", *tiny, "--margin", "-2", "--negatives", 3)
    assert (outcome.code, outcome.out) == (0, ""), outcome.err
    assert "18 hard negatives for 6 examples" in outcome.err
    assert not (tmp_path / "hard.work").exists()
    opened = ExampleStore.open(tmp_path / "hard")
    assert all(len(opened.example(index).negatives) == 3 for index in range(6))
    assert "model" in udever("data", "info", tmp_path / "hard").out


def test_every_option_reaches_the_mining(store: Path, tmp_path: Path, udever: Callable, tiny: tuple[str, str]) -> None:
    outcome = udever(
        "mine", store, "--output", tmp_path / "hard", *tiny, "--teacher", tiny[1], "--task", "pets",
        "--negatives", 30, "--append", "--percentile", 1.0, "--max-score", 0.99, "--top", 50, "--skip-top", 1,
        "--search", "ivf", "--lists", 3, "--probes", 3, "--dimensions", 64, "--max-tokens", 16,
        "--precision", "fp32", "--device", "cpu", "--progress", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    told = json.loads(outcome.out)
    wanted = {
        "tasks": ["pets"], "negatives": 30, "append": True, "percentile": 1.0, "max_score": 0.99, "top": 50,
        "skip_top": 1, "search": "ivf", "lists": 3, "probes": 3, "dimensions": 64, "max_tokens": 16,
    }  # fmt: skip
    assert wanted.items() <= told["options"].items()
    assert told["options"]["teacher_fingerprint"] == told["options"]["fingerprint"]
    assert "searching" in outcome.err
    assert "6 of 6 examples have fewer than 30 mined negatives" in outcome.err
    opened = ExampleStore.open(tmp_path / "hard")
    example = opened.example(0)
    assert opened.text(example.negatives[0]) == "no fox"
    assert len(example.scores or ()) == 1 + len(example.negatives)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--task", "birds"), 1, "no task 'birds'"),
        (("--negatives", 0), 2, "negatives is 0"),
        (("--lists", 4), 2, "--search ivf"),
        (("--dimensions", 7), 2, "no embedding of 7 dimensions"),
    ],
)
def test_mistakes_are_explained_in_one_line(
    store: Path, tmp_path: Path, udever: Callable, tiny: tuple[str, str], arguments: tuple, code: int, told: str
) -> None:
    outcome = udever("mine", store, "-o", tmp_path / "hard", *tiny, *arguments)
    assert (outcome.code, outcome.err.count("\n")) == (code, 1)
    assert told in outcome.err
    assert not (tmp_path / "hard").exists()


def test_a_folder_without_examples_is_named(tmp_path: Path, udever: Callable, tiny: tuple[str, str]) -> None:
    outcome = udever("mine", tmp_path, "-o", tmp_path / "hard", *tiny)
    assert outcome.code == 1
    assert "holds no examples (make them: udever data import" in outcome.err
