"""The fast attention kernels against the definition, and ALiBi's slopes against transformers'."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from udever.model.attention import (
    SUMMANDS,
    AlibiBias,
    alibi_slopes,
    causal_attention,
    closing_attention,
    fold_queries,
    key_channels,
    positions_from_end,
    reference_attention,
)
from udever.model.batch import PackedBatch

LENGTHS = ([1], [5], [128], [129], [300, 7, 7, 7, 1], [1, 1, 2, 2, 2], [260, 513])


def packed(lengths: list[int]) -> PackedBatch:
    return PackedBatch.from_lists([[0] * length for length in lengths])


def random_qkv(tokens: int, *, heads: int = 3, channels: int = 16, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return [torch.randn(tokens, heads, channels, generator=generator, dtype=dtype) for _ in range(3)]


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 6, 8, 12, 16, 20, 32, 48, 112])
def test_slopes_equal_transformers(heads: int) -> None:
    alibi = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)  # slope * position, position 1 last
    assert torch.equal(alibi_slopes(heads), alibi[:, 0, 1])


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_fast_attention_equals_the_definition(lengths: list[int]) -> None:
    batch, bias = packed(lengths), AlibiBias(alibi_slopes(3))
    q, k, v = random_qkv(sum(lengths))
    expected = reference_attention(q, k, v, batch=batch, bias=bias)
    actual = causal_attention(q.float(), k.float(), v.float(), batch=batch, bias=bias)
    torch.testing.assert_close(actual.double(), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_closing_attention_is_the_last_row_of_each_sequence(lengths: list[int]) -> None:
    batch, bias = packed(lengths), AlibiBias(alibi_slopes(3))
    q, k, v = random_qkv(sum(lengths))
    expected = reference_attention(q, k, v, batch=batch, bias=bias)[batch.last_tokens]
    q, k, v = q.float(), k.float(), v.float()
    actual = closing_attention(q[batch.last_tokens], k, v, batch=batch, bias=bias)
    torch.testing.assert_close(actual.double(), expected, atol=2e-6, rtol=1e-5)


def test_the_reference_is_alibi_by_hand() -> None:
    """Two tokens, one head, scores all zero: the second token weighs the first by exp(-slope)."""
    batch, bias = packed([2]), AlibiBias(torch.tensor([0.5]))
    zeros, v = torch.zeros(2, 1, 1), torch.tensor([[[1.0]], [[0.0]]])
    weight = torch.exp(torch.tensor(-0.5)) / (1 + torch.exp(torch.tensor(-0.5)))
    out = reference_attention(zeros, zeros, v, batch=batch, bias=bias)
    torch.testing.assert_close(out.flatten(), torch.stack([torch.tensor(1.0), weight]))


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_folded_channels_are_alibi_even_in_bfloat16(lengths: list[int]) -> None:
    """What the CUDA kernel computes: no bias argument, only extra channels whose summands are bfloat16 numbers."""
    batch, bias = packed(lengths), AlibiBias(alibi_slopes(3))
    q, k, v = (x.bfloat16() for x in random_qkv(sum(lengths)))
    keys = torch.cat([k, bias.key_channels(batch, k)], -1)
    no_bias = AlibiBias(torch.zeros(3))
    scale = (keys.shape[-1] / q.shape[-1]) ** 0.5  # the reference scales by the widened head: undo it
    folded = reference_attention(fold_queries(q).double() * scale, keys.double(), v.double(), batch=batch, bias=no_bias)
    expected = reference_attention(q.double(), k.double(), v.double(), batch=batch, bias=bias)
    torch.testing.assert_close(folded, expected, atol=1e-4, rtol=1e-4)


def test_one_summand_would_not_do() -> None:
    """The number behind the three summands: a single bfloat16 is off by whole logits at 2048 tokens."""
    batch = packed([2048])
    slopes, positions = alibi_slopes(16), positions_from_end(batch)
    exact = positions[:, None].double() * slopes.double() / (1 / 8)
    extra = key_channels(positions, slopes, like_TND=torch.zeros(2048, 16, 64, dtype=torch.bfloat16))
    assert (extra[..., :1].double().sum(-1) - exact).abs().max() / 8 > 1
    assert (extra[..., :SUMMANDS].double().sum(-1) - exact).abs().max() / 8 < 1e-3


def test_channels_are_made_once_a_batch_and_never_for_another() -> None:
    bias, (first, second) = AlibiBias(alibi_slopes(3)), (packed([5, 3]), packed([3, 5]))
    k = random_qkv(8)[1].bfloat16()
    once = bias.key_channels(first, k)
    assert bias.key_channels(first, k) is once
    assert not torch.equal(bias.key_channels(second, k), once)
    assert torch.equal(bias.key_channels(first, k), once)
    assert bias.key_channels(first, k.half()).dtype == torch.float16


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_flash_attention_equals_the_definition(lengths: list[int]) -> None:
    batch = PackedBatch.from_lists([[0] * length for length in lengths], device="cuda")
    bias = AlibiBias(alibi_slopes(3).cuda())
    q, k, v = (x.bfloat16().cuda() for x in random_qkv(sum(lengths), channels=64))
    expected = reference_attention(q.double(), k.double(), v.double(), batch=batch, bias=bias)
    actual = causal_attention(q, k, v, batch=batch, bias=bias)
    torch.testing.assert_close(actual.double(), expected, atol=2e-2, rtol=2e-2)
    last = batch.last_tokens
    closing = closing_attention(q[last], k, v, batch=batch, bias=bias)
    torch.testing.assert_close(closing.double(), expected[last], atol=2e-2, rtol=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_the_gradient_through_flash_attention_is_that_of_the_definition(lengths: list[int]) -> None:
    batch = PackedBatch.from_lists([[0] * length for length in lengths], device="cuda")
    bias = AlibiBias(alibi_slopes(3).cuda())
    halves = [x.bfloat16().cuda() for x in random_qkv(sum(lengths), channels=64)]
    last = batch.last_tokens

    def gradients(kernels: tuple[Callable[..., Tensor], ...], inputs: list[Tensor]) -> list[Tensor]:
        q, k, v = (x.clone().requires_grad_() for x in inputs)
        outputs = [kernel(q, k, v, batch=batch, bias=bias) for kernel in kernels]
        return list(torch.autograd.grad(sum((out * out.detach()).sum() for out in outputs), (q, k, v)))

    def closing(q: Tensor, *others: Tensor, **known: Any) -> Tensor:
        return closing_attention(q[last], *others, **known)

    def definition(*inputs: Tensor, **known: Any) -> Tensor:
        return reference_attention(*inputs, **known)[last]

    expected = gradients((reference_attention, definition), [x.double() for x in halves])
    for actual, exact in zip(gradients((causal_attention, closing), halves), expected, strict=True):
        assert (actual.double() - exact).norm() <= 2e-2 * exact.norm() + 1e-3  # one token: no gradient but roundings
