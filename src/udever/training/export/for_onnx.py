"""A model as ONNX files: `input_ids` and `attention_mask` in, `sentence_embedding` (unit vectors) out.

    DIR/model.onnx  model_int8.onnx  tokenizer_query.json  tokenizer_document.json  README.md

The tokenizer files put their role's markers around a text, cut it and pad it: any binding of `tokenizers` feeds the
graph rightly.
Invariant: the float32 graph is checked against the model on ONNX Runtime before the folder takes its name; the int8
graph's distance is told.
Does not know: the command line.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from udever.engine.folders import whole_folder
from udever.errors import UdeverError
from udever.tokenizer import ROLES, Role
from udever.training.deltas.comparing import Weights
from udever.training.export.for_sentence_transformers import (
    MIN_COSINE,
    Checked,
    Encode,
    Vectors,
    check_against,
    made_by,
)
from udever.training.export.padded_graph import PaddedGraph
from udever.training.export.role_tokenizer import of_role, pad_token

INPUTS = ("input_ids", "attention_mask")
OUTPUT = "sentence_embedding"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""What the export needs."""


@dataclass(frozen=True, kw_only=True)
class OnnxChecked:
    """How near the graphs' vectors are to the model's."""

    fp32: Checked
    int8: Checked | None
    """None: no int8 graph was asked for."""


def export_onnx(name: str, folder: Path, *, int8: bool = False) -> OnnxChecked:
    """Write the folder; a delta is merged into it.

    Args:
        name: as `Embedder.load` takes it.
        int8: write a second graph, its matrices quantised (weights an output channel at a time, activations as they
            come, the token table not).

    Raises:
        ModelError: what `Embedder.load` would raise.
        OptionError: `folder` is there already.
        UdeverError: a package is missing, or the check failed; nothing is written.
    """
    _require_packages()
    weights = Weights(name)
    tokenizer, manifest = weights.located.tokenizer(), weights.manifest()
    pad = pad_token(tokenizer, weights.checkpoint.raw_config)
    with whole_folder(folder) as unfinished:
        for role in ROLES:
            content = of_role(tokenizer, role=role, max_tokens=manifest.max_tokens, pad=pad)
            (unfinished / f"tokenizer_{role}.json").write_text(content, "utf-8")
        _export(weights, unfinished / "model.onnx")
        fp32 = check_against(name, _on_onnxruntime(unfinished, "model.onnx"), least=MIN_COSINE)
        found = None
        if int8:
            _quantize(unfinished / "model.onnx", unfinished / "model_int8.onnx")
            found = check_against(name, _on_onnxruntime(unfinished, "model_int8.onnx"), least=None)
        (unfinished / "README.md").write_text(_readme(manifest.name or name, found, recipe=weights.recipe), "utf-8")
    return OnnxChecked(fp32=fp32, int8=found)


def _require_packages() -> None:
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise UdeverError(f"the ONNX export needs {', '.join(missing)}", hint="pip install 'udever[export]'")


def _export(weights: Weights, path: Path) -> None:
    tensors = {
        name: torch.cat([piece.float() for piece in weights.pieces(name)]) for name in weights.config.tensor_shapes()
    }
    graph = PaddedGraph(weights.config, tensors).eval()
    example = torch.full((2, 7), 5)
    axes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")}
    with _quiet():
        torch.onnx.export(
            graph,
            (example, torch.ones_like(example)),
            str(path),
            dynamo=True,
            dynamic_shapes=dict.fromkeys(INPUTS, axes),
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            external_data=True,  # a file of its own: ONNX itself ends at 2 GB
        )


def _quantize(source: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            source,
            target,
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
            use_external_data_format=True,
            extra_options={"MatMulConstBOnly": True},
        )


def _on_onnxruntime(folder: Path, file: str) -> Callable[[], Encode]:
    def make() -> Encode:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(folder / file), options, providers=["CPUExecutionProvider"])

        def encode(texts: list[str], role: Role, max_tokens: int) -> Vectors:
            tokenizer = Tokenizer.from_file(str(folder / f"tokenizer_{role}.json"))
            tokenizer.enable_truncation(max_tokens)
            read = tokenizer.encode_batch(texts)
            inputs = dict(zip(INPUTS, ([e.ids for e in read], [e.attention_mask for e in read]), strict=True))
            [vectors] = session.run([OUTPUT], {key: np.asarray(value, np.int64) for key, value in inputs.items()})
            return np.asarray(vectors, np.float32)

        return encode

    return make


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' progress on the terminal and their deprecation warnings; errors still surface."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _readme(name: str, int8: Checked | None, *, recipe: str) -> str:
    quantised = (
        "\n`model_int8.onnx` is the same with int8 matrices: on sample texts its cosine to the float32 vectors is"
        f" {int8.min_cosine:.4f} or more.\n"
        if int8
        else ""
    )
    return f"""# {name}, for ONNX Runtime

```python
import numpy, onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer_query.json")  # or tokenizer_document.json
session = onnxruntime.InferenceSession("model.onnx")
read = tokenizer.encode_batch(["how tall is the mountain?"])
inputs = {{"input_ids": [e.ids for e in read], "attention_mask": [e.attention_mask for e in read]}}
[vectors] = session.run(None, {{name: numpy.array(value, numpy.int64) for name, value in inputs.items()}})
```

The vectors have length 1 and are those of the udever model these files were exported from; the tokenizer files write
the role's markers around a text, cut it and pad it.
{quantised}Written by `udever export`.{made_by(recipe)}
"""
