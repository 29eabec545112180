"""Stage → who does its shards.

Does not know: runners; they call `make_worker` wherever the work is to be done.
"""

from udever.bulk.embed import Tick, Worker, no_tick
from udever.bulk.job import Job
from udever.bulk.joining import DistinctWorker, JoinWorker
from udever.bulk.receipts import StageName
from udever.bulk.storage import Storage
from udever.engine.embedder import Embedder

WORKERS: dict[StageName, type[Worker]] = {worker.stage: worker for worker in (Worker, DistinctWorker, JoinWorker)}


def make_worker(
    stage: StageName,
    job: Job,
    *,
    storage: Storage,
    model: Embedder,
    batch_tokens: int | None = None,
    tick: Tick = no_tick,
) -> Worker:
    """A worker for the shards of a stage.

    Args:
        batch_tokens: tokens the model sees at once; None: the engine's default.
        tick: called with rows and tokens as they are done.
    """
    return WORKERS[stage](job, storage, model, batch_tokens=batch_tokens, tick=tick)
