"""The step as one would write it down: a text at a time, in float64, all activations kept. Slow; it shares no code with
the fast one, so that the two can certify each other.

Knows no packing, no kernels, no processes. Names are the checkpoint's.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from udever.model.attention import alibi_slopes
from udever.model.config import TABLE, BloomConfig

Weights = Mapping[str, Tensor]


def embed(config: BloomConfig, weights: Weights, token_ids: Sequence[int]) -> Tensor:
    """The last token's hidden state after the final norm, [H], in the weights' dtype."""
    hidden = _norm(config, weights, "word_embeddings_layernorm", weights[TABLE][list(token_ids)])
    for index in range(config.layers):
        hidden = _block(config, weights, f"h.{index}", hidden)
    return _norm(config, weights, "ln_f", hidden)[-1]


def info_nce(
    queries: Sequence[Tensor],
    documents: Sequence[Tensor],
    *,
    positive: Sequence[int],
    excluded: Sequence[tuple[int, int]],
    temperature: float,
    prefixes: Sequence[int] = (),
    both_ways: bool = False,
) -> Tensor:
    """The mean over queries of -log(exp(s+ / t) / sum of exp(s / t)), s being cosines.

    Args:
        prefixes: also of the vectors' first so many numbers; the mean over all sizes.
        both_ways: each positive also asks for its query among the queries; the mean of both ways.
    """
    losses = []
    for size in (len(queries[0]), *prefixes):
        of_query: list[dict[int, Tensor]] = [{} for _ in queries]
        of_document: list[dict[int, Tensor]] = [{} for _ in documents]
        for row, query in enumerate(queries):
            for column, document in enumerate(documents):
                if (row, column) not in excluded:
                    q, d = query[:size], document[:size]
                    cosine = (q @ d) / (q.norm() * d.norm())
                    of_query[row][column] = of_document[column][row] = cosine / temperature
        losses += [_surprise(of_query[row], right=column) for row, column in enumerate(positive)]
        losses += [_surprise(of_document[column], right=row) for row, column in enumerate(positive) if both_ways]
    return torch.stack(losses).mean()


def _surprise(scores: Mapping[int, Tensor], *, right: int) -> Tensor:
    return torch.logsumexp(torch.stack(list(scores.values())), 0) - scores[right]


def _block(config: BloomConfig, weights: Weights, name: str, hidden: Tensor) -> Tensor:
    normed = _norm(config, weights, f"{name}.input_layernorm", hidden)
    residual = normed if config.post_layernorm_residual else hidden
    hidden = residual + _attention(config, weights, f"{name}.self_attention", normed)
    normed = _norm(config, weights, f"{name}.post_attention_layernorm", hidden)
    residual = normed if config.post_layernorm_residual else hidden
    x = _linear(weights, f"{name}.mlp.dense_h_to_4h", normed)
    x = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return residual + _linear(weights, f"{name}.mlp.dense_4h_to_h", x)


def _attention(config: BloomConfig, weights: Weights, name: str, x_LH: Tensor) -> Tensor:
    length, width = x_LH.shape
    fused = _linear(weights, f"{name}.query_key_value", x_LH).view(length, config.heads, 3, width // config.heads)
    at = torch.arange(length)
    contexts = []
    for head, slope in enumerate(alibi_slopes(config.heads).tolist()):
        q, k, v = fused[:, head].unbind(1)
        scores = q @ k.T / math.sqrt(q.shape[1]) + slope * (at[None, :] - at[:, None])
        scores = scores.masked_fill(at[None, :] > at[:, None], -math.inf)
        contexts.append(scores.softmax(-1) @ v)
    return _linear(weights, f"{name}.dense", torch.cat(contexts, 1))


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _norm(config: BloomConfig, weights: Weights, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred.square().mean(-1, keepdim=True) + config.norm_epsilon).sqrt()
    return centred / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]
