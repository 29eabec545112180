"""The gradient of packed causal ALiBi attention: run by run, the probabilities computed again instead of kept.

Invariant: what is kept between forward and backward are the queries, keys and values and nothing else (3 x width
numbers a token); no padding is computed. PyTorch's own gradient keeps the output too, and on CPU is several times
slower with a mask at the lengths of queries.

Shapes as in attention.py; B queries of a block, K keys they see.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from udever.model.batch import EqualLengthRun, PackedBatch

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some queries of a run of equally long sequences, and the keys that they see."""

    run: EqualLengthRun
    queries: slice
    """Of a sequence's queries in the query tensor."""
    keys: int
    """How many of a sequence's keys, from its first one."""
    bias: Tensor
    """float [1, N, B, K], minus infinity where a query must not look."""


class PackedAttention(torch.autograd.Function):
    """`apply(q, k, v, forward, pieces, queries_of, scale)` is `forward(q, k, v)` with a gradient.

    Args:
        q: [T or S, N, D]; k, v: [T, N, D].
        forward: the kernel.
        pieces: all pieces of the batch.
        queries_of: where a run's queries stand in q: `run.tokens`, or `run.rows` if only last tokens ask.
        scale: of the scores.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        forward: Kernel,
        pieces: Callable[[], Iterator[Piece]],
        queries_of: Callable[[EqualLengthRun], slice],
        scale: float,
    ) -> Tensor:
        """As `forward` gives."""
        ctx.save_for_backward(q, k, v)
        ctx.pieces, ctx.queries_of, ctx.scale = pieces, queries_of, scale
        return forward(q, k, v)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k and v."""
        (d_out,) = gradients
        q, k, v = ctx.saved_tensors
        d_q, d_k, d_v = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        for piece in ctx.pieces():
            asking, run = ctx.queries_of(piece.run), piece.run
            q_RNBD, d_out_RNBD, d_q_RNBD = (
                _heads_first(x[asking], run.sequences)[:, :, piece.queries] for x in (q, d_out, d_q)
            )
            k_RNKD, v_RNKD, d_k_RNKD, d_v_RNKD = (
                _heads_first(x[run.tokens], run.sequences)[:, :, : piece.keys] for x in (k, v, d_k, d_v)
            )
            weights = ((q_RNBD @ k_RNKD.mT).to(piece.bias.dtype) * ctx.scale + piece.bias).softmax(-1)
            d_v_RNKD += weights.to(v.dtype).mT @ d_out_RNBD
            d_weights = (d_out_RNBD @ v_RNKD.mT).to(weights.dtype)
            d_scores = weights * (d_weights - (d_weights * weights).sum(-1, keepdim=True)) * ctx.scale
            d_q_RNBD += d_scores.to(q.dtype) @ k_RNKD
            d_k_RNKD += d_scores.to(q.dtype).mT @ q_RNBD
        return d_q, d_k, d_v, None, None, None, None


def _heads_first(x: Tensor, sequences: int) -> Tensor:
    """[R * L, N, D] as [R, N, L, D], a view."""
    return x.view(sequences, -1, *x.shape[1:]).transpose(1, 2)


def runs_of(batch: PackedBatch, cut: Callable[[EqualLengthRun], Iterator[Piece]]) -> Callable[[], Iterator[Piece]]:
    """The pieces of all runs, made when they are asked for."""
    return lambda: (piece for run in batch.runs for piece in cut(run))
