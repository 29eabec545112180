"""From a model's name to the parts an embedder runs: tokenizer, packed model, manifest, fingerprint.

Invariant: what cannot be a Udever embedder is refused here, each reason with its own error, before any text is seen.
The token table is never copied; all deltas of a base share its quantised weights on disk: biases are not quantised.
"""

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import cached_assets_path
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from udever.engine import registry
from udever.engine.deltas import Moved
from udever.engine.folders import whole_file
from udever.engine.locating import locate
from udever.engine.registry import Manifest
from udever.errors import OptionError
from udever.model.bloom import Bloom, OwnRows, quantize
from udever.model.config import TABLE
from udever.model.precision import Precision, resolve_precision
from udever.model.weights import Checkpoint
from udever.tokenizer import UdeverTokenizer

INT8_CACHE = "int8-but-last-block-and-coarse-rows"
"""Says what is quantised: files made by another rule are not found."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything an embedder needs; `fingerprint` is a function because hashing the weights takes time."""

    name: str
    tokenizer: UdeverTokenizer
    model: Bloom
    manifest: Manifest
    precision: Precision
    device: torch.device
    fingerprint: Callable[[], str]


def load(name: str, *, precision: str, device: str, revision: str | None, token: str | None) -> Parts:
    """Resolve, check and load a model; see `Embedder.load` for arguments and errors."""
    chosen_device = resolve_device(device)
    chosen_precision = resolve_precision(precision, device=chosen_device)
    located = locate(name, revision=revision, token=token)
    checkpoint = located.checkpoint()
    tokenizer = located.tokenizer()
    registry.check_vocabulary(tokenizer, checkpoint.config)
    manifest = located.manifest(checkpoint.config)
    registry.check_finite(checkpoint, located.base.folder)
    moved = located.moved(checkpoint)

    def fingerprint() -> str:
        own = located.weights_digest(checkpoint)
        weights = located.delta.combined_digest() if located.delta else own
        return registry.fingerprint(
            weights=weights, tokenizer=tokenizer.digest, manifest=manifest, precision=chosen_precision
        )

    rest = [tensor for tensor in checkpoint.config.tensor_shapes() if tensor != TABLE]
    if chosen_precision == "int8":
        tensors = _int8_tensors(checkpoint, rest, located.weights_digest(checkpoint))
    else:
        tensors = checkpoint.tensors(rest)
    model = Bloom(
        checkpoint.config,
        tensors | dict(moved.biases),
        table=checkpoint.tensors([TABLE])[TABLE],
        precision=chosen_precision,
        device=chosen_device,
        own_rows=own_rows(moved),
    )
    return Parts(
        name=manifest.name or name,
        tokenizer=tokenizer,
        model=model,
        manifest=manifest,
        precision=chosen_precision,
        device=chosen_device,
        fingerprint=fingerprint,
    )


def own_rows(moved: Moved) -> OwnRows | None:
    """The moved rows of the token table, as the model takes them."""
    return None if moved.rows is None else OwnRows(torch.tensor(moved.token_ids), moved.rows)


def resolve_device(device: str) -> torch.device:
    """`auto` is cuda if there is one, else cpu. Raises `OptionError`: no such device, or not on this machine."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", device):
        raise OptionError(f"device {device!r} does not exist", hint="choose auto, cpu, cuda or cuda:N")
    chosen = torch.device(device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise OptionError(f"device {device!r}: this PyTorch sees no CUDA device", hint="choose cpu or auto")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise OptionError(f"device {device!r}: this machine's last one is cuda:{torch.cuda.device_count() - 1}")
    return chosen


def _int8_tensors(checkpoint: Checkpoint, names: Iterable[str], digest: str) -> dict[str, Tensor]:
    """The quantised tensors, from the disk cache under the weights' digest, or made now and put there if it can be."""
    path: Path | None = None
    try:
        path = Path(cached_assets_path("udever", namespace=INT8_CACHE)) / f"{digest}.safetensors"
        if path.exists():
            with safe_open(path, framework="pt") as cached:
                return {name: cached.get_tensor(name) for name in cached.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, ValueError, SafetensorError):  # no cache here, or a file that was cut off
        pass
    quantized = quantize(checkpoint.tensors(names))
    if path is not None:
        with suppress(OSError, SafetensorError), whole_file(path) as unfinished:
            save_file(quantized, unfinished)
    return quantized
