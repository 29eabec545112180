"""Weights that float16 holds: exact as they lie and packed, by each kernel, and never packed where that would lose."""

import pytest
import torch
from torch import Tensor

from udever.model.half import HalfWeightLinear, has_half_weights
from udever.model.linear import FEW_ROWS, PACKED_AT_ONCE, SMALL_WEIGHT, OneDnnLinear, PlainLinear, prepacking_pays
from udever.model.precision import make_linear

pytestmark = pytest.mark.skipif(not has_half_weights(), reason="no FBGEMM on this machine")
COLUMNS = 256
SIZES = {"small": 512, "medium": SMALL_WEIGHT // COLUMNS + 1, "large": PACKED_AT_ONCE // COLUMNS + 1}
"""Outputs: of a weight kept in float32 too, of one packed at once, of one that waits for `prepack`."""


def layer_of(outputs: int, dtype: torch.dtype) -> tuple[HalfWeightLinear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(outputs, COLUMNS, generator=generator) / COLUMNS**0.5).half().to(dtype)
    weight = weight.half().to(dtype)  # bfloat16 has subnormal numbers that float16 has not
    bias = torch.randn(outputs, generator=generator)
    return HalfWeightLinear(weight, bias), weight.double(), bias.double()


@pytest.mark.parametrize("gelu", [False, True], ids=["linear", "gelu"])
@pytest.mark.parametrize("rows", [1, 13, FEW_ROWS, FEW_ROWS + 1, 200])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("outputs", SIZES.values(), ids=SIZES.keys())
def test_packed_or_not_it_is_the_exact_product(outputs: int, dtype: torch.dtype, rows: int, gelu: bool) -> None:
    layer, weight, bias = layer_of(outputs, dtype)
    x = torch.randn(rows, COLUMNS, generator=torch.Generator().manual_seed(1))
    exact = x.double() @ weight.T + bias
    if gelu:
        exact = torch.nn.functional.gelu(exact, approximate="tanh")
    assert (layer.packed is None) == (outputs == SIZES["large"])
    for _ in range(2):
        with torch.inference_mode():
            y = layer(x, gelu=gelu)
        assert y.dtype == torch.float32
        torch.testing.assert_close(y.double(), exact, atol=1e-5, rtol=1e-5)
        layer.prepack()
        assert layer.packed is not None


@pytest.mark.parametrize("outputs", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("number", [2.0**-30, 2.0**-25, 65536.0, 1 + 2.0**-11])
def test_a_number_that_float16_lacks_is_kept(number: float, dtype: torch.dtype, outputs: int) -> None:
    weight = torch.zeros(outputs, COLUMNS, dtype=dtype)
    weight[-1, -1] = number
    layer = HalfWeightLinear(weight, torch.zeros(outputs))
    layer.prepack()
    assert (layer.packed is None) == (weight[-1, -1] != 1), "bfloat16 has no 1 + 2^-11, but 1"
    for rows in (1, FEW_ROWS + 1):
        with torch.inference_mode():
            assert torch.equal(layer(torch.ones(rows, COLUMNS))[:, -1], weight[-1, -1].float().expand(rows))


def test_every_number_of_float16_survives_packing() -> None:
    numbers = torch.arange(-(2**15), 2**15).short().view(torch.float16)
    numbers = numbers[numbers.isfinite()].view(-1, 64)
    packed = HalfWeightLinear(numbers, torch.zeros(len(numbers)))
    with torch.inference_mode():
        found = packed(torch.eye(64)).T
    assert packed.packed is not None
    assert torch.equal(found, numbers.float())


def test_fp32_is_made_so_where_it_is_the_fastest() -> None:
    weight = torch.ones(8, 8)
    expected = OneDnnLinear if prepacking_pays() else HalfWeightLinear
    assert type(make_linear(weight, torch.zeros(8), precision="fp32")) is expected
    on_meta = make_linear(weight.to("meta"), torch.zeros(8, device="meta"), precision="fp32")
    assert type(on_meta) is PlainLinear, "for other devices than the CPU"
