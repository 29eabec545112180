"""Causal ALiBi attention over packed sequences: a plain reference and two fast kernels behind one function.

Score of query i on key j <= i of one sequence: `q_i . k_j / sqrt(D) + slope_h * (j - i)`, the bias always in float32
(transformers rounds `slope * j` to the model's precision, which costs up to one logit in bfloat16 at 300 tokens).
Invariant: a sequence attends to itself only, so its result never depends on its neighbours in the batch.

Shapes: T packed tokens, S sequences, N heads, D channels a head; R sequences in a run of L tokens each.
"""

import math
import weakref
from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from udever.model import native
from udever.model.attention_gradient import PackedAttention, Piece, runs_of
from udever.model.batch import EqualLengthRun, PackedBatch

QUERY_BLOCK = 128
"""Queries handled at once: keys after the block's end are never multiplied."""
CPU_QUERY_BLOCK = 32
"""The same for PyTorch's fused attention on CPUs, which takes 32 rows at once anyway."""
SMALL_REST = 8
"""So few queries at a sequence's end belong to the block before: a call of their own costs more than it spares."""


def alibi_slopes(heads: int) -> Tensor:
    """Per-head slopes, float32 [N], for any head count. Source: arXiv 2108.12409, BLOOM's `build_alibi_tensor`."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = _powers(2.0 ** -(2.0 ** -(math.log2(power) - 3)), torch.arange(1, power + 1))
    if power == heads:
        return slopes
    between = torch.arange(1, 2 * (heads - power), 2)  # odd powers of the next size's base interleave
    return torch.cat([slopes, _powers(2.0 ** -(2.0 ** -(math.log2(2 * power) - 3)), between)])


def _powers(base: float, exponents: Tensor) -> Tensor:
    return torch.pow(torch.tensor(base, dtype=torch.float32), exponents)  # in float32, as transformers does


class AlibiBias:
    """Causal ALiBi bias for any block of queries, as a view of one cached strip.

    `slope * (j - i)` depends on j - i only, so a strip as high as the largest block serves all of every sequence.
    The strip grows by doubling and is replaced whole, so threads may share one object.
    """

    def __init__(self, slopes_N: Tensor) -> None:
        self.slopes_N = slopes_N
        self._strip = self._build(QUERY_BLOCK)
        self._channels: tuple[weakref.ref[PackedBatch], Tensor] | None = None

    def _build(self, reach: int) -> tuple[Tensor, int]:
        rows = torch.arange(QUERY_BLOCK + SMALL_REST, device=self.slopes_N.device)
        columns = torch.arange(-reach, len(rows), device=self.slopes_N.device)
        distance = (columns - rows[:, None]).to(self.slopes_N.dtype)
        bias = (self.slopes_N[:, None, None] * distance).masked_fill_(distance > 0, -torch.inf)
        return bias, reach

    def block(self, first_query: int, *, queries: int, keys: int) -> Tensor:
        """Bias of queries [first_query, first_query + queries) on keys [0, keys), float32 [1, N, queries, keys].

        The leading 1 matters: with fewer than four dimensions PyTorch falls back to its unfused attention.
        """
        strip, reach = self._strip
        if first_query > reach:
            self._strip = strip, reach = self._build(max(2 * reach, first_query))
        return strip[None, :, :queries, reach - first_query : reach - first_query + keys]

    def key_channels(self, batch: PackedBatch, like_TND: Tensor) -> Tensor:
        """What `key_channels` makes for a batch: once, for all layers, which would spend more time on launching it."""
        kept = self._channels
        if kept is None or kept[0]() is not batch or kept[1].dtype != like_TND.dtype:
            made = key_channels(positions_from_end(batch), self.slopes_N, like_TND=like_TND)
            kept = self._channels = weakref.ref(batch), made
        return kept[1]

    def last_query(self, keys: int) -> Tensor:
        """Bias of a sequence's last token on all its keys, float32 [1, N, 1, keys]."""
        first = (keys - 1) // QUERY_BLOCK * QUERY_BLOCK
        return self.block(first, queries=keys - first, keys=keys)[:, :, -1:]


def causal_attention(q_TND: Tensor, k_TND: Tensor, v_TND: Tensor, *, batch: PackedBatch, bias: AlibiBias) -> Tensor:
    """Attention of every token on its own sequence's past, [T, N, D] in the inputs' dtype."""
    if _flash_serves(q_TND):
        return _flash(q_TND, k_TND, v_TND, batch=batch, bias=bias)
    if _native_serves(q_TND, k_TND, v_TND):
        return _native(q_TND, k_TND, v_TND, batch=batch, bias=bias, closing=False)
    if not _needs_gradient(q_TND):
        return _grouped(q_TND, k_TND, v_TND, batch=batch, bias=bias)

    def cut(run: EqualLengthRun) -> Iterator[Piece]:
        for first, end in query_blocks(run.length, QUERY_BLOCK):
            mask = bias.block(first, queries=end - first, keys=end)
            yield Piece(run=run, queries=slice(first, end), keys=end, bias=mask)

    out: Tensor = PackedAttention.apply(  # type: ignore[no-untyped-call]
        q_TND, k_TND, v_TND, lambda q, k, v: _grouped(q, k, v, batch=batch, bias=bias), runs_of(batch, cut),
        lambda run: run.tokens, _scale(q_TND),
    )  # fmt: skip
    return out


def closing_attention(q_SND: Tensor, k_TND: Tensor, v_TND: Tensor, *, batch: PackedBatch, bias: AlibiBias) -> Tensor:
    """Attention of each sequence's last token on its whole sequence, [S, N, D] in the inputs' dtype."""
    if _flash_serves(q_SND):
        return _flash_closing(q_SND, k_TND, v_TND, batch=batch, bias=bias)
    if _native_serves(q_SND, k_TND, v_TND):
        return _native(q_SND, k_TND, v_TND, batch=batch, bias=bias, closing=True)
    if not _needs_gradient(q_SND):
        return _grouped_closing(q_SND, k_TND, v_TND, batch=batch, bias=bias)

    def whole(run: EqualLengthRun) -> Iterator[Piece]:
        yield Piece(run=run, queries=slice(0, 1), keys=run.length, bias=bias.last_query(run.length))

    out: Tensor = PackedAttention.apply(  # type: ignore[no-untyped-call]
        q_SND, k_TND, v_TND, lambda q, k, v: _grouped_closing(q, k, v, batch=batch, bias=bias), runs_of(batch, whole),
        lambda run: run.rows, _scale(q_SND),
    )  # fmt: skip
    return out


def _native_serves(q: Tensor, k_TND: Tensor, v_TND: Tensor) -> bool:
    parts = (q, k_TND, v_TND)
    heads_together = all(x.stride(2) == 1 and x.stride(1) == x.shape[2] for x in parts)
    return heads_together and k_TND.stride(0) == v_TND.stride(0) and native.serves(*parts)


def _native(q: Tensor, k_TND: Tensor, v_TND: Tensor, *, batch: PackedBatch, bias: AlibiBias, closing: bool) -> Tensor:
    return native.attention(
        q, k_TND, v_TND, cu_seqlens=batch.cu_seqlens, longest=batch.max_seqlen, slopes_N=bias.slopes_N, closing=closing
    )


def _needs_gradient(q: Tensor) -> bool:
    return torch.is_grad_enabled() and q.requires_grad


def _heads_first(x_TND: Tensor, run: EqualLengthRun) -> Tensor:
    x_RLND = x_TND[run.tokens].view(run.sequences, run.length, *x_TND.shape[1:])
    return x_RLND.transpose(1, 2)


def _grouped(q_TND: Tensor, k_TND: Tensor, v_TND: Tensor, *, batch: PackedBatch, bias: AlibiBias) -> Tensor:
    """Runs of equal length as plain views, the bias as an additive float32 mask: exact, and fastest on CPU."""
    out_TND = torch.empty_like(q_TND, memory_format=torch.contiguous_format)
    size = QUERY_BLOCK if q_TND.is_cuda else CPU_QUERY_BLOCK
    for run in batch.runs:
        q_RNLD, k_RNLD, v_RNLD, out_RNLD = (_heads_first(x, run) for x in (q_TND, k_TND, v_TND, out_TND))
        for first, end in query_blocks(run.length, size):
            mask = bias.block(first, queries=end - first, keys=end)
            if q_TND.is_cuda:  # CUDA kernels want the mask in the queries' dtype
                mask = mask.to(q_TND.dtype)
            out_RNLD[:, :, first:end] = F.scaled_dot_product_attention(
                q_RNLD[:, :, first:end], k_RNLD[:, :, :end], v_RNLD[:, :, :end], attn_mask=mask
            )
    return out_TND


def _grouped_closing(q_SND: Tensor, k_TND: Tensor, v_TND: Tensor, *, batch: PackedBatch, bias: AlibiBias) -> Tensor:
    out_SND = torch.empty_like(q_SND)
    for run in batch.runs:
        k_RNLD, v_RNLD = _heads_first(k_TND, run), _heads_first(v_TND, run)
        q_RN1D = q_SND[run.rows].unsqueeze(2)
        mask = bias.last_query(run.length).to(q_SND.dtype) if q_SND.is_cuda else bias.last_query(run.length)
        out_SND[run.rows] = F.scaled_dot_product_attention(q_RN1D, k_RNLD, v_RNLD, attn_mask=mask).squeeze(2)
    return out_SND


def query_blocks(length: int, size: int) -> Iterator[tuple[int, int]]:
    """[0, length) in blocks of `size`; the last one may be smaller, or larger by less than `SMALL_REST`."""
    firsts = range(0, max(1, length - SMALL_REST + 1), size)
    return pairwise([*firsts, length])


# ---- CUDA: stock variable-length flash attention, made ALiBi by extra channels -------------------------------------

SUMMANDS = 3
"""Half-precision numbers that together hold `slope * j` to float32's accuracy."""
FOLDED = 8
"""Channels appended: the summands, padded to what flash kernels want."""


FLASH_CAPABILITY = (8, 0)
"""Flash kernels want Ampere or newer."""


def _flash_serves(x: Tensor) -> bool:
    half = x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) and x.shape[-1] <= 256 - FOLDED
    return half and torch.cuda.get_device_capability(x.device) >= FLASH_CAPABILITY


def fold_queries(q_TND: Tensor) -> Tensor:
    """Append channels of ones that pick up what `key_channels` gives the keys, [T, N, D + 8]."""
    return F.pad(q_TND, (0, FOLDED), value=1.0)


def key_channels(positions_T: Tensor, slopes_N: Tensor, *, like_TND: Tensor) -> Tensor:
    """Channels that add `slope * j` to every score, so that a kernel without a bias computes ALiBi.

    Softmax is shift-invariant in each row, so `slope * (j - i)` may be replaced by `slope * j`. The number is split
    into `SUMMANDS` half-precision summands, each the rounding error of those before.

    Args:
        positions_T: int64, each token's position j relative to the end of its sequence (<= 0).
        like_TND: the keys they will be appended to, to be scored with scale 1 / sqrt(D).

    Returns:
        [T, N, 8] in the keys' dtype, the rest zero; flash kernels want a multiple of 8 channels.
    """
    rest_TN = positions_T[:, None].float() * slopes_N / _scale(like_TND)
    channels = like_TND.new_zeros(*like_TND.shape[:2], FOLDED)
    for i in range(SUMMANDS):
        channels[..., i] = rest_TN.to(like_TND.dtype)
        rest_TN = rest_TN - channels[..., i].float()
    return channels


def positions_from_end(batch: PackedBatch) -> Tensor:
    """Each token's distance to its sequence's last token as a number <= 0, int64 [T]."""
    lengths = batch.cu_seqlens.diff().long()
    ends_T = batch.last_tokens.repeat_interleave(lengths, output_size=len(batch.token_ids))
    return torch.arange(len(batch.token_ids), device=ends_T.device) - ends_T


def _flash(q_TND: Tensor, k_TND: Tensor, v_TND: Tensor, *, batch: PackedBatch, bias: AlibiBias) -> Tensor:
    return _flash_kernel(
        q_TND, k_TND, v_TND, batch=batch, bias=bias, queries=batch.cu_seqlens, longest=batch.max_seqlen
    )


def _flash_closing(q_SND: Tensor, k_TND: Tensor, v_TND: Tensor, *, batch: PackedBatch, bias: AlibiBias) -> Tensor:
    one_each = torch.arange(len(q_SND) + 1, device=q_SND.device, dtype=torch.int32)
    return _flash_kernel(q_SND, k_TND, v_TND, batch=batch, bias=bias, queries=one_each, longest=1)


def _flash_kernel(
    q: Tensor, k_TND: Tensor, v_TND: Tensor, *, batch: PackedBatch, bias: AlibiBias, queries: Tensor, longest: int
) -> Tensor:
    keys = torch.cat([k_TND, bias.key_channels(batch, k_TND)], -1)
    causal = longest > 1  # a single query is its sequence's last token: it sees everything
    out: Tensor = torch.ops.aten._flash_attention_forward(
        fold_queries(q), keys, F.pad(v_TND, (0, FOLDED)), queries, batch.cu_seqlens, longest, batch.max_seqlen,
        0.0, causal, False, scale=_scale(q),
    )[0]  # fmt: skip
    return out[..., : v_TND.shape[-1]]


def _scale(q: Tensor) -> float:
    return 1 / math.sqrt(q.shape[-1])


def reference_attention(q_TND: Tensor, k_TND: Tensor, v_TND: Tensor, *, batch: PackedBatch, bias: AlibiBias) -> Tensor:
    """The definition, in the inputs' precision, a sequence at a time: what the kernels are tested against."""
    outputs = []
    starts = batch.cu_seqlens.tolist()
    for start, end in pairwise(starts):
        q, k, v = (x[start:end].transpose(0, 1) for x in (q_TND, k_TND, v_TND))
        j = torch.arange(end - start, device=q.device)
        distance = (j[None, :] - j[:, None]).to(q.dtype)
        scores = q @ k.transpose(1, 2) * _scale(q_TND) + bias.slopes_N.to(q.dtype)[:, None, None] * distance
        weights = scores.masked_fill(distance > 0, -torch.inf).softmax(-1)
        outputs.append((weights @ v).transpose(0, 1))
    return torch.cat(outputs)
