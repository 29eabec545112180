"""Dedupe's two stages: embed the texts that appear first in a shard, then give every row the vector of its text.

Invariant: both stages are pure functions of a shard, the job and what the stage before left, so shards of a stage may
be done in any order, by anyone, twice. A row whose text turned out to have no embedding is bad for the same reason.
Does not know: who found the owners (dedupe.py).
"""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from udever.bulk.dedupe import Numbers, Owners
from udever.bulk.embed import Embedded, Tokenized, Worker, receipt_of
from udever.bulk.formats import save_arrays
from udever.bulk.plan import Shard
from udever.bulk.receipts import DISTINCT, Receipt, distinct_name, shard_name
from udever.bulk.rows import Fault, Loaded


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
        self._storage.write(distinct_name(name), receipt.to_json())
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
        numbers, there = self._load(index)
        wanted = owners - self._owners.firsts[index] + self._owners.starts[index] + 1
        at = np.minimum(np.searchsorted(numbers, wanted), max(len(numbers) - 1, 0))
        found = numbers[at] == wanted if len(numbers) else np.zeros(len(wanted), bool)
        vectors[places[found]] = there[at[found]]
        if found.all():
            return {}
        reasons = {bad.row: (bad.code, bad.reason) for bad in self._receipt(index).bad}
        return {int(place): reasons[int(row)] for place, row in zip(places[~found], wanted[~found], strict=True)}

    def _load(self, index: int) -> tuple[Numbers, NDArray[np.float32]]:
        """(row numbers in the file, vectors) of a shard's own texts."""
        name = f"{DISTINCT}/{self._owners.names[index]}"
        with self._storage.open(f"{name}.rows.npy") as rows, self._storage.open(f"{name}.npy") as vectors:
            return np.load(rows), np.load(vectors)

    def _receipt(self, index: int) -> Receipt:
        return Receipt.from_json(self._storage.read(distinct_name(self._owners.names[index])))
