"""A worker: an actor on a node that loads the model once and then does shards.

The steps of neighbouring shards overlap as they do in local.py: each step has a thread of its own.

Invariant: a worker whose model has another fingerprint, or which does not see the output, writes nothing; what goes
wrong is an answer, never an exception.
Does not know: what a step does, or who sends the shards.
"""

import pickle
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from udever.bulk.cluster.pool import ModelSource
from udever.bulk.job import Job
from udever.bulk.manifest import MANIFEST
from udever.bulk.plan import Shard
from udever.bulk.receipts import Receipt, StageName
from udever.bulk.stages import make_worker
from udever.bulk.storage import Storage, digest
from udever.engine.embedder import Embedder
from udever.errors import BulkError, UdeverError

ATTEMPTS = 4
"""How often a worker tries a shard where something fails that is not known to fail again, such as a network."""
PAUSE_SECONDS = 1.0
"""Before the second attempt; doubled before each one after."""
LOST_WORKERS = 8
"""A shard whose worker is lost more often than this is taken to be the reason. Ray replaces lost workers for ever."""


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
