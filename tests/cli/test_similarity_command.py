"""`udever similarity A B`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from udever import Embedder

A, B = "the fox jumps", "el zorro salta"


def test_prints_the_cosine_of_the_two_vectors(udever: Callable, tiny: tuple[str, str], tiny_checkpoint: Path) -> None:
    model = Embedder.load(str(tiny_checkpoint))
    a, b = model.embed([A, B], role="query")
    assert udever("similarity", A, B, *tiny) == (0, f"{a @ b:.4f}\n", "")


def test_roles_are_the_embedders(udever: Callable, tiny: tuple[str, str], tiny_checkpoint: Path) -> None:
    model = Embedder.load(str(tiny_checkpoint))
    expected = float(model.embed([A], role="query")[0] @ model.embed([B], role="document")[0])
    outcome = udever("similarity", A, B, *tiny, "--role-b", "document", "--json")
    answer = json.loads(outcome.out)
    assert answer["similarity"] == pytest.approx(expected, abs=1e-6)
    assert (answer["role_a"], answer["role_b"]) == ("query", "document")
    assert answer["fingerprint"] == model.fingerprint


def test_a_text_that_looks_like_an_option(udever: Callable, tiny: tuple[str, str]) -> None:
    assert udever("similarity", *tiny, "--", "--debug", "--debug") == (0, "1.0000\n", "")


@pytest.mark.parametrize(
    ("texts", "options", "said"),
    [
        (("", B), (), "text A"),
        ((A, ""), (), "text B"),
        ((A, B + " zorro" * 50), ("--max-tokens", "9"), "text B has"),
        ((A, "bad \udc80"), (), "text B"),
    ],
)
def test_errors_name_the_text(
    texts: tuple[str, str], options: tuple[str, ...], said: str, udever: Callable, tiny: tuple[str, str]
) -> None:
    outcome = udever("similarity", *texts, *tiny, *options)
    assert outcome.code == 1
    assert said in outcome.err
    assert "truncate=" not in outcome.err, "the hint is for the command line"
