"""One training step's gradient, in as little memory as is allowed, exact in any.

    embeddings = model(chunk) for each chunk;  loss(embeddings) -> d embeddings;  backward through each chunk

Invariant: the gradient is that of the loss over the whole batch, however it is chunked and over how many processes.
If the activations of all chunks fit, they are kept; else each chunk is embedded twice (GradCache, arXiv 2101.06983:
first without gradient, then with it, when the loss has told d embeddings). Chunks that do not fit alone keep only the
blocks' inputs.
Does not know: what the sequences are, the loss, or what fits (memory.py).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from udever.engine.packing import pack
from udever.model.batch import PackedBatch
from udever.model.bloom import Bloom
from udever.training.distributed import World
from udever.training.memory import MemoryPlan

Outcome = TypeVar("Outcome")


def accumulate(
    model: Bloom,
    sequences: Sequence[Sequence[int]],
    loss_of: Callable[[Tensor], tuple[Tensor, Outcome]],
    *,
    plan: MemoryPlan,
    world: World,
    device: torch.device,
) -> tuple[Tensor, Outcome]:
    """Add the gradient of `loss_of(embeddings)` to this process's share in the parameters' `.grad`.

    The sum over all processes (`World.sum_gradients`) is the gradient.

    Args:
        sequences: token ids of the whole batch, the same on every process.
        loss_of: raw embeddings [n, H] of all sequences in order → (scalar loss, whatever else it tells).

    Returns:
        what `loss_of` gave, detached.
    """
    shares = world.shares([len(sequence) for sequence in sequences])
    own = [sequences[index] for index in shares[world.rank]]
    chunks = list(_chunks(own, plan, device))
    # A model that is cut over the processes computes on all of them at once: who has fewer chunks repeats a text.
    idle = world.most(len(chunks)) - len(chunks)
    chunks += [([], batch) for _, batch in list(_chunks([min(sequences, key=len)], plan, device)) * idle]
    with torch.set_grad_enabled(not plan.cached):
        outputs = [model(batch) for _, batch in chunks]
    embedded = torch.empty(len(own), model.config.width, dtype=model.final_norm.weight.dtype, device=device)
    for (rows, _), output in zip(chunks, outputs, strict=True):
        embedded[rows] = output.detach()[: len(rows)]
    whole = world.assemble(embedded, shares).requires_grad_()
    loss, outcome = loss_of(whole)
    (d_whole,) = torch.autograd.grad(loss, whole)
    d_own = d_whole[shares[world.rank]]
    d_outputs = [d_own[rows] if rows else torch.zeros_like(out) for (rows, _), out in zip(chunks, outputs, strict=True)]
    if plan.cached:
        # From the last chunk on, as one backward pass through all of them does: the same sums, to the last bit.
        for (_, batch), d_output in zip(reversed(chunks), reversed(d_outputs), strict=True):
            model(batch, recompute=plan.recompute).backward(d_output)
    else:
        torch.autograd.backward(outputs, d_outputs)
    return loss.detach(), outcome


def _chunks(
    sequences: Sequence[Sequence[int]], plan: MemoryPlan, device: torch.device
) -> Iterator[tuple[list[int], PackedBatch]]:
    for rows, batch in pack(sequences, batch_tokens=plan.chunk_tokens, device=device):
        yield list(rows), batch
