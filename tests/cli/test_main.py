"""The command line as a whole: help is light, exit codes, one clear line instead of a traceback."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

import udever as package
from udever.cli import split_debug
from udever.cli.app import COMMANDS
from udever.errors import OptionError, UdeverError

LIGHT = """
import sys
from udever.cli import main
for argv in [["--help"], ["--version"], *([command, "--help"] for command in sys.argv[1:])]:
    assert main(argv) == 0, argv
heavy = {"torch", "numpy", "tokenizers", "safetensors", "pyarrow", "huggingface_hub"} & set(sys.modules)
assert not heavy, heavy
"""

BUSY = """
import sys, threading, torch
from udever.cli import run
def work():
    x = torch.ones(64, 64, requires_grad=True)
    while True:
        (x @ x).sum().backward()
threading.Thread(target=work, name="udever-load-a", daemon=True).start()
sys.argv = ["udever", "--version"]
run()
"""


def test_help_and_version_import_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *COMMANDS], capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in COMMANDS)
    assert f"udever {package.__version__}" in done.stdout


def test_python_dash_m_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "udever", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, f"udever {package.__version__}", "")


def test_a_thread_in_the_model_does_not_abort_the_end() -> None:
    done = subprocess.run([sys.executable, "-c", BUSY], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, f"udever {package.__version__}", "")


CLOSED = """
import os, sys
for descriptor in map(int, sys.argv[1].split(",")):
    os.close(descriptor)
os.execv(sys.executable, [sys.executable, "-m", "udever", *sys.argv[2:]])
"""


@pytest.mark.parametrize(
    ("closed", "arguments", "code", "said"),
    [
        ("2", ["models"], 0, ""),
        ("1", ["models"], 1, "error: Bad file descriptor: stdin or stdout is closed"),
        ("0", ["embed", "-"], 1, "error: Bad file descriptor: stdin or stdout is closed"),
        ("0,1,2", ["models"], 1, ""),
    ],
)
def test_streams_that_the_caller_has_closed(closed: str, arguments: list[str], code: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CLOSED, closed, *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr.strip()) == (code, said)


def test_without_a_command_the_help_is_shown(udever: Callable) -> None:
    outcome = udever()
    assert outcome.code == 0
    assert "Usage: udever" in outcome.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["embde"],
        ["embed", "--nonsense"],
        ["embed", "--role", "passage"],
        ["embed", "--dimensions", "many"],
        ["similarity", "only one"],
        ["similarity", "a", "b", "c"],
        ["info", "a", "b"],
    ],
)
def test_wrong_usage_is_exit_code_2_and_one_line(arguments: list[str], udever: Callable) -> None:
    outcome = udever(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1


def fails_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `udever models` raise: the one command that needs no model."""

    def raising() -> list[dict[str, object]]:
        raise error

    monkeypatch.setattr("udever.cli.models._builtin", raising)


def caused(error: BaseException, *, by: BaseException) -> BaseException:
    error.__cause__ = by
    return error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UdeverError("it broke", hint="mend it"), 1, "error: it broke (mend it)"),
        (OptionError("no such thing"), 2, "error: no such thing"),
        (UdeverError("two\n  lines"), 1, "error: two lines"),
        (PermissionError(13, "Permission denied", "/x"), 1, "error: Permission denied: /x"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (caused(SystemError("returned a result with an exception set"), by=KeyboardInterrupt()), 130, "interrupted"),
        (RuntimeError("Symlink loop from '/x'"), 1, "error: Symlink loop from '/x'"),
        (ZeroDivisionError("oh"), 1, "error: ZeroDivisionError: oh (this is a bug in udever; --debug shows where)"),
    ],
)
def test_errors_are_one_line(
    error: BaseException, code: int, line: str, udever: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_with(error, monkeypatch)
    assert udever("models") == (code, "", f"{line}\n")


def test_debug_shows_the_traceback(udever: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    fails_with(UdeverError("it broke"), monkeypatch)
    with pytest.raises(UdeverError, match="it broke"):
        udever("models", "--debug")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["models"], (["models"], False)),
        (["--debug", "models"], (["models"], True)),
        (["models", "--debug"], (["models"], True)),
        (["similarity", "--", "--debug", "x"], (["similarity", "--", "--debug", "x"], False)),
    ],
)
def test_debug_stands_anywhere_before_a_double_dash(argv: list[str], expected: tuple[list[str], bool]) -> None:
    assert split_debug(argv) == expected


def test_a_reader_that_goes_away_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as stdout:
        done = subprocess.run(
            [sys.executable, "-m", "udever", "models", "--json"], stdout=stdout, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (141, b"")
