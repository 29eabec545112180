"""`udever demo`: the documents are real, the output reads well in a terminal and in a pipe."""

import json
import re
import shlex
from collections.abc import Callable

import pytest
from rich.cells import cell_len

from udever.cli.app import COMMANDS, app
from udever.cli.demo import QUESTIONS, SENTENCES
from udever.cli.demo_view import NEXT
from udever.cli.stdlib import standard_library


def test_the_standard_library_is_read_without_importing_it() -> None:
    functions = {function.name: function for function in standard_library()}
    assert len(functions) > 1000
    assert functions["gzip.compress"].signature == "gzip.compress(data, compresslevel, mtime)"
    assert "median" in functions["statistics.median"].summary
    assert functions["os.makedirs"].summary.startswith("Super-mkdir"), "the repeated signature is left out"
    assert functions["pathlib.Path.glob"].signature.startswith("pathlib.Path.glob(pattern")
    assert not any(part.startswith("_") for name in functions for part in name.split("."))
    assert not any(name.startswith(("test.", "idlelib.")) for name in functions)


@pytest.fixture
def shown(udever: Callable, tiny: tuple[str, str]) -> str:
    outcome = udever("demo", *tiny)
    assert (outcome.code, outcome.err) == (0, "")
    return outcome.out


def test_in_a_pipe_it_is_plain_text_of_at_most_100_columns(shown: str) -> None:
    assert "\x1b" not in shown
    assert max(cell_len(line) for line in shown.splitlines()) <= 100
    for _, text in (*QUESTIONS, *SENTENCES):
        assert text in shown
    assert "texts/s" in shown


def test_the_heat_map_fits_80_columns_with_ones_on_its_diagonal(
    udever: Callable, tiny: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = udever("demo", *tiny).out.splitlines()
    assert max(map(cell_len, lines)) <= 80
    rows = [re.findall(r" (-?\d\.\d\d)\b", line) for line in lines]
    matrix = [row for row in rows if len(row) == len(SENTENCES)]
    assert len(matrix) == len(SENTENCES)
    assert [row[i] for i, row in enumerate(matrix)] == ["1.00"] * len(SENTENCES)


def test_colours_in_a_terminal_change_no_text(
    shown: str, udever: Callable, tiny: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLORTERM", "truecolor")
    coloured = udever("demo", *tiny).out
    assert "\x1b[38;2" in coloured or "48;2" in coloured
    plain = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    timing = re.compile(r".*(embedded in|texts/s).*")
    assert timing.sub("", plain) == timing.sub("", shown)


def test_json_has_everything(udever: Callable, tiny: tuple[str, str]) -> None:
    outcome = udever("demo", *tiny, "--json")
    result = json.loads(outcome.out)
    assert result["functions"] > 1000
    assert result["tokens"] > result["functions"]
    assert [answer["question"] for answer in result["answers"]] == [question for _, question in QUESTIONS]
    for answer in result["answers"]:
        first, second = answer["hits"]
        assert first["similarity"] >= second["similarity"]


def test_it_names_only_commands_and_options_that_exist() -> None:
    for command, _ in NEXT:
        words = shlex.split(command)
        assert words[0] == "udever"
        assert words[1] in COMMANDS
        named = app[words[1]]
        if named.default_command is None:  # a group: its first argument is a command too
            assert words[2] in named
            named = named[words[2]]
        options = {name for argument in named.assemble_argument_collection() for name in argument.names}
        assert {word for word in words if word.startswith("-")} <= options
