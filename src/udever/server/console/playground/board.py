"""A run as it is shown: the grid's cells at every size, the map's points.

Invariant: colours span the cosines of all sizes, so that a colour means the same at each of them; every colour stands
beside its number.
Does not know: HTML.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from udever.server.console.playground.grid import Size
from udever.server.console.playground.play import Played
from udever.server.console.playground.scatter import Spot, place

HEATS = 10
"""Steps of the colour scale, 0 to 9: one digit each in the page."""
NARROWEST = 0.2
"""Cosines nearer to each other than this are not spread over the whole scale."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """A query or a document, and what it is called."""

    label: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A query with a document, at each size."""

    cosines: tuple[float, ...]
    ranks: tuple[int, ...]
    heats: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A query with all documents."""

    query: Text
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class Link:
    """From a query to its best document, on the map."""

    start: Spot
    end: Spot


@dataclass(frozen=True, kw_only=True)
class Board:
    """Everything that is drawn."""

    documents: tuple[Text, ...]
    rows: tuple[Row, ...]
    sizes: tuple[Size, ...]
    shown: int
    """Index of the size that is shown first."""
    coldest: float
    """The cosine at the low end of the colour scale."""
    hottest: float
    queries_on_map: tuple[Spot, ...]
    documents_on_map: tuple[Spot, ...]
    links: tuple[Link, ...]


def draw(played: Played, *, queries: Sequence[Text], documents: Sequence[Text]) -> Board:
    """What is shown of a run."""
    coldest, hottest = _span(played.sizes)
    labels = [text.label for text in (*queries, *documents)]
    spots = place(played.projection.points, labels)
    mine, theirs = spots[: len(queries)], spots[len(queries) :]
    best = played.sizes[-1].ranks.argmin(axis=1)
    return Board(
        documents=tuple(documents),
        rows=tuple(
            Row(query=query, cells=_cells(played.sizes, index, span=(coldest, hottest)))
            for index, query in enumerate(queries)
        ),
        sizes=played.sizes,
        shown=[size.dimensions for size in played.sizes].index(played.dimensions),
        coldest=coldest,
        hottest=hottest,
        queries_on_map=mine,
        documents_on_map=theirs,
        links=tuple(Link(start=spot, end=theirs[index]) for spot, index in zip(mine, best.tolist(), strict=True)),
    )


def _cells(sizes: Sequence[Size], query: int, *, span: tuple[float, float]) -> tuple[Cell, ...]:
    cosines = np.array([size.cosines[query] for size in sizes])
    ranks = np.array([size.ranks[query] for size in sizes])
    coldest, hottest = span
    heats = ((cosines - coldest) / (hottest - coldest) * HEATS).astype(int).clip(0, HEATS - 1)
    columns = zip(cosines.T.tolist(), ranks.T.tolist(), heats.T.tolist(), strict=True)
    return tuple(Cell(cosines=tuple(c), ranks=tuple(r), heats=tuple(h)) for c, r, h in columns)


def _span(sizes: Sequence[Size]) -> tuple[float, float]:
    low = min(float(size.cosines.min()) for size in sizes)
    high = max(float(size.cosines.max()) for size in sizes)
    missing = max(0.0, NARROWEST - (high - low)) / 2
    return low - missing, high + missing
