"""ONNX files of one checkpoint, exported once and kept in the cache (exports take minutes).

`padded`: transformers' BloomModel by torch.onnx, (input_ids, attention_mask) [B, L] -> vectors [B, width]; it returns
the last token's state only, which spares the peer a copy.
`packed`: `PackedGraph`, see there.
`….int8`: the same by ONNX Runtime's dynamic quantisation, weights signed and per channel.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from encoding.packed_graph import PackedGraph, graph_inputs
from encoding.workload import Shape
from udever.model.batch import PackedBatch

GraphKind = Literal["padded", "packed"]
OUTPUT = "vectors"


class LastState(nn.Module):
    """BloomModel with the card's pooling."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Vectors [B, width] of left-padded ids and mask [B, L]."""
        states: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]
        return states[:, -1]


def graph_path(kind: GraphKind, *, folder: Path, shape: Shape, int8: bool = False) -> Path:
    """The ONNX file of the checkpoint in `folder`, made on the first call."""
    path = folder / kind / "fp32" / "model.onnx"
    if not path.exists():
        _complete(path, lambda unfinished: _export(kind, folder=folder, shape=shape, path=unfinished))
    if not int8:
        return path
    quantized = folder / kind / "int8" / "model.onnx"
    if not quantized.exists():
        _complete(quantized, lambda unfinished: _quantize(path, unfinished))
    return quantized


def _complete(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside the final one (large models keep their weights in files of their own)."""
    unfinished = path.parent.with_name(path.parent.name + ".unfinished")
    unfinished.mkdir(parents=True, exist_ok=True)
    write(unfinished / path.name)
    unfinished.rename(path.parent)


def _export(kind: GraphKind, *, folder: Path, shape: Shape, path: Path) -> None:
    module, inputs, dynamic = (_padded if kind == "padded" else _packed)(folder, shape)
    with quiet_exporter():
        torch.onnx.export(
            module.eval(), (), str(path), kwargs=inputs, dynamo=True, dynamic_shapes=dynamic,
            input_names=list(inputs), output_names=[OUTPUT], external_data=True,
        )  # fmt: skip


def _padded(folder: Path, shape: Shape) -> tuple[nn.Module, dict[str, Tensor], Mapping[str, Any]]:  # noqa: ARG001
    from transformers import BloomModel

    ids = torch.full((2, 7), 5)
    axes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")}
    names = ("input_ids", "attention_mask")
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return LastState(BloomModel.from_pretrained(folder, dtype=torch.float32)), inputs, dict.fromkeys(names, axes)


def _packed(folder: Path, shape: Shape) -> tuple[nn.Module, dict[str, Tensor], Mapping[str, Any]]:
    tokens, texts, longest = (torch.export.Dim(name) for name in ("tokens", "texts", "longest"))
    dynamic = {
        "token_ids": {0: tokens}, "grid": {0: texts, 1: longest}, "back": {0: tokens}, "last": {0: texts},
        "final": {0: texts},
    }  # fmt: skip
    example = graph_inputs(PackedBatch.from_lists([[4] * 9, [4] * 7, [4] * 6]))
    return PackedGraph(shape.config(), load_file(folder / "model.safetensors")), example, dynamic


def _quantize(source: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet_exporter():
        quantize_dynamic(
            source, target, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"],
            use_external_data_format=True, extra_options={"MatMulConstBOnly": True},
        )  # fmt: skip


@contextlib.contextmanager
def quiet_exporter() -> Any:
    """Without the exporters' progress on the terminal and their deprecation warnings; errors still surface."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
