"""Texts of a task → unit vectors, by role: the one place where a task touches the model.

Invariant: what looks for others is embedded as a query and what is to be found as a document; both sides of a
symmetric task are queries, as the authors do. Longer texts are cut at their end; a text without characters, which a
corpus may hold, is its role's two markers alone: what the authors' code makes of it.
Does not know: tasks, scores.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from udever.errors import EvaluationError

if TYPE_CHECKING:
    from udever.engine.embedder import Embedder

BLOCK_TEXTS = 2048
"""Texts embedded between two steps of the progress bar."""
CORPUS_BLOCK_TEXTS = 8192
"""Documents in one file of blocks; an interrupted run loses at most so many."""

BLANK = " "
"""Stands for an empty text where the model needs some text."""

Role = Literal["query", "document"]
Vectors = NDArray[np.float32]


def _nobody(_texts: int) -> None:
    """Nobody watches."""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A model with the options that a measurement is made under."""

    embedder: "Embedder"
    dimensions: int | None = None
    """A trained prefix size; None: all."""
    max_tokens: int | None = None
    """Markers included; None: the model's limit."""
    folder: Path | None = None
    """Where the blocks of a large corpus are kept until its scores are there; None: nowhere."""
    advance: Callable[[int], None] = _nobody
    """Called with the number of texts that were just embedded."""

    def settings(self) -> Mapping[str, Any]:
        """What of this can change a score, besides the weights."""
        return {
            "dimensions": self.dimensions or self.embedder.dimensions,
            "max_tokens": self.max_tokens or self.embedder.max_tokens,
        }

    def require_options(self) -> None:
        """Ask the model whether it has these options, before hours of other work do.

        Raises:
            OptionError: it has not.
        """
        self.embedder.tokenize([], "query", max_tokens=self.max_tokens)
        self.embedder.finish(np.zeros((0, self.embedder.dimensions), np.float32), dimensions=self.dimensions)

    def queries(self, texts: Sequence[str]) -> Vectors:
        """float32 [len(texts), d], unit length, role query."""
        return self._embed(texts, "query")

    def documents(self, texts: Sequence[str]) -> Vectors:
        """float32 [len(texts), d], unit length, role document."""
        return self._embed(texts, "document")

    def document_blocks(self, texts: Iterable[str]) -> Iterator[Vectors]:
        """The same for a corpus of any size, in blocks that are kept on disk, if there is a folder, and found again."""
        from udever.evaluation.retrieval import embed_blocks

        empty: set[int] = set()
        first = 0
        for block in embed_blocks(
            self.embedder,
            self._counted(texts, empty),
            folder=self.folder,
            role="document",
            dimensions=self.dimensions,
            max_tokens=self.max_tokens,
            block_texts=CORPUS_BLOCK_TEXTS,
        ):
            rows = sorted(index - first for index in empty if first <= index < first + len(block))
            yield self._with_markers_alone(block, rows, "document") if rows else block
            first += len(block)

    def _embed(self, texts: Sequence[str], role: Role) -> Vectors:
        row_of: dict[str, int] = {}
        rows = [row_of.setdefault(text or BLANK, len(row_of)) for text in texts]
        blocks = []
        for block in self.embedder.embed_iter(
            row_of,
            role=role,
            dimensions=self.dimensions,
            max_tokens=self.max_tokens,
            truncate="end",
            block_texts=BLOCK_TEXTS,
        ):
            blocks.append(block)
            self.advance(len(block))
        self.advance(len(texts) - len(row_of))
        vectors: Vectors = np.concatenate(blocks)[rows]
        empty = [row for row, text in enumerate(texts) if not text]
        return self._checked(self._with_markers_alone(vectors, empty, role) if empty else vectors, len(texts))

    def _checked(self, vectors: Vectors, texts: int) -> Vectors:
        wanted = (texts, self.settings()["dimensions"])
        if vectors.shape != wanted:
            raise EvaluationError(f"{self.embedder.name} gave vectors of shape {vectors.shape} instead of {wanted}")
        wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(wrong):
            raise EvaluationError(f"{self.embedder.name} gave NaN or infinity for {len(wrong)} of {texts} texts")
        return vectors

    def _with_markers_alone(self, vectors: Vectors, rows: Sequence[int], role: Role) -> Vectors:
        changed = np.array(vectors)
        changed[rows] = self.embedder.finish(markers_alone(self.embedder, role), dimensions=self.dimensions)
        return changed

    def _counted(self, texts: Iterable[str], empty: set[int]) -> Iterator[str]:
        for index, text in enumerate(texts):
            if not text:
                empty.add(index)
            yield text or BLANK
            self.advance(1)


def markers_alone(embedder: "Embedder", role: Role) -> Vectors:
    """The raw vector, float32 [1, width], of a text without characters."""
    opening, *_, closing = embedder.tokenize([BLANK], role)[0]
    return embedder.forward([[opening, closing]])
