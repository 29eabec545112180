"""An int8 linear layer: weights with a scale an output channel, activations with a scale a token.

    y = int8(x) int8(W)^T * token scale * channel scale + b        rows of W that int8 holds badly stay as they are

Kernels, fastest first: oneDNN (VNNI), FBGEMM (AVX2), float32 arithmetic on the same whole numbers (everything else:
more memory traffic, no gain). AVX2 adds two products in 16 bits before anything wider sees them, so two neighbouring
weights never come to more than 128 together: what fits there gives the same sums everywhere.
Invariant: a row of the output depends on the same row of the input only; a scale over a batch would break that.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from udever.model import native
from udever.model.linear import PACKED_ROWS, Linear, gelu_, runs
from udever.model.native import Form, Rounded

INT8_MAX = 127
ZERO_POINT = 128
"""Activations travel as uint8 around 128: what AVX2 and VNNI multiply is unsigned by signed."""
PAIR_MAX = 127
"""Two neighbouring weights' magnitudes before rounding, which adds at most one: 255 * 128 still fits into 16 bits."""
BLOCK_NUMBERS = 1 << 19
"""Of activations that are rounded at once: 2 MB in float32."""
COARSE = 0.02
"""A row of weights stays as it is if int8 would be off by more than this share of its length. Normally distributed
weights are off by 0.011; a row with one weight far above the others loses the others."""


class Quantized(NamedTuple):
    """A weight in int8."""

    weight: Tensor
    """int8 [out, in]; `weight * scales[:, None]` is near the original."""
    scales: Tensor
    """float32 [out]."""
    kept: Tensor
    """int64 [out]: each row's place in `rows`, -1 for most."""
    rows: Tensor
    """The rows that stay as they are, [kept, in] in the original's dtype."""


def quantize_weight(weight: Tensor) -> Quantized:
    """Round a weight [out, in] of any floating dtype to int8, but for its coarse rows."""
    wide = weight.float()
    pairs = F.pad(wide.abs(), (0, wide.shape[1] % 2)).unflatten(1, (-1, 2)).sum(-1)
    scales = pairs.amax(1).clamp_min(torch.finfo(torch.float32).tiny * PAIR_MAX) / PAIR_MAX
    rounded = (wide / scales[:, None]).round_()
    error = torch.linalg.vector_norm(torch.addcmul(-wide, rounded, scales[:, None]), dim=1)
    coarse = error > COARSE * torch.linalg.vector_norm(wide, dim=1)
    kept = torch.where(coarse, coarse.cumsum(0) - 1, -1)
    return Quantized(rounded.to(torch.int8), scales, kept, weight[coarse].contiguous())


def restored(quantized: Quantized) -> Tensor:
    """The weight [out, in] that it stands for, in the kept rows' dtype."""
    weight = (quantized.weight * quantized.scales[:, None]).to(quantized.rows.dtype)
    weight[quantized.kept >= 0] = quantized.rows
    return weight


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each token around `ZERO_POINT` in uint8 [T, in], and its scale, bfloat16 [T, 1].

    A block at a time, which stays near the cores: up to seven times as fast as all at once.
    """
    blocks = [_quantize_block(block) for block in x.split(max(1, BLOCK_NUMBERS // x.shape[1]))]
    if len(blocks) == 1:
        return blocks[0]
    x_u8, scales = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return x_u8, scales


def _quantize_block(x: Tensor) -> tuple[Tensor, Tensor]:
    """In the passes that PyTorch vectorises: all in float32, a product and a sum for `addcmul`, and int16 on the way to
    uint8 are three times as fast. The cast cuts off, so the half above makes it round.
    """
    wide = x.float()
    scales = _token_scales(wide)
    numbers = (wide * scales.float().reciprocal_()).add_(ZERO_POINT + 0.5)
    return numbers.to(torch.int16).to(torch.uint8), scales


def _token_scales(x: Tensor) -> Tensor:
    """What 1 stands for in each token, bfloat16 [T, 1], never 0: so scaling a product in bfloat16 costs one rounding.
    A token's largest number comes to 127.25 at most, which is rounded to 127.
    """
    # five times as fast as the maximum norm, which PyTorch does not vectorise
    loudest = torch.maximum(x.amax(1, keepdim=True), x.amin(1, keepdim=True).neg_()).float()
    return loudest.mul_(1 / INT8_MAX).clamp_min_(torch.finfo(torch.float32).tiny).bfloat16()


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One way to multiply in int8."""

    pack: Callable[[Tensor, Tensor], Any]
    """(int8 [out, in], scales float32 [out]) -> what `product` wants."""
    product: Callable[[Any, Any, torch.dtype], tuple[Tensor, Tensor]]
    """(x [T, in], packed, dtype) -> [T, out] in the dtype or float32 that lacks each token's scale only, and these,
    [T, 1]. oneDNN's takes `Rounded` too."""


def _onednn_pack(weight: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    packed = torch.ops.onednn.qlinear_prepack(weight, [PACKED_ROWS, weight.shape[1]])
    return packed, scales, torch.zeros(len(scales), dtype=torch.int64)


def _onednn_product(
    x: Tensor | Rounded, packed: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    weight, scales, zeros = packed
    x_u8, token_scales = x[:2] if isinstance(x, Rounded) else quantize_tokens(x)
    y = torch.ops.onednn.qlinear_pointwise(
        x_u8, 1.0, ZERO_POINT, weight, scales, zeros, None, 1.0, 0, dtype, "none", [], ""
    )
    return y, token_scales


def _fbgemm_pack(weight: Tensor, scales: Tensor) -> Any:
    with warnings.catch_warnings():  # PyTorch announces that these will go some day: `native_kernel` looks for them
        warnings.simplefilter("ignore", UserWarning)
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        quantized = torch._make_per_channel_quantized_tensor(weight, scales.double(), zeros, 0)
        return torch.ops.quantized.linear_prepack(quantized, None)


def _fbgemm_product(x: Tensor, packed: Any, _: torch.dtype) -> tuple[Tensor, Tensor]:
    loudest = _token_scales(x).float() * INT8_MAX
    y = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(x / loudest, 1 / INT8_MAX, ZERO_POINT, packed)
    return y, loudest


def _emulated_product(x: Tensor, packed: tuple[Tensor, Tensor], _: torch.dtype) -> tuple[Tensor, Tensor]:
    weight, scales = packed
    x_u8, token_scales = quantize_tokens(x)
    return F.linear(x_u8.float() - ZERO_POINT, weight.float()) * scales, token_scales  # the same sums as oneDNN's


ONEDNN = Kernel(pack=_onednn_pack, product=_onednn_product)
FBGEMM = Kernel(pack=_fbgemm_pack, product=_fbgemm_product)
EMULATED = Kernel(pack=lambda weight, scales: (weight, scales), product=_emulated_product)


@cache
def native_kernel() -> Kernel | None:
    """The fastest int8 kernel of this CPU and this PyTorch; None if it has none."""
    return next((kernel for kernel in (ONEDNN, FBGEMM) if runs(partial(_probe, kernel))), None)


def native_int8() -> bool:
    """Whether int8 products are computed as such on this CPU."""
    return native_kernel() is not None


def _probe(kernel: Kernel) -> None:
    """Products as large as they get: what adds up other neighbours than we think saturates; some have no kernel."""
    x = torch.ones(64, 128)
    for pair in ((64, 64), (127, 1), (1, 127, 127, 1)):
        weight = torch.tensor(pair, dtype=torch.int8).repeat(256, 128 // len(pair))
        product, token_scales = kernel.product(x, kernel.pack(weight, torch.ones(256)), torch.float32)
        expected, scales = _emulated_product(x, (weight, torch.ones(256)), torch.float32)
        if not torch.allclose(product * token_scales, expected * scales):
            raise RuntimeError("int8 products saturate")


class Int8Linear(Linear):
    """A quantised weight, activations rounded a token at a time; coarse rows are multiplied in `out_dtype`."""

    def __init__(self, quantized: Quantized, bias: Tensor, *, out_dtype: torch.dtype) -> None:
        super().__init__()
        hardware = native_kernel() if quantized.weight.device.type == "cpu" else None
        self.kernel = hardware or EMULATED
        self.packed = self.kernel.pack(quantized.weight, quantized.scales)
        self.bias, self.out_dtype = bias.to(out_dtype), out_dtype
        self.kept = (quantized.kept >= 0).nonzero().squeeze(1)
        self.rows = quantized.rows[quantized.kept[self.kept]].to(out_dtype)
        self.rows_bias = bias[self.kept].to(out_dtype)
        if self.kernel is ONEDNN and out_dtype == torch.bfloat16:
            self.takes = Form(out_dtype if len(self.kept) else None, rounded=True)
        self.gives = Form(out_dtype)

    def feed(self, following: Linear) -> None:
        """Round for the following layer, too, in the pass that ends the product."""
        if self.takes.rounded:
            self.gives = following.takes

    def forward(self, x: Tensor | Rounded, *, gelu: bool = False) -> Tensor | Rounded:
        """[T, in] -> [T, out] in `out_dtype`, or (by our kernels) in the form that the following layer takes."""
        if self.takes.rounded and isinstance(x, Tensor) and x.dtype == torch.bfloat16 and native.serves_rows(x):
            x = native.rounded(x)
        y, token_scales = self.kernel.product(x, self.packed, self.out_dtype)
        kept = self._kept(x)
        if self.takes.rounded and native.serves_rows(y):
            return native.finish(
                y, token_scales=token_scales, bias=self.bias, kept=kept, columns=self.kept, gelu=gelu, form=self.gives
            )
        y = torch.addcmul(self.bias.to(y.dtype), y, token_scales.to(y.dtype), out=y).to(self.out_dtype)
        if kept is not None:
            y.index_copy_(1, self.kept, kept)
        return gelu_(y) if gelu else y

    def _kept(self, x: Tensor | Rounded) -> Tensor | None:
        """The coarse rows' product, [T, kept]."""
        exact = x.exact if isinstance(x, Rounded) else x
        if exact is None or not len(self.kept):
            return None
        return F.linear(exact.to(self.out_dtype), self.rows, self.rows_bias)
