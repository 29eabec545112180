"""The data set's own layout, the published rounds, and no score under the published name but by its rules."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from udever import Embedder
from udever.errors import DatasetError, OptionError
from udever.evaluation.encoder import Encoder
from udever.evaluation.protocols.codesearchnet import LANGUAGES, codesearchnet
from udever.evaluation.runner import measure

VERBS = ("read", "write", "open", "close", "sort", "merge", "split", "count", "find", "load", "save", "parse", "send")
NOUNS = ("file", "folder", "list", "table", "row", "column", "word", "line", "page", "image", "user", "key", "value")


def function(verb: str, noun: str) -> dict[str, Any]:
    """A row as CodeSearchNet has it: the raw code still holds its docstring, the tokens do not."""
    return {
        "repo": "a/b",
        "func_name": f"{verb}_{noun}",
        "language": "go",
        "code": f'def {verb}_{noun}(x):\n    """{verb} the {noun}"""\n    return x.{noun}.{verb}()',
        "code_tokens": ["def", f"{verb}_{noun}", "(", "x", ")", ":", "return", f'"{noun}\r\n{verb}"'],
        "docstring": f"{verb} the {noun}\n\nMore of it.",
        "docstring_tokens": [verb, "the", noun],
        "partition": "test",
    }


def write(data: Path, language: str, rows: list[dict[str, Any]]) -> None:
    path = data / language / "final" / "jsonl" / "test" / f"{language}_test_0.jsonl.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """45 functions in go and 20 in php."""
    every = [function(verb, noun) for verb in VERBS for noun in NOUNS]
    write(tmp_path, "go", every[:45])
    write(tmp_path, "php", every[100:120])
    return tmp_path


def test_the_published_rounds_are_scored_by_language(data: Path, nano: Embedder) -> None:
    tasks = codesearchnet(data, languages=["go", "php"], candidates=20)
    assert [(task.name, task.protocol) for task in tasks] == [("go", "codesearchnet-20"), ("php", "codesearchnet-20")]
    assert tasks[0].settings() | {"data": ""} == {
        "split": "test",
        "functions": 45,
        "rounds": 2,
        "candidates": 20,
        "seed": 0,
        "data": "",
    }
    rows = [function(verb, noun) for verb in VERBS for noun in NOUNS][:45]
    order = np.arange(45)
    np.random.RandomState(0).shuffle(order)
    reciprocal = []
    for round_ in (order[:20], order[20:40]):
        docs = nano.embed([" ".join(rows[i]["docstring_tokens"]) for i in round_], "query")
        codes = nano.embed([" ".join(rows[i]["code_tokens"]).replace("\r\n", " ") for i in round_], "document")
        scores = docs @ codes.T
        reciprocal += list(1 / (scores >= scores.diagonal()[:, None]).sum(axis=1))
    result = measure(tasks[0], Encoder(embedder=nano), output=None).result
    assert result.of()[0].value == pytest.approx(np.mean(reciprocal))
    assert (result.of()[0].metric, result.of()[0].count, result.of()[0].subset) == ("mrr", 40, "go")
    assert [score.system for score in result.scores] == ["model", "bm25", "random"]


def test_a_docstring_is_a_query_and_never_stands_in_a_document(data: Path, recording: Callable[..., Any]) -> None:
    model = recording()
    (task,) = codesearchnet(data, languages=["php"], candidates=20)
    measure(task, Encoder(embedder=model), output=None)
    assert all(len(text.split()) == 3 for text in model.heard["query"])
    assert all(text.startswith("def ") and " the " not in text and "\n" not in text for text in model.heard["document"])
    assert len(model.heard["query"]) == len(model.heard["document"]) == 20


def test_a_thousand_candidates_are_the_published_protocol(tmp_path: Path) -> None:
    write(tmp_path, "go", [function(f"{verb}{i}", noun) for i in range(6) for verb in VERBS for noun in NOUNS])
    (task,) = codesearchnet(tmp_path, languages=["go"])
    assert (task.protocol, task.settings()["rounds"], task.texts) == ("codesearchnet-1k", 1, 2000)


def test_fewer_functions_are_never_called_so(data: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"go_test_0.*45 functions are too few for a round of 1,000.*another protocol"
    ):
        codesearchnet(data, languages=["go"])


def test_all_six_languages_are_wanted_unless_some_are_named(data: Path) -> None:
    with pytest.raises(DatasetError, match=r"ruby_test_0\.jsonl\.gz does not exist.*--data"):
        codesearchnet(data, candidates=20)
    assert len(LANGUAGES) == 6


def test_a_language_it_does_not_have_is_wrong_usage(data: Path) -> None:
    with pytest.raises(OptionError, match=r"'rust'.*'go', 'ruby'"):
        codesearchnet(data, languages=["rust"])


def test_half_a_surrogate_pair_is_named(data: Path) -> None:
    write(data, "go", [function("a", "b"), {**function("c", "d"), "docstring_tokens": ["d", "\ud83d"]}])
    with pytest.raises(DatasetError, match=r"go_test_0.jsonl.gz:2: 'docstring_tokens' has a lone surrogate U\+D83D"):
        codesearchnet(data, languages=["go"], candidates=2)


def test_a_row_of_another_shape_is_named(data: Path) -> None:
    write(data, "go", [function("a", "b"), {"docstring": "a", "code": "b"}])
    with pytest.raises(DatasetError, match=r"go_test_0.jsonl.gz:2: 'docstring_tokens' is no list.*'docstring', 'code'"):
        codesearchnet(data, languages=["go"], candidates=2)
