"""The contrastive loss (InfoNCE) over a batch's embeddings, and what it compares with what.

    loss = mean over queries of -log softmax(cosine(query, documents) / temperature)[its positive]

Invariant: a document that is known to answer a query is never its negative, wherever in the batch it stands.
Knows no model: embeddings in, a number out.

Shapes: B queries, M documents, H width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """Which documents of a batch belong to which queries. All ranks have the same."""

    positive: NDArray[np.int64]
    """[B]: each query's positive, as a row of the documents."""
    excluded: NDArray[np.int64]
    """[E, 2]: (query, document) that must not count as a negative."""

    @classmethod
    def of(cls, positive: Sequence[int], document_keys: Sequence[int], known: Sequence[Sequence[int]]) -> "Pairing":
        """Find in-batch negatives that are none.

        Args:
            positive: each query's positive, as a row of the documents.
            document_keys: what each document is, equal for equal texts.
            known: for each query, the keys of all documents known to answer it, and the query's own key.
        """
        rows_of: dict[int, list[int]] = {}
        for row, key in enumerate(document_keys):
            rows_of.setdefault(key, []).append(row)
        excluded = [
            (query, row)
            for query, (own, keys) in enumerate(zip(positive, known, strict=True))
            for row in {row for key in (*keys, document_keys[own]) for row in rows_of.get(key, ())} - {own}
        ]
        return cls.from_rows(positive, excluded)

    @classmethod
    def from_rows(cls, positive: Sequence[int], excluded: Sequence[tuple[int, int]]) -> "Pairing":
        """From rows that are known."""
        pairs = np.asarray(sorted(excluded), np.int64).reshape(-1, 2)
        return cls(positive=np.asarray(positive, np.int64), excluded=pairs)


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """How embeddings are compared."""

    temperature: float = 0.05
    prefixes: tuple[int, ...] = ()
    """Matryoshka sizes besides the full width; the loss is the mean over all sizes."""
    both_ways: bool = False
    """Also ask each positive for its query (symmetric tasks)."""


def contrastive_loss(
    queries_BH: Tensor, documents_MH: Tensor, *, pairing: Pairing, contrast: Contrast
) -> tuple[Tensor, Tensor]:
    """The loss, a scalar, and the share of queries whose positive is nearest at full width, a scalar.

    The embeddings are raw; they are compared by cosine, in float64: dividing by the temperature would multiply
    float32's roundings, and the matrix is small beside the model.
    """
    queries_BH, documents_MH = queries_BH.double(), documents_MH.double()
    positive_B = torch.from_numpy(pairing.positive).to(queries_BH.device)
    sizes = (queries_BH.shape[1], *contrast.prefixes)
    losses, accuracy = [], queries_BH.new_zeros(())
    excluded = _excluded(pairing, shape=(len(queries_BH), len(documents_MH)), device=queries_BH.device)
    for size in sizes:
        scores_BM = cosines(queries_BH[:, :size], documents_MH[:, :size]) / contrast.temperature
        scores_BM = scores_BM if excluded is None else scores_BM.masked_fill(excluded, -torch.inf)
        losses.append(F.cross_entropy(scores_BM, positive_B))
        if contrast.both_ways:
            asked_BB = scores_BM.index_select(1, positive_B).T
            losses.append(F.cross_entropy(asked_BB, torch.arange(len(asked_BB), device=asked_BB.device)))
        if size == sizes[0]:
            accuracy = (scores_BM.detach().argmax(1) == positive_B).double().mean()
    return torch.stack(losses).mean(), accuracy


def cosines(a_BH: Tensor, b_MH: Tensor) -> Tensor:
    """Cosine of every pair, [B, M]."""
    return F.normalize(a_BH, dim=1) @ F.normalize(b_MH, dim=1).T


def _excluded(pairing: Pairing, *, shape: tuple[int, int], device: torch.device) -> Tensor | None:
    """Where [B, M] no negative stands; None: nowhere."""
    if not len(pairing.excluded):
        return None
    rows, columns = torch.from_numpy(pairing.excluded).to(device).unbind(1)
    mask = torch.zeros(shape, dtype=torch.bool, device=device)
    mask[rows, columns] = True
    return mask
