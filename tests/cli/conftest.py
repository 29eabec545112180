"""Runs the real command line in this process."""

import io
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
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


@pytest.fixture
def interrupted() -> Callable[..., Outcome]:
    """interrupted(arguments, when, number) runs the command in a process of its own, sends the signal once `when()`."""

    def run(
        arguments: Sequence[object], when: Callable[[], bool], number: int = signal.SIGINT, *, stdin: bytes = b""
    ) -> Outcome:
        with subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "udever", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Where the test run itself ignores SIGINT (a background job), its child would too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process:
            assert process.stdin is not None
            process.stdin.write(stdin)
            process.stdin.flush()
            deadline = time.monotonic() + 120
            while process.poll() is None and not when():
                assert time.monotonic() < deadline, "it never came so far"
                time.sleep(0.02)
            assert process.poll() is None, "it ended by itself"
            process.send_signal(number)
            try:
                out, err = process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGABRT)  # says where every thread stands
                pytest.fail(f"it did not end: {process.communicate()[1].decode()}")
        return Outcome(process.returncode, out.decode(), err.decode())

    return run


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint: Path) -> tuple[str, str]:
    """`--model PATH` of the tiny model."""
    return ("--model", str(tiny_checkpoint))
