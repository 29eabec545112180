"""The `udever` command: parse, call the library, print.

Purpose: `main` runs one command line and turns whatever happens into an exit code and at most one line on stderr;
`run` is the program around it.
Invariant: nothing heavy is imported before a command needs it, so that `--help` is instant; this module imports only
the standard library, the command table (app.py) follows inside `main`.
Does not know: torch, the tokenizer, or how a command does its work.

    0 done   1 error   2 wrong usage   3 done, but for bad rows   130 interrupted (Ctrl-C)
    141 the reader of stdout went away   143 terminated
"""

import errno
import io
import os
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn, TextIO

from udever.cli.signals import signals_unwind
from udever.errors import OptionError, UdeverError

OK, ERROR, USAGE, BAD_ROWS, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 3, 130, 141
"""The exit codes; a signal that ends the process gives 128 + its number."""


def run() -> NoReturn:
    """The `udever` program: `main`, and the end of the process."""
    _open_closed_streams()
    code = main()
    if _is_in_native_code():  # whose interpreter ends under it aborts the whole process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _open_closed_streams() -> None:
    """Of stdin, stdout and stderr what the caller has closed (`>&-`): else the next file opened would take its place,
    and Python has None there. What is used all the same fails with an error; messages on stderr are dropped.
    """
    for name, flags, mode in (("stdin", os.O_WRONLY, "r"), ("stdout", os.O_RDONLY, "w"), ("stderr", os.O_WRONLY, "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, flags)  # the lowest that is free: its own
            setattr(sys, name, _unbuffered(descriptor, mode))


def _unbuffered(descriptor: int, mode: str) -> TextIO:
    """Nothing is held back that could fail only when the interpreter ends."""
    return io.TextIOWrapper(io.FileIO(descriptor, mode), encoding="utf-8", write_through=True)


def _is_in_native_code() -> bool:
    """Whether a thread of ours is still in the model, or one of PyTorch's may be, as in torchrun's processes: if one of
    these aborted, the others would be ended, too.
    """
    ours = any(thread.daemon and thread.name.startswith("udever-") for thread in threading.enumerate())
    return ours or "TORCHELASTIC_RUN_ID" in os.environ


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (`argv` without the program's name; default: the process's own). Returns the exit code.

    Never raises but for `SystemExit` on SIGTERM, and for errors nobody foresaw when `--debug` is given.
    """
    arguments, debug = split_debug(sys.argv[1:] if argv is None else argv)
    try:
        with signals_unwind():
            code = _dispatch(arguments)
            sys.stdout.flush()
            return code
    except KeyboardInterrupt:
        return _complain("interrupted", code=INTERRUPTED)
    except BrokenPipeError:
        return _leave_quietly()
    except Exception as error:  # the last line of defence: one clear line instead of a traceback
        if debug:
            raise
        return _complain("interrupted", code=INTERRUPTED) if _was_interrupted(error) else _explain(error)


def split_debug(argv: Sequence[str]) -> tuple[list[str], bool]:
    """Take the global flag `--debug` out of a command line, wherever it stands before a `--`."""
    end = argv.index("--") if "--" in argv else len(argv)
    options = [argument for argument in argv[:end] if argument != "--debug"]
    return [*options, *argv[end:]], len(options) < end


def _dispatch(arguments: list[str]) -> int:
    from cyclopts import CycloptsError

    from udever.cli.app import TAKES_FILES, app

    if arguments[:1] and arguments[0] in TAKES_FILES:
        arguments = _files_behind_dashes(arguments)
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        return _complain(f"error: {_one_line(str(error))} (see udever --help)", code=USAGE)
    return code if isinstance(code, int) else OK


def _files_behind_dashes(arguments: list[str]) -> list[str]:
    """Behind a `--`, `-x.txt` is a file's name; the commands would take it for an option."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [*arguments[:end], *(f"./{name}" if name[:1] == "-" and name[1:] else name for name in arguments[end + 1 :])]


def _was_interrupted(error: BaseException) -> bool:
    """Ctrl-C while C code runs, or while files are being closed, may come out as an error of theirs."""
    seen: list[BaseException] = []  # a chain of causes may lead back into itself
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        link = link.__cause__ or link.__context__
    return any(isinstance(link, KeyboardInterrupt) for link in seen)


def _explain(error: Exception) -> int:
    if isinstance(error, UdeverError):
        return _complain(f"error: {_one_line(str(error))}", code=USAGE if isinstance(error, OptionError) else ERROR)
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        if error.errno == errno.EBADF:
            where = where or ": stdin or stdout is closed"
        return _complain(f"error: {error.strerror}{where}", code=ERROR)
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # from 3.13 on an OSError
        return _complain(f"error: {_one_line(str(error))}", code=ERROR)
    described = _one_line(f"{type(error).__name__}: {error}")
    return _complain(f"error: {described} (this is a bug in udever; --debug shows where)", code=ERROR)


def _complain(line: str, *, code: int) -> int:
    print(line, file=sys.stderr, flush=True)
    return code


def _one_line(message: str) -> str:
    return " ".join(message.split())


def _leave_quietly() -> int:
    """`udever … | head` closed the pipe. What Python still holds for stdout must not complain at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # stdout is no real file: nothing to silence
        return BROKEN_PIPE
    return BROKEN_PIPE
