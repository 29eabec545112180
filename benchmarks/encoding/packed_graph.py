"""BLOOM over packed tokens in plain PyTorch that any graph engine can export and run.

No padding in any linear layer, only the last tokens in the last block; attention runs over sequences gathered into a
grid [S, L] (batches are sorted by length, so the grid has little padding). It is what an engine can do at best when
handed our batches, with its own kernels: the strongest peer we can think of. A test compares it with the model.

Shapes: T packed tokens, S sequences, L the longest of them, N heads, D channels a head, H width.
"""

from collections.abc import Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udever.model.attention import alibi_slopes
from udever.model.batch import PackedBatch
from udever.model.config import BloomConfig

Layer = TypeVar("Layer", bound=nn.Module)
MASKED = -1e9


class PackedBlock(nn.Module):
    """One decoder block; the queries of the last one come apart, since only last tokens ask."""

    def __init__(self, config: BloomConfig, tensors: Mapping[str, Tensor], *, index: int) -> None:
        super().__init__()
        self.config, w = config, config.width

        def weights(name: str) -> dict[str, Tensor]:
            return {kind: tensors[f"h.{index}.{name}.{kind}"] for kind in ("weight", "bias")}

        def norm(name: str) -> nn.LayerNorm:
            return filled(nn.LayerNorm(w, eps=config.norm_epsilon), weights(name))

        def sorted_rows(tensor: Tensor) -> Tensor:  # checkpoints interleave queries, keys and values a head at a time
            return tensor.unflatten(0, (config.heads, 3, config.head_width)).transpose(0, 1).reshape(tensor.shape)

        fused = {kind: sorted_rows(t) for kind, t in weights("self_attention.query_key_value").items()}
        self.attention_norm = norm("input_layernorm")
        self.query = filled(nn.Linear(w, w), {kind: t[:w] for kind, t in fused.items()})
        self.key_value = filled(nn.Linear(w, 2 * w), {kind: t[w:] for kind, t in fused.items()})
        self.query_key_value = filled(nn.Linear(w, 3 * w), fused)
        self.attention_out = filled(nn.Linear(w, w), weights("self_attention.dense"))
        self.mlp_norm = norm("post_attention_layernorm")
        self.mlp_in = filled(nn.Linear(w, 4 * w), weights("mlp.dense_h_to_4h"))
        self.mlp_out = filled(nn.Linear(4 * w, w), weights("mlp.dense_4h_to_h"))

    def heads(self, projected: Tensor, grid_SL: Tensor) -> list[Tensor]:
        """Rows [rows, parts * H] gathered into the grid: for each part [S, N, L, D]."""
        parts = projected.shape[1] // self.config.width
        split = projected[grid_SL].unflatten(2, (parts, self.config.heads, self.config.head_width))
        return list(split.permute(2, 0, 3, 1, 4).unbind(0))

    def finish(self, hidden: Tensor, context: Tensor) -> Tensor:
        """What follows attention, on [T, H] or [S, H]."""
        hidden = hidden + self.attention_out(context)
        return hidden + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(hidden)), approximate="tanh"))


class PackedGraph(nn.Module):
    """The whole model; see the module's docstring."""

    def __init__(self, config: BloomConfig, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()

        def norm(name: str) -> nn.LayerNorm:
            weights = {kind: tensors[f"{name}.{kind}"] for kind in ("weight", "bias")}
            return filled(nn.LayerNorm(config.width, eps=config.norm_epsilon), weights)

        self.table = nn.Embedding.from_pretrained(tensors["word_embeddings.weight"])
        self.embedding_norm, self.final_norm = norm("word_embeddings_layernorm"), norm("ln_f")
        self.blocks = nn.ModuleList(PackedBlock(config, tensors, index=i) for i in range(config.layers))
        self.slopes_N11 = nn.Buffer(alibi_slopes(config.heads)[:, None, None])

    def forward(self, token_ids: Tensor, grid: Tensor, back: Tensor, last: Tensor, final: Tensor) -> Tensor:
        """Vectors float32 [S, H].

        Args:
            token_ids: [T].
            grid: each sequence's tokens as places among the T, padded on the right with anything [S, L].
            back: place of each token in the flattened grid [T].
            last: place of each last token among the T [S].
            final: position of each last token in its sequence [S].
        """
        hidden_TH = self.embedding_norm(self.table(token_ids))
        j = torch.arange(grid.shape[1])
        causal_NLL = self._bias(j[None, None, :] - j[None, :, None])  # padding lies in every real token's future
        *earlier, closing = self.blocks
        for block in earlier:
            q, k, v = block.heads(block.query_key_value(block.attention_norm(hidden_TH)), grid)
            context = F.scaled_dot_product_attention(q, k, v, attn_mask=causal_NLL[None])
            hidden_TH = block.finish(hidden_TH, context.transpose(1, 2).flatten(2).flatten(0, 1)[back])
        normed_TH = closing.attention_norm(hidden_TH)
        k, v = closing.heads(closing.key_value(normed_TH), grid)
        (q,) = closing.heads(closing.query(normed_TH[last]), torch.arange(last.shape[0])[:, None])
        mask_SN1L = self._bias(j[None, None, None, :] - final[:, None, None, None])
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_SN1L)
        vectors: Tensor = self.final_norm(closing.finish(hidden_TH[last], context[:, :, 0].flatten(1)))
        return vectors

    def _bias(self, distance: Tensor) -> Tensor:
        return (self.slopes_N11 * distance.float()).masked_fill(distance > 0, MASKED)


def filled(layer: Layer, weights: Mapping[str, Tensor]) -> Layer:
    """The layer with these weights."""
    layer.load_state_dict(weights)
    return layer


def graph_inputs(batch: PackedBatch) -> dict[str, Tensor]:
    """What `PackedGraph.forward` takes, from a batch."""
    starts = batch.cu_seqlens[:-1].long()
    lengths = batch.cu_seqlens.diff().long()
    columns = torch.arange(batch.max_seqlen)
    real = columns < lengths[:, None]
    return {
        "token_ids": batch.token_ids,
        "grid": torch.where(real, starts[:, None] + columns, 0),
        "back": real.flatten().nonzero().flatten(),
        "last": batch.last_tokens,
        "final": lengths - 1,
    }
