"""A progress bar on standard error, for work that may not know its length."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

Watch = Callable[[str, int, int | None], None]
"""Called with what is being done, how much of it is done, and how much there is, if known."""


@contextmanager
def progress_bar(*, shown: bool) -> Iterator[Watch]:
    """Gives what moves the bars, one for each thing that is done."""
    if not shown:
        yield lambda _what, _done, _total: None
        return
    from rich.console import Console  # imported here: a library call without a bar should not pay for rich
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # On a terminal the result takes the bar's place; elsewhere (in a log) its last state stays.
    with Progress(*columns, console=Console(stderr=True), transient=sys.stderr.isatty()) as bar:
        rows: dict[str, TaskID] = {}

        def watch(what: str, done: int, total: int | None) -> None:
            if what not in rows or done < bar.tasks[rows[what]].completed:  # the same again: another model embeds
                rows[what] = bar.add_task(what)
            bar.update(rows[what], completed=done, total=total)

        yield watch


def with_progress(
    blocks: Iterable[NDArray[np.float32]], *, total: int | None, shown: bool
) -> Iterator[NDArray[np.float32]]:
    """Pass the blocks on, counting their rows on a bar if `shown`; `total` is the number of rows, if known."""
    done = 0
    with progress_bar(shown=shown) as watch:
        watch("embedding", 0, total)
        for block in blocks:
            yield block
            done += len(block)
            watch("embedding", done, total)


def length_hint(items: Iterable[object]) -> int | None:
    """The number of items, where the iterable knows it."""
    return len(items) if isinstance(items, Sized) else None
