"""Shards on a Ray cluster (Ray Data): a pool of actors, each with some CPUs or a GPU and the model loaded once.

    for receipt in run_on_ray(run, stage, model, source=ModelSource(name="udever-nano"), pool=Pool()):
        run.add(receipt)

A row of the dataset is a shard, a block is a row: what is tried again when a node is lost is one shard.

Invariant: one receipt for each shard, in any order, whichever nodes are lost meanwhile. Errors keep their own names.
Does not know: what a worker does with a shard.
"""

import logging
import pickle
from collections.abc import Iterator
from typing import Any

from udever.bulk.cluster.connection import connected, require_ray
from udever.bulk.cluster.pool import ModelSource, Pool
from udever.bulk.cluster.worker import ShardActor, Starts
from udever.bulk.embed import Tick, no_tick
from udever.bulk.manifest import MANIFEST
from udever.bulk.receipts import Receipt
from udever.bulk.run import Run, Stage
from udever.bulk.storage import digest
from udever.engine.embedder import Embedder
from udever.errors import BulkError, UdeverError

DEPTH = 3
"""Shards an actor holds at once: one is read, one embedded, one written."""

_log = logging.getLogger(__name__)


def run_on_ray(
    run: Run,
    stage: Stage,
    model: Embedder,  # noqa: ARG001  as every runner; nodes load their own
    *,
    source: ModelSource,
    pool: Pool,
    batch_tokens: int | None = None,
    tick: Tick = no_tick,
) -> Iterator[Receipt]:
    """Do a stage on a cluster; a receipt for each shard, when its files are there.

    Args:
        tick: called for each shard that is done.

    Raises:
        BulkError: Ray is missing, cannot be reached, has no room, or lost the same shard's worker again and again.
        UdeverError: whatever a worker says; it is tried again by nobody.
    """
    require_ray()
    if not stage.shards:
        return
    with connected(pool.address):
        for answer in _answers(run, stage, source=source, pool=pool, batch_tokens=batch_tokens):
            if isinstance(answer, UdeverError):
                raise answer
            if stage.name != "join":  # its rows were counted when their texts were embedded
                tick(answer.rows, answer.tokens)
            yield answer


def _answers(
    run: Run, stage: Stage, *, source: ModelSource, pool: Pool, batch_tokens: int | None
) -> Iterator[Receipt | UdeverError]:
    import ray
    from ray.data.exceptions import SystemException

    low, high = _size(pool, shards=len(stage.shards))
    rows = ray.data.from_items(
        [{"shard": pickle.dumps(shard)} for shard in stage.shards], override_num_blocks=len(stage.shards)
    )
    actor: Any = ShardActor  # Ray takes classes, its types only functions
    answers = rows.map(
        actor,
        fn_constructor_args=(stage.name, run.job),
        fn_constructor_kwargs={
            "storage": run.storage,
            "source": source.on_nodes(pool),
            "batch_tokens": batch_tokens,
            "seen": digest(run.storage.read(MANIFEST)),
            "starts": ray.remote(Starts).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote(),
        },
        compute=ray.data.ActorPoolStrategy(
            min_size=low,
            max_size=high,
            max_tasks_in_flight_per_actor=DEPTH,
            max_concurrent_calls_per_actor=DEPTH,
            enable_true_multi_threading=True,
        ),
        num_cpus=pool.cpus_per_worker,
        num_gpus=pool.gpus_per_worker,
        runtime_env={"env_vars": _threads(pool.cpus_per_worker)},
    )
    try:
        for row in answers.iter_rows():
            yield pickle.loads(row["answer"])
    except (ray.exceptions.RayError, SystemException) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise BulkError(
            f"the Ray cluster gave up: {type(error).__name__}: {lines[-1] if lines else ''}",
            hint="every node needs udever; what is done stays done, run it again",
        ) from error


def _threads(cpus: int) -> dict[str, str]:
    """Environment that keeps a worker to its share: PyTorch's threads and the tokenizer's."""
    return {"OMP_NUM_THREADS": str(cpus), "RAYON_NUM_THREADS": str(cpus)}


def _size(pool: Pool, *, shards: int) -> tuple[int, int]:
    """Workers, at least and at most."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    room = sum(_fitting(node["Resources"], pool) for node in nodes if node["Alive"])
    if not room:
        wanted = f"{pool.cpus_per_worker} CPUs" + f" and {pool.gpus_per_worker:g} GPUs" * bool(pool.gpus_per_worker)
        if pool.workers is None:
            raise BulkError(
                f"no node of the Ray cluster has {wanted}",
                hint="ask for less, or let a cluster that grows by itself do so: --workers 1:8",
            )
        _log.warning("no node of the Ray cluster has %s now: waiting for one", wanted)
    low, high = pool.workers or (room, room)
    return min(low, shards), min(high, shards)


def _fitting(resources: dict[str, float], pool: Pool) -> int:
    fitting = resources.get("CPU", 0.0) // pool.cpus_per_worker
    if pool.gpus_per_worker:
        fitting = min(fitting, resources.get("GPU", 0.0) // pool.gpus_per_worker)
    return int(fitting)
