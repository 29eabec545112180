"""The BLOOM decoder over packed sequences: token ids in, the closing token's hidden state out.

    hidden = norm(table[token_ids]);  for block in blocks: hidden = block(hidden);  vectors = norm(hidden[last tokens])

Invariant: no padding enters a linear layer, the residual stream is float32 in every precision, and the last block
computes only what the last token of each sequence needs. Knows no text and no file.

Shapes: T packed tokens, S sequences, H width, N heads, D channels a head.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from udever.model import native
from udever.model.attention import AlibiBias, alibi_slopes, causal_attention, closing_attention
from udever.model.batch import PackedBatch
from udever.model.config import BloomConfig
from udever.model.int8 import Quantized, quantize_weight
from udever.model.linear import Linear
from udever.model.native import Form
from udever.model.precision import Precision, make_linear, make_trainable_linear, resolve_precision

FLOAT32 = Form()
MADE_AT_ONCE = 8
"""Blocks or layers in the making, at most."""


class LayerNorm(nn.Module):
    """Layer norm in float32, whatever the precision of the linear layers (float64 only if they are)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, *, epsilon: float, wide: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.register_buffer("weight", weight.to(wide))
        self.register_buffer("bias", bias.to(wide))

    def forward(self, x_TH: Tensor) -> Tensor:
        """float32 [T, H] -> float32 [T, H]."""
        return F.layer_norm(x_TH, self.weight.shape, self.weight, self.bias, self.epsilon)

    def of_sum(self, x_TH: Tensor, added_TH: Tensor | None, form: Form = FLOAT32) -> tuple[Tensor, Any]:
        """`x + added` in float32, by our kernels in place; and its norm, by them in the form that a layer takes."""
        if native.serves_rows(x_TH) and (added_TH is None or native.serves_rows(added_TH)):
            weight, bias, epsilon = self.weight, self.bias, self.epsilon
            return x_TH, native.norm(x_TH, added_TH, weight=weight, bias=bias, epsilon=epsilon, form=form)
        total_TH = x_TH if added_TH is None else x_TH + added_TH
        return total_TH, self(total_TH)


class OwnRows(nn.Module):
    """Some rows of the token table, held apart: the table is a mapped file, shared by all models on it."""

    token_ids: Tensor
    rows: Tensor

    def __init__(self, token_ids: Tensor, rows: Tensor) -> None:
        """Args:
        token_ids: int64 [M], ascending.
        rows: float [M, H].
        """
        super().__init__()
        self.register_buffer("token_ids", token_ids)
        self.register_buffer("rows", rows)

    def forward(self, hidden_TH: Tensor, token_ids_T: Tensor) -> Tensor:
        """The hidden states with those of our tokens replaced."""
        slot_T = torch.bucketize(token_ids_T, self.token_ids).clamp_max(len(self.token_ids) - 1)
        is_ours_T = self.token_ids[slot_T] == token_ids_T
        return torch.where(is_ours_T[:, None], F.embedding(slot_T, self.rows), hidden_TH)


class Block(nn.Module):
    """One decoder block: attention and MLP, each behind a layer norm, each added to the residual stream."""

    def __init__(
        self,
        config: BloomConfig,
        weights: Mapping[str, Tensor],
        *,
        precision: Precision,
        trainable: bool = False,
        masters: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.head_width = config.heads, config.head_width
        self.post_layernorm_residual = config.post_layernorm_residual

        def linear(name: str) -> Linear:
            weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
            if trainable:
                return make_trainable_linear(weight, bias, precision=precision, masters=masters)
            if f"{name}.scales" not in weights:
                return make_linear(weight, bias, precision=precision)
            quantized = Quantized(*(weights[f"{name}.{part}"] for part in Quantized._fields))
            return make_linear(quantized, bias, precision=precision)

        def norm(name: str) -> LayerNorm:
            weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
            return LayerNorm(weight, bias, epsilon=config.norm_epsilon, wide=_wide(precision))

        self.attention_norm = norm("input_layernorm")
        self.query = linear("query") if "query.weight" in weights else None
        self.query_key_value = linear("query_key_value")
        self.attention_out = linear("self_attention.dense")
        self.mlp_norm = norm("post_attention_layernorm")
        self.mlp_in = linear("mlp.dense_h_to_4h")
        self.mlp_out = linear("mlp.dense_4h_to_h")
        self.mlp_in.feed(self.mlp_out)

    def forward(
        self, hidden_TH: Tensor, added_TH: Tensor | None, batch: PackedBatch, bias: AlibiBias
    ) -> tuple[Tensor, Tensor]:
        """The residual stream and what is still to be added to it -> the same after this block.

        Args:
            hidden_TH: float32 [T, H]; in inference it may be changed.
            added_TH: what the block before put out, [T, H].
        """
        hidden_TH, normed_TH = self.attention_norm.of_sum(hidden_TH, added_TH, self._form(self.query_key_value))
        q_TND, k_TND, v_TND = self._split(self.query_key_value(normed_TH), parts=3)
        context_TH = causal_attention(q_TND, k_TND, v_TND, batch=batch, bias=bias).flatten(1)
        return self._after_attention(hidden_TH, normed_TH, context_TH)

    def closing(
        self, hidden_TH: Tensor, added_TH: Tensor | None, batch: PackedBatch, bias: AlibiBias
    ) -> tuple[Tensor, Tensor]:
        """`forward`, for the last token of each sequence alone, [S, H]; the block was built with `query`."""
        query = cast(Linear, self.query)
        last = batch.last_tokens
        form = self._form(self.query_key_value)
        hidden_TH, normed_TH = self.attention_norm.of_sum(hidden_TH, added_TH, form._replace(rounded=False))
        k_TND, v_TND = self._split(self.query_key_value(normed_TH), parts=2)
        hidden_SH, normed_SH = hidden_TH[last], normed_TH[last]
        (q_SND,) = self._split(query(normed_SH), parts=1)
        context_SH = closing_attention(q_SND, k_TND, v_TND, batch=batch, bias=bias).flatten(1)
        return self._after_attention(hidden_SH, normed_SH, context_SH)

    def _form(self, layer: Linear) -> Form:
        """What the norm before this layer puts out; as a residual it must be float32."""
        return FLOAT32 if self.post_layernorm_residual else layer.takes

    def _split(self, projected: Tensor, *, parts: int) -> tuple[Tensor, ...]:
        return projected.view(-1, parts, self.heads, self.head_width).unbind(1)

    def _after_attention(self, hidden: Tensor, normed: Any, context: Tensor) -> tuple[Tensor, Tensor]:
        residual = normed if self.post_layernorm_residual else hidden
        hidden, normed = self.mlp_norm.of_sum(residual, self.attention_out(context), self._form(self.mlp_in))
        residual = normed if self.post_layernorm_residual else hidden
        return residual, self.mlp_out(self.mlp_in(normed, gelu=True))


class Bloom(nn.Module):
    """BLOOM from the token table to the final norm."""

    table: Tensor

    def __init__(
        self,
        config: BloomConfig,
        tensors: Mapping[str, Tensor],
        *,
        table: Tensor,
        precision: Precision = "fp32",
        device: torch.device | str = "cpu",
        trainable: bool = False,
        masters: bool = False,
        own_rows: OwnRows | None = None,
    ) -> None:
        """Move the weights to `device` and pack them for `precision`, a block at a time.

        Args:
            tensors: every tensor but the token table, by its name without `transformer.`; or what `quantize` made of
                them. Nothing keeps a reference to them that a packed copy replaces.
            table: word_embeddings.weight [vocabulary, H]; on the CPU used where it lies, never copied.
            trainable: use layers that a gradient passes through; which of their tensors move, training says.
            masters: of trainable layers: the matrices stay float32 and are rounded in each product, so that they can
                move in bf16.
            own_rows: replaces some rows of the table.
        """
        super().__init__()
        self.config = config
        self.register_buffer("table", table.to(device))
        self.own_rows = own_rows.to(device) if own_rows is not None else None

        def on_device(tensor: Tensor) -> Tensor:
            # Vectors are copied even where nothing changes: one view of a mapped file would keep all of it mapped.
            return tensor.to(device, copy=tensor.dim() == 1)

        def norm(name: str) -> LayerNorm:
            weight, bias = (on_device(tensors[f"{name}.{kind}"]) for kind in ("weight", "bias"))
            return LayerNorm(weight, bias, epsilon=config.norm_epsilon, wide=_wide(precision))

        def block(index: int) -> Block:
            weights = block_weights(config, tensors, index=index)
            own = last_precision(precision, device=torch.device(device)) if index == config.layers - 1 else precision
            on = {name: on_device(weight) for name, weight in weights.items()}
            return Block(config, on, precision=own, trainable=trainable, masters=masters)

        self.embedding_norm, self.final_norm = norm("word_embeddings_layernorm"), norm("ln_f")
        with _pool(alone=trainable) as pool:
            self.blocks = nn.ModuleList(pool.map(block, range(config.layers)))
        self.bias = AlibiBias(alibi_slopes(config.heads).to(device, _wide(precision)))

    def prepack(self) -> None:
        """Do now what the layers put off until there is much to compute (half.py); the vectors stay equal to 1e-6."""
        with _pool() as pool:
            for _ in pool.map(lambda layer: layer.prepack(), (m for m in self.modules() if isinstance(m, Linear))):
                pass  # an error of any of them is raised here

    def forward(self, batch: PackedBatch, *, recompute: bool = False) -> Tensor:
        """Hidden state of each sequence's last token after the final norm, float32 [S, H].

        Args:
            recompute: in training keep nothing inside the blocks but the first input of each, and compute them again
                for the gradient.
        """
        hidden, added = self._embed(batch.token_ids), None
        *earlier, last = cast(list[Block], list(self.blocks))
        steps: list[Callable[..., tuple[Tensor, Tensor]]] = [*earlier, last.closing]
        for step in steps:
            if recompute:  # one tensor is kept, not two
                hidden, added = hidden if added is None else hidden + added, None
                step = partial(checkpoint, step, use_reentrant=False, preserve_rng_state=False)
            hidden, added = step(hidden, added, batch, self.bias)
        vectors_SH: Tensor = self.final_norm.of_sum(hidden, added)[1]
        return vectors_SH

    def _embed(self, token_ids_T: Tensor) -> Tensor:
        hidden_TH = F.embedding(token_ids_T, self.table).to(self.embedding_norm.weight.dtype)
        if self.own_rows is not None:
            hidden_TH = self.own_rows(hidden_TH, token_ids_T)
        normed_TH: Tensor = self.embedding_norm.of_sum(hidden_TH, None)[1]
        return normed_TH


def _pool(*, alone: bool = False) -> ThreadPoolExecutor:
    """Packing keeps one core busy, so layers are made side by side; few, as a weight stands there twice meanwhile."""
    return ThreadPoolExecutor(1 if alone else min(torch.get_num_threads(), MADE_AT_ONCE))


def block_weights(config: BloomConfig, tensors: Mapping[str, Tensor], *, index: int) -> dict[str, Tensor]:
    """A block's tensors by their names inside the block, the fused projection's rows sorted into queries, keys, values.

    The last block's queries come apart, since only its last tokens ask. Checkpoints interleave the three a head at a
    time ([N, 3, D] rows).
    """
    prefix, fused = f"h.{index}.", "self_attention.query_key_value."
    block = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    for name in [name for name in block if name.startswith(fused)]:
        kind, tensor = name.removeprefix(fused), block.pop(name)
        if kind == "rows":  # of a quantised weight: `kept` says where they belong
            block["query_key_value.rows"] = tensor
            continue
        interleaved = tensor.reshape(config.heads, 3, config.head_width, -1)
        rows = interleaved.transpose(0, 1).reshape(tensor.shape)
        if index == config.layers - 1:
            block[f"query.{kind}"], rows = rows[: config.width], rows[config.width :]
        block[f"query_key_value.{kind}"] = rows
    return block


def checkpoint_tensors(
    model: Bloom, *, kind: str, of: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> dict[str, Tensor]:
    """The tensors of one kind ("weight" or "bias") under their names in a checkpoint: undoes `block_weights`.

    The token table is no part of it. Copies, on the CPU.

    Args:
        of: what is wanted of each tensor, of the same shape (e.g. its gradient).
    """
    found: dict[str, LayerNorm | Linear] = {"word_embeddings_layernorm": model.embedding_norm, "ln_f": model.final_norm}
    for index, block in enumerate(cast(list[Block], list(model.blocks))):
        found |= {
            f"h.{index}.{name}": layer
            for name, layer in (
                ("input_layernorm", block.attention_norm),
                ("self_attention.dense", block.attention_out),
                ("post_attention_layernorm", block.mlp_norm),
                ("mlp.dense_h_to_4h", block.mlp_in),
                ("mlp.dense_4h_to_h", block.mlp_out),
            )
        }
    tensors = {f"{name}.{kind}": of(getattr(layer, kind)) for name, layer in found.items()}
    for index, block in enumerate(cast(list[Block], list(model.blocks))):
        rows = [of(getattr(layer, kind)) for layer in (block.query, block.query_key_value) if layer is not None]
        tensors[f"h.{index}.self_attention.query_key_value.{kind}"] = _interleave(model.config, torch.cat(rows))
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def _interleave(config: BloomConfig, rows: Tensor) -> Tensor:
    """[3 * N * D, …], queries before keys before values -> the three a head at a time."""
    return rows.reshape(3, config.heads, config.head_width, -1).transpose(0, 1).reshape(rows.shape)


def _wide(precision: Precision) -> torch.dtype:
    """What everything but the linear layers computes in."""
    return torch.float64 if precision == "fp64" else torch.float32


def quantize(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the linear weights of all blocks but the last as int8: `….weight`, and the rest of `Quantized`.

    This is what is cached on disk.
    """
    quantized = dict(tensors)
    last = f"h.{max(int(name.split('.')[1]) for name in tensors if name.startswith('h.'))}."
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and name.startswith("h.") and not name.startswith(last):
            parts = quantize_weight(tensor)._asdict()
            quantized |= {name.removesuffix("weight") + part: value for part, value in parts.items()}
    return quantized


def last_precision(precision: Precision, *, device: torch.device) -> Precision:
    """An int8 model's last block stays finer: no later block evens its error out, and it works for few tokens."""
    return resolve_precision("auto", device=device) if precision == "int8" else precision


def closing_states(model: Bloom, batch: PackedBatch) -> Tensor:
    """`model(batch)` without gradients, float32 [S, H]."""
    with torch.inference_mode():
        vectors: Tensor = model(batch)
    return vectors
