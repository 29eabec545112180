"""The compiled kernels, each build that this CPU runs, against the PyTorch code that they replace; and their build."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from udever.model import native
from udever.model.attention import AlibiBias, alibi_slopes, causal_attention, closing_attention, reference_attention
from udever.model.batch import PackedBatch
from udever.model.bloom import Bloom, closing_states
from udever.model.config import TABLE, BloomConfig
from udever.model.int8 import quantize_tokens
from udever.model.native import Form, Rounded

BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32
CPU_RUNS = {
    "avx2": torch.cpu._is_avx2_supported(),
    "avx512": torch.cpu._is_avx512_supported(),
    "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
}
FORMS = [Form(), Form(BFLOAT16), Form(None, rounded=True), Form(BFLOAT16, rounded=True)]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = FLOAT32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(params=CPU_RUNS, autouse=True)
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each build in turn is the one that the model uses, in inference."""
    if not CPU_RUNS[request.param]:
        pytest.skip(f"this CPU does not run {request.param}")
    library = native.open_library(native.KERNELS / f"{request.param}.so")
    if library is None:
        pytest.skip("the kernels were not compiled: a GCC is not installed here, or was not when udever was")
    monkeypatch.setattr(native, "kernels", lambda: library)
    with torch.inference_mode():
        yield request.param


def packed(lengths: list[int]) -> PackedBatch:
    return PackedBatch.from_lists([[0] * length for length in lengths])


@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=6),
    heads=st.integers(1, 5),
    channels=st.sampled_from([1, 2, 7, 16, 20, 32, 64, 80, 128]),
    dtype=st.sampled_from([FLOAT32, BFLOAT16]),
)
def test_attention_equals_the_definition(lengths: list[int], heads: int, channels: int, dtype: torch.dtype) -> None:
    batch, bias = packed(lengths), AlibiBias(alibi_slopes(heads))
    q, k, v = draw(sum(lengths), 3, heads, channels, dtype=dtype).unbind(1)  # as a projection lies in memory
    expected = reference_attention(q.double(), k.double(), v.double(), batch=batch, bias=bias)
    exact = {"atol": 2e-6, "rtol": 1e-5} if dtype == FLOAT32 else {"atol": 0.02, "rtol": 0.01}
    actual = causal_attention(q, k, v, batch=batch, bias=bias)
    torch.testing.assert_close(actual.double(), expected, **exact)
    last = closing_attention(q[batch.last_tokens], k, v, batch=batch, bias=bias)
    torch.testing.assert_close(last.double(), expected[batch.last_tokens], **exact)


@pytest.mark.parametrize("length", [511, 2048])
def test_attention_over_long_texts_errs_no_more_than_pytorch(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, bias = packed([length, 3]), AlibiBias(alibi_slopes(4))
    for dtype in (FLOAT32, BFLOAT16):
        q, k, v = (2 * draw(length + 3, 3, 4, 64, dtype=dtype)).unbind(1)
        expected = reference_attention(q.double(), k.double(), v.double(), batch=batch, bias=bias)
        ours = causal_attention(q, k, v, batch=batch, bias=bias)
        with monkeypatch.context() as without:
            without.setattr(native, "kernels", lambda: None)
            theirs = causal_attention(q, k, v, batch=batch, bias=bias)
        assert (ours - expected).norm() <= 1.1 * (theirs - expected).norm()


@pytest.mark.parametrize("width", [16, 48, 256, 1040])
@pytest.mark.parametrize("added", [None, FLOAT32, BFLOAT16], ids=str)
def test_the_norm_of_a_sum_in_each_form(width: int, added: torch.dtype | None) -> None:
    more = None if added is None else draw(37, width, seed=1, dtype=added)
    weight, bias = draw(width, seed=2), draw(width, seed=3)
    for form in FORMS:
        hidden = 3 * draw(37, width) + 1
        total = hidden if more is None else hidden + more
        expected = F.layer_norm(total, (width,), weight, bias, 1e-5)
        made = native.norm(hidden, more, weight=weight, bias=bias, epsilon=1e-5, form=form)
        torch.testing.assert_close(hidden, total, atol=0, rtol=0)  # the sum stays in its place
        assert_has_form(made, form, expected)


def assert_has_form(made: Tensor | Rounded, form: Form, expected: Tensor) -> None:
    exact = made.exact if isinstance(made, Rounded) else made
    assert (exact is None) == (form.dtype is None)
    if exact is not None:
        assert exact.dtype == form.dtype
        rounding = 1e-5 if form.dtype == FLOAT32 else 2**-8
        torch.testing.assert_close(exact.float(), expected.float(), atol=1e-5, rtol=rounding)
    assert isinstance(made, Rounded) == form.rounded
    if isinstance(made, Rounded):
        numbers, scales = quantize_tokens(expected)
        torch.testing.assert_close(made.scales, scales, atol=0, rtol=2**-7)
        assert (made.numbers.int() - numbers.int()).abs().max() <= 1
        assert (made.numbers != numbers).float().mean() < 0.01  # what was about half way between two


@pytest.mark.parametrize("kept", [0, 5])
@pytest.mark.parametrize("gelu", [False, True], ids=["linear", "gelu"])
@pytest.mark.parametrize("form", FORMS[1:], ids=str)
def test_finish_is_scale_bias_kept_columns_and_gelu(form: Form, gelu: bool, kept: int) -> None:
    y, token_scales = 50 * draw(33, 96, dtype=BFLOAT16), draw(33, 1, seed=1, dtype=BFLOAT16).abs()
    bias, columns = draw(96, seed=2, dtype=BFLOAT16), torch.tensor([0, 1, 17, 94, 95][:kept], dtype=torch.int64)
    own = draw(33, kept, seed=3, dtype=BFLOAT16)
    expected = y.float() * token_scales.float() + bias.float()
    expected[:, columns] = own.float()
    if gelu:
        expected = F.gelu(expected, approximate="tanh")
    made = native.finish(
        y, token_scales=token_scales, bias=bias, kept=own if kept else None, columns=columns, gelu=gelu, form=form
    )
    assert_has_form(made, form, expected)


def test_gelu_of_every_bfloat16_is_off_by_one_rounding_at_most() -> None:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(BFLOAT16).view(-1, 16)
    finite = x.float().abs() < 1e30
    wide = x.double()
    u = (2 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3)
    exact = wide / (1 + torch.exp(-2 * u))  # PyTorch's 1 + tanh(u) cancels where it is small
    y = native.gelu_(x.clone()).double()
    assert ((y - exact).abs() <= exact.abs() * 2**-8 + wide.abs() * 2**-120 + 1e-30)[finite].all()
    assert y.isnan()[x.isnan()].all()
    in_float32 = native.gelu_(x.float()).double()
    assert ((in_float32 - exact).abs() <= 2e-6 * exact.abs() + 1e-7 * wide.abs())[finite].all()


def test_nan_and_infinity_are_not_lost_on_the_way() -> None:
    hidden = torch.ones(3, 32)
    hidden[0, 3], hidden[1, 4] = torch.nan, torch.inf
    for form in (Form(), Form(BFLOAT16)):
        made = native.norm(hidden.clone(), None, weight=torch.ones(32), bias=torch.ones(32), epsilon=1e-5, form=form)
        assert isinstance(made, Tensor)
        assert made[:2].isnan().any(1).all()
        assert made[2].isfinite().all()
    int8 = native.norm(hidden, None, weight=torch.ones(32), bias=torch.ones(32), epsilon=1e-5, form=FORMS[2])
    assert isinstance(int8, Rounded)
    assert int8.scales.isnan().flatten().tolist() == [True, True, False]


def test_a_row_and_a_sequence_are_computed_from_themselves_on_any_number_of_threads() -> None:
    """Bit for bit: alone or among others, on one thread or several."""
    lengths = [70, 1, 33, 200]
    batch, bias = packed(lengths), AlibiBias(alibi_slopes(3))
    hidden, weight, before = draw(304, 256), torch.ones(256), torch.get_num_threads()
    for dtype in (FLOAT32, BFLOAT16):
        q, k, v = draw(304, 3, 3, 32, dtype=dtype).unbind(1)
        outs = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            made = native.norm(hidden.clone(), None, weight=weight, bias=weight, epsilon=1e-5, form=Form(dtype))
            outs.append((causal_attention(q, k, v, batch=batch, bias=bias), made))
        torch.set_num_threads(before)
        assert all(torch.equal(a, b) for other in outs[1:] for a, b in zip(outs[0], other, strict=True))
        alone = [x[71:104] for x in (q, k, v)]
        assert torch.equal(causal_attention(*alone, batch=packed([33]), bias=bias), outs[0][0][71:104])
        row = native.norm(hidden[7:8].clone(), None, weight=weight, bias=weight, epsilon=1e-5, form=Form(dtype))
        assert torch.equal(row, outs[0][1][7:8])


@pytest.mark.parametrize("post_layernorm_residual", [False, True], ids=["pre", "post"])
@pytest.mark.parametrize(("precision", "least"), [("fp32", 1 - 1e-6), ("bf16", 0.9999), ("int8", 0.999)])
def test_a_model_gives_the_same_vectors_without_them(
    random_tensors: Callable[..., dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch, precision: Any, least: float,
    post_layernorm_residual: bool,
) -> None:  # fmt: skip
    config = BloomConfig(width=96, layers=3, heads=3, vocab_size=512, post_layernorm_residual=post_layernorm_residual)
    tensors = random_tensors(config)
    model = Bloom(config, tensors, table=tensors.pop(TABLE), precision=precision)
    batch = PackedBatch.from_lists([[(7 * i + length) % 512 for i in range(length)] for length in (90, 33, 33, 4, 1)])
    ours = closing_states(model, batch)
    monkeypatch.setattr(native, "kernels", lambda: None)
    assert F.cosine_similarity(ours, closing_states(model, batch)).min() >= least


def test_the_kernels_are_really_what_computes(
    random_tensors: Callable[..., dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is called by a model, and none is where a gradient may be wanted or rows do not fit."""
    called: set[str] = set()
    real = native._call
    monkeypatch.setattr(native, "_call", lambda name, *arguments: (called.add(name), real(name, *arguments)))
    config = BloomConfig(width=64, layers=2, heads=2, vocab_size=512)
    tensors = random_tensors(config)
    table, batch = tensors.pop(TABLE), PackedBatch.from_lists([[5, 6, 7]])
    closing_states(Bloom(config, tensors, table=table, precision="fp32"), batch)
    assert called >= {"norm", "attention"}  # and GELU, where no product has it fused
    with torch.inference_mode(False), torch.no_grad():
        assert not native.serves(torch.ones(2, 64))
    assert native.serves_rows(torch.ones(2, 64))
    assert not native.serves_rows(torch.ones(2, 60))
    assert not native.serves_rows(torch.ones(2, 128)[:, :64])
    assert not native.serves(torch.ones(2, 64, dtype=torch.float64))


def test_a_build_of_another_source_is_not_used(monkeypatch: pytest.MonkeyPatch, build: str, tmp_path: Path) -> None:
    path = native.KERNELS / f"{build}.so"
    assert native.open_library(path) is not None
    monkeypatch.setattr(native, "source_hash", lambda: "0" * 64)
    assert native.open_library(path) is None
    assert native.open_library(tmp_path / "nothing.so") is None
