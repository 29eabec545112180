"""What a peer is: a name, a way to turn texts into vectors, and what must be said beside its number.

A builder makes the peer for one `Setting`; it raises `Unavailable` with the reason when this machine cannot run it,
and the reason is printed in its place. The table of all peers is in `benchmarks/encode.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from encoding.workload import Shape, Texts
from udever.model.int8 import native_int8
from udever.model.linear import native_bf16
from udever.model.precision import Precision

Group = Literal["reference", "as deployed", "handed our packing", "udever"]


class Unavailable(Exception):  # noqa: N818 (an outcome, not an error)
    """This peer cannot run here; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where and on what a peer is built."""

    shape: Shape
    texts: Texts
    folder: Path
    """The checkpoint all peers load."""
    device: torch.device
    threads: int


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One way to embed texts."""

    run: Callable[[Texts], Tensor]
    """Vectors of texts, float32 [n, width] on the CPU, not necessarily normalised, in the order of the texts."""
    precision: Precision
    padding: float = 1.0
    """Padded tokens divided by real tokens on its texts."""
    texts: int | None = None
    """How many of the texts it embeds (the first ones) where all would take too long."""


Builder = Callable[[Setting], Peer]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of the table of peers."""

    label: str
    group: Group
    build: Builder
    own_kernels: bool = False
    """Brings kernels for this precision that need no special hardware (ONNX Runtime's int8)."""

    def emulated(self, peer: Peer, *, device: torch.device) -> bool:
        """Whether the hardware lacks the peer's precision, so that its time says nothing about it."""
        native = {"fp32": lambda: True, "bf16": native_bf16, "int8": native_int8}[peer.precision]
        return device.type == "cpu" and not self.own_kernels and not native()


def native_reduced(device: torch.device) -> Precision:
    """bf16 where the hardware multiplies it, else fp32."""
    return "bf16" if device.type == "cuda" or native_bf16() else "fp32"
