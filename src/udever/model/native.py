"""The compiled kernels (kernels/*.c): what lies between BLOOM's matrix products on a CPU, in one pass each.

    norm: hidden += added, normed -> as the next product takes it
    finish: an int8 product's scales, bias and GELU -> as the next product takes it
    attention: causal ALiBi over packed sequences

They are there if a C compiler was when the package was installed (hatch_build.py); without them PyTorch computes the
same in three to ten passes. In inference only: nothing here has a gradient.
Invariant: up to rounding the numbers of the PyTorch code that each replaces; a row depends on itself only.

Shapes: T packed tokens, S sequences, N heads, D channels a head, W numbers a row.
"""

import ctypes
import hashlib
from ctypes import c_float, c_int, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

KERNELS = Path(__file__).parent / "kernels"
"""Source and builds."""
KINDS = {torch.float32: 0, torch.bfloat16: 1}
"""As vectors.h numbers them."""
ROW_NUMBERS = 16
"""A row is a multiple of so many numbers: one vector of the widest registers."""
SHARED_NUMBERS = 1 << 15
"""From so many numbers on, the cores share them."""
PRODUCTS_AS_ONE = 16
"""Of attention's, which take as long as reading and writing one number."""


class Form(NamedTuple):
    """How a linear layer likes its input best."""

    dtype: torch.dtype | None = torch.float32
    """Of the numbers themselves; None: they are not wanted."""
    rounded: bool = False
    """Whether it multiplies in int8."""


class Rounded(NamedTuple):
    """Activations [T, W] for an int8 product."""

    numbers: Tensor
    """uint8 [T, W], around 128."""
    scales: Tensor
    """bfloat16 [T, 1]: what 1 stands for in each token."""
    exact: Tensor | None
    """bfloat16 [T, W]: the numbers themselves, for a layer that multiplies some of its rows so."""


class _Outputs(ctypes.Structure):
    _fields_ = (("rounded", c_void_p), ("scales", c_void_p), ("half", c_void_p), ("wide", c_void_p))


_SIGNATURES = {
    "norm": (c_void_p, c_void_p, c_int, c_size_t, c_size_t, c_void_p, c_void_p, c_float, _Outputs, c_int),
    "finish": (
        *(c_void_p, c_int, c_size_t, c_size_t, c_void_p, c_void_p),
        *(c_void_p, c_void_p, c_size_t, c_int, _Outputs, c_int),
    ),
    "attention": (
        *(c_void_p, c_size_t, c_void_p, c_void_p, c_size_t, c_int),
        *(c_void_p, c_size_t, c_size_t, c_size_t, c_void_p, c_int, c_size_t, c_void_p, c_int),
    ),
}


def library_name() -> str | None:
    """The build of the kernels for what PyTorch uses of this CPU, as hatch_build.py names it; None: there is none."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability.startswith("AVX512"):
        return "avx512_bf16" if torch.cpu._is_avx512_bf16_supported() else "avx512"
    return "avx2" if capability == "AVX2" else None


@cache
def kernels() -> ctypes.CDLL | None:
    """The kernels for this CPU; None where there are none."""
    name = library_name()
    return open_library(KERNELS / f"{name}.so") if name else None


def open_library(path: Path) -> ctypes.CDLL | None:
    """A build of the kernels; None if it is not there, or is of another source than ours, or finds no OpenMP."""
    try:
        library = ctypes.CDLL(str(path))
        source = ctypes.c_char_p.in_dll(library, "udever_source").value
    except (OSError, ValueError):
        return None
    if source != source_hash().encode():
        return None
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, f"udever_{name}")
        function.argtypes, function.restype = arguments, None
    return library


def source_hash() -> str:
    """Of the source; each build has it in it."""
    digest = hashlib.sha256()
    for source in sorted([*KERNELS.glob("*.c"), *KERNELS.glob("*.h")]):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def in_use() -> str:
    """What `kernels` found, for people to read."""
    return f"compiled for {library_name()}" if kernels() else "none: udever was installed without GCC"


def serves(*tensors: Tensor) -> bool:
    """Whether there are kernels for these tensors' device and dtype, and no gradient is wanted."""
    known = all(x.is_cpu and x.dtype in KINDS for x in tensors)
    return known and torch.is_inference_mode_enabled() and kernels() is not None


def serves_rows(*tensors: Tensor) -> bool:
    """The same for [T, W], whose rows must lie as the kernels read them."""
    return all(x.shape[-1] % ROW_NUMBERS == 0 and x.is_contiguous() for x in tensors) and serves(*tensors)


def norm(
    hidden: Tensor, added: Tensor | None, *, weight: Tensor, bias: Tensor, epsilon: float, form: Form
) -> Tensor | Rounded:
    """`hidden += added`, in place; its layer norm in the form that the next product takes.

    Args:
        hidden: float32 [T, W].
        added: float32 or bfloat16 [T, W].
        weight, bias: float32 [W].
    """
    out, to = _outputs(form, like=hidden)
    _call(
        "norm", hidden.data_ptr(), _pointer(added), KINDS[added.dtype] if added is not None else 0, *hidden.shape,
        weight.data_ptr(), bias.data_ptr(), epsilon, to, _threads(hidden.numel()),
    )  # fmt: skip
    return out


def finish(
    y: Tensor,
    *,
    token_scales: Tensor,
    bias: Tensor,
    kept: Tensor | None = None,
    columns: Tensor,
    gelu: bool = False,
    form: Form,
) -> Tensor | Rounded:
    """What an int8 product lacks: `y * token_scales + bias`, kept columns from their own product, GELU; y is used up.

    Args:
        y: bfloat16 [T, W].
        token_scales: bfloat16 [T, 1].
        bias: bfloat16 [W].
        kept: bfloat16 [T, K], what goes to the `columns`, int64 [K].
        form: bfloat16 or rounded.
    """
    out, to = _outputs(form, like=y, room=y)
    _call(
        "finish", y.data_ptr(), KINDS[y.dtype], *y.shape, token_scales.data_ptr(), bias.data_ptr(),
        _pointer(kept), columns.data_ptr(), len(columns), gelu, to, _threads(y.numel()),
    )  # fmt: skip
    return out


def rounded(x: Tensor) -> Rounded:
    """bfloat16 [T, W] for an int8 product."""
    out, to = _rounded_outputs(x.shape, exact=None)
    _finish_alone(x, to, gelu=False)
    return out._replace(exact=x)


def gelu_(y: Tensor) -> Tensor:
    """GELU in its tanh form, in place; float32 or bfloat16 [T, W]."""
    _finish_alone(y, _float_outputs(y), gelu=True)
    return y


def _finish_alone(x: Tensor, to: _Outputs, *, gelu: bool) -> None:
    """`finish` of numbers that lack nothing."""
    kind, threads = KINDS[x.dtype], _threads(x.numel())
    _call("finish", x.data_ptr(), kind, *x.shape, None, None, None, None, 0, gelu, to, threads)


def attention(
    q: Tensor, k_TND: Tensor, v_TND: Tensor, *, cu_seqlens: Tensor, longest: int, slopes_N: Tensor, closing: bool
) -> Tensor:
    """Causal ALiBi attention, softmax in float32; of all queries [T, N, D], or (closing) of each last one [S, N, D].

    The inputs may be views of one projection: a token's heads and channels stand together.
    """
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    sequences, products = len(cu_seqlens) - 1, k_TND.numel() * (1 if closing else longest)
    _call(
        "attention", q.data_ptr(), q.stride(0), k_TND.data_ptr(), v_TND.data_ptr(), k_TND.stride(0), KINDS[q.dtype],
        cu_seqlens.data_ptr(), sequences, *q.shape[1:], slopes_N.data_ptr(), closing, longest, out.data_ptr(),
        _threads(products // PRODUCTS_AS_ONE),
    )  # fmt: skip
    return out


def _outputs(form: Form, *, like: Tensor, room: Tensor | None = None) -> tuple[Tensor | Rounded, _Outputs]:
    """Memory for rows in this form, and the same as the kernels take it.

    Args:
        room: taken instead of fresh memory for numbers of its dtype.
    """
    exact = None
    if form.dtype is not None:
        exact = room if room is not None and room.dtype == form.dtype else torch.empty(like.shape, dtype=form.dtype)
    if form.rounded:
        return _rounded_outputs(like.shape, exact=exact)
    if exact is None:
        raise TypeError("a form is a dtype, or rounded, or both")
    return exact, _float_outputs(exact)


def _rounded_outputs(shape: torch.Size, *, exact: Tensor | None) -> tuple[Rounded, _Outputs]:
    numbers = torch.empty(shape, dtype=torch.uint8)
    scales = torch.empty(shape[0], 1, dtype=torch.bfloat16)
    to = _Outputs() if exact is None else _float_outputs(exact)
    to.rounded, to.scales = numbers.data_ptr(), scales.data_ptr()
    return Rounded(numbers, scales, exact), to


def _float_outputs(exact: Tensor) -> _Outputs:
    pointer = exact.data_ptr()
    return _Outputs(wide=pointer) if exact.dtype == torch.float32 else _Outputs(half=pointer)


def _call(name: str, *arguments: object) -> None:
    getattr(kernels(), f"udever_{name}")(*arguments)


def _pointer(tensor: Tensor | None) -> int | None:
    return tensor.data_ptr() if tensor is not None else None


def _threads(numbers: int) -> int:
    return torch.get_num_threads() if numbers >= SHARED_NUMBERS else 1
