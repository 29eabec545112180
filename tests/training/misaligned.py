"""Labels that the second process of a certificate sees shifted by a row.

A module of its own, because that process imports it by its name.
"""

import os
from typing import Any

import numpy as np

from udever.training.contrastive import Pairing


class Misaligned(Pairing):
    """The same positives everywhere but on rank 1, where each query has its neighbour's."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        return np.roll(value, 1) if name == "positive" and os.environ.get("RANK") == "1" else value
