"""How a step keeps to its memory: what its activations take, and which of three plans fits.

    kept: all activations at once;  cached: each chunk embedded twice;  recomputed: of a chunk only the blocks' inputs

Invariant: the plan never changes how gradients are summed; that is `chunk_tokens` alone, chosen once for a run. So a
run may go on where there is more or less memory, and ends with the same bytes.
Does not know: how much memory there is (free_memory.py), or how a plan is carried out (gradcache.py).
"""

from dataclasses import dataclass

from udever.model.config import BloomConfig
from udever.training.bitfit import moving_blocks

KEPT_FROZEN = 9
"""Numbers a token keeps in a block whose matrices are frozen, in widths: two norm inputs, q, k, v, and GELU's input
(four)."""
KEPT_MOVING = 16
"""In a block whose matrices move, that keep their inputs: also two norm outputs, the context, and GELU's output
(four)."""
ITEM_BYTES = 4
"""Of an activation in float32; in bf16 a part of them takes less."""
STATE_BYTES = 12
"""Of a number that moves, beside itself: its gradient and AdamW's two moments."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """How a step keeps to its memory."""

    chunk_tokens: int
    cached: bool
    """Embed each chunk twice and keep the activations of one."""
    recompute: bool
    """Keep only the blocks' inputs, within a chunk too."""


def kept_bytes(config: BloomConfig, *, tune: str, recompute: bool = False) -> int:
    """What a token's activations take between the forward and the backward pass.

    Args:
        tune: as in `bitfit.unfreeze`.
        recompute: keep the blocks' inputs, and all of the one block that is computed again.
    """
    moving = moving_blocks(tune, layers=config.layers)
    if recompute:
        widths = config.layers + (KEPT_MOVING if moving else KEPT_FROZEN)
    else:
        widths = KEPT_MOVING * moving + KEPT_FROZEN * (config.layers - moving)
    return widths * config.width * ITEM_BYTES


def fitting_chunk(config: BloomConfig, *, tune: str, budget_bytes: int, at_most: int) -> int:
    """Tokens the model may see at once: what the device likes best, or as many as fit recomputed."""
    return max(1, min(at_most, budget_bytes // kept_bytes(config, tune=tune, recompute=True)))


def plan_memory(config: BloomConfig, *, tune: str, tokens: int, budget_bytes: int, chunk_tokens: int) -> MemoryPlan:
    """The fastest plan whose activations fit; if none does, the one that takes least.

    Args:
        tokens: of the step on this process.
        chunk_tokens: tokens the model sees at once, whatever the budget.
    """
    token_bytes = kept_bytes(config, tune=tune)
    cached = tokens * token_bytes > budget_bytes
    recompute = cached and chunk_tokens * token_bytes > budget_bytes
    return MemoryPlan(chunk_tokens=chunk_tokens, cached=cached, recompute=recompute)
