"""Ctrl-C and SIGTERM unwind a command like any exception, so that half-written files are removed.

Invariant: a signal that comes while a module is imported is raised when that is done. Raised at once it would be lost
about once in a hundred times, in C code and in the callbacks of weak references, or come out as another error.
Does not know: the commands, or the exit codes.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

AGAIN_SECONDS = 0.05
"""Between two looks whether the import is done."""
_IMPORT = "<frozen importlib._bootstrap>"


@contextmanager
def signals_unwind() -> Iterator[None]:
    """While inside, SIGINT raises KeyboardInterrupt, SIGTERM and SIGHUP SystemExit with 128 + their number.

    A signal that someone else handles, or that this process was told to ignore, stays theirs.
    """
    replaced: dict[int, Any] = {}
    waiting: list[BaseException] = []

    def come(number: int, frame: FrameType | None) -> None:
        if number != _alarm():
            waiting.append(KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number))
        if not waiting:
            return
        if _alarm() in replaced and _imports(frame):
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
        else:
            raise waiting.pop()

    try:
        for number, untouched in _handled():
            if signal.getsignal(number) is untouched:
                replaced[number] = signal.signal(number, come)
    except ValueError:  # not the main thread: whoever embeds us owns the signals
        pass
    try:
        yield
    finally:
        if _alarm() in replaced:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, previous in replaced.items():
            signal.signal(number, previous)


def _handled() -> list[tuple[int, Any]]:
    """Each signal with the handler that shows it is free."""
    names = ("SIGALRM", "SIGTERM", "SIGHUP")  # Windows has one of them
    free = [(getattr(signal, name), signal.SIG_DFL) for name in names if hasattr(signal, name)]
    return [*free, (signal.SIGINT, signal.default_int_handler)]


def _alarm() -> int | None:
    return getattr(signal, "SIGALRM", None)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT:
            return True
        frame = frame.f_back
    return False
