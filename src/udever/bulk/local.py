"""Shards on this machine, one after another, the four steps of each in threads of their own.

    read (two ahead) → tokenise (one ahead) → embed (here) → write (one behind)

Invariant: at most five shards are in memory, however many there are; receipts come in the order of the shards.
Does not know: what a step does.
"""

from collections.abc import Iterator
from contextlib import closing

from udever.bulk.embed import Tick, no_tick
from udever.bulk.receipts import Receipt
from udever.bulk.run import Run, Stage
from udever.bulk.stages import make_worker
from udever.engine.ahead import one_ahead
from udever.engine.embedder import Embedder


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
        closing(one_ahead(worker.read, stage.shards)) as read,
        closing(one_ahead(worker.tokenize, read)) as tokenized,
        closing(one_ahead(worker.write, map(worker.embed, tokenized))) as receipts,
    ):
        yield from receipts
