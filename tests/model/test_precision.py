"""Linear layers in three precisions: each kernel against the plain product, and the token independence of int8."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from udever.errors import OptionError
from udever.model.precision import (
    PRECISIONS,
    ZERO_POINT,
    EmulatedBf16Linear,
    Int8Linear,
    OneDnnLinear,
    PlainLinear,
    Precision,
    activation_dtype,
    make_linear,
    native_bf16,
    native_int8,
    quantize_tokens,
    quantize_weight,
    resolve_precision,
)

CPU = torch.device("cpu")
TOLERANCE = {"fp32": 1e-6, "bf16": 6e-3, "int8": 2e-2}


def random_layer(rows: int = 24, columns: int = 64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(shape, generator=generator) for shape in ((rows, columns), (rows,), (50, columns))]
    return draw[0] / columns**0.5, draw[1], draw[2]


@pytest.mark.parametrize("gelu", [False, True], ids=["linear", "gelu"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_precision_is_near_the_exact_product(precision: Precision, gelu: bool) -> None:
    weight, bias, x = random_layer()
    exact = x.double() @ weight.double().T + bias.double()
    if gelu:
        exact = torch.nn.functional.gelu(exact, approximate="tanh")
    y = make_linear(weight, bias, precision=precision)(x, gelu=gelu)
    assert y.dtype == activation_dtype(precision, device=CPU)
    error = (y.double() - exact).norm() / exact.norm()
    assert error <= TOLERANCE[precision]
    if precision != "fp32":
        assert error > 1e-6, "a reduced precision that reduces nothing is not what it says"


def test_emulated_bf16_rounds_as_bfloat16_does() -> None:
    weight, bias, x = random_layer()
    y = EmulatedBf16Linear(weight.bfloat16(), bias)(x)
    rounded = x.bfloat16().double() @ weight.bfloat16().double().T + bias.double()
    torch.testing.assert_close(y.double(), rounded, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not native_bf16(), reason="this CPU has no bfloat16: the emulated kernel is tested instead")
def test_native_bf16_equals_its_emulation() -> None:
    weight, bias, x = random_layer()
    native = OneDnnLinear(weight.bfloat16(), bias.bfloat16())(x)
    torch.testing.assert_close(native.float(), EmulatedBf16Linear(weight.bfloat16(), bias)(x), atol=0.05, rtol=0.01)


@pytest.mark.parametrize("gelu", [False, True], ids=["linear", "gelu"])
def test_prepacked_fp32_equals_plain(gelu: bool) -> None:
    weight, bias, x = random_layer()
    expected = PlainLinear(weight, bias)(x, gelu=gelu)
    torch.testing.assert_close(OneDnnLinear(weight, bias)(x, gelu=gelu), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not native_int8(), reason="this CPU has no VNNI: the emulated kernel is tested instead")
def test_native_int8_equals_its_emulation() -> None:
    weight, bias, x = random_layer()
    layer = make_linear(weight, bias, precision="int8")
    assert isinstance(layer, Int8Linear)
    weight_q, scales = quantize_weight(weight)
    x_u8, token_scales = quantize_tokens(x)
    expected = ((x_u8.float() - ZERO_POINT) @ weight_q.float().T) * scales * token_scales + bias
    torch.testing.assert_close(layer(x).float(), expected, atol=0.05, rtol=0.01)


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 20), seed=st.integers(0, 999), spread=st.floats(1e-3, 1e3))
def test_int8_rows_do_not_see_each_other(rows: int, seed: int, spread: float) -> None:
    """A per-batch scale would let one loud token silence its neighbours."""
    weight, bias, _ = random_layer()
    layer = make_linear(weight, bias, precision="int8")
    x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(seed))
    loud = torch.cat([x, x[:1] * spread])
    torch.testing.assert_close(layer(loud)[:rows], torch.cat([layer(row[None]) for row in x]), atol=1e-5, rtol=1e-5)


def test_quantised_numbers_fill_the_range() -> None:
    weight, _, x = random_layer()
    weight_q, scales = quantize_weight(weight)
    assert weight_q.dtype == torch.int8
    assert (weight_q.abs().amax(1) == 127).all()
    torch.testing.assert_close(weight_q.float() * scales[:, None], weight, atol=scales.max().item() / 2, rtol=0)
    x_u8, token_scales = quantize_tokens(x)
    x_q = x_u8.float() - ZERO_POINT
    assert (x_q.abs().amax(1) == 127).all()
    assert (x_q * token_scales - x).abs().max() <= token_scales.max() / 2 * 1.001


def test_a_row_of_zeros_quantises_to_zeros() -> None:
    x_u8, scale = quantize_tokens(torch.zeros(2, 8))
    assert (x_u8 == ZERO_POINT).all()
    assert torch.isfinite(scale).all()


def test_auto_is_bf16_where_the_cpu_has_it() -> None:
    assert resolve_precision("auto", device=CPU) == ("bf16" if native_bf16() else "fp32")


def test_an_unknown_precision_names_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"'fp8'.*auto, fp32, bf16 or int8"):
        resolve_precision("fp8", device=CPU)
