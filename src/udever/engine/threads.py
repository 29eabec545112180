"""How many threads a forward pass gets: one, if the work is small and the cores are busy.

A short query through a small model is a hundred tiny operations. On idle cores a second thread saves a part of its
time; on busy ones each operation waits until that thread is scheduled, and the query takes ten times as long.
Does not know: models or texts.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALL_FLOPS = 2e8
"""A few milliseconds of one core: about 30 tokens of the built-in model."""


@contextmanager
def fitting_threads(flops: float) -> Iterator[None]:
    """Inside, PyTorch uses one thread of this one's where more would wait. For a thread that computes nothing else."""
    threads = torch.get_num_threads()
    if threads == 1 or flops > SMALL_FLOPS or not cores_are_busy():
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def cores_are_busy() -> bool:
    """Whether more has wanted to run in the last minute than there are cores."""
    return os.getloadavg()[0] > (os.cpu_count() or 1)
