"""Runs the real command line in this process."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from udever.cli import main


class Outcome(NamedTuple):
    """What a shell would see."""

    code: int
    out: str
    err: str


@pytest.fixture
def udever(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """udever("embed", path, stdin=b"…") runs `udever embed PATH`."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: object, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main([str(argument) for argument in arguments])
        return Outcome(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint: Path) -> tuple[str, str]:
    """`--model PATH` of the tiny model."""
    return ("--model", str(tiny_checkpoint))
