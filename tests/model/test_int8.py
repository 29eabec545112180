"""int8 layers: every kernel against the whole numbers it stands for, token independence, rows that stay as they are."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from udever.model import int8
from udever.model.int8 import (
    COARSE,
    EMULATED,
    FBGEMM,
    ONEDNN,
    PAIR_MAX,
    ZERO_POINT,
    Int8Linear,
    Kernel,
    native_kernel,
    quantize_tokens,
    quantize_weight,
    restored,
)
from udever.model.linear import runs
from udever.model.precision import make_linear

KERNELS = {"onednn": ONEDNN, "fbgemm": FBGEMM, "emulated": EMULATED}
HERE = [name for name, kernel in KERNELS.items() if runs(partial(int8._probe, kernel))]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=HERE)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Each kernel that runs here, made the one that layers use."""
    chosen = KERNELS[request.param]
    monkeypatch.setattr(int8, "native_kernel", lambda: chosen)
    return chosen


def test_this_machine_has_the_kernel_that_its_instructions_allow() -> None:
    assert "emulated" in HERE
    assert native_kernel() is (KERNELS[HERE[0]] if HERE[0] != "emulated" else None)
    if torch.cpu._is_vnni_supported():  # a refused call would let FBGEMM stand in, and nobody would notice
        assert native_kernel() is ONEDNN
    if torch.backends.cpu.get_cpu_capability() == "AVX2" and "fbgemm" in torch.backends.quantized.supported_engines:
        assert native_kernel() is not None


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_a_kernel_gives_the_sums_of_its_whole_numbers(kernel: Kernel, rows: int) -> None:
    weight, x = draw(256, 128), draw(rows, 128, seed=1) * torch.logspace(-3, 3, rows)[:, None]
    quantized = quantize_weight(weight)
    product, token_scales = kernel.product(x, kernel.pack(quantized.weight, quantized.scales), torch.float32)
    _, scale = quantize_tokens(x)
    expected = (x / scale).round().double() @ quantized.weight.double().T * quantized.scales.double() * scale
    # a number halfway between two whole ones may go either way
    assert ((product * token_scales - expected).abs() / scale).max() <= 2 * quantized.scales.max() * 127
    assert (product * token_scales - expected).norm() / expected.norm() <= 1e-3


def test_the_largest_products_do_not_saturate(kernel: Kernel) -> None:
    """The loudest activations against weights whose neighbours come as near to the limit as they may."""
    weight = draw(64, 256, seed=3).abs() + 1
    weight[1::2] = -weight[1::2]
    quantized = quantize_weight(weight)
    pairs = quantized.weight.int().abs().view(64, -1, 2).sum(-1)
    assert pairs.amax() >= PAIR_MAX - 1
    x = torch.ones(5, 256)
    x[1] = -1
    product, token_scales = kernel.product(x, kernel.pack(quantized.weight, torch.ones(64)), torch.float32)
    scale = quantize_tokens(x)[1].float() * 127
    torch.testing.assert_close(product * token_scales, x[:, :1] * scale * quantized.weight.float().sum(1))


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 5), columns=st.integers(1, 33), seed=st.integers(0, 9999), power=st.floats(0.3, 6))
def test_neighbouring_weights_never_come_to_more_than_128(rows: int, columns: int, seed: int, power: float) -> None:
    weight = draw(rows, columns, seed=seed)
    quantized = quantize_weight(weight.sign() * weight.abs() ** power)
    pairs = torch.nn.functional.pad(quantized.weight.int().abs(), (0, columns % 2)).view(rows, -1, 2).sum(-1)
    assert pairs.max() <= 128
    assert pairs.amax(1).min() >= PAIR_MAX - 1, "the range is filled"


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 20), seed=st.integers(0, 999), spread=st.floats(1e-3, 1e3))
def test_int8_rows_do_not_see_each_other(rows: int, seed: int, spread: float) -> None:
    """A per-batch scale would let one loud token silence its neighbours."""
    layer = make_linear(draw(24, 64) / 8, draw(24, seed=1), precision="int8")
    x = draw(rows, 64, seed=seed)
    loud = torch.cat([x, x[:1] * spread])
    torch.testing.assert_close(layer(loud)[:rows], torch.cat([layer(row[None]) for row in x]), atol=1e-5, rtol=1e-5)


def test_quantised_numbers_are_near_the_numbers() -> None:
    weight, x = draw(24, 64) / 8, draw(50, 64, seed=1)
    quantized = quantize_weight(weight)
    assert quantized.weight.dtype == torch.int8
    atol = quantized.scales.max().item() / 2 * 1.001
    torch.testing.assert_close(quantized.weight.float() * quantized.scales[:, None], weight, atol=atol, rtol=0)
    x_u8, token_scales = quantize_tokens(x)
    x_q = x_u8.float() - ZERO_POINT
    assert (x_q.abs().amax(1) == 127).all()
    assert (x_q * token_scales - x).abs().max() <= token_scales.max() / 2 * 1.001


@pytest.mark.parametrize("factor", [1.0, 1.003, 1.007, 1.5])
def test_a_tokens_scale_is_a_number_of_bfloat16_and_the_largest_number_stays_in_range(factor: float) -> None:
    x = draw(200, 64) * factor
    x_u8, scales = quantize_tokens(x)
    assert scales.dtype == torch.bfloat16
    assert (scales.float() * 127 / x.abs().amax(1, keepdim=True) - 1).abs().max() <= 2**-8
    assert ((x_u8.float() - ZERO_POINT).sign() == x.sign()).logical_or(x.abs() < scales).all(), "nothing wraps around"


def test_a_weight_of_which_most_rows_stay_is_not_int8_at_all() -> None:
    weight, bias, x = draw(48, 256), draw(48, seed=1), draw(9, 256, seed=2)
    weight[:30, 0] = 120
    quantized = quantize_weight(weight)
    layer = make_linear(weight, bias, precision="int8")
    assert not isinstance(layer, Int8Linear)
    exact = x @ weight.T + bias
    error = (layer(x).float() - exact).norm(dim=0) / exact.norm(dim=0)
    assert error[:30].max() <= 0.01
    assert error.max() <= 0.03
    torch.testing.assert_close(restored(quantized)[:30], weight[:30])
    assert isinstance(make_linear(weight[20:], bias[20:], precision="int8"), Int8Linear)


def test_ordinary_rows_become_int8_and_rows_under_one_large_weight_stay(kernel: Kernel) -> None:
    """With one weight 40 times the others, 127 steps leave the others three; so such a row is computed as it is."""
    weight, bias, x = draw(48, 256), draw(48, seed=1), draw(9, 256, seed=2)
    weight[[3, 20, 47], [0, 9, 9]] = 120
    quantized = quantize_weight(weight.half())
    assert quantized.kept.tolist() == [{3: 0, 20: 1, 47: 2}.get(row, -1) for row in range(48)]
    torch.testing.assert_close(quantized.rows, weight.half()[[3, 20, 47]])
    layer = Int8Linear(quantized, bias, out_dtype=torch.float32)
    x[:, [0, 9]] = 0  # the large weights then say nothing, and all of a row's answer comes from the others
    for gelu in (False, True):
        exact = x @ weight.half().float().T + bias
        exact = torch.nn.functional.gelu(exact, approximate="tanh") if gelu else exact
        error = (layer(x, gelu=gelu) - exact).norm(dim=0) / exact.norm(dim=0)
        assert error[[3, 20, 47]].max() <= 1e-5
        assert error.median() <= 0.03
    rounded = (weight / quantized.scales[:, None]).round() * quantized.scales[:, None]
    assert ((rounded - weight).norm(dim=1) / weight.norm(dim=1))[[3, 20, 47]].min() > COARSE


def test_a_row_of_zeros_quantises_to_zeros(kernel: Kernel) -> None:
    x_u8, scale = quantize_tokens(torch.zeros(2, 8))
    assert (x_u8 == ZERO_POINT).all()
    assert torch.isfinite(scale).all()
    weight = draw(16, 64)
    weight[5] = 0
    layer = make_linear(weight, torch.arange(16.0), precision="int8")
    torch.testing.assert_close(layer(torch.zeros(2, 64)).float(), torch.arange(16.0).expand(2, 16))
    assert (layer(draw(2, 64, seed=1))[:, 5] == 5).all()
