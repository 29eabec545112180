"""One linear layer in three precisions: fp32, bf16, int8; the fastest kernel the machine has, or a plain one.

Every kernel maps float32 or bfloat16 [T, in] to `activation_dtype` [T, out]. Invariant: a row of the output depends on
the same row of the input only: int8 quantises its input a token at a time, never a batch at a time.
oneDNN's operators are private to PyTorch, so they are looked for and probed; a machine without them computes the same
numbers with `F.linear` ("emulated": same roundings, more memory traffic).
"""

from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udever.errors import OptionError

Precision = Literal["fp32", "bf16", "int8", "fp64"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")
"""What users may choose; fp64 is there to certify gradients."""
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
"""Of the weights of linear layers."""
PACKED_ROWS = 2048
"""Rows oneDNN is told to expect when it lays out weights; other row counts work too."""
INT8_MAX = 127
ZERO_POINT = 128
"""int8 activations travel as uint8 around 128: signed by signed products are pathologically slow in oneDNN."""


@cache
def native_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware, through oneDNN (x86 with AVX-512 BF16 or AMX)."""

    def probe() -> None:
        if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
            raise RuntimeError("oneDNN would emulate bfloat16, slower than fp32")
        _pack_onednn(torch.zeros(64, 64, dtype=torch.bfloat16))

    return _runs(probe)


@cache
def native_int8() -> bool:
    """Whether oneDNN multiplies uint8 by int8 on this CPU, and rightly: without VNNI, sums of two products saturate."""

    def probe() -> None:
        x, weight = torch.full((64, 128), 255, dtype=torch.uint8), torch.full((256, 128), 127, dtype=torch.int8)
        product = _onednn_int8(x, _pack_int8(weight), torch.ones(256))
        if not (product == 128 * (255 - ZERO_POINT) * 127).all():
            raise RuntimeError("int8 products saturate")

    return _runs(probe)


@cache
def prepacking_pays() -> bool:
    """Whether oneDNN's prepacked fp32 beats plain `F.linear`: on AVX-512 it does, on AVX2 large batches are slower."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512") and _runs(
        lambda: _pack_onednn(torch.zeros(16, 16))
    )


def _runs(probe: Callable[[], object]) -> bool:
    try:
        probe()
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return True


def resolve_precision(precision: str, *, device: torch.device) -> Precision:
    """`auto` is bf16 where the CPU or GPU has it, else fp32."""
    if precision == "auto":
        has_bf16 = torch.cuda.is_bf16_supported() if device.type == "cuda" else native_bf16()
        return "bf16" if has_bf16 else "fp32"
    for known in PRECISIONS:
        if precision == known:
            return known
    raise OptionError(f"precision {precision!r} does not exist", hint="choose auto, fp32, bf16 or int8")


def activation_dtype(precision: Precision, *, device: torch.device) -> torch.dtype:
    """What linear layers put out, and attention computes in: bfloat16 where it is native, else float32."""
    if precision in ("fp32", "fp64"):
        return DTYPES[precision]
    return torch.bfloat16 if device.type == "cuda" or native_bf16() else torch.float32


class Linear(nn.Module):
    """`x W^T + b`, frozen, optionally followed by GELU (tanh form, as BLOOM has it)."""

    def forward(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """[T, in] -> [T, out]."""
        raise NotImplementedError


FEW_ROWS = 64
"""Up to so many tokens MKL is 1.3 to 2.6 times as fast with the weight as its first factor: it need not copy it."""


class PlainLinear(Linear):
    """The product in the weight's dtype by PyTorch's own kernels: CUDA's, and the fastest fp32 on AVX2."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """[T, in] -> [T, out] in the weight's dtype."""
        x, bias = x.to(self.weight.dtype), self.bias.to(self.weight.dtype)
        if x.is_cpu and len(x) <= FEW_ROWS:
            y = torch.addmm(bias[:, None], self.weight, x.t()).t().contiguous()
        else:
            y = F.linear(x, self.weight, bias)
        return F.gelu(y, approximate="tanh") if gelu else y


class OneDnnLinear(Linear):
    """oneDNN's prepacked layout, GELU fused into the product."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.dtype, self.bias = weight.dtype, bias
        self.packed = _pack_onednn(weight)

    def forward(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """[T, in] -> [T, out] in the weight's dtype."""
        attr, algorithm = ("gelu", "tanh") if gelu else ("none", "")
        x = x.to(self.dtype)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, attr, [], algorithm)
        return y


class EmulatedBf16Linear(Linear):
    """bf16 without hardware for it: inputs and weights rounded to bf16, products in float32, output float32."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias.float()

    def forward(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """[T, in] -> float32 [T, out]."""
        y = F.linear(x.bfloat16().float(), self.weight.float(), self.bias)
        return F.gelu(y, approximate="tanh") if gelu else y


class Int8Linear(Linear):
    """int8 weights with a scale an output channel, int8 activations with a scale a token."""

    def __init__(self, weight_q: Tensor, scales: Tensor, bias: Tensor, *, out_dtype: torch.dtype) -> None:
        super().__init__()
        self.scales, self.bias, self.out_dtype = scales, bias.float(), out_dtype
        self.native = weight_q.device.type == "cpu" and native_int8()
        self.weight_q = _pack_int8(weight_q) if self.native else weight_q

    def forward(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """[T, in] -> [T, out] in `out_dtype`."""
        x_u8, token_scales = quantize_tokens(x)
        y = torch.addcmul(self.bias, self._product(x_u8), token_scales).to(self.out_dtype)
        return F.gelu(y, approximate="tanh") if gelu else y

    def _product(self, x_u8: Tensor) -> Tensor:
        if self.native:
            return _onednn_int8(x_u8, self.weight_q, self.scales)
        x_q = x_u8.float() - ZERO_POINT  # whole numbers in float32: the same sums as oneDNN's
        return F.linear(x_q, self.weight_q.float()) * self.scales


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each token around `ZERO_POINT` in uint8 [T, in], and its scale, float32 [T, 1]; three passes over memory."""
    loudest = torch.linalg.vector_norm(x, torch.inf, dim=1, keepdim=True, dtype=torch.float32)
    loudest = loudest.clamp_min(torch.finfo(torch.float32).tiny * INT8_MAX)
    centred = torch.addcmul(x.new_tensor(ZERO_POINT + 0.5, dtype=torch.float32), x, INT8_MAX / loudest)
    return centred.to(torch.uint8), loudest / INT8_MAX  # the cast cuts off, so the half above makes it round


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [out, in] and the scale of each output channel, float32 [out]."""
    weight = weight.float()
    scale = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / INT8_MAX
    return (weight / scale[:, None]).round_().to(torch.int8), scale


def make_linear(weight: Tensor, bias: Tensor, *, precision: Precision, scales: Tensor | None = None) -> Linear:
    """The fastest layer of this precision on the weight's device.

    Args:
        weight: [out, in], of any floating dtype; or int8 with `scales` (already quantised).
        bias: [out].
    """
    device = weight.device
    if precision == "int8":
        if scales is None:
            weight, scales = quantize_weight(weight)
        return Int8Linear(weight, scales, bias, out_dtype=activation_dtype(precision, device=device))
    dtype = DTYPES[precision]
    weight = weight.to(dtype)
    if device.type == "cpu" and dtype == torch.bfloat16 and not native_bf16():
        return EmulatedBf16Linear(weight, bias)
    packs = device.type == "cpu" and (dtype == torch.bfloat16 or (dtype == torch.float32 and prepacking_pays()))
    return (OneDnnLinear if packs else PlainLinear)(weight, bias.to(dtype))


def make_trainable_linear(weight: Tensor, bias: Tensor, *, precision: Precision) -> Linear:
    """A layer that a gradient passes through, its bias kept in float32 at least; arguments as in `make_linear`."""
    dtype = DTYPES[precision]
    return PlainLinear(weight.to(dtype), bias.to(torch.promote_types(dtype, torch.float32)))


def _pack_onednn(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)
    return packed


def _pack_int8(weight_q: Tensor) -> Tensor:
    packed: Tensor = torch.ops.onednn.qlinear_prepack(weight_q.t(), [PACKED_ROWS, weight_q.shape[1]])
    return packed


def _onednn_int8(x_u8: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    y: Tensor = torch.ops.onednn.qlinear_pointwise(
        x_u8, 1.0, ZERO_POINT, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return y
