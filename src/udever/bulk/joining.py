"""Dedupe's two stages: embed the texts that appear first in a shard, then give every row the vector of its text.

Invariant: both stages are pure functions of a shard, the job and what the stage before left, so shards of a stage may
be done in any order, by anyone, twice. A row whose text turned out to have no embedding is bad for the same reason.
Of another shard's vectors a join reads those that it needs: rows spread over all shards cost no more than their number.
Does not know: who found the owners (dedupe.py).
"""

import io
from collections.abc import Callable
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from udever.bulk.dedupe import Numbers, Owners
from udever.bulk.embed import Embedded, Tokenized, Worker, receipt_of
from udever.bulk.formats import save_arrays
from udever.bulk.plan import Shard
from udever.bulk.receipts import DISTINCT, Receipt, bad_rows_of, distinct_name, shard_name
from udever.bulk.rows import Fault, Loaded
from udever.bulk.storage import Storage

GAP_BYTES = 1 << 18
"""Bytes that are read along between two rows of a file far away: asking again takes longer."""
HEADER_BYTES = 1 << 10
"""Enough for what stands before the numbers of a .npy file."""
REMEMBERED = 1 << 10
"""Shards whose row numbers are kept in memory, 8 bytes for each distinct text."""


class _OwnerWorker(Worker):
    """Knows the owners of a shard's rows."""

    @cached_property
    def _owners(self) -> Owners:
        return Owners(self._storage)

    def _owners_of(self, shard: Shard, loaded: Loaded) -> tuple[Numbers, Numbers]:
        """(each row, its owner), both counted through the whole plan."""
        places = loaded.numbers - 1 - shard.cut.first
        return places + self._owners.firsts[shard.index], self._owners.of(shard)[places]


class DistinctWorker(_OwnerWorker):
    """Embeds the rows that own themselves."""

    stage = "distinct"

    def read(self, shard: Shard) -> tuple[Shard, Loaded]:
        """The shard's texts that no row before has."""
        _, loaded = super().read(shard)
        rows, owners = self._owners_of(shard, loaded)
        return shard, loaded.only(np.flatnonzero(rows == owners))

    def write(self, embedded: Embedded) -> Receipt:
        """Their vectors and row numbers, for the next stage."""
        name = shard_name(embedded.shard, self._job.digest)
        arrays: dict[str, NDArray[np.float32] | Numbers] = {"": embedded.vectors, ".rows": embedded.loaded.numbers}
        written = save_arrays(self._storage, f"{DISTINCT}/{name}", arrays)
        receipt = receipt_of(embedded, written, stage=self.stage)
        self._storage.write(distinct_name(name), receipt.to_json(embedded.loaded.bad))
        return receipt


class JoinWorker(_OwnerWorker):
    """Gives every row the vector of its owner. Needs the model for nothing."""

    stage = "join"

    def tokenize(self, read: tuple[Shard, Loaded]) -> Tokenized:
        """Nothing is to be embedded."""
        return Tokenized(shard=read[0], loaded=read[1], sequences=[])

    def embed(self, tokenized: Tokenized) -> Embedded:
        """Fetch vectors, one owning shard after another."""
        shard, loaded = tokenized.shard, tokenized.loaded
        _, owners = self._owners_of(shard, loaded)
        shards = self._owners.shard_of(owners)
        vectors = np.empty((len(owners), self._job.dimensions), np.float32)
        faults: dict[int, Fault] = {}
        for index in np.unique(shards):
            places = np.flatnonzero(shards == index)
            faults |= self._fetch(int(index), places, owners[places], vectors)
        kept = np.array([place for place in range(len(owners)) if place not in faults], np.int64)
        own = self._receipt(shard.index)
        return Embedded(
            shard=shard,
            loaded=loaded.without(faults),
            vectors=vectors[kept],
            texts=own.texts,
            tokens=own.tokens,
        )

    def _fetch(self, index: int, places: Numbers, owners: Numbers, vectors: NDArray[np.float32]) -> dict[int, Fault]:
        """Fill in the vectors of rows whose owners one shard holds; why some have none, by place."""
        owned = self._owned(index)
        numbers = owned.numbers
        wanted = owners - self._owners.firsts[index] + self._owners.starts[index] + 1
        at = np.minimum(np.searchsorted(numbers, wanted), max(len(numbers) - 1, 0))
        found = numbers[at] == wanted if len(numbers) else np.zeros(len(wanted), bool)
        if found.any():
            vectors[places[found]] = owned.vectors(at[found])
        if found.all():
            return {}
        data = self._storage.read(distinct_name(self._owners.names[index]))
        reasons = {bad.row: (bad.code, bad.reason) for bad in bad_rows_of(data)}
        return {int(place): reasons[int(row)] for place, row in zip(places[~found], wanted[~found], strict=True)}

    @cached_property
    def _owned(self) -> Callable[[int], "Owned"]:
        """By place in the plan: a shard's own texts."""
        names = self._owners.names
        return lru_cache(REMEMBERED)(lambda index: Owned(self._storage, f"{DISTINCT}/{names[index]}"))

    def _receipt(self, index: int) -> Receipt:
        return Receipt.from_json(self._storage.read(distinct_name(self._owners.names[index])))


class Owned:
    """A shard's own texts: their row numbers, and their vectors, which stay in their file."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage, self._name = storage, f"{name}.npy"
        with storage.open(f"{name}.rows.npy") as file:
            self.numbers: Numbers = np.load(file)
            """In the input, ascending."""

    def vectors(self, places: Numbers) -> NDArray[np.float32]:
        """Those at some places, in any order, each as often as it is named. At least one."""
        if self._storage.local:
            mapped: NDArray[np.float32] = np.load(self._storage.path(self._name), mmap_mode="r")
            return mapped[places]
        start, row_bytes = self._layout
        distinct, back = np.unique(places, return_inverse=True)
        runs = np.split(distinct, np.flatnonzero(np.diff(distinct) * row_bytes > GAP_BYTES) + 1)
        parts = [(start + int(run[0]) * row_bytes, start + (int(run[-1]) + 1) * row_bytes) for run in runs]
        read = [
            np.frombuffer(data, np.float32).reshape(-1, row_bytes // 4)[run - run[0]]
            for run, data in zip(runs, self._storage.read_parts(self._name, parts), strict=True)
        ]
        return np.concatenate(read)[back]

    @cached_property
    def _layout(self) -> tuple[int, int]:
        """(offset of the first vector, bytes of each)"""
        [head] = self._storage.read_parts(self._name, [(0, HEADER_BYTES)])
        file = io.BytesIO(head)
        np.lib.format.read_magic(file)
        shape, _, _ = np.lib.format.read_array_header_1_0(file)
        return file.tell(), 4 * shape[1]
