"""A cluster of two nodes does what this machine does, byte for byte, also when one of them is lost on the way."""

import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from udever import Embedder
from udever.bulk.cluster.connection import require_ray
from udever.bulk.cluster.pool import ModelSource, Pool
from udever.bulk.cluster.runner import run_on_ray
from udever.bulk.cluster.worker import ATTEMPTS, LOST_WORKERS, ShardActor, Starts
from udever.bulk.job import Options
from udever.bulk.local import run_here
from udever.bulk.manifest import MANIFEST
from udever.bulk.run import Run, open_run, prepare
from udever.bulk.storage import Storage, digest
from udever.errors import BulkError, FileInputError, OptionError

ray = pytest.importorskip("ray", reason="ray is not installed here")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.data\.context"),  # Ray's defaults are its own affair
]
MEGABYTE = 1 << 20
TWO = Pool(workers=(2, 2))


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Two nodes of one CPU each, and this process connected to them; a lost one is replaced."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * MEGABYTE}
    # A dead node is noticed after two seconds rather than half a minute.
    alive = {"health_check_period_ms": 500, "health_check_timeout_ms": 2000, "health_check_failure_threshold": 4}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "_system_config": alive})
    try:
        cluster.add_node(**node)
        ray.init(cluster.address, log_to_driver=False)
        # Both workers are there when the first shard is handed out, however slow this machine is.
        ray.data.DataContext.get_current().wait_for_min_actors_s = 300  # on busy cores they take minutes
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def path(texts: list[str], jsonl: Callable) -> Path:
    return jsonl([{"id": i, "text": f"{text} {i}" if i % 40 else None} for i, text in enumerate(texts * 4)])


@pytest.fixture
def opened(path: Path, model: Embedder) -> Callable[..., Run]:
    return lambda output, **options: open_run(
        prepare([str(path)], Options(**{"shard_rows": 50, **options}), output=str(output)), model
    )


@pytest.fixture
def spread(model: Embedder, tiny_checkpoint: Path) -> Callable[..., Any]:
    """spread(run, stage): the runner of the cluster."""
    return lambda run, stage, **more: run_on_ray(
        run, stage, model, **{"source": ModelSource(name=str(tiny_checkpoint)), "pool": TWO, **more}
    )


def written(output: Path) -> dict[str, tuple[int, int]]:
    """What stands for having been written once: the place on the disk and the time."""
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in sorted((output / "vectors").iterdir())}


@pytest.mark.parametrize("options", [{}, {"dedupe": True, "format": "npy", "dtype": "int8"}], ids=str)
def test_the_same_bytes_as_on_this_machine(
    options: dict[str, Any], path: Path, opened: Callable, spread: Callable, nodes: Any, do: Callable, tree: Callable,
    tmp_path: Path,
) -> None:  # fmt: skip
    whole = do([path], tmp_path / "here", shard_rows=50, **options)
    run, ticks = opened(tmp_path / "there", **options), [0, 0]

    def tick(rows: int, tokens: int) -> None:
        ticks[0], ticks[1] = ticks[0] + rows, ticks[1] + tokens

    for stage in run.stages():
        for receipt in spread(run, stage, tick=tick):
            run.add(receipt)
    assert run.finish() == whole
    assert tree(tmp_path / "there") == tree(tmp_path / "here")
    assert ticks == [whole.rows, whole.tokens]


def test_a_run_moves_to_the_cluster_and_back(
    path: Path, opened: Callable, spread: Callable, nodes: Any, model: Embedder, do: Callable, tree: Callable,
    tmp_path: Path,
) -> None:  # fmt: skip
    do([path], tmp_path / "whole", shard_rows=50)
    output = tmp_path / "out"
    run = opened(output)
    [stage] = run.stages()
    with closing(run_here(run, stage, model)) as receipts:
        assert len(list(islice(receipts, 5))) == 5
    after_local = written(output)

    run = opened(output)
    [stage] = run.stages()
    assert 5 <= run.before < 20
    with closing(spread(run, stage)) as receipts:
        assert len(list(islice(receipts, 6))) == 6
    ray.shutdown()  # what Ctrl-C does: workers stop wherever they are
    ray.init(nodes.address, log_to_driver=False)
    after_cluster = written(output)
    assert len(after_cluster) >= len(after_local) + 6

    run = opened(output)
    [stage] = run.stages()
    assert run.before >= 11
    for receipt in run_here(run, stage, model):
        run.add(receipt)
    run.finish()
    assert tree(output) == tree(tmp_path / "whole")
    at_last = written(output)
    done = {name: facts for name, facts in (after_local | after_cluster).items() if at_last[name] != facts}
    assert len(done) <= 6, "only shards without a receipt at an interrupt may be written again"
    assert {name: at_last[name] for name in after_local} == after_local


def test_a_worker_with_another_model_refuses(
    opened: Callable, spread: Callable, nodes: Any, make_checkpoint: Callable, model: Embedder, tmp_path: Path
) -> None:
    run = opened(tmp_path / "out")
    [stage] = run.stages()
    other = make_checkpoint(seed=7)
    with pytest.raises(BulkError, match=model.fingerprint) as refusal:
        list(spread(run, stage, source=ModelSource(name=str(other)), pool=Pool(workers=(1, 1))))
    assert Embedder.load(str(other)).fingerprint in str(refusal.value)
    assert not (tmp_path / "out" / "vectors").exists()


def test_an_error_of_a_worker_keeps_its_name(
    path: Path, opened: Callable, spread: Callable, nodes: Any, tmp_path: Path
) -> None:
    run = opened(tmp_path / "out")
    [stage] = run.stages()
    path.write_bytes(path.read_bytes().replace(b"fox", b"dog"))
    with pytest.raises(FileInputError, match=r"worker on .*in\.jsonl"):
        list(spread(run, stage, pool=Pool(workers=(1, 1))))


def test_a_node_is_lost(
    path: Path, opened: Callable, spread: Callable, nodes: Any, do: Callable, tree: Callable, tmp_path: Path
) -> None:
    whole = do([path], tmp_path / "whole", shard_rows=50)
    run = opened(tmp_path / "out")
    [stage] = run.stages()
    alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    doomed = next(node for node in nodes.worker_nodes if node.node_id in alive)
    for receipt in spread(run, stage):
        run.add(receipt)
        if len(run.done) == 2:
            nodes.remove_node(doomed, allow_graceful=False)  # kill -9, and its workers die with it
            left = whole.shards - len(list((tmp_path / "out" / "_state" / "done").iterdir()))
    assert left > 4, "the node was lost while there was work"
    until = time.monotonic() + 60  # Ray misses a node after some seconds, which can be more than the work took
    while (nodes_left := sum(node["Alive"] for node in ray.nodes())) > 1 and time.monotonic() < until:
        time.sleep(0.2)
    assert nodes_left == 1
    nodes.add_node(num_cpus=1, object_store_memory=80 * MEGABYTE)
    assert run.finish() == whole
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_the_command(
    path: Path, nodes: Any, tiny_checkpoint: Path, do: Callable, tree: Callable, tmp_path: Path
) -> None:
    do([path], tmp_path / "here", shard_rows=250)
    command = [sys.executable, "-m", "udever", "bulk", path, "--model", tiny_checkpoint, "--output", tmp_path / "out"]
    command += ["--shard-rows", "250", "--engine", "ray", "--address", nodes.address, "--workers", "1:2"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 3, done.stderr
    assert [line.split(" ")[0] for line in done.stderr.splitlines()] == ["25", "975"], (
        "bad rows, vectors; no word of Ray's"
    )
    assert tree(tmp_path / "out") == tree(tmp_path / "here")


@pytest.mark.parametrize(
    "pool", [Pool(workers=(0, 1)), Pool(workers=(3, 2)), Pool(cpus_per_worker=0), Pool(gpus_per_worker=1.5)], ids=str
)
def test_impossible_pools(pool: Pool) -> None:
    with pytest.raises(OptionError):
        pool.checked()


def test_no_node_has_room(opened: Callable, spread: Callable, nodes: Any, tmp_path: Path) -> None:
    run = opened(tmp_path / "out")
    [stage] = run.stages()
    with pytest.raises(BulkError, match="no node of the Ray cluster has 7 CPUs"):
        list(spread(run, stage, pool=Pool(cpus_per_worker=7)))
    with pytest.raises(OptionError, match="gpus-per-worker"):
        list(spread(run, stage, source=ModelSource(name="udever-nano", device="cuda")))


def test_what_takes_workers_down_again_and_again_is_refused(nodes: Any) -> None:
    actor, starts = ShardActor.__new__(ShardActor), ray.remote(Starts).remote()
    actor._starts = starts
    with actor._survived("shard 3"), actor._survived("shard 4"):
        pass
    for _ in range(LOST_WORKERS + 1):
        ray.get(starts.begin.remote("shard 3"))  # and never finished: the process was gone
    with pytest.raises(BulkError, match="shard 3 took 9 workers down"), actor._survived("shard 3"):
        pass
    with actor._survived("shard 4"):
        pass


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_network_that_comes_back_is_waited_for(
    ending: str, path: Path, network: Any, model: Embedder, tiny_checkpoint: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if ending == "parquet":
        path = tmp_path / "in.parquet"
        pq.write_table(pa.table({"text": [f"fox {i}" for i in range(100)]}), path)
    run = open_run(prepare([str(path)], Options(shard_rows=50), output=str(tmp_path / "out")), model)
    attempt = [True] if ending == "jsonl" else [False, True]  # the footer comes, the rows do not
    monkeypatch.setattr("udever.bulk.cluster.worker.PAUSE_SECONDS", 0)
    monkeypatch.setattr("udever.bulk.cluster.worker._actor_id", lambda: "this")
    monkeypatch.setattr(ShardActor, "_survived", lambda _self, _what: nullcontext())

    def answer(actor: ShardActor) -> Any:
        return pickle.loads(actor({"shard": pickle.dumps(run.plan.shards[0])})["answer"])

    def actor() -> ShardActor:
        source, seen = ModelSource(name=str(tiny_checkpoint)), digest(run.storage.read(MANIFEST))
        return ShardActor(
            "embed", run.job, storage=run.storage, source=source, batch_tokens=None, seen=seen, starts=None
        )

    network.fails = iter(attempt * (ATTEMPTS - 1))
    assert answer(actor()).rows == run.plan.shards[0].rows
    network.fails = iter(attempt * ATTEMPTS)
    lost = answer(actor())
    assert isinstance(lost, BulkError)
    assert f"failed {ATTEMPTS} times at shard 0" in lost.message
    assert "no answer" in lost.message
    assert path.name in lost.message


def test_a_node_that_sees_another_output_refuses(
    opened: Callable, model: Embedder, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    run = opened(tmp_path / "out")
    facts = {"source": ModelSource(name=str(tiny_checkpoint)), "batch_tokens": None, "starts": None}
    actor = ShardActor("embed", run.job, storage=Storage(str(tmp_path / "elsewhere")), seen="", **facts)
    answer = pickle.loads(actor({"shard": pickle.dumps(run.plan.shards[0])})["answer"])
    assert isinstance(answer, BulkError)
    assert "every node must see inputs and output" in str(answer)


def test_nobody_listens(path: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "udever", "bulk", path, "--model", tiny_checkpoint, "--output", tmp_path / "out"]
    command += ["--engine", "ray", "--address", address]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode not in (0, 3)
    assert f"no Ray cluster at {address}" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(BulkError, match=r"pip install 'udever\[bulk\]'"):
        require_ray()
