"""BLOOM over padded batches in plain PyTorch that torch.onnx exports: ids and mask in, unit vectors out.

Invariant: a real token sees real tokens only, so padding on either side changes nothing; nothing depends on the batch's
shape but its sizes. Knows no packing: graph engines want rectangles.

Shapes: B texts, L tokens of the longest, N heads, D channels a head, H width.
"""

from collections.abc import Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udever.model.attention import alibi_slopes
from udever.model.config import TABLE, BloomConfig

Layer = TypeVar("Layer", bound=nn.Module)


class PaddedBlock(nn.Module):
    """One decoder block."""

    def __init__(self, config: BloomConfig, tensors: Mapping[str, Tensor], *, prefix: str) -> None:
        super().__init__()
        self.config, width = config, config.width

        def norm(name: str) -> nn.LayerNorm:
            return _filled(nn.LayerNorm(width, eps=config.norm_epsilon), tensors, prefix + name)

        def linear(name: str, inner: int, outer: int) -> nn.Linear:
            return _filled(nn.Linear(inner, outer, device="meta"), tensors, prefix + name)  # no memory of its own

        self.attention_norm = norm("input_layernorm")
        self.query_key_value = linear("self_attention.query_key_value", width, 3 * width)
        self.attention_out = linear("self_attention.dense", width, width)
        self.mlp_norm = norm("post_attention_layernorm")
        self.mlp_in = linear("mlp.dense_h_to_4h", width, 4 * width)
        self.mlp_out = linear("mlp.dense_4h_to_h", 4 * width, width)

    def forward(self, hidden_BLH: Tensor, bias_BNLL: Tensor) -> Tensor:
        """[B, L, H] -> [B, L, H]."""
        config = self.config
        normed = self.attention_norm(hidden_BLH)
        split = self.query_key_value(normed).unflatten(2, (config.heads, 3, config.head_width))
        q_BNLD, k_BNLD, v_BNLD = split.permute(3, 0, 2, 1, 4).unbind(0)
        context = F.scaled_dot_product_attention(q_BNLD, k_BNLD, v_BNLD, attn_mask=bias_BNLL)
        residual = normed if config.post_layernorm_residual else hidden_BLH
        hidden = residual + self.attention_out(context.transpose(1, 2).flatten(2))
        normed = self.mlp_norm(hidden)
        residual = normed if config.post_layernorm_residual else hidden
        out: Tensor = residual + self.mlp_out(F.gelu(self.mlp_in(normed), approximate="tanh"))
        return out


class PaddedGraph(nn.Module):
    """The whole model."""

    slopes: Tensor

    def __init__(self, config: BloomConfig, tensors: Mapping[str, Tensor]) -> None:
        """`tensors` by their names in a checkpoint, float32."""
        super().__init__()

        def norm(name: str) -> nn.LayerNorm:
            return _filled(nn.LayerNorm(config.width, eps=config.norm_epsilon), tensors, name)

        self.table = nn.Embedding.from_pretrained(tensors[TABLE])
        self.embedding_norm, self.final_norm = norm("word_embeddings_layernorm"), norm("ln_f")
        self.blocks = nn.ModuleList(PaddedBlock(config, tensors, prefix=f"h.{i}.") for i in range(config.layers))
        self.register_buffer("slopes", alibi_slopes(config.heads)[:, None, None])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Unit vectors [B, H] of int64 ids and mask [B, L]; the mask is 1 where a text is, in one piece."""
        place_L = torch.arange(input_ids.shape[1], device=input_ids.device)
        bias_BNLL = self._bias(place_L, attention_mask)
        hidden_BLH = self.embedding_norm(self.table(input_ids))
        for block in self.blocks:
            hidden_BLH = block(hidden_BLH, bias_BNLL)
        last_B = (attention_mask * place_L).amax(1)
        closing_BH = hidden_BLH.gather(1, last_B[:, None, None].expand(-1, 1, hidden_BLH.shape[2]))[:, 0]
        return F.normalize(self.final_norm(closing_BH), dim=1)

    def _bias(self, place_L: Tensor, mask_BL: Tensor) -> Tensor:
        distance_LL = place_L[None, :] - place_L[:, None]
        # Every token sees itself, padding too: a row of nothing but -inf would be NaN, and NaN spreads.
        seen_BLL = (distance_LL == 0) | ((distance_LL < 0) & (mask_BL[:, None, :] > 0))
        alibi_NLL = self.slopes * distance_LL.to(self.slopes.dtype)
        return torch.where(seen_BLL[:, None], alibi_NLL[None], -torch.inf)


def _filled(layer: Layer, tensors: Mapping[str, Tensor], name: str) -> Layer:
    """The layer with a checkpoint's weights."""
    layer.load_state_dict({kind: tensors[f"{name}.{kind}"] for kind in ("weight", "bias")}, assign=True)
    return layer
