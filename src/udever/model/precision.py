"""What a model computes in: fp32, bf16 or int8; and the linear layer for each on each kind of machine.

Every layer maps float32 or bfloat16 [T, in] to `activation_dtype` [T, out].
Does not know: how a product is computed (linear.py, half.py, int8.py).
"""

from typing import Literal

import torch
from torch import Tensor

from udever.errors import OptionError
from udever.model.half import HalfWeightLinear, half_weights_pay
from udever.model.int8 import Int8Linear, Quantized, quantize_weight, restored
from udever.model.linear import (
    EmulatedBf16Linear,
    Linear,
    OneDnnLinear,
    PlainLinear,
    native_bf16,
    prepacking_pays,
)

Precision = Literal["fp32", "bf16", "int8", "fp64"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")
"""What users may choose; fp64 is there to certify gradients."""
MOSTLY_KEPT = 0.5
"""A weight of which int8 holds more than this share of rows badly is not multiplied in int8 at all: these rows have a
product of their own as it is."""
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
"""Of the weights of linear layers."""


def resolve_precision(precision: str, *, device: torch.device) -> Precision:
    """`auto` is bf16 where the CPU or GPU has it, else fp32."""
    if precision == "auto":
        return "bf16" if _has_bf16(device) else "fp32"
    for known in PRECISIONS:
        if precision == known:
            return known
    raise OptionError(f"precision {precision!r} does not exist", hint="choose auto, fp32, bf16 or int8")


def activation_dtype(precision: Precision, *, device: torch.device) -> torch.dtype:
    """What linear layers put out, and attention computes in: bfloat16 where it is native, else float32."""
    if precision in ("fp32", "fp64"):
        return DTYPES[precision]
    return torch.bfloat16 if _has_bf16(device) else torch.float32


def _has_bf16(device: torch.device) -> bool:
    """Whether its hardware multiplies bfloat16: GPUs do from Ampere on; PyTorch also counts those that emulate it."""
    return torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else native_bf16()


def make_linear(weight: Tensor | Quantized, bias: Tensor, *, precision: Precision) -> Linear:
    """The fastest layer of this precision on the bias's device.

    Args:
        weight: [out, in], of any floating dtype; for int8 it may be quantised already.
        bias: [out].
    """
    device = bias.device
    if precision == "int8":
        quantized = weight if isinstance(weight, Quantized) else quantize_weight(weight)
        out_dtype = activation_dtype(precision, device=device)
        if len(quantized.rows) > MOSTLY_KEPT * len(quantized.kept):
            return make_linear(restored(quantized), bias, precision="bf16" if out_dtype == torch.bfloat16 else "fp32")
        return Int8Linear(quantized, bias, out_dtype=out_dtype)
    if isinstance(weight, Quantized):
        raise TypeError(f"a quantised weight cannot be made {precision}")
    dtype = DTYPES[precision]
    if dtype == torch.float32 and half_weights_pay(device):
        return HalfWeightLinear(weight, bias)
    weight = weight.to(dtype)
    if device.type == "cpu" and dtype == torch.bfloat16 and not native_bf16():
        return EmulatedBf16Linear(weight, bias)
    if device.type == "cpu" and (dtype == torch.bfloat16 or (dtype == torch.float32 and prepacking_pays())):
        return OneDnnLinear(weight, bias.to(dtype))
    return PlainLinear(weight, bias.to(dtype))


def make_trainable_linear(weight: Tensor, bias: Tensor, *, precision: Precision, masters: bool = False) -> Linear:
    """A layer that a gradient passes through, its bias kept in float32 at least; arguments as in `make_linear`.

    Args:
        masters: keep the weight so, too, and round it in each product: small steps of it must not get lost.
    """
    dtype = DTYPES[precision]
    kept = torch.promote_types(dtype, torch.float32)
    return PlainLinear(weight.to(kept if masters else dtype), bias.to(kept), dtype=dtype)
