"""From lists of token ids to packed batches under a token budget, longest first, and back to the caller's order.

Invariant: every sequence is in exactly one batch. Sorting by length makes equal lengths neighbours, which is what the
attention kernels want; starting with the longest makes the peak of memory come first, and estimates of time honest.
"""

from collections.abc import Iterator, Sequence

import torch

from udever.model.batch import PackedBatch


def plan(lengths: Sequence[int], *, batch_tokens: int) -> list[list[int]]:
    """Cut the sequences into batches of at most `batch_tokens` tokens (a longer sequence is a batch of its own).

    Returns:
        indices into `lengths`, batch by batch, longest sequence first; ties keep their order.
    """
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[index] > room:
            batches.append([])
            room = max(batch_tokens, lengths[index])
        batches[-1].append(index)
        room -= lengths[index]
    return batches


def pack(
    sequences: Sequence[Sequence[int]], *, batch_tokens: int, device: torch.device
) -> Iterator[tuple[list[int], PackedBatch]]:
    """The batches of `plan`, each with the indices of its sequences."""
    for indices in plan([len(sequence) for sequence in sequences], batch_tokens=batch_tokens):
        yield indices, PackedBatch.from_lists([sequences[i] for i in indices], device=device)
