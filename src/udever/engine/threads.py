"""How many threads a forward pass gets: one, where waking the others costs more than they do.

A short query through a small model is a hundred tiny operations. On idle cores a second thread saves a fifth of its
time; on busy ones, as beside an HTTP server and its clients, each operation waits until that thread is scheduled.
Does not know: models or texts.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALL_FLOPS = 2e8
"""A few milliseconds of one core: about 30 tokens of the built-in model."""


@contextmanager
def fitting_threads(flops: float) -> Iterator[None]:
    """Inside, PyTorch uses one thread of this one's if the work is small. For a thread that computes nothing else."""
    threads = torch.get_num_threads()
    if threads == 1 or flops > SMALL_FLOPS:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
