"""Points on a plane become a picture: scaled alike in both directions, labels where there is room.

Invariant: equal distances on the plane are equal in the picture; every point lies inside it.
Does not know: what the points are, or SVG.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT, MARGIN = 520, 360, 28
LABEL_HEIGHT = 15
LETTER_WIDTH = 9
POINT_RADIUS = 7
AROUND = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1))
"""Where a label may stand beside its point, the first choice first."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(frozen=True, kw_only=True)
class Spot:
    """A point and its label, in the picture's units."""

    label: str
    x: float
    y: float
    label_x: float
    """The label's middle."""
    label_y: float


def place(points: NDArray[np.floating[Any]], labels: Sequence[str]) -> tuple[Spot, ...]:
    """Where each of the points [n, 2] and its label go; up is up."""
    positions = _scaled(points)
    taken = [_box(x, y, POINT_RADIUS, POINT_RADIUS) for x, y in positions]
    spots = []
    for label, (x, y) in zip(labels, positions, strict=True):
        label_x, label_y = _beside(x, y, width=LETTER_WIDTH * len(label), taken=taken)
        taken.append(_label_box(label_x, label_y, width=LETTER_WIDTH * len(label)))
        spots.append(Spot(label=label, x=x, y=y, label_x=label_x, label_y=label_y))
    return tuple(spots)


def _scaled(points: NDArray[np.floating[Any]]) -> list[tuple[float, float]]:
    low, high = points.min(axis=0), points.max(axis=0)
    room = np.array([WIDTH, HEIGHT]) - 2 * MARGIN
    spans = high - low
    scale = min((room[i] / spans[i] for i in range(2) if spans[i] > 0), default=1.0)
    middle = (low + high) / 2
    x, y = ((points - middle) * scale * [1, -1] + [WIDTH / 2, HEIGHT / 2]).T
    return [(round(float(a), 1), round(float(b), 1)) for a, b in zip(x, y, strict=True)]


def _beside(x: float, y: float, *, width: float, taken: Sequence[Box]) -> tuple[float, float]:
    """The first free place around a point; where there is none, the one that covers least."""
    places = []
    for dx, dy in AROUND:
        label_x = round(x + dx * (POINT_RADIUS + 3 + width / 2), 1)
        label_y = round(y + dy * (POINT_RADIUS + LABEL_HEIGHT / 2), 1)
        box = _label_box(label_x, label_y, width=width)
        covered = sum(_overlap(box, other) for other in taken) + (0 if _inside(box) else 1e6)
        if not covered:
            return label_x, label_y
        places.append((covered, label_x, label_y))
    return min(places)[1:]


def _label_box(x: float, y: float, *, width: float) -> Box:
    return _box(x, y, width / 2, LABEL_HEIGHT / 2)


def _box(x: float, y: float, half_width: float, half_height: float) -> Box:
    return x - half_width, y - half_height, x + half_width, y + half_height


def _inside(box: Box) -> bool:
    return box[0] >= 0 and box[1] >= 0 and box[2] <= WIDTH and box[3] <= HEIGHT


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
