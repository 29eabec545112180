"""The nearest of many vectors to each of some queries, block by block: exact, or through inverted lists (IVF).

    scores, rows = nearest(queries, vectors, Exact(pool), count=100)

Invariant: memory stays flat whatever the number of vectors, which may lie on disk; `Exact` finds what comparing with
every vector would find; `Ivf` with all of its lists probed, the same.
Does not know: texts, models or which neighbours are wanted.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

BLOCK_ROWS = 8192
"""Vectors compared at once: with 1,024 queries, 32 MB of scores."""
ASSIGNED_ROWS = 2048
"""Vectors compared with all centres at once."""
SAMPLE_PER_LIST = 64
"""Vectors k-means learns each list's centre from."""
ROUNDS = 10
"""Of k-means."""
NOTHING = -1
"""The row where there are fewer neighbours than asked for."""

Rows = NDArray[np.int64]
Vectors = NDArray[np.floating[Any]]


class Plan(Protocol):
    """Which queries are compared with which rows."""

    def parts(self, queries: torch.Tensor) -> Iterator[tuple[torch.Tensor, Rows]]:
        """(places of queries, rows of vectors), each pair at most once; `queries` is [q, d]."""


def nearest(
    queries: NDArray[np.float32], vectors: Vectors, plan: Plan, *, count: int, device: str = "cpu"
) -> tuple[NDArray[np.float32], Rows]:
    """The `count` rows of `vectors` with the largest dot product, of those that `plan` looks at.

    Args:
        queries: [q, d].
        vectors: [n, d], of any float type, perhaps memory-mapped.

    Returns:
        scores float32 [q, count], falling, and rows [q, count]; -inf and NOTHING where there are no more.
    """
    asked = torch.from_numpy(np.ascontiguousarray(queries, np.float32)).to(device)
    scores = torch.full((len(asked), count), -torch.inf, device=device)
    rows = torch.full((len(asked), count), NOTHING, dtype=torch.int64, device=device)
    for places, members in plan.parts(asked):
        found = asked[places] @ _read(vectors, members, device).T
        top, at = found.topk(min(count, found.shape[1]), dim=1)
        these = torch.from_numpy(members).to(device)[at]
        together = torch.cat([scores[places], top], 1)
        best, at = together.topk(count, dim=1)
        scores[places] = best
        rows[places] = torch.cat([rows[places], these], 1).gather(1, at)
    return scores.cpu().numpy(), rows.cpu().numpy()


class Exact:
    """Every query with every row."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def parts(self, queries: torch.Tensor) -> Iterator[tuple[torch.Tensor, Rows]]:
        """See `Plan`."""
        everyone = torch.arange(len(queries), device=queries.device)
        for first in range(0, len(self._rows), BLOCK_ROWS):
            yield everyone, self._rows[first : first + BLOCK_ROWS]


class Ivf:
    """Every query with the rows whose centre is among the nearest to it."""

    def __init__(
        self,
        vectors: Vectors,
        rows: Rows,
        *,
        lists: int | None = None,
        probes: int | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        """Cluster `rows` of `vectors`; reads them once, and a sample some more times.

        Args:
            lists: clusters; None: 4·√n.
            probes: clusters looked into for each query; None: an eighth, but at least 8.
            seed: of the sample and the first centres.
        """
        wanted = round(4 * len(rows) ** 0.5) if lists is None else lists
        self.lists = max(1, min(wanted, len(rows)))
        """How many there are."""
        self.probes = min(self.lists, max(8, self.lists // 8) if probes is None else probes)
        """How many of them a query looks into."""
        self._centres = _centres(vectors, rows, self.lists, seed=seed, device=device)
        of_each = [_assigned(part, self._centres).cpu().numpy() for part in _parts(vectors, rows, device)]
        nearest_list = np.concatenate([np.empty(0, np.int64), *of_each])
        # Stable, so that a list's rows ascend and are read from disk in order.
        self._members = rows[np.argsort(nearest_list, kind="stable")]
        self._ends = np.searchsorted(np.sort(nearest_list), np.arange(self.lists + 1))

    def parts(self, queries: torch.Tensor) -> Iterator[tuple[torch.Tensor, Rows]]:
        """See `Plan`."""
        probed = (queries @ self._centres.T).topk(self.probes, dim=1).indices
        by_list, asking = probed.flatten().sort(stable=True)
        ends = torch.searchsorted(by_list, torch.arange(self.lists + 1, device=queries.device)).tolist()
        for number in range(self.lists):
            places = asking[ends[number] : ends[number + 1]] // self.probes
            if len(places):
                for members in _split(self._members[self._ends[number] : self._ends[number + 1]]):
                    yield places, members


def _read(vectors: Vectors, rows: Rows, device: str) -> torch.Tensor:
    return torch.from_numpy(np.asarray(vectors[rows], np.float32)).to(device)


def _split(rows: Rows) -> Iterator[Rows]:
    for first in range(0, len(rows), BLOCK_ROWS):
        yield rows[first : first + BLOCK_ROWS]


def _parts(vectors: Vectors, rows: Rows, device: str) -> Iterator[torch.Tensor]:
    for first in range(0, len(rows), ASSIGNED_ROWS):
        yield _read(vectors, rows[first : first + ASSIGNED_ROWS], device)


def _assigned(vectors: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """The centre nearest in angle to each vector."""
    return (vectors @ centres.T).argmax(1)


def _centres(vectors: Vectors, rows: Rows, lists: int, *, seed: int, device: str) -> torch.Tensor:
    """Float32 [lists, d] of unit length: k-means by angle on a sample, which is read from disk in each round."""
    shuffled = np.random.default_rng(seed).permutation(rows)
    sample = np.sort(shuffled[: lists * SAMPLE_PER_LIST])
    centres = torch.nn.functional.normalize(_read(vectors, shuffled[:lists], device), dim=1)
    for _ in range(ROUNDS):
        sums = torch.zeros_like(centres)
        for part in _parts(vectors, sample, device):
            sums.index_add_(0, _assigned(part, centres), part)
        # A centre that nobody is near to stays where it is.
        centres = torch.where(sums.any(1, keepdim=True), torch.nn.functional.normalize(sums, dim=1), centres)
    return centres
