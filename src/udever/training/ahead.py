"""Batches made by other processes while the device computes the ones before.

    Ahead(batches, workers=4).of(step) -> StepBatch

Invariant: a batch is a pure function of its step (batches.py), so who makes it and when changes nothing.
Does not know: what is in a batch.
"""

import signal
import warnings
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from udever.training.batches import Batches, StepBatch


class Ahead:
    """Made for steps that are asked for one after another; any other order works, and begins anew."""

    def __init__(self, batches: Batches, *, workers: int) -> None:
        """`workers`: processes, forked when the first batch is asked for; 0: batches are made when asked for."""
        self._batches, self._workers = batches, workers
        self._coming: Iterator[StepBatch] = iter(())
        self._next = -1

    def of(self, step: int) -> StepBatch:
        """The batch of a step, counted from 0."""
        if not self._workers:
            return self._batches.of(step)
        if step != self._next:
            self._coming = self._from(step)
        self._next = step + 1
        return next(self._coming)

    def _from(self, step: int) -> Iterator[StepBatch]:
        steps: DataLoader[StepBatch] = DataLoader(
            _Steps(self._batches),
            sampler=range(step, max(step + 1, self._batches.steps)),
            batch_size=None,
            num_workers=self._workers,
            collate_fn=_as_it_is,
            worker_init_fn=_leave_ctrl_c_to_the_parent,
            multiprocessing_context="fork",  # the stores are mapped files, which do not travel
        )
        with warnings.catch_warnings():
            # Python 3.12 warns of any fork beside threads; these children read mapped files and compute on one thread.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            return iter(steps)


class _Steps(Dataset[StepBatch]):
    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __getitem__(self, step: int) -> StepBatch:
        return self._batches.of(step)


def _leave_ctrl_c_to_the_parent(_: int) -> None:
    """A terminal sends it to all; the parent ends its workers, and would complain of any that died before."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_it_is(batch: Any) -> Any:
    return batch
