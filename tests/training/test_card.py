"""The model card: true to the run, valid metadata, and scores that can be replaced."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from udever.errors import OptionError
from udever.training import recipe as recipes
from udever.training.card import NO_SCORES, RunFacts, card, with_scores

RECIPES = Path(__file__).parents[2] / "recipes"
STORE = {"examples": 1000, "texts": 1500, "tokens": 60_000, "tasks": {"msmarco": 1000}}
SOURCE = {"file": "triplets.jsonl.gz", "sha256": "ab" * 32}
MINED = STORE | {"sources": [{"file": "a store", "sha256": "cd" * 32}], "made_from": {"sources": [SOURCE]}}


def facts(**changed: Any) -> RunFacts:
    log = [{"step": step, "loss": 3.0 / step, "tokens": 100, "seconds": 1800.0} for step in (1, 2, 3)]
    given = {
        "recipe": recipes.load(RECIPES / "udever-bloom-1b1.toml"),
        "license": "bigscience-bloom-rail-1.0",
        "base": "bigscience/bloom-1b1",
        "weights": "c0ffee",
        "start": "c0ffee",
        "stores": [STORE | {"sources": [SOURCE]}, MINED],
        "moved": 408_576,
        "dimensions": 1536,
        "max_tokens": 300,
        "hardware": "8 × NVIDIA H200",
        "log": [*log, {"step": 3, "score": 0.5}],
    }
    return RunFacts(**{**given, **changed})


def test_the_hub_can_read_it_and_it_says_what_the_run_knows() -> None:
    text = card(facts())
    _, metadata, body = text.split("---\n", 2)
    assert yaml.safe_load(metadata) == {
        "pipeline_tag": "sentence-similarity",
        "library_name": "udever",
        "license": "bigscience-bloom-rail-1.0",
        "base_model": "bigscience/bloom-1b1",
        "tags": ["udever", "bloom", "bitfit", "feature-extraction"],
    }
    for fact in (
        "# udever-bloom-1b1",
        "1536 dimensions, at most 300 tokens",
        "| msmarco | 1 | 1,000 | 1,500 | 60,000 | msmarco | triplets.jsonl.gz (`abababababab`) |",
        "| allnli | 1 | 1,000 | 1,500 | 60,000 | msmarco | triplets.jsonl.gz (`abababababab`) |",
        "| trained | bitfit: 408,576 numbers |",
        "| steps | 3 (3 epochs), 300 tokens |",
        "| time | 1.50 h of steps |",
        "| loss | 3.0000 at first, 1.0000 at last |",
        f"`{facts().recipe.digest}`",
        "8 × NVIDIA H200",
        NO_SCORES,
    ):
        assert fact in body, fact


@pytest.mark.parametrize("base", ["udever-nano", "/models/bloom", "./bloom"])
def test_only_a_model_of_the_hub_is_named_to_the_hub(base: str) -> None:
    assert "base_model" not in card(facts(base=base))


def test_the_delta_that_training_went_on_from_is_told_apart_from_the_base() -> None:
    assert "The base's weights have the digest `c0ffee`." in card(facts())
    assert "both together have the digest `feed`" not in card(facts())
    assert "Training went on from the delta" in card(facts(start="feed"))
    assert "`c0ffee`" in card(facts(start="feed"))
    assert "both together have the digest `feed`" in card(facts(start="feed"))


def test_scores_are_replaced_and_nothing_else() -> None:
    empty = card(facts())
    once = with_scores(empty, "### STS\n\n| \\1 | 80.0 |")
    assert "| \\1 | 80.0 |" in once
    assert NO_SCORES not in once
    twice = with_scores(once, "### Code")
    assert "80.0" not in twice
    assert with_scores(twice, NO_SCORES) == empty
    with pytest.raises(OptionError, match="no place for scores"):
        with_scores("# My own page", "### STS")


def test_of_hundreds_of_tasks_some_are_named() -> None:
    many = STORE | {"sources": [SOURCE], "tasks": {f"project {i}": 1 for i in range(1500)}}
    (row,) = [line for line in card(facts(stores=[many, MINED])).splitlines() if line.startswith("| msmarco |")]
    assert "| project 0, project 1, project 2, " in row
    assert "project 11 and 1,488 more |" in row
    assert "project 12" not in row
