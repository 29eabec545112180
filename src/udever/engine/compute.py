"""Token ids through the model: batches one after the other, or on a CPU with much to do several side by side.

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
BYTES = 32
"""Of a token's widest numbers at once, for each of the model's channels."""
ROOM_BYTES = 1 << 30
"""For all batches that are in work."""


def closing_vectors(
    model: Bloom, sequences: Sequence[Sequence[int]], *, batch_tokens: int, device: torch.device
) -> Tensor:
    """Hidden state of each sequence's last token, float32 [len(sequences), H] on the CPU, in the given order."""
    out = torch.empty(len(sequences), model.config.width)

    def compute(part: tuple[list[int], PackedBatch]) -> None:
        indices, batch = part
        out[indices] = closing_states(model, batch).to(out.device)

    tokens = sum(map(len, sequences))
    held = BYTES * model.config.width * batch_tokens
    count = min(places(device), tokens // WORTH_TOKENS, ROOM_BYTES // held)
    if count > 1:
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
