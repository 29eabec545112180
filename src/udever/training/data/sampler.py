"""Which examples make a step's batch: shuffled, weighted, of any or of one task.

    Sampler(mixture, batch_size=1024, seed=42, mixing="mixed").batch(step) -> [(store, example, drawn before), ...]

Invariant: a pure function of (seed, step); no state but a cache, no process number. So a run resumes by its step alone,
and a run on eight processes draws the batches of a run on one.
The shuffles are sorts of PCG64's raw output, which NumPy promises to keep, so they outlive its releases.
Does not know: texts, token ids or what is done with a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from udever.errors import ExamplesError
from udever.training.data.examples import Example, ExampleStore

Mixing = Literal["mixed", "one_task"]
Indices = NDArray[np.int64]

MIXED = ""
"""The group of all examples."""


class Mixture:
    """Several stores, and how often each is drawn."""

    def __init__(self, stores: Sequence[ExampleStore], weights: Sequence[float] | None = None) -> None:
        """Weights: 1 draws each example of that store once an epoch, 2 twice, 0.1 a tenth of them, a new tenth each
        epoch; by default 1.

        Raises:
            ExamplesError: no store, or a weight that is not above 0.
        """
        self.stores = tuple(stores)
        """In the order of the recipe."""
        self.weights = tuple(weights) if weights is not None else (1.0,) * len(self.stores)
        """One a store."""
        if not self.stores or len(self.stores) != len(self.weights):
            raise ExamplesError(f"{len(self.stores)} stores and {len(self.weights)} weights", hint="one weight a store")
        if not all(0 < weight < float("inf") for weight in self.weights):
            raise ExamplesError(f"the weights are {', '.join(map(str, self.weights))}", hint="each must be above 0")


class Sampler:
    """Draws batches."""

    def __init__(self, mixture: Mixture, *, batch_size: int, seed: int, mixing: Mixing = "mixed") -> None:
        """`mixing`: "mixed" lets a batch hold examples of several tasks, "one_task" does not.

        Raises:
            ExamplesError: there are fewer examples than one batch takes.
        """
        self._batch_size, self._seed = batch_size, seed % 2**64
        self._groups = _groups(mixture, self._seed, mixing)
        self._cached: tuple[int, _Epoch] | None = None
        if not self.steps_per_epoch:
            most = max(group.draws for group in self._groups)
            what = "one task has" if mixing == "one_task" else "an epoch has"
            raise ExamplesError(
                f"a batch takes {batch_size:,} examples, {what} only {most:,}",
                hint="lower batch.size, or import more examples",
            )

    @cached_property
    def steps_per_epoch(self) -> int:
        """Whole batches of an epoch, the same in each."""
        return sum(group.draws // self._batch_size for group in self._groups)

    @property
    def draws_per_epoch(self) -> int:
        """Examples an epoch draws, before the last incomplete batches are dropped."""
        return sum(group.draws for group in self._groups)

    @property
    def dropped(self) -> Mapping[str, int]:
        """Examples an epoch leaves out because they fill no batch: task (mixed: "") → how many, each epoch others."""
        return {group.name: rest for group in self._groups if (rest := group.draws % self._batch_size)}

    @property
    def never_drawn(self) -> Mapping[str, int]:
        """Tasks with fewer examples than a batch → how many they have."""
        return {group.name: group.draws for group in self._groups if group.draws < self._batch_size}

    def epoch_of(self, step: int) -> int:
        """The epoch of a step, both counted from 0."""
        return step // self.steps_per_epoch

    def batch(self, step: int) -> list[tuple[int, int, int]]:
        """(store, example, how often it was drawn before) of each of the `batch_size` examples of a step, counted from
        0. Draws that an epoch leaves out because they fill no batch count as well.
        """
        epoch, place = self.epoch_of(step), step % self.steps_per_epoch
        shuffled = self._epoch(epoch)
        number = int(shuffled.groups[place])
        group, first = self._groups[number], int(shuffled.batches[place]) * self._batch_size
        return group.at(shuffled.order(number, group.draws)[first : first + self._batch_size], epoch)

    def _epoch(self, number: int) -> "_Epoch":
        """The shuffle of one epoch; the last one asked for is kept."""
        if self._cached is None or self._cached[0] != number:
            counts = [group.draws // self._batch_size for group in self._groups]
            self._cached = (number, _Epoch(counts, seed=(self._seed, number)))
        return self._cached[1]


class _Epoch:
    """How one epoch is shuffled: which group's which batch comes when, and the order within each group."""

    def __init__(self, batch_counts: Sequence[int], *, seed: tuple[int, int]) -> None:
        order = shuffled(sum(batch_counts), (*seed, 0))
        self.groups = np.repeat(np.arange(len(batch_counts)), batch_counts)[order]
        """Group of each batch."""
        self.batches = np.concatenate([np.arange(count) for count in batch_counts])[order]
        """Its number within the group."""
        self._seed = seed
        self._orders: dict[int, Indices] = {}

    def order(self, group: int, draws: int) -> Indices:
        """The shuffled draws of a group."""
        if group not in self._orders:
            self._orders[group] = shuffled(draws, (*self._seed, 1, group))
        return self._orders[group]


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The examples of one store that belong to a group. An epoch draws all of them `whole` times and `extra` more."""

    store: int
    count: int
    indices: Indices | None
    """Places in the store; None: all of it."""
    whole: int
    extra: int
    seed: tuple[int, ...]

    @property
    def draws(self) -> int:
        """Of an epoch."""
        return self.whole * self.count + self.extra

    @cached_property
    def rotation(self) -> Indices:
        """The order in which the extra draws walk through the part, epoch after epoch."""
        return shuffled(self.count, self.seed)

    @cached_property
    def turns(self) -> Indices:
        """Of each place, when its turn comes in the rotation."""
        return np.argsort(self.rotation)

    def at(self, draws: Indices, epoch: int) -> tuple[Indices, Indices]:
        """The examples behind draws of an epoch, and how often each was drawn before."""
        places, before = draws % self.count, self.whole * epoch + draws // self.count
        if self.extra:
            extra, is_extra = draws - self.whole * self.count, draws >= self.whole * self.count
            walked = epoch * self.extra + extra[is_extra]
            places[is_extra] = self.rotation[walked % self.count]
            before[is_extra] += walked // self.count
            if self.whole:
                before[~is_extra] += -((self.turns[places[~is_extra]] - epoch * self.extra) // self.count)
        return (places if self.indices is None else self.indices[places]), before


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Examples that may stand in one batch."""

    name: str
    parts: tuple[_Part, ...]

    @cached_property
    def draws(self) -> int:
        """Of an epoch."""
        return sum(part.draws for part in self.parts)

    def at(self, draws: Indices, epoch: int) -> list[tuple[int, int, int]]:
        """(store, example, how often it was drawn before) of draws of an epoch, in their order."""
        ends = np.cumsum([part.draws for part in self.parts])
        of_part = np.searchsorted(ends, draws, side="right")
        examples, before = np.empty(len(draws), np.int64), np.empty(len(draws), np.int64)
        for number, part in enumerate(self.parts):
            mine = of_part == number
            examples[mine], before[mine] = part.at(draws[mine] - (ends[number] - part.draws), epoch)
        stores = np.array([part.store for part in self.parts])[of_part]
        return list(zip(stores.tolist(), examples.tolist(), before.tolist(), strict=True))


def _groups(mixture: Mixture, seed: int, mixing: Mixing) -> tuple[_Group, ...]:
    """One group of everything, or one a task; a task that several stores have is one task."""
    members: dict[str, list[_Part]] = {}
    for number, (store, weight) in enumerate(zip(mixture.stores, mixture.weights, strict=True)):
        whole = int(weight)
        chosen: Mapping[str, Indices | None] = {MIXED: None} if mixing == "mixed" else store.tasks
        for name, indices in chosen.items():
            parts = members.setdefault(name, [])
            count = len(store) if indices is None else len(indices)
            extra = max(round((weight - whole) * count), 1 - whole)  # a part that is there is drawn
            task_number = list(members).index(name)
            part_seed = (seed, 2**64 - 1, number, task_number)  # no epoch has this number
            parts.append(_Part(store=number, count=count, indices=indices, whole=whole, extra=extra, seed=part_seed))
    return tuple(_Group(name=name, parts=tuple(parts)) for name, parts in members.items())


def shuffled(count: int, seed: Sequence[int]) -> Indices:
    """0 … count - 1 in an order that depends on the seed alone."""
    raw = np.random.PCG64(np.random.SeedSequence(list(seed))).random_raw(count)
    return np.argsort(raw, kind="stable")


def negatives_for(example: Example, *, count: int, before: int) -> tuple[int, ...]:
    """The `count` hard negatives of an example that was drawn so often before: the next ones of its list each time,
    around and around.

    Fewer where the example has fewer.
    """
    have = len(example.negatives)
    first = before * count
    return tuple(example.negatives[(first + i) % have] for i in range(min(count, have)))
