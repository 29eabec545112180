"""Which row of the whole job has the same text as an earlier one.

    survey(plan, job, storage);  owners = Owners(storage);  owners.of(shard)

Every text is read once and hashed; who came first is found bucket by bucket on disk, so memory does not grow with
the rows (24 bytes a row of scratch disk while it runs, 8 in the output until the run is finished).
Invariant: a row's owner is the first row of the plan with the same text: itself, or one before it. A row without a text
owns itself.
Does not know: models or vectors.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from udever.bulk.job import Job
from udever.bulk.plan import Plan, Shard
from udever.bulk.reading import Reader
from udever.bulk.receipts import shard_name
from udever.bulk.rows import load
from udever.bulk.storage import WORK, Storage

OWNERS = f"{WORK}/owners"
ROWS, SHARDS = f"{OWNERS}/rows.npy", f"{OWNERS}/shards.json"
BUCKET_ROWS = 1 << 21
"""Rows whose texts are compared at once: about 100 MB."""
CHUNK_ROWS = 1 << 20

Numbers = NDArray[np.int64]
Keys = NDArray[np.uint64]


def survey(plan: Plan, job: Job, storage: Storage) -> None:
    """Find the owner of each row; once for an output."""
    if SHARDS in storage.sizes(OWNERS):
        return
    with tempfile.TemporaryDirectory(prefix="udever-") as folder, storage.writing(ROWS) as path:
        scratch = Path(folder, "keys")
        _write_keys(plan, job, scratch)
        rows = plan.rows
        owners = np.lib.format.open_memmap(path, mode="w+", dtype=np.int64, shape=(rows,))
        keys = np.memmap(scratch, np.uint64, mode="r", shape=(rows, 2)) if rows else np.zeros((0, 2), np.uint64)
        find_owners(keys, owners)
        owners.flush()
        del keys, owners
    firsts = np.cumsum([0, *(shard.rows for shard in plan.shards)])[:-1]
    facts = {
        "firsts": firsts.tolist(),
        "starts": [shard.cut.first for shard in plan.shards],
        "names": [shard_name(shard, job.digest) for shard in plan.shards],
    }
    storage.write(SHARDS, json.dumps(facts).encode())


def find_owners(keys: Keys, owners: Numbers) -> None:
    """Fill `owners` with the first row of the same key; a key of zeros is no key.

    Args:
        keys: [rows, 2]
    """
    buckets = max(1, -(-len(keys) // BUCKET_ROWS))
    for bucket in range(buckets):
        rows = np.concatenate([np.zeros(0, np.int64), *_in_bucket(keys, bucket, buckets)])
        of_rows = keys[rows]
        order = np.lexsort((rows, of_rows[:, 1], of_rows[:, 0]))
        rows, of_rows = rows[order], of_rows[order]
        is_first = np.ones(len(rows), bool)
        is_first[1:] = (of_rows[1:] != of_rows[:-1]).any(1) | ~of_rows[1:].any(1)
        owners[rows] = rows[is_first][np.cumsum(is_first) - 1]


class Owners:
    """What a survey found."""

    def __init__(self, storage: Storage) -> None:
        known = json.loads(storage.read(SHARDS))
        self.firsts: Numbers = np.array(known["firsts"], np.int64)
        """Rows of the plan before each shard."""
        self.starts: Numbers = np.array(known["starts"], np.int64)
        """Rows of its file before each shard."""
        self.names: list[str] = known["names"]
        """Of each shard."""
        self._storage = storage

    def of(self, shard: Shard) -> Numbers:
        """The owner of each row of a shard, both counted through the whole plan."""
        with self._storage.open(ROWS) as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            file.seek(file.tell() + 8 * int(self.firsts[shard.index]))
            return np.frombuffer(file.read(8 * shard.rows), np.int64)

    def shard_of(self, rows: Numbers) -> Numbers:
        """The place in the plan of the shard that holds each row."""
        return np.searchsorted(self.firsts, rows, side="right") - 1


def _in_bucket(keys: Keys, bucket: int, buckets: int) -> Iterator[Numbers]:
    for start in range(0, len(keys), CHUNK_ROWS):
        yield start + np.flatnonzero(keys[start : start + CHUNK_ROWS, 0] % np.uint64(buckets) == bucket)


def _write_keys(plan: Plan, job: Job, path: Path) -> None:
    """16 bytes a row: a hash of its text, zeros where it has none."""
    options = job.options
    reader = Reader(text_columns=options.text_columns, carried=job.carried, texts_only=options.template is None)
    with path.open("wb") as file:
        for shard in plan.shards:
            loaded = load(reader.read(shard), options)
            keys = np.zeros((shard.rows, 16), np.uint8)
            digests = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in loaded.texts]
            keys[loaded.numbers - 1 - shard.cut.first] = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)
            file.write(keys.tobytes())
    reader.close()
