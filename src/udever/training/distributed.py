"""Several processes as one: who embeds what, and how the parts come together again.

Invariant: every rank builds the same global batch and the same loss; only the embedding is shared out. So gradients
need no exchange but one sum, and a run on n processes trains on the same batches as a run on one.
The environment (RANK, WORLD_SIZE, LOCAL_RANK, as torchrun sets them) is read here and nowhere else in training.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(days=2)
"""How long a rank waits for the others: while one evaluates, that may be hours. torchrun ends all when one dies."""
_LOCAL = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
"""What torchrun sets on each machine, and what holds without it."""


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among the others."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    """Processes on this machine."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def shares(self, lengths: Sequence[int]) -> list[list[int]]:
        """For each rank the sequences that it embeds: dealt out from the longest, so all have like work."""
        if self.size == 1:
            return [list(range(len(lengths)))]
        order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
        return [order[rank :: self.size] for rank in range(self.size)]

    def assemble(self, own: Tensor, shares: Sequence[Sequence[int]]) -> Tensor:
        """Everybody's rows in the order of the whole, [n, H]; `own` are this rank's, in the order of its share."""
        parts = [own]
        if self.size > 1:
            longest = max(map(len, shares))
            padded = own.new_zeros(longest, own.shape[1])
            padded[: len(own)] = own
            parts = [torch.empty_like(padded) for _ in shares]
            dist.all_gather(parts, padded)
        whole = own.new_empty(sum(map(len, shares)), own.shape[1])
        for part, share in zip(parts, shares, strict=True):
            whole[list(share)] = part[: len(share)]
        return whole

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add up what each rank found, in place."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            dist.barrier()

    def most(self, number: int) -> int:
        """The largest of all ranks' numbers."""
        if self.size == 1:
            return number
        numbers = torch.tensor(number)
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
        return int(numbers)

    def agree(self, condition: bool) -> bool:
        """Whether it holds on every rank."""
        return self.most(int(not condition)) == 0


@contextmanager
def world() -> Iterator[World]:
    """The world that torchrun made; a world of one without it."""
    if "RANK" not in os.environ:
        yield World()
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        local_rank, local_size = (int(os.environ.get(name, other)) for name, other in _LOCAL.items())
        yield World(rank=dist.get_rank(), size=dist.get_world_size(), local_rank=local_rank, local_size=local_size)
    finally:
        dist.destroy_process_group()
