"""What the recipe of udever-nano makes of its texts: variations, sentences out of passages, a project apart."""

import importlib
import random
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

RECIPES = Path(__file__).parents[2] / "recipes" / "nano"
FOX = "The quick brown fox jumps over the lazy dog"
FLUTE = "a man is playing one large flute"


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    """`pairs`, and through it the modules beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(RECIPES)
        return importlib.import_module("pairs")


@pytest.mark.parametrize("change", range(5))
def test_a_variation_is_made_of_the_words_of_both(recipe: ModuleType, change: int) -> None:
    vary = recipe.vary
    words, others = (vary.WORD.findall(" " + text) for text in (FOX, FLUTE))
    made = vary.CHANGES[change](words, others, random.Random(change))
    assert made != words
    assert set(made) <= {*words, *others}
    assert words == vary.WORD.findall(" " + FOX), "what it was made of stays"


@given(st.text(max_size=40), st.text(max_size=40), st.integers(0, 99))
def test_any_text_has_variations(recipe: ModuleType, text: str, other: str, seed: int) -> None:
    first, again = (recipe.vary.variation(text, other, random.Random(seed)) for _ in range(2))
    assert first == again
    assert len(first) <= max(len(text), 2 * recipe.vary.LONGEST_CHARS)


def test_letters_without_spaces_go_two_by_two(recipe: ModuleType) -> None:
    assert recipe.vary.WORD.findall("两只狗在雪地 in 2024") == ["两只", "狗在", "雪地", " in", " 2024"]


def test_sentences_that_stand_side_by_side_are_varied_first_and_most(recipe: ModuleType) -> None:
    example = recipe.Example
    pool = [example(f"{FOX} {i}", "", "tatoeba", "deu_Latn") for i in range(9)]
    pool += [example(f"{FLUTE} {i}", "", "sts", "de") for i in range(9)]
    pool += [example(FOX, "", "sts", "tlh"), example(FOX * 9, "", "sts", "de"), example(FOX, "", "ui", "de")]
    rows = list(recipe.vary.rows(pool))
    assert len(rows) > 27
    assert all(row["query"].startswith(FLUTE) for row in rows[:27])
    assert all(row["pos"] != [row["query"]] for row in rows)
    assert rows == list(recipe.vary.rows(pool))


@pytest.mark.parametrize(
    "passage", ["One. Two. Three.", "A sentence of some length stands here. And another one beside it, no third."]
)
def test_too_little_text_gives_no_sentence(recipe: ModuleType, passage: str) -> None:
    assert recipe._around(passage, random.Random(0)) is None


def test_a_sentence_and_what_is_around_it_are_the_passage(recipe: ModuleType) -> None:
    sentences = [f"Sentence number {i} is about subject {i}." for i in range(4)]
    for seed in range(20):
        sentence, around = recipe._around(" ".join(sentences), random.Random(seed))
        assert sentence in sentences
        assert around == " ".join(other for other in sentences if other != sentence)


def test_a_project_of_its_own_has_enough_for_a_batch(recipe: ModuleType) -> None:
    def functions(project: str, count: int) -> list[object]:
        return [
            recipe.Example(f"f{i}()", "passage: x", "mined", "go", True, f"query: does {i}", project)
            for i in range(count)
        ]

    rows = list(recipe.projects([*functions("large", recipe.PROJECT_PAIRS), *functions("small", 9)]))
    assert {row["task"] for row in rows} == {"go large"}
    assert rows[3] == {"query": "does 3", "pos": ["f3()"], "neg": [], "task": "go large"}
