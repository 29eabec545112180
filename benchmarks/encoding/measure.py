"""Timing in interleaved rounds, and what the samples say: medians, and ratios of neighbours in time.

A ratio is the median over rounds of (peer's rate / reference's rate in the same round): a machine that is slower for a
minute slows both, and rounds of several runs may be merged. Knows no model: peers are functions.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

EQUAL_OUTPUT = {"fp32": 0.99999, "bf16": 0.999, "int8": 0.99}
"""Smallest cosine with the reference at which a peer counts as computing the same thing."""
DISTURBED = 0.05
"""Share of the processors that others may take while a sample is timed."""
RETAKES = 1


class Round(TypedDict):
    """One round: every peer once."""

    seconds: dict[str, float]
    gflops: dict[str, float]
    """The machine's matrix product at that time, by precision."""
    others: dict[str, float]
    """Share of the processors that other programs (and the hypervisor) took while each peer ran."""


class PeerResult(TypedDict):
    """What is known of a peer besides its times."""

    label: str
    group: str
    precision: str
    emulated: bool
    padding: float
    texts: int
    tokens: int
    gflop: float
    """The least work its texts need."""
    min_cosine: float
    query_ms: list[float]


class ShapeResult(TypedDict):
    """All that was measured on one shape; a list of rounds grows with `--append`."""

    workload: dict[str, Any]
    reference: str
    peers: dict[str, PeerResult]
    skipped: dict[str, str]
    rounds: list[Round]


class Row(TypedDict):
    """A line of the report; None where nothing was measured."""

    key: str
    label: str
    group: str
    precision: str
    emulated: bool
    texts: int
    texts_per_second: float
    tokens_per_second: float
    ratio: float | None
    ceiling_share: float | None
    padding: float
    min_cosine: float
    equal: bool
    query_ms: float | None
    rounds: int


def interleaved(
    runs: Mapping[str, Callable[[], object]], *, rounds: int
) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
    """Seconds of each function, and the share other programs took, a round at a time.

    Each round starts with another function. A sample that others disturbed is taken again, `RETAKES` times at most.
    """
    names = list(runs)
    for number in range(rounds):
        start = number % len(names)
        taken = {name: _undisturbed(runs[name]) for name in names[start:] + names[:start]}
        yield {name: seconds for name, (seconds, _) in taken.items()}, {name: o for name, (_, o) in taken.items()}


def _undisturbed(run: Callable[[], object]) -> tuple[float, float]:
    samples = []
    for _ in range(1 + RETAKES):
        before = _processor_seconds()
        samples.append((seconds := seconds_of(run), _share_of_others(before, seconds=seconds)))
        if samples[-1][1] <= DISTURBED:
            break
    return min(samples, key=lambda sample: sample[1])


def _processor_seconds() -> tuple[float, float]:
    """Processor time so far of everything on this machine, stolen time included, and of this process; 0 if unknown."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0, 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, stat.read_text("utf-8").split("\n")[0].split()[1:9])
    own = os.times()
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK"), own.user + own.system


def _share_of_others(before: tuple[float, float], *, seconds: float) -> float:
    all_seconds, own = (now - then for now, then in zip(_processor_seconds(), before, strict=True))
    return max(0.0, (all_seconds - own) / (seconds * (os.cpu_count() or 1)))


def seconds_of(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def latencies(runs: Mapping[str, Callable[[], object]], *, seconds: float, most: int = 100) -> dict[str, list[float]]:
    """Milliseconds of many single calls, taken in turns for about `seconds` in all, after one call to warm up."""
    for run in runs.values():
        run()
    samples: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    for _ in range(most):
        for name, run in runs.items():
            samples[name].append(1000 * seconds_of(run))
        if time.perf_counter() > end:
            break
    return samples


def min_cosine(vectors: Tensor, reference: Tensor) -> float:
    """The worst text's cosine; `vectors` may be of the first texts only."""
    return torch.cosine_similarity(vectors.double(), reference[: len(vectors)].double()).min().item()


def merge(old: ShapeResult | None, new: ShapeResult) -> ShapeResult:
    """Two runs of the same workload as one.

    Raises:
        ValueError: the workloads differ.
    """
    if old is None:
        return new
    if old["workload"] != new["workload"]:
        raise ValueError(f"cannot append: the stored run had {old['workload']}, this one {new['workload']}")
    peers = dict(old["peers"])
    for key, peer in new["peers"].items():
        earlier = peers[key]["query_ms"] if key in peers else []
        peers[key] = {**peer, "query_ms": earlier + peer["query_ms"]}
    skipped = {key: why for key, why in {**old["skipped"], **new["skipped"]}.items() if key not in peers}
    return {**new, "peers": peers, "skipped": skipped, "rounds": old["rounds"] + new["rounds"]}


def summarise(result: ShapeResult) -> list[Row]:
    """One row a peer, in the order they were declared."""
    return [_row(key, result) for key in result["peers"]]


def _row(key: str, result: ShapeResult) -> Row:
    peer = result["peers"][key]
    rounds = [each for each in result["rounds"] if key in each["seconds"]]
    seconds = [each["seconds"][key] for each in rounds]
    second = statistics.median(seconds)
    return {
        "key": key,
        "label": peer["label"],
        "group": peer["group"],
        "precision": peer["precision"],
        "emulated": peer["emulated"],
        "texts": peer["texts"],
        "texts_per_second": peer["texts"] / second,
        "tokens_per_second": peer["tokens"] / second,
        "ratio": ratio(key, result["reference"], result=result),
        "ceiling_share": _median([peer["gflop"] / each["seconds"][key] / _ceiling(peer, each) for each in rounds]),
        "padding": peer["padding"],
        "min_cosine": peer["min_cosine"],
        "equal": peer["min_cosine"] >= EQUAL_OUTPUT[peer["precision"]],
        "query_ms": _median(peer["query_ms"]),
        "rounds": len(rounds),
    }


def ratio(key: str, other: str, *, result: ShapeResult) -> float | None:
    """How many times faster `key` is than `other`: median over the rounds in which both ran."""

    def work_rate(name: str, each: Round) -> float:
        return result["peers"][name]["texts"] / each["seconds"][name]

    both = [each for each in result["rounds"] if key in each["seconds"] and other in each["seconds"]]
    return _median([work_rate(key, each) / work_rate(other, each) for each in both])


def _ceiling(peer: PeerResult, each: Round) -> float:
    """The ceiling in the peer's precision, or in fp32 where the hardware lacks it."""
    return each["gflops"].get(peer["precision"], each["gflops"]["fp32"])


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
