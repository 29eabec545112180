"""Which of many millions of texts were seen before, in about 50 bytes a text.

Invariant: equal digests get the number of their first appearance, counted from 0 without gaps.
A Python dict would take 150 bytes a text; this is an open-addressing table in NumPy, asked for many texts at once.
Does not know: texts, only their digests.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

DIGEST_BYTES = 16
FIRST_SLOTS = 1 << 16
LARGEST_LOAD = 0.6
"""Share of slots in use above which the table doubles."""

Words = NDArray[np.uint64]


def digest_of(content: bytes) -> bytes:
    """16 bytes that stand for the content."""
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def keys_of(digests: Sequence[bytes]) -> NDArray[np.int64]:
    """The first half of each digest as a number."""
    return np.ascontiguousarray(_words(digests)[:, 0]).view(np.int64)


class TextIndex:
    """Digest → number."""

    def __init__(self) -> None:
        self._count = 0
        self._digests: Words = np.zeros((FIRST_SLOTS, 2), np.uint64)
        self._numbers = np.full(FIRST_SLOTS, -1, np.int32)

    def __len__(self) -> int:
        return self._count

    def add(self, digests: Sequence[bytes]) -> tuple[NDArray[np.int32], list[int]]:
        """(the number of each digest, the places in `digests` of those that are new, in order)."""
        place_of: dict[bytes, int] = {}
        for place, digest in enumerate(digests):
            place_of.setdefault(digest, place)
        distinct = _words(list(place_of))
        numbers = self._find(distinct)
        new = np.flatnonzero(numbers < 0)
        if self._count + len(new) > LARGEST_LOAD * len(self._numbers):
            self._grow(self._count + len(new))
        numbers[new] = np.arange(self._count, self._count + len(new), dtype=np.int32)
        self._insert(distinct[new], numbers[new])
        self._count += len(new)
        places = list(place_of.values())
        number_of = dict(zip(place_of, numbers.tolist(), strict=True))
        return np.array([number_of[d] for d in digests], np.int32), [places[index] for index in new]

    def _find(self, words: Words) -> NDArray[np.int32]:
        """The number of each, -1 for those that are not there."""
        found = np.full(len(words), -1, np.int32)
        slots, pending = self._home(words), np.arange(len(words))
        while len(pending):
            numbers = self._numbers[slots]
            hit = (self._digests[slots] == words[pending]).all(1) & (numbers >= 0)
            found[pending[hit]] = numbers[hit]
            go_on = (numbers >= 0) & ~hit
            pending, slots = pending[go_on], self._next(slots[go_on])
        return found

    def _insert(self, words: Words, numbers: NDArray[np.int32]) -> None:
        """Put in digests that are not there."""
        slots, pending = self._home(words), np.arange(len(words))
        while len(pending):
            free = self._numbers[slots] < 0
            _, first = np.unique(slots[free], return_index=True)  # two may want the same slot
            winners = np.flatnonzero(free)[first]
            self._digests[slots[winners]] = words[pending[winners]]
            self._numbers[slots[winners]] = numbers[pending[winners]]
            losers = np.ones(len(pending), bool)
            losers[winners] = False
            pending, slots = pending[losers], self._next(slots[losers])

    def _grow(self, count: int) -> None:
        used = np.flatnonzero(self._numbers >= 0)
        digests, numbers = self._digests[used], self._numbers[used]
        slots = len(self._numbers)
        while count > LARGEST_LOAD * slots:
            slots *= 2
        self._digests, self._numbers = np.zeros((slots, 2), np.uint64), np.full(slots, -1, np.int32)
        self._insert(digests, numbers)

    def _home(self, words: Words) -> NDArray[np.int64]:
        return (words[:, 1] & np.uint64(len(self._numbers) - 1)).astype(np.int64)

    def _next(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        return (slots + 1) & (len(self._numbers) - 1)


def _words(digests: Sequence[bytes]) -> Words:
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64, copy=False).reshape(-1, 2)
