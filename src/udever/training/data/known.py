"""What answers a query, over all examples: the index that keeps known positives out of the in-batch negatives.

Invariant: exact, by text id; a symmetric example counts both ways.
Does not know: texts, batches or losses.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from udever.training.data.columns import BLOCK_ROWS, Blocks, BlockWriter

SCHEMA = pa.schema([("keys", pa.list_(pa.int64()))])


def write_known(path: Path, *, examples: Path, texts: Path) -> None:
    """Write, for each text id, the keys of the texts that are its positives in any example, in the order of their ids.

    Takes 16 bytes of memory a (query, positive) pair for a moment.
    """
    keys = np.concatenate(list(Blocks(texts).numbers("key")))
    pairs = np.unique(np.concatenate(list(_pairs(Blocks(examples)))))
    queries, positives = pairs >> 32, keys[pairs & 0xFFFFFFFF]
    with BlockWriter(path, SCHEMA) as writer:
        for first in range(0, len(keys), BLOCK_ROWS):
            offsets = np.searchsorted(queries, np.arange(first, min(first + BLOCK_ROWS, len(keys)) + 1))
            begin, end = offsets[0], offsets[-1]
            column = pa.ListArray.from_arrays((offsets - begin).astype(np.int32), positives[begin:end])
            writer.add(pa.record_batch([column], schema=SCHEMA))


def _pairs(examples: Blocks) -> Iterator[NDArray[np.int64]]:
    """(query << 32) + positive, block by block."""
    columns = (examples.numbers("query"), examples.ragged("positives"), examples.numbers("symmetric"))
    for queries, (offsets, values), symmetric in zip(*columns, strict=True):
        lengths = np.diff(offsets)
        asked = np.repeat(queries.astype(np.int64), lengths)
        answers = values[offsets[0] : offsets[-1]].astype(np.int64)
        yield (asked << 32) | answers
        both_ways = np.repeat(symmetric, lengths)
        yield (answers[both_ways] << 32) | asked[both_ways]
