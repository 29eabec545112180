"""docs/cli.md names every command and every option, and no option that does not exist."""

import re
from pathlib import Path

import pytest

from udever.cli.app import COMMANDS, app

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"
GLOBAL = {"--help", "--version", "--debug"}


def options_of(command: str) -> set[str]:
    group = app[command]
    apps = [group[name] for name in group if not name.startswith("-")] or [group]
    names = {name for each in apps for argument in each.assemble_argument_collection() for name in argument.names}
    return {name for name in names if name.startswith("-")}


def named_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", text))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_stands_in_the_section_of_its_command(command: str) -> None:
    text = DOCS.read_text(encoding="utf-8")
    section = text.split(f"## udever {command}\n")[1].split("\n## ")[0]
    options = options_of(command)
    assert {name for name in options if name.startswith("--")} <= named_in(section)
    assert options <= named_in(text)


def test_every_option_in_the_docs_exists() -> None:
    text = DOCS.read_text(encoding="utf-8")
    existing = GLOBAL.union(*map(options_of, COMMANDS))
    assert {name for name in named_in(text) if name.startswith("--")} <= existing


def test_every_exit_code_is_explained() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert all(f"| {code} |" in text for code in (0, 1, 2, 3, 130, 141, 143))
