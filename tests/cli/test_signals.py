"""Signals: raised, but not within an import, and given back as they were found."""

import signal
import sys
import time
from pathlib import Path

import pytest

from udever.cli.signals import signals_unwind

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

# What C code and weak references' callbacks do to an exception, in Python.
GREEDY = """
import os, signal
try:
    os.kill(os.getpid(), signal.{name})
    lost = False
except BaseException:
    lost = True
"""


@pytest.fixture(autouse=True)
def free_signals() -> object:
    """As in a fresh process; the test run may ignore SIGINT."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("name", "error"), [("SIGINT", KeyboardInterrupt), ("SIGTERM", SystemExit)])
def test_a_signal_within_an_import_comes_after_it(
    name: str, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"greedy_{name.lower()}"
    (tmp_path / f"{module}.py").write_text(GREEDY.format(name=name))
    monkeypatch.syspath_prepend(tmp_path)

    def work() -> None:
        with signals_unwind():
            assert not __import__(module).lost
            time.sleep(10)

    with pytest.raises(error):
        work()


def test_elsewhere_it_comes_at_once() -> None:
    def work() -> None:
        with signals_unwind():
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("it did not come")

    with pytest.raises(SystemExit) as caught:
        work()
    assert caught.value.code == 143


def test_handlers_are_given_back_and_other_peoples_left_alone() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with signals_unwind():
        signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
