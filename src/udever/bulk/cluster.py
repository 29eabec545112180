"""Shards on a Ray cluster (Ray Data): a pool of actors, each with some CPUs or a GPU and the model loaded once.

    for receipt in run_on_ray(run, stage, model, source=ModelSource(name="udever-nano"), pool=Pool()):
        run.add(receipt)

A row of the dataset is a shard, a block is a row: what is tried again when a node is lost is one shard. Inside an
actor the steps of neighbouring shards overlap as they do in local.py: each step has a thread of its own.

Invariant: one receipt for each shard, in any order, whichever nodes are lost meanwhile; a worker whose model has
another fingerprint, or which does not see the output, writes nothing. Errors keep their own names.
Does not know: what a step does. Ray is imported here and nowhere else, and only when it is needed.
"""

import logging
import os
import pickle
import platform
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from udever.bulk.embed import Tick, no_tick
from udever.bulk.job import Job
from udever.bulk.manifest import MANIFEST
from udever.bulk.plan import Shard
from udever.bulk.receipts import Receipt, StageName
from udever.bulk.run import Run, Stage
from udever.bulk.stages import make_worker
from udever.bulk.storage import Storage, digest
from udever.engine.embedder import Embedder
from udever.errors import BulkError, OptionError, UdeverError

DEPTH = 3
"""Shards an actor holds at once: one is read, one embedded, one written."""
ATTEMPTS = 4
"""How often a worker tries a shard where something fails that is not known to fail again, such as a network."""
PAUSE_SECONDS = 1.0
"""Before the second attempt; doubled before each one after."""
LOST_WORKERS = 8
"""A shard whose worker is lost more often than this is taken to be the reason. Ray replaces lost workers for ever."""
KNOCK_SECONDS = 10.0
STORE_BYTES = 128 << 20
"""Shared memory of a cluster of our own: shards and receipts are all that is in it."""

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # its C++ half writes to our stderr what is told in the receipts, or is no news
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # it warns that this will be so; our workers name their device anyway
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where each node finds the model; the precision is the job's."""

    name: str
    """Built-in name, hub id, or a folder that every node has under the same path."""
    device: str = "auto"
    """auto: cuda for workers that hold a GPU, else cpu."""
    revision: str | None = None

    def on_nodes(self, pool: "Pool") -> "ModelSource":
        """The same model as a node must ask for it.

        Raises:
            OptionError: a device that workers of this pool have not.
        """
        device = self.device
        if device == "auto":
            device = "cuda" if pool.gpus_per_worker else "cpu"
        if device.startswith("cuda:"):
            raise OptionError(f"on a cluster a worker sees only GPUs of its own, not {device}", hint="choose cuda")
        if device == "cuda" and not pool.gpus_per_worker:
            raise OptionError("workers on cuda need a GPU", hint="pass --gpus-per-worker 1")
        folder = Path(self.name).expanduser()
        return replace(self, name=str(folder.absolute()) if folder.is_dir() else self.name, device=device)


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Which cluster, and how much of it."""

    address: str | None = None
    """host:port, auto, local or ray://…; None: what RAY_ADDRESS says, else a cluster of our own on this machine."""
    workers: tuple[int, int] | None = None
    """At least, at most; a cluster that scales by itself grows and shrinks between them. None: as many as fit now."""
    cpus_per_worker: int = 1
    """Threads of a worker, too."""
    gpus_per_worker: float = 0.0
    """Below 1: workers share a GPU."""

    def checked(self) -> "Pool":
        """Itself.

        Raises:
            OptionError: a number that cannot be.
        """
        low, high = self.workers or (1, 1)
        if not 1 <= low <= high:
            raise OptionError(f"{low}:{high} workers cannot be", hint="at least 1, and at most no fewer: 4 or 1:16")
        if self.cpus_per_worker < 1:
            raise OptionError(f"a worker needs at least 1 CPU, not {self.cpus_per_worker}")
        if self.gpus_per_worker < 0 or (self.gpus_per_worker > 1 and self.gpus_per_worker % 1):
            raise OptionError(
                f"a worker cannot have {self.gpus_per_worker} GPUs", hint="0, a part of one, or whole ones"
            )
        return self


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
    with _connected(pool):
        for answer in _answers(run, stage, source=source, pool=pool, batch_tokens=batch_tokens):
            if isinstance(answer, UdeverError):
                raise answer
            tick(answer.rows, answer.tokens)
            yield answer


def require_ray() -> None:
    """Import Ray Data.

    Raises:
        BulkError: it is not installed.
    """
    # Ray reads these when it is imported; whoever set them already is obeyed.
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray.data  # noqa: F401
    except ModuleNotFoundError as error:
        raise BulkError(
            f"a Ray cluster needs the package {error.name}, which is not installed", hint="pip install 'udever[bulk]'"
        ) from error


class Starts:
    """Counts what was begun and not finished: an actor on the cluster that outlives the workers."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def begin(self, what: str) -> int:
        """How often it was begun by now."""
        self._begun[what] += 1
        return self._begun[what]

    def finish(self, what: str) -> None:
        """It does no harm."""
        del self._begun[what]


class ShardActor:
    """Lives on a node: loads the model once, then takes rows that hold a shard and gives rows that hold an answer.

    An answer is a receipt or the `UdeverError` that stands in its way: raised here, it would reach the user wrapped
    into Ray's own errors, and Ray would try it again.
    """

    def __init__(
        self,
        stage: StageName,
        job: Job,
        *,
        storage: Storage,
        source: ModelSource,
        batch_tokens: int | None,
        seen: str,
        starts: Any,
    ) -> None:
        """`seen`: digest of the manifest that the driver sees in the output; `starts`: handle of a `Starts`."""
        self._refusal: UdeverError | None = None
        self._starts = starts
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix="udever-bulk") for _ in range(4)]
        try:
            _require_same_output(storage, seen)
            with self._survived(f"loading {source.name} as worker {_actor_id()}"):
                model = _load(job, source)
            self._worker = make_worker(stage, job, storage=storage, model=model, batch_tokens=batch_tokens)
        except Exception as error:  # noqa: BLE001  raised here, it would be lost in Ray's account of a dead actor
            self._refusal = _told(error, "cannot start")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The answer to a shard; several calls at once overlap."""
        return {"answer": pickle.dumps(self._refusal or self._attempt(pickle.loads(row["shard"])))}

    def _attempt(self, shard: Shard) -> Receipt | UdeverError:
        pause = PAUSE_SECONDS
        for left in reversed(range(ATTEMPTS)):
            try:
                with self._survived(f"shard {shard.index} ({shard.input.found.name})"):
                    return self._do(shard)
            except UdeverError as error:
                return _told(error, "")
            except Exception as error:  # noqa: BLE001  whatever it is, it is tried again and then told
                if not left:
                    return _told(error, f"failed {ATTEMPTS} times at shard {shard.index} ({shard.input.found.name})")
            time.sleep(pause)
            pause *= 2
        raise AssertionError("unreachable")

    @contextmanager
    def _survived(self, what: str) -> Iterator[None]:
        """Refuse what took its worker down too often; Ray itself would try for ever.

        Raises:
            BulkError: naming it.
        """
        import ray

        losses = ray.get(self._starts.begin.remote(what)) - 1
        if losses > LOST_WORKERS:
            raise BulkError(
                f"{what} took {losses} workers down", hint="is there memory enough? fewer workers need less"
            )
        try:
            yield
        finally:
            self._starts.finish.remote(what)

    def _do(self, shard: Shard) -> Receipt:
        """Each step in its own thread, so that the next shard is read while this one is embedded."""
        done: Any = shard
        steps: tuple[Callable[[Any], Any], ...] = (
            self._worker.read,
            self._worker.tokenize,
            self._worker.embed,
            self._worker.write,
        )
        for thread, step in zip(self._threads, steps, strict=True):
            done = thread.submit(step, done).result()
        receipt: Receipt = done
        return receipt


def _actor_id() -> str:
    """The same after a restart."""
    import ray

    return str(ray.get_runtime_context().get_actor_id())


def _load(job: Job, source: ModelSource) -> Embedder:
    model = Embedder.load(source.name, precision=job.precision, device=source.device, revision=source.revision)
    if model.fingerprint != job.fingerprint:
        raise BulkError(
            f"{source.name} has the fingerprint {model.fingerprint} here, the job's is {job.fingerprint}",
            hint="every node needs the same model and the same release of udever",
        )
    return model


def _require_same_output(storage: Storage, seen: str) -> None:
    """Two machines have a folder of the same name easily; only one of them would fill up."""
    try:
        same = digest(storage.read(MANIFEST)) == seen
    except OSError:
        same = False
    if not same:
        raise BulkError(
            f"{storage.url} is not the output that the run was started with",
            hint="every node must see inputs and output: a URL such as s3://…, or a disk that all of them share",
        )


def _told(error: Exception, what: str) -> UdeverError:
    """The error as it is sent to the driver: what the user may read, and certain to be pickled."""
    where = f"worker on {platform.node()}"
    if not isinstance(error, UdeverError):
        return BulkError(f"{where} {what}: {type(error).__name__}: {error}", hint="run it again when that is mended")
    error.message = f"{where}: {error.message}"
    try:
        pickle.loads(pickle.dumps(error))
    except TypeError:
        return BulkError(error.message, hint=error.hint)
    return error


def _answers(
    run: Run, stage: Stage, *, source: ModelSource, pool: Pool, batch_tokens: int | None
) -> Iterator[Receipt | UdeverError]:
    import ray
    from ray.data.exceptions import SystemException

    _quiet()
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


@contextmanager
def _connected(pool: Pool) -> Iterator[None]:
    """Inside, Ray is there; one that was there before stays."""
    import ray

    if ray.is_initialized():
        yield
        return
    ours = pool.address == "local" or (pool.address is None and not os.environ.get("RAY_ADDRESS"))
    own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": STORE_BYTES} if ours else {}
    try:
        _knock(pool.address or "")
        with _silence():
            ray.init("local" if ours else pool.address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (OSError, RuntimeError, ValueError) as error:
        raise BulkError(
            f"no Ray cluster at {pool.address or 'RAY_ADDRESS'}: {error}",
            hint="start one: ray start --head; without --address one on this machine is started",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Fail at once where nobody listens at host:port; Ray itself waits for minutes."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing reaches stderr inside: Ray's C++ half says there that it was told to be quiet."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _quiet() -> None:
    """Progress is ours to show, and errors are told once."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
