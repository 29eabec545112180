"""Shards on this machine, one after another, the four steps of each in threads of their own.

    read (two ahead) → tokenise (one ahead) → embed (here) → write (one behind)

Invariant: at most five shards are in memory, however many there are; receipts come in the order of the shards.
Does not know: what a step does.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

from udever.bulk.embed import Tick, no_tick
from udever.bulk.receipts import Receipt
from udever.bulk.run import Run, Stage
from udever.bulk.stages import make_worker
from udever.engine.embedder import Embedder

In = TypeVar("In")
Out = TypeVar("Out")


def run_here(
    run: Run, stage: Stage, model: Embedder, *, batch_tokens: int | None = None, tick: Tick = no_tick
) -> Iterator[Receipt]:
    """Do a stage; a receipt for each shard, when its files are there.

    Args:
        tick: called in this thread as rows are embedded, several times a shard where texts are long.
    """
    worker = make_worker(stage.name, run.job, storage=run.storage, model=model, batch_tokens=batch_tokens, tick=tick)
    # Closed from the last to the first, so that no thread still reads when the file is closed.
    with (
        closing(worker),
        closing(overlapped(worker.read, stage.shards)) as read,
        closing(overlapped(worker.tokenize, read)) as tokenized,
        closing(overlapped(worker.write, map(worker.embed, tokenized))) as receipts,
    ):
        yield from receipts


def overlapped(function: Callable[[In], Out], items: Iterable[In]) -> Generator[Out, None, None]:
    """`map(function, items)` in a thread of its own: a result is made while the next item is being made.

    So it runs ahead of whoever uses the results by one, and behind whatever makes the items by one.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="udever-bulk") as pool:
        waiting: Future[Out] | None = None
        for item in items:
            previous, waiting = waiting, pool.submit(function, item)
            if previous is not None:
                yield previous.result()
        if waiting is not None:
            yield waiting.result()
