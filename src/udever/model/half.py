"""Frozen fp32 layers whose weight float16 holds, as BLOOM's were published in: FBGEMM reads them at half the memory.

    unpacked: the weight as it lies in its file, widened a piece at a time    --prepack-->    packed in float16

Packing a weight costs as much as a dozen products of few tokens, and a process that wants one vector never gets it
back: so a large weight waits for `prepack`. Both ways compute in float32 and lose nothing of the weight.
Invariant: a weight with a number that float16 does not hold is never packed.
"""

import threading
from functools import cache

import numpy as np
import torch
from torch import Tensor

from udever.model.linear import (
    FEW_ROWS,
    PACKED_AT_ONCE,
    SMALL_WEIGHT,
    Linear,
    gelu_,
    plain_product,
    prepacking_pays,
    runs,
)

PIECE_ROWS = 512
"""Of a weight, widened or checked at once."""


def half_weights_pay(device: torch.device) -> bool:
    """Whether FBGEMM's products beat MKL's; on AVX-512, oneDNN's prepacked ones are used."""
    return device.type == "cpu" and not prepacking_pays() and has_half_weights()


@cache
def has_half_weights() -> bool:
    """Whether this machine runs FBGEMM's float16 products."""
    return runs(lambda: HalfWeightLinear(torch.ones(8, 8), torch.ones(8))(torch.ones(2, 8)))


class HalfWeightLinear(Linear):
    """Float32 inputs, weights in at most 16 bits if nothing is lost by it.

    Packed, few tokens are 1.3 to 2 times as fast as MKL's or oneDNN's products, many tokens through a large weight 1.1
    to 1.2 times. A small weight is kept in float32 too, for MKL is the faster one there.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.bias = bias.float()
        self.weight: Tensor | None = weight
        self.packed: torch.ScriptObject | None = None
        if weight.numel() <= PACKED_AT_ONCE:
            self.prepack()

    def prepack(self) -> None:
        """Pack the weight, if float16 holds it; else widen it for good."""
        weight = self.weight
        if weight is None or self.packed is not None:
            return
        small = weight.numel() <= SMALL_WEIGHT
        if not _fits_half(weight):
            self.weight = weight.float()
            return
        wide = weight.float() if small else _scratch.widened(weight)
        self.packed = torch.ops.quantized.linear_prepack_fp16(wide, self.bias)
        self.weight = wide if small else None  # after `packed`: other threads may be in `forward`

    def forward(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """[T, in] -> float32 [T, out]."""
        x, weight = x.float(), self.weight
        if weight is None or (self.packed is not None and len(x) <= FEW_ROWS):
            y: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self.packed)
            return gelu_(y) if gelu else y
        if weight.dtype == torch.float32:
            return plain_product(x, weight, self.bias, gelu=gelu)
        pieces = zip(weight.split(PIECE_ROWS), self.bias.split(PIECE_ROWS), strict=True)
        return torch.cat([plain_product(x, rows.float(), bias, gelu=gelu) for rows, bias in pieces], dim=1)


class _Scratch(threading.local):
    """Room for one weight in float32: fresh memory for each would take half as long again as packing it."""

    def __init__(self) -> None:
        self._room = torch.empty(0)

    def widened(self, weight: Tensor) -> Tensor:
        """`weight` in float32, until this thread asks again."""
        if weight.dtype == torch.float32:
            return weight
        if self._room.numel() < weight.numel():
            self._room = torch.empty(weight.numel())
        return self._room[: weight.numel()].view(weight.shape).copy_(weight)


_scratch = _Scratch()


def _fits_half(weight: Tensor) -> bool:
    return weight.dtype == torch.float16 or all(  # a piece at a time: what does not fit is mostly seen in the first
        np.array_equal(rows.half().float().numpy(), rows.numpy())  # four times as fast as torch.equal
        for rows in map(Tensor.float, weight.split(PIECE_ROWS))
    )
