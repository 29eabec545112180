"""A folder, or a file, that appears whole under its name, or not at all.

Invariant: whatever goes wrong, nothing half-written has the name, and what stood there is as it was.
Does not know: what is written.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from udever.errors import OptionError


@contextmanager
def whole_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """An empty folder to fill; it takes the name `path` when the block ends, and vanishes if the block raises.

    Args:
        replace: a folder of that name is replaced. (Killed between two renames, it is left beside, as `.NAME.old-…`.)

    Raises:
        OptionError: `path` is a file, or a folder that is not empty and not to be replaced.
    """
    path = path.absolute()
    if not is_free(path) and not (replace and path.is_dir()):
        raise OptionError(f"{path} is already there", hint="name another folder, or remove it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent / f".{path.name}.new-{os.getpid()}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        yield unfinished
        for file in unfinished.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)  # some libraries write for the owner only
        _take_name(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def whole_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A name to write to; it becomes `path`, replacing what stands there, when the block ends. Makes the folder.

    Args:
        durable: whole also after a power cut, not only after a killed process: on the disk before it gets its name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield unfinished
        if durable:
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def is_free(path: Path) -> bool:
    """Whether a folder can be made there: there is nothing, or an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def _take_name(unfinished: Path, path: Path) -> None:
    if not path.exists():
        unfinished.rename(path)
        return
    old = path.parent / f".{path.name}.old-{os.getpid()}"
    path.rename(old)
    unfinished.rename(path)
    shutil.rmtree(old, ignore_errors=True)
