"""Peers that run an exported graph: ONNX Runtime and OpenVINO, padded as deployed or handed our packing."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encoding.graphs import OUTPUT, GraphKind, graph_path
from encoding.packed_graph import graph_inputs
from encoding.peers import Peer, Setting, Unavailable, native_reduced
from encoding.torch_peers import padded_peer
from encoding.workload import Texts
from udever.engine.embedder import BATCH_TOKENS
from udever.engine.packing import pack

Graph = Callable[[Mapping[str, Tensor]], Tensor]
"""A loaded graph: named int64 inputs to vectors."""
OPENVINO_PRECISION = {"bf16": "bf16", "fp32": "f32"}


def onnxruntime_peer(kind: GraphKind, *, int8: bool) -> Callable[[Setting], Peer]:
    """ONNX Runtime on the CPU, float32 or dynamically quantised."""

    def build(setting: Setting) -> Peer:
        _cpu_only(setting)
        path = graph_path(kind, folder=setting.folder, shape=setting.shape, int8=int8)
        run = onnxruntime_graph(path, threads=setting.threads)
        return _peer(run, kind=kind, setting=setting, precision="int8" if int8 else "fp32")

    return build


def openvino_peer(kind: GraphKind) -> Callable[[Setting], Peer]:
    """OpenVINO on the CPU, bf16 where the CPU multiplies it, else float32."""

    def build(setting: Setting) -> Peer:
        _cpu_only(setting)
        precision = native_reduced(setting.device)
        path = graph_path(kind, folder=setting.folder, shape=setting.shape)
        run = openvino_graph(path, threads=setting.threads, precision=precision)
        return _peer(run, kind=kind, setting=setting, precision=precision)

    return build


def onnxruntime_graph(path: Path, *, threads: int) -> Graph:
    """An ONNX Runtime session."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Its threads must not go on spinning while the next peer is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        [vectors] = session.run([OUTPUT], {name: tensor.numpy() for name, tensor in inputs.items()})
        return torch.from_numpy(vectors)

    return run


def openvino_graph(path: Path, *, threads: int, precision: str) -> Graph:
    """An OpenVINO compiled model."""
    import openvino

    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": OPENVINO_PRECISION[precision],
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",  # all threads on one request: requests come one after another
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        result = compiled({name: tensor.numpy() for name, tensor in inputs.items()})
        return torch.from_numpy(result[0].copy())

    return run


def _cpu_only(setting: Setting) -> None:
    if setting.device.type != "cpu":
        raise Unavailable("run on the CPU only")


def _peer(graph: Graph, *, kind: GraphKind, setting: Setting, precision: Any) -> Peer:
    if kind == "padded":

        def forward(ids: Tensor, mask: Tensor) -> Tensor:
            return graph({"input_ids": ids, "attention_mask": mask})

        return padded_peer(forward, setting=setting, precision=precision)

    def run(texts: Texts) -> Tensor:
        out = torch.empty(len(texts), setting.shape.width)
        for indices, batch in pack(texts.sequences, batch_tokens=BATCH_TOKENS["cpu"], device=setting.device):
            out[indices] = graph(graph_inputs(batch))
        return out

    return Peer(run=run, precision=precision)
