"""Vectors on a plane: the two directions in which they differ most (PCA).

Invariant: the same vectors in any order give the same picture; nothing is turned over from one call to the next,
because each axis points to where its largest loading is positive.
Does not know: what the vectors mean, or how the picture is drawn.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

AXES = 2
RELATIVE_NOISE = 1e-6
"""A direction that spreads less than this part of the widest one is rounding, not difference: float32 has 7 digits."""


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Where each vector lies on the plane."""

    points: NDArray[np.float64]
    """[n, 2], centred on the vectors' mean."""
    kept: tuple[float, float]
    """The part of the vectors' variance that lies along each axis; both 0 where they do not differ."""


def project(vectors: ArrayLike) -> Projection:
    """Project vectors [n, width], n ≥ 1, on the two directions in which they differ most.

    Distances on the plane are at most the vectors' own.
    """
    x = np.asarray(vectors, np.float64)
    centred = x - x.mean(axis=0)
    _, spreads, axes = np.linalg.svd(centred, full_matrices=False)
    real = spreads > max(spreads[0], np.abs(x).max()) * RELATIVE_NOISE
    axes = (axes * _signs(axes))[:AXES] * real[:AXES, None]
    points = np.zeros((len(x), AXES))
    points[:, : len(axes)] = centred @ axes.T
    return Projection(points=points, kept=_kept(np.where(real, spreads, 0.0)))


def _signs(axes: NDArray[np.float64]) -> NDArray[Any]:
    """[n, 1]: what makes each row's largest loading positive."""
    largest = np.abs(axes).argmax(axis=1)[:, None]
    return np.where(np.take_along_axis(axes, largest, axis=1) < 0, -1.0, 1.0)


def _kept(spreads: NDArray[np.float64]) -> tuple[float, float]:
    variances = spreads**2
    total = variances.sum()
    first, second = np.append(variances, [0.0, 0.0])[:AXES] / (total or 1.0)
    return float(first), float(second)
