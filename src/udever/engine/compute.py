"""Token ids through the model: batches one after the other, on a CPU also several side by side.

Invariant: which way is taken changes speed and memory, the vectors by no more than the threads' number does.
Does not know: texts, or what becomes of the vectors.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from udever.engine.packing import pack
from udever.engine.side_by_side import places, side_by_side
from udever.model.batch import PackedBatch
from udever.model.bloom import Bloom, closing_states

WORTH_TOKENS = 4096
"""Of each place, from which on starting threads (a millisecond each) is nothing beside what they spare."""
SHORT_FLOPS = 5e11
"""Of a batch: some two seconds of a core. An interrupt waits for the batches in work, and the long operations of a
large model keep all cores busy anyway."""


def closing_vectors(
    model: Bloom, sequences: Sequence[Sequence[int]], *, batch_tokens: int, device: torch.device
) -> Tensor:
    """Hidden state of each sequence's last token, float32 [len(sequences), H] on the CPU, in the given order."""
    out = torch.empty(len(sequences), model.config.width)

    def compute(part: tuple[list[int], PackedBatch]) -> None:
        indices, batch = part
        out[indices] = closing_states(model, batch).to(out.device)

    tokens = sum(map(len, sequences))
    count = min(places(device), tokens // WORTH_TOKENS)
    if count > 1 and batch_tokens * model.config.flops_per_token <= SHORT_FLOPS:
        budget = _even(tokens, batch_tokens=batch_tokens, places=count)
        side_by_side(compute, pack(sequences, batch_tokens=budget, device=device), places=count)
        return out
    for part in pack(sequences, batch_tokens=batch_tokens, device=device):
        compute(part)
    return out


def _even(tokens: int, *, batch_tokens: int, places: int) -> int:
    """A smaller budget, so that all places have equally much to do."""
    rounds = math.ceil(tokens / (places * batch_tokens))
    return math.ceil(tokens / (places * rounds))
