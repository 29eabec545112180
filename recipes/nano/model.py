"""The student: a small BLOOM whose parameters carry Hugging Face's names, and the bag of tokens that it starts as.

Invariant: `Bloom.from_bag(bag)` embeds nearly as `bag` does: head 3, whose ALiBi slope (1/256) is nearly flat, averages
64 of the 256 channels in each of the four layers with the bag's token weights, and everything else writes zero. So
training starts at the bag. All inputs are token ids [B, T] of one length, markers included.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, LAYERS, HEADS, EPSILON = 256, 4, 4, 1e-5
HEAD_DIM = WIDTH // HEADS
SLOPES = torch.tensor([2.0 ** (-8 * (h + 1) / HEADS) for h in range(HEADS)])
FLAT = HEADS - 1
LENGTH_SCALE = 0.4


def alibi(length: int) -> Tensor:
    """Causal ALiBi bias [HEADS, T, T]: slope * (j - i), minus infinity above the diagonal."""
    at = torch.arange(length)
    distance = (at[None, :] - at[:, None]).float()
    return (SLOPES[:, None, None] * distance).masked_fill(distance > 0, -math.inf)


class Bag(nn.Module):
    """The mean of token vectors."""

    def __init__(self, entries: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(entries, WIDTH)
        nn.init.normal_(self.word_embeddings.weight, std=0.02)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Embeddings [B, WIDTH]."""
        return F.embedding_bag(ids_BT, self.word_embeddings.weight, mode="mean")


class Attention(nn.Module):
    """Causal ALiBi attention with BLOOM's fused layout: the rows of `query_key_value` are [heads, 3, head_dim]."""

    def __init__(self) -> None:
        super().__init__()
        self.query_key_value, self.dense = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x_BTD: Tensor, bias_HTT: Tensor, last_only: bool) -> Tensor:
        """Attention output [B, T, D], or [B, 1, D] of the last token."""
        b, t, _ = x_BTD.shape
        if last_only:
            weight, bias = (
                p.unflatten(0, (HEADS, 3, HEAD_DIM)) for p in (self.query_key_value.weight, self.query_key_value.bias)
            )
            q = F.linear(x_BTD[:, -1:], weight[:, 0].flatten(0, 1), bias[:, 0].flatten()).view(b, 1, HEADS, HEAD_DIM)
            k, v = (
                F.linear(x_BTD, weight[:, 1:].flatten(0, 2), bias[:, 1:].flatten())
                .view(b, t, HEADS, 2, HEAD_DIM)
                .unbind(3)
            )
            bias_HTT = bias_HTT[:, -1:]
        else:
            q, k, v = self.query_key_value(x_BTD).view(b, t, HEADS, 3, HEAD_DIM).unbind(3)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        weights = (q @ k.transpose(-1, -2) * HEAD_DIM**-0.5 + bias_HTT).softmax(-1)
        return self.dense((weights @ v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """BLOOM's feed-forward block."""

    def __init__(self) -> None:
        super().__init__()
        self.dense_h_to_4h, self.dense_4h_to_h = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        return self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(x), approximate="tanh"))


class Block(nn.Module):
    """One pre-norm BLOOM layer."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.self_attention = nn.LayerNorm(WIDTH, EPSILON), Attention()
        self.post_attention_layernorm, self.mlp = nn.LayerNorm(WIDTH, EPSILON), Mlp()

    def forward(self, x_BTD: Tensor, bias_HTT: Tensor, last_only: bool) -> Tensor:
        """Hidden states [B, T, D], or [B, 1, D] of the last token."""
        attended = self.self_attention(self.input_layernorm(x_BTD), bias_HTT, last_only)
        x_BTD = attended + (x_BTD[:, -1:] if last_only else x_BTD)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Bloom(nn.Module):
    """transformers' BloomModel, for batches of one length."""

    def __init__(self, entries: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(entries, WIDTH)
        self.word_embeddings_layernorm = nn.LayerNorm(WIDTH, EPSILON)
        self.h = nn.ModuleList(Block() for _ in range(LAYERS))
        self.ln_f = nn.LayerNorm(WIDTH, EPSILON)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Embeddings [B, WIDTH]: the last token's hidden state after `ln_f`."""
        bias_HTT = alibi(ids_BT.shape[1])
        x_BTD = self.word_embeddings_layernorm(self.word_embeddings(ids_BT))
        for layer in self.h:
            x_BTD = layer(x_BTD, bias_HTT, last_only=layer is self.h[-1])
        return self.ln_f(x_BTD[:, -1])

    @classmethod
    @torch.no_grad()
    def from_bag(cls, bag: Bag, closing: list[int]) -> "Bloom":
        """A stack that starts as `bag`.

        The norm after the table would forget how long a token's vector is, that is how much it counts: the last channel
        keeps the length's logarithm, and each layer's flat head scores tokens by it. The layers fill the channels from
        the narrowest quarter to the widest. The markers `closing` share one vector, which the last bias takes away.
        """
        model = cls(bag.word_embeddings.num_embeddings)
        vectors = bag.word_embeddings.weight.clone()
        vectors[:, -1] = 0
        lengths = vectors.norm(dim=1, keepdim=True)
        vectors *= WIDTH**0.5 / lengths
        vectors[:, -1] = LENGTH_SCALE * (lengths / lengths.median()).log().clamp(-6, 6).squeeze(1)
        vectors[closing] = vectors[closing].mean(0)
        model.word_embeddings.weight.copy_(vectors)
        for i, layer in enumerate(model.h):
            attention, first = layer.self_attention, (LAYERS - 1 - i) * HEAD_DIM
            for linear in (
                attention.query_key_value,
                layer.mlp.dense_h_to_4h,
                attention.dense,
                layer.mlp.dense_4h_to_h,
            ):
                nn.init.zeros_(linear.bias)
                nn.init.zeros_(linear.weight)
            for linear in (attention.query_key_value, layer.mlp.dense_h_to_4h):
                nn.init.normal_(linear.weight, std=0.02)
            q, k, v = attention.query_key_value.weight.view(HEADS, 3, HEAD_DIM, WIDTH)[FLAT]
            q[0], k[0] = 0, torch.eye(WIDTH)[-1]
            attention.query_key_value.bias.view(HEADS, 3, HEAD_DIM)[FLAT, 0, 0] = HEAD_DIM**0.5 / LENGTH_SCALE
            v.copy_(torch.eye(WIDTH)[first : first + HEAD_DIM])
            attention.dense.weight[first : first + HEAD_DIM, FLAT * HEAD_DIM :] = torch.eye(HEAD_DIM)
        model.h[0].self_attention.dense.weight[-1] = 0
        closing_vector = model.word_embeddings_layernorm(model.word_embeddings.weight[closing[0]])
        model.h[-1].self_attention.dense.bias.copy_(-closing_vector)
        return model
