"""Learning from a teacher's vectors: where each text shall lie, or only which of a batch's texts are how near.

    vectors:       mean(1 - cosine(student, teacher)) + KL(teacher's || student's softmax of similarities to a bank)
    similarities:  KL(teacher's || student's softmax of a text's similarities to the batch's others)

Invariant: a text without a target teaches nothing; targets to lie at are of the student's width, those to be near like
of any.
Knows no model. The first loss is what did best among those of docs/notebook.md.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from udever.errors import ExamplesError
from udever.training.contrastive import cosines


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a step learns from the teacher. Unit vectors of the teacher's width T; the student's, H, may be another."""

    targets: Tensor
    """float32 [n, T], one a text of the batch; zero where there is none."""
    bank: Tensor
    """float32 [M, T], others to be ranked against."""


DIGEST_ROWS = 100_000
PREFIX_WEIGHT = 0.25
"""Of a Matryoshka prefix beside the full width."""
FEWEST_COMPARED = 3
"""Texts of a batch that can be nearer or farther: one and two others."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """A teacher's vectors for the texts of one run's stores."""

    vectors: NDArray[np.float16]
    """[R, T], memory-mapped."""
    rows: tuple[NDArray[np.int64], ...]
    """For each store and text id, the row of its vector; -1: it has none."""

    @classmethod
    def open(cls, folder: Path, *, texts: Sequence[int], width: int | None) -> "Targets":
        """Map `vectors.npy` (float16 [R, width]) and `rows-0.npy`, `rows-1.npy`, … (int64, a number for each text).

        Args:
            texts: how many texts each store holds.
            width: what the vectors must have; None: any.

        Raises:
            ExamplesError: a file is missing or has another shape or type, or it holds nothing to learn.
        """
        try:
            vectors = np.load(folder / "vectors.npy", mmap_mode="r")
            rows = tuple(np.load(folder / f"rows-{index}.npy", mmap_mode="r") for index in range(len(texts)))
        except (OSError, ValueError) as error:
            raise ExamplesError(f"teacher vectors in {folder}: {error}", hint="see docs/training.md") from None
        if vectors.ndim != 2:
            raise ExamplesError(f"{folder}/vectors.npy is {vectors.shape}", hint="a row a vector is [rows, width]")
        if width not in (None, vectors.shape[1]):
            raise ExamplesError(
                f"{folder}/vectors.npy is {vectors.shape}, the model is {width} wide",
                hint='[distill] match = "similarities" learns from vectors of any width',
            )
        for first in range(0, len(vectors), DIGEST_ROWS):
            unsound = ~np.isfinite(vectors[first : first + DIGEST_ROWS]).all(1)
            if unsound.any():
                row = first + int(unsound.argmax())
                raise ExamplesError(f"{folder}/vectors.npy: row {row:,} is not finite", hint="make it again")
        for index, (found, expected) in enumerate(zip(rows, texts, strict=True)):
            if found.dtype.kind != "i":
                raise ExamplesError(f"{folder}/rows-{index}.npy holds {found.dtype}", hint="its numbers must be int64")
            if found.shape != (expected,) or (len(found) and int(found.max()) >= len(vectors)):
                raise ExamplesError(f"{folder}/rows-{index}.npy does not fit: the store has {expected:,} texts")
        if not any((found >= 0).any() for found in rows):
            raise ExamplesError(f"{folder}: no text has a vector", hint="rows-N.npy names each text's row, -1 is none")
        return cls(vectors=vectors, rows=rows)

    def of(self, texts: Sequence[tuple[int, int]]) -> Tensor:
        """Unit targets [n, T] of (store, text id); zero where there is none."""
        rows = np.array([self.rows[store][text_id] for store, text_id in texts])
        found = torch.from_numpy(self.vectors[np.maximum(rows, 0)].astype(np.float32))
        found[torch.from_numpy(rows < 0)] = 0
        return F.normalize(found, dim=1)

    @property
    def digest(self) -> str:
        """Of all that is learned from it: sha256 (hex) of the vectors and of which text has which."""
        whole = hashlib.sha256()
        parts: list[NDArray[Any]] = [self.vectors, *self.rows]
        for part in parts:
            for first in range(0, len(part), DIGEST_ROWS):
                whole.update(np.ascontiguousarray(part[first : first + DIGEST_ROWS]).data)
        return whole.hexdigest()

    def bank(self, size: int, *, seed: tuple[int, int]) -> Tensor:
        """Unit vectors [size, T], drawn anew by `seed`."""
        rows = np.random.default_rng(seed).integers(0, len(self.vectors), size)
        return F.normalize(torch.from_numpy(self.vectors[rows].astype(np.float32)), dim=1)


def distill_loss(
    embeddings: Tensor, lesson: Lesson, *, temperature: float, prefixes: Sequence[int]
) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss, {"cosine"}); rows whose target is zero are left out, and a batch of nothing else has the loss zero.

    The bank is joined by the batch's own targets, so that the KL is also a soft contrastive loss.
    """
    if (taught := _taught(embeddings, lesson)) is None:
        return embeddings.sum() * 0, {}
    embeddings, targets = taught
    keys = torch.cat([targets, lesson.bank.to(embeddings)])
    aim = (targets @ keys.T / temperature).log_softmax(1)
    total, cosine = embeddings.new_zeros(()), embeddings.new_zeros(())
    for width in (*prefixes, embeddings.shape[1]):
        part, cut = F.normalize(embeddings[:, :width], dim=1), F.normalize(keys[:, :width], dim=1)
        cosine = (part * cut[: len(part)]).sum(1).mean()
        student = (part @ cut.T / temperature).log_softmax(1)
        kl = F.kl_div(student, aim, log_target=True, reduction="batchmean")
        total = total + (kl + 1 - cosine) * (1.0 if width == embeddings.shape[1] else PREFIX_WEIGHT)
    return total, {"cosine": cosine.detach()}


def similarity_loss(
    embeddings: Tensor, lesson: Lesson, *, temperature: float, teacher_temperature: float, prefixes: Sequence[int]
) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss, {"agreement"}): how near a text is to each of the batch's others (as SEED, arXiv 2101.04731, in a batch).

    `agreement` is how often both find the same text the nearest. Rows whose target is zero are left out, on both sides;
    where fewer than three are left, there is nothing to compare and the loss is zero.
    """
    taught = _taught(embeddings, lesson)
    if taught is None or len(taught[0]) < FEWEST_COMPARED:
        return embeddings.sum() * 0, {}
    embeddings, targets = taught
    itself = torch.eye(len(targets), dtype=torch.bool, device=embeddings.device)
    least = torch.finfo(embeddings.dtype).min  # minus infinity would make 0 x infinity of the KL

    def ranking(vectors: Tensor, sharpness: float) -> Tensor:
        return (cosines(vectors, vectors) / sharpness).masked_fill(itself, least).log_softmax(1)

    aim = ranking(targets, teacher_temperature)
    total, nearest = embeddings.new_zeros(()), aim.argmax(1)
    for width in (*prefixes, embeddings.shape[1]):
        student = ranking(embeddings[:, :width], temperature)
        kl = F.kl_div(student, aim, log_target=True, reduction="batchmean")
        total = total + kl * (1.0 if width == embeddings.shape[1] else PREFIX_WEIGHT)
    return total, {"agreement": (student.argmax(1) == nearest).to(embeddings).mean()}


def _taught(embeddings: Tensor, lesson: Lesson) -> tuple[Tensor, Tensor] | None:
    """The embeddings of the texts that have a target, and these; None where no text has one."""
    known = lesson.targets.numpy().any(1)  # by NumPy: PyTorch's threads would wait for those that make batches
    if not known.any():  # a mean of nothing would be NaN
        return None
    targets = lesson.targets.to(embeddings)
    if not known.all():
        rows = torch.from_numpy(np.flatnonzero(known)).to(embeddings.device)
        embeddings, targets = embeddings[rows], targets[rows]
    return embeddings, targets
