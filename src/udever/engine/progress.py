"""A progress bar on standard error for a stream of blocks whose length may be unknown."""

from collections.abc import Iterable, Iterator, Sized

import numpy as np
from numpy.typing import NDArray


def with_progress(
    blocks: Iterable[NDArray[np.float32]], *, total: int | None, shown: bool
) -> Iterator[NDArray[np.float32]]:
    """Pass the blocks on, counting their rows on a bar if `shown`; `total` is the number of rows, if known."""
    if not shown:
        yield from blocks
        return
    from rich.console import Console  # imported here: a library call without a bar should not pay for rich
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("embedding", total=total)
        for block in blocks:
            yield block
            bar.advance(task, len(block))


def length_hint(items: Iterable[object]) -> int | None:
    """The number of items, where the iterable knows it."""
    return len(items) if isinstance(items, Sized) else None
