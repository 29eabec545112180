"""Frozen linear layers in floating point: the fastest kernel the machine has, or a plain one.

oneDNN's operators are private to PyTorch, so they are looked for and probed; a machine without them computes the same
numbers with `F.linear` ("emulated" bf16: same roundings, more memory traffic).
Invariant: a row of the output depends on the same row of the input only. Does not know which precision was asked for
(precision.py), or int8 (int8.py).
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udever.model import native
from udever.model.native import Form, Rounded

PACKED_ROWS = 2048
"""Rows oneDNN is told to expect when it lays out weights; other row counts work too."""
FEW_ROWS = 64
"""Up to so many tokens MKL spends its time copying the weight; who need not, is up to twice as fast."""
PACKED_AT_ONCE = 1 << 20
"""Numbers of a weight that is packed in a few milliseconds, when it is loaded."""
NEAR_NUMBERS = 1 << 21
"""Of a product (4 MB in bfloat16) that stays near enough to the cores to be read again: a pass of our GELU takes less
time than what oneDNN fuses into its products."""
SMALL_WEIGHT = 1 << 19
"""Numbers of a weight (2 MB in float32) that stays near enough to the cores to be read as it is."""


def runs(probe: Callable[[], object]) -> bool:
    """Whether this machine and this PyTorch can do it."""
    try:
        probe()
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return True


@cache
def native_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware, through oneDNN (x86 with AVX-512 BF16 or AMX)."""

    def probe() -> None:
        if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
            raise RuntimeError("oneDNN would emulate bfloat16, slower than fp32")
        _pack(torch.zeros(64, 64, dtype=torch.bfloat16))

    return runs(probe)


@cache
def prepacking_pays() -> bool:
    """Whether oneDNN's prepacked fp32 beats plain `F.linear`: on AVX-512 it does, on AVX2 large batches are slower."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512") and runs(lambda: _pack(torch.zeros(16, 16)))


def _onednn_serves(x: Tensor) -> bool:
    """In inference only: it has no gradient, and what training computes twice, kept or not, must come out the same."""
    return x.is_cpu and x.dtype == torch.float32 and torch.is_inference_mode_enabled() and _has_onednn()


@cache
def _has_onednn() -> bool:
    return runs(lambda: _onednn(torch.ones(2, 64), torch.ones(64, 64), torch.ones(64), gelu=True))


class Linear(nn.Module):
    """`x W^T + b`, frozen, optionally followed by GELU (tanh form, as BLOOM has it)."""

    takes: Form = Form()
    """The input that it need not convert; it understands every floating one."""

    def forward(self, x: Any, *, gelu: bool = False) -> Tensor | Rounded:
        """[T, in], floating or as `takes` says -> [T, out]."""
        raise NotImplementedError

    def feed(self, following: "Linear") -> None:
        """From now on put out what `following` takes, if this layer can."""

    def prepack(self) -> None:
        """Lay the weight out for many products to come, where that takes long enough to have been put off."""


class PlainLinear(Linear):
    """The product by PyTorch's own kernels: CUDA's, and fp32 where no other serves."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, *, dtype: torch.dtype | None = None) -> None:
        """`dtype`: what the product is made in; None: the weight's own."""
        super().__init__()
        self.dtype = dtype or weight.dtype
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """[T, in] -> [T, out] in the product's dtype."""
        x, weight, bias = (tensor.to(self.dtype) for tensor in (x, self.weight, self.bias))
        return plain_product(x, weight, bias, gelu=gelu)


class OneDnnLinear(Linear):
    """oneDNN's product, GELU fused into it; in bfloat16 by a large weight as it lies in its file, until it is packed.

    Packed it is up to 1.3 times as fast, bit for bit the same, and costs as much to make as some dozen short queries.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.dtype, self.bias = weight.dtype, bias
        self.weight, self.takes = weight, Form(weight.dtype)
        # Whatever the batch: with one more rounding, a text's vector would depend on its neighbours.
        self.gelu_apart = weight.dtype == torch.bfloat16 and len(bias) * PACKED_ROWS <= NEAR_NUMBERS
        if weight.dtype != torch.bfloat16 or weight.numel() <= PACKED_AT_ONCE:
            self.prepack()

    def prepack(self) -> None:
        """Lay the weight out as oneDNN likes it."""
        if not self.weight.is_mkldnn:
            self.weight = _pack(self.weight)

    def forward(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """[T, in] -> [T, out] in the weight's dtype."""
        x = x.to(self.dtype)
        if gelu and self.gelu_apart and native.serves_rows(x, self.bias[None]):
            return native.gelu_(_onednn(x, self.weight, self.bias, gelu=False))
        return _onednn(x, self.weight, self.bias, gelu=gelu)


class EmulatedBf16Linear(Linear):
    """bf16 without hardware for it: inputs and weights rounded to bf16, products in float32, output float32."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias.float()

    def forward(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """[T, in] -> float32 [T, out]."""
        y = F.linear(x.bfloat16().float(), self.weight.float(), self.bias)
        return gelu_(y) if gelu else y


def plain_product(x: Tensor, weight: Tensor, bias: Tensor, *, gelu: bool) -> Tensor:
    """`x W^T + b` by the weight as it lies in memory, all of one dtype; then GELU if asked for."""
    if len(x) <= FEW_ROWS and weight.numel() > SMALL_WEIGHT and _onednn_serves(x):
        return _onednn(x, weight, bias, gelu=gelu)
    y = F.linear(x, weight, bias)
    return gelu_(y) if gelu else y


def gelu_(y: Tensor) -> Tensor:
    """GELU in its tanh form, [T, out] -> [T, out], in place unless a gradient needs `y`: fresh memory costs as much."""
    if y.requires_grad:
        return F.gelu(y, approximate="tanh")
    if native.serves_rows(y):
        return native.gelu_(y)
    activated: Tensor = torch.ops.aten.gelu_(y, approximate="tanh")
    return activated


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)
    return packed


def _onednn(x: Tensor, weight: Tensor, bias: Tensor, *, gelu: bool) -> Tensor:
    """oneDNN's product with a weight as it lies in memory, or packed."""
    attr, algorithm = ("gelu", "tanh") if gelu else ("none", "")
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, attr, [], algorithm)
    return y
