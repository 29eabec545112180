"""How fast texts become vectors: udever beside everything else that can run the same model.

    python benchmarks/encode.py                       # all shapes, all peers, start to first vector: tables into docs/
    python benchmarks/encode.py --quick               # a minute's look, written nowhere
    python benchmarks/encode.py --shapes 560m --peers udever-fp32 openvino --append
    python benchmarks/encode.py --device cuda

One run, peers in turns (a round times each once), medians, ratios between neighbours in time. Every peer's vectors are
compared with transformers' in float32: only equal outputs are worth comparing. See benchmarks/README.md.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from encoding import report, startup
from encoding.graph_peers import onnxruntime_peer, openvino_peer
from encoding.machine import as_json, describe
from encoding.measure import merge
from encoding.peers import Entry
from encoding.run import build_peers, run_shape
from encoding.torch_peers import embedder_peer, sentence_transformers_peer, transformers_peer, udever_peer
from encoding.workload import CUDA_WORK, SHAPES, Shape, default_cache

DOCS = Path(__file__).parents[1] / "docs"
REFERENCE = "transformers-fp32"
ROUNDS = 3
QUICK_TEXTS = 64

PEERS: dict[str, Entry] = {
    REFERENCE: Entry(
        label="transformers fp32, sorted", group="reference", build=transformers_peer("fp32", by_length=True)
    ),
    "transformers-fp32-unsorted": Entry(
        label="transformers fp32, unsorted", group="as deployed", build=transformers_peer("fp32", by_length=False)
    ),
    "transformers-bf16": Entry(
        label="transformers bf16, sorted", group="as deployed", build=transformers_peer("bf16", by_length=True)
    ),
    "transformers-bf16-unsorted": Entry(
        label="transformers bf16, unsorted", group="as deployed", build=transformers_peer("bf16", by_length=False)
    ),
    "sentence-transformers-fp32": Entry(
        label="sentence-transformers fp32", group="as deployed", build=sentence_transformers_peer("fp32")
    ),
    "onnxruntime-fp32": Entry(
        label="ONNX Runtime fp32, sorted", group="as deployed", build=onnxruntime_peer("padded", int8=False)
    ),
    "onnxruntime-int8": Entry(
        label="ONNX Runtime int8, sorted",
        group="as deployed",
        build=onnxruntime_peer("padded", int8=True),
        own_kernels=True,
    ),
    "openvino": Entry(label="OpenVINO {precision}, sorted", group="as deployed", build=openvino_peer("padded")),
    "onnxruntime-fp32-packed": Entry(
        label="ONNX Runtime fp32", group="handed our packing", build=onnxruntime_peer("packed", int8=False)
    ),
    "onnxruntime-int8-packed": Entry(
        label="ONNX Runtime int8",
        group="handed our packing",
        build=onnxruntime_peer("packed", int8=True),
        own_kernels=True,
    ),
    "openvino-packed": Entry(label="OpenVINO {precision}", group="handed our packing", build=openvino_peer("packed")),
    "udever-fp32": Entry(label="udever fp32", group="udever", build=udever_peer("fp32")),
    "udever-bf16": Entry(label="udever bf16", group="udever", build=udever_peer("bf16")),
    "udever-int8": Entry(label="udever int8", group="udever", build=udever_peer("int8")),
    "udever-embed": Entry(label="udever {precision}, Embedder.embed on strings", group="udever", build=embedder_peer),
}
NEVER_RUN = {"llama.cpp q8_0": "it needs a C++ build and a checkpoint converted to GGUF"}
QUICK_PEERS = [REFERENCE, "sentence-transformers-fp32", "udever-fp32", "udever-embed"]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write the results unless asked for a quick look."""
    options = _options(argv)
    torch.set_num_threads(options.threads)
    if options.prepare:
        return _prepare(options)
    results = _begin(as_json(describe(threads=options.threads)), options)
    for name in options.shapes:
        result = run_shape(_shape(name, options), _entries(options), options=options, reference=REFERENCE)
        result["skipped"] |= NEVER_RUN
        results["shapes"][name] = merge(results["shapes"].get(name) if options.append else None, result)
        print(report.terminal(name, results["shapes"][name]), flush=True)
        _save(results, options)
    if options.startup:
        precision = "bf16" if results["machine"]["native"]["bf16"] else "fp32"
        results["startup"] = startup.measure(_start_folder(options), rounds=options.rounds, precision=precision)
        _save(results, options)
    for name, body in report.sections(results):
        if name in ("startup", "targets"):
            print(f"== {name} ==\n{body}")
    return None


def _prepare(options: argparse.Namespace) -> None:
    """Checkpoints and graphs, which later runs find in the cache."""
    for name in options.shapes:
        build_peers(_shape(name, options), _entries(options), options=options)
    if options.startup:
        startup.write_checkpoint(_start_folder(options))


def _entries(options: argparse.Namespace) -> dict[str, Entry]:
    return {key: entry for key, entry in PEERS.items() if key in (REFERENCE, *options.peers)}


def _start_folder(options: argparse.Namespace) -> Path:
    folder: Path = options.cache / f"startup-{startup.SHAPE}"
    return folder


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=["nano", "560m"])
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="the reference always runs")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--texts", type=int, help="instead of the shape's own number")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--latency-seconds", type=float, default=10.0, help="for all peers' short queries together")
    parser.add_argument("--no-emulated", action="store_true", help="skip precisions the hardware lacks")
    parser.add_argument("--no-startup", dest="startup", action="store_false")
    parser.add_argument("--append", action="store_true", help="add rounds to the stored ones of the same workload")
    parser.add_argument("--prepare", action="store_true", help="only write checkpoints and export graphs")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_TEXTS} texts, one round, nothing written")
    parser.add_argument("--json", type=Path, help="default: docs/performance.json (-cuda on a GPU)")
    parser.add_argument("--markdown", type=Path, help="default: beside the JSON")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="checkpoints and exported graphs")
    options = parser.parse_args(argv)
    if options.quick:
        options.peers, options.rounds, options.startup = QUICK_PEERS, 1, False
        options.texts, options.shapes = options.texts or QUICK_TEXTS, options.shapes[:1]
    suffix = "-cuda" if options.device == "cuda" else ""
    options.startup = options.startup and options.device == "cpu"
    options.json = options.json or (None if options.quick else DOCS / f"performance{suffix}.json")
    options.markdown = options.markdown or (options.json and options.json.with_suffix(".md"))
    return options


def _shape(name: str, options: argparse.Namespace) -> Shape:
    """The shape with the amount of work this run asks for."""
    shape = SHAPES[name]
    if options.device == "cuda":
        shape = replace(shape, texts=CUDA_WORK[name][0], batch_size=CUDA_WORK[name][1])
    return replace(shape, texts=options.texts or shape.texts)


def _begin(machine: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The stored results to be renewed shape by shape; new ones where there are none, or another machine's."""
    stored = json.loads(options.json.read_text("utf-8")) if options.json and options.json.exists() else {}
    same = stored.get("machine") == machine
    if options.append and stored and not same:
        raise SystemExit(f"cannot append: {options.json} was measured on another machine or with other versions")
    kept = stored if same else {"shapes": {}, "startup": None}
    return kept | {"machine": machine, "device": options.device, "date": datetime.now(UTC).date().isoformat()}


def _save(results: dict[str, Any], options: argparse.Namespace) -> None:
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        report.write(results, options.markdown)


if __name__ == "__main__":
    main()
