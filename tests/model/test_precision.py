"""Linear layers in three precisions, each kernel against the plain product (half.py, int8.py: theirs)."""

import pytest
import torch

from udever.errors import OptionError
from udever.model.linear import (
    FEW_ROWS,
    PACKED_AT_ONCE,
    SMALL_WEIGHT,
    EmulatedBf16Linear,
    OneDnnLinear,
    PlainLinear,
    gelu_,
    native_bf16,
)
from udever.model.precision import PRECISIONS, Precision, activation_dtype, make_linear, resolve_precision

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


@pytest.mark.parametrize("columns", [64, 65], ids=["our kernel", "PyTorch's"])
def test_gelu_in_bfloat16_is_exact_but_for_one_rounding(columns: int) -> None:
    values = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.bfloat16)  # all that there are
    values = values[values.abs() < 2.0**60]
    y = values[: len(values) // columns * columns].view(-1, columns)
    exact = torch.nn.functional.gelu(y.double(), approximate="tanh")
    with torch.inference_mode():
        activated = gelu_(y.clone())
    torch.testing.assert_close(activated.double(), exact, rtol=2.0**-7, atol=2.0**-16)


@pytest.mark.skipif(not native_bf16(), reason="this CPU has no bfloat16")
def test_gelu_rounds_alike_in_small_and_large_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(1024, 256, generator=generator).bfloat16() / 16, torch.zeros(1024).bfloat16()
    x, layer = torch.randn(3000, 256, generator=generator).bfloat16(), OneDnnLinear(weight, bias)
    with torch.inference_mode():
        many = layer(x, gelu=True)
        for few in (1, 12, FEW_ROWS + 1, 2048):
            torch.testing.assert_close(layer(x[:few], gelu=True), many[:few], atol=1e-6, rtol=0)


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


@pytest.mark.skipif(not native_bf16(), reason="this CPU has no bfloat16")
@pytest.mark.parametrize("rows", [1, 5, 12, 64, 65, 300])
def test_a_bf16_weight_gives_the_same_bits_before_and_after_it_is_packed(rows: int) -> None:
    weight, bias, _ = random_layer(2 * PACKED_AT_ONCE // 512, 512)
    layer = OneDnnLinear(weight.bfloat16(), bias.bfloat16())
    assert not layer.weight.is_mkldnn, "it lies as it did"
    x = torch.randn(rows, 512, generator=torch.Generator().manual_seed(rows))
    with torch.inference_mode():
        before = [layer(x, gelu=gelu) for gelu in (False, True)]
        layer.prepack()
        after = [layer(x, gelu=gelu) for gelu in (False, True)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("gelu", [False, True], ids=["linear", "gelu"])
def test_prepacked_fp32_equals_plain(gelu: bool) -> None:
    weight, bias, x = random_layer()
    expected = PlainLinear(weight, bias)(x, gelu=gelu)
    torch.testing.assert_close(OneDnnLinear(weight, bias)(x, gelu=gelu), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("gelu", [False, True], ids=["linear", "gelu"])
@pytest.mark.parametrize("rows", [1, 13, FEW_ROWS, FEW_ROWS + 1, 200])
@pytest.mark.parametrize("outputs", [512, SMALL_WEIGHT // 256 + 1])
def test_few_rows_and_many_give_the_same_numbers(outputs: int, rows: int, gelu: bool) -> None:
    weight, bias, _ = random_layer(rows=outputs, columns=256)
    x = torch.randn(rows, 256, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        y = PlainLinear(weight, bias)(x, gelu=gelu)
    exact = x.double() @ weight.double().T + bias.double()
    if gelu:
        exact = torch.nn.functional.gelu(exact, approximate="tanh")
    torch.testing.assert_close(y.double(), exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [3, FEW_ROWS + 1])
def test_a_gradient_passes_through_a_plain_layer(rows: int) -> None:
    weight, bias, _ = random_layer(rows=16, columns=32)
    x = torch.randn(rows, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    PlainLinear(weight, bias)(x, gelu=True).sum().backward()  # type: ignore[no-untyped-call]
    exact = x.detach().double().requires_grad_()
    y = torch.nn.functional.gelu(exact @ weight.double().T + bias.double(), approximate="tanh")
    y.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(x.grad.double(), exact.grad, atol=1e-4, rtol=1e-4)


def test_auto_is_bf16_where_the_cpu_has_it() -> None:
    assert resolve_precision("auto", device=CPU) == ("bf16" if native_bf16() else "fp32")


def test_an_unknown_precision_names_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"'fp8'.*auto, fp32, bf16 or int8"):
        resolve_precision("fp8", device=CPU)
