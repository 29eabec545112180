"""One shape, all peers: build, warm up, time in rounds, compare the vectors.

Invariant: a peer that cannot be built costs the run nothing but a line with the reason.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from encoding.machine import ceiling_probes
from encoding.measure import PeerResult, Round, ShapeResult, interleaved, latencies, min_cosine
from encoding.peers import Entry, Peer, Setting, Unavailable
from encoding.workload import Shape, Texts, checkpoint_folder, draw_texts, minimal_flops, short_query

WARM_UP_EVERY = 8
"""Every eighth text is embedded once before the clock starts: lengths of all sizes have been seen."""
NOT_INSTALLED = "{} is not installed"


def run_shape(
    shape: Shape, entries: Mapping[str, Entry], *, options: argparse.Namespace, reference: str
) -> ShapeResult:
    """Time all peers that can be built.

    Args:
        options: of `benchmarks/encode.py`: device, threads, rounds, cache, no_emulated, prepare, latency_seconds.
        reference: the peer whose vectors the others are compared with.
    """
    peers, skipped, setting = build_peers(shape, entries, options=options)
    vectors: dict[str, Tensor] = {}
    rounds = _rounds(peers, setting, rounds=options.rounds, vectors=vectors)
    results = {key: _describe(entries[key], peer, setting) for key, peer in peers.items()}
    for key, result in results.items():
        result["min_cosine"] = min_cosine(vectors[key], vectors[reference])
    for key, milliseconds in _query_latencies(peers, shape, seconds=options.latency_seconds).items():
        results[key]["query_ms"] = milliseconds
    return {
        "workload": _workload(setting),
        "reference": reference,
        "peers": results,
        "skipped": skipped,
        "rounds": rounds,
    }


def build_peers(
    shape: Shape, entries: Mapping[str, Entry], *, options: argparse.Namespace
) -> tuple[dict[str, Peer], dict[str, str], Setting]:
    """The peers that can be built, the reasons of the others, and what they were built on; options as in `run_shape`.

    The first call writes the checkpoint and exports graphs into `options.cache`, which takes minutes.
    """
    setting = Setting(
        shape=shape,
        texts=draw_texts(shape),
        folder=checkpoint_folder(shape, cache=options.cache),
        device=torch.device(options.device),
        threads=options.threads,
    )
    peers: dict[str, Peer] = {}
    skipped: dict[str, str] = {}
    for key, entry in entries.items():
        _say(f"{shape.name}: building {key}")
        try:
            peer = entry.build(setting)
        except Unavailable as reason:
            skipped[key] = str(reason)
            continue
        except ModuleNotFoundError as error:
            skipped[key] = NOT_INSTALLED.format(error.name)
            continue
        if options.no_emulated and entry.emulated(peer, device=setting.device):
            skipped[key] = f"this machine has no {peer.precision} in hardware, and its emulation says nothing"
        else:
            peers[key] = peer
    return peers, skipped, setting


def _rounds(peers: Mapping[str, Peer], setting: Setting, *, rounds: int, vectors: dict[str, Tensor]) -> list[Round]:
    """Fills `vectors` with each peer's latest output."""
    work = {key: setting.texts.take(range(peer.texts or len(setting.texts))) for key, peer in peers.items()}
    for key, peer in peers.items():
        _say(f"{setting.shape.name}: warming up {key}")
        peer.run(work[key].take(range(0, len(work[key]), WARM_UP_EVERY)))

    def timed(key: str) -> Callable[[], None]:
        def run() -> None:
            start = time.perf_counter()
            vectors[key] = peers[key].run(work[key])
            _say(f"{setting.shape.name}: {key} took {time.perf_counter() - start:.2f} s")

        return run

    probes = ceiling_probes(setting.device)
    done: list[Round] = []
    for seconds, others in interleaved({key: timed(key) for key in peers}, rounds=rounds):
        gflops: dict[str, float] = {precision: probe() for precision, probe in probes.items()}
        done.append({"seconds": seconds, "gflops": gflops, "others": others})
        _say(f"{setting.shape.name}: round {len(done)} of {rounds}: {sum(seconds.values()):.0f} s")
    return done


def _query_latencies(peers: Mapping[str, Peer], shape: Shape, *, seconds: float) -> dict[str, list[float]]:
    """Of peers that differ for a single text: a batch order makes no difference to one."""
    query = short_query(shape)

    def one(peer: Peer) -> Callable[[], Tensor]:
        return lambda: peer.run(query)

    return latencies({key: one(peer) for key, peer in peers.items() if peer.texts is None}, seconds=seconds)


def _describe(entry: Entry, peer: Peer, setting: Setting) -> PeerResult:
    texts: Texts = setting.texts.take(range(peer.texts or len(setting.texts)))
    return {
        "label": entry.label.format(precision=peer.precision),
        "group": entry.group,
        "precision": peer.precision,
        "emulated": entry.emulated(peer, device=setting.device),
        "padding": peer.padding,
        "texts": len(texts),
        "tokens": texts.tokens,
        "gflop": minimal_flops(setting.shape, [len(s) for s in texts.sequences]) / 1e9,
        "min_cosine": 0.0,
        "query_ms": [],
    }


def _workload(setting: Setting) -> dict[str, Any]:
    shape, lengths = setting.shape, [len(s) for s in setting.texts.sequences]
    return {
        "width": shape.width,
        "layers": shape.layers,
        "heads": shape.heads,
        "vocab_size": shape.vocab_size,
        "batch_size": shape.batch_size,
        "texts": len(lengths),
        "tokens": sum(lengths),
        "mean_tokens": sum(lengths) / len(lengths),
        "median_tokens": statistics.median(lengths),
        "max_tokens": max(lengths),
        "device": setting.device.type,
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
