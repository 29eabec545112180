"""A corpus of any size → the exact k best documents of each query.

    search:   for block in embed_blocks(corpus): keep the k best of (the best so far + queries · block)

Invariant: memory does not grow with the corpus; equal scores: the document that came first wins.
Does not know: document ids, relevance, metrics, or how blocks lie on disk (blocks.py).

Shapes: Q queries, B documents of one block, D dimensions, K documents kept.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from udever.engine.progress import length_hint, with_progress
from udever.errors import EvaluationError
from udever.evaluation.blocks import Work

if TYPE_CHECKING:
    from udever.engine.embedder import Embedder

Vectors = NDArray[np.float32]
Indices = NDArray[np.int64]

BLOCK_TEXTS = 8192
"""Documents embedded, kept on disk and searched at a time."""
TILE_SCORES = 1 << 21
"""Scores in memory at once: 8 MB, and some ten times that to find the best of the first ones."""

FORMAT = 1
"""Of what is hashed into a block's name; raised when older blocks must not be used any more."""

_LAST_DOCUMENT = np.int64(2**32 - 1)
_NOTHING = np.iinfo(np.int64).min
"""Sorts behind every score."""


def search(
    embedder: "Embedder",
    queries: Sequence[str],
    corpus: Iterable[str],
    *,
    k: int,
    folder: Path | None = None,
    dimensions: int | None = None,
    max_tokens: int | None = None,
    progress: bool = False,
) -> tuple[Indices, Vectors]:
    """The k documents of the corpus with the highest cosine to each query; options as in `embed_blocks`.

    Returns:
        indices int64 [Q, min(k, documents)] into the corpus, best first, and their cosines float32 of the same shape.

    Raises:
        InputError: a text is empty or no text; the message names its index.
        EvaluationError: as `top_k`.
    """
    queries_QD = embedder.embed(queries, "query", dimensions=dimensions, max_tokens=max_tokens, truncate="end")
    blocks = embed_blocks(
        embedder, corpus, folder=folder, dimensions=dimensions, max_tokens=max_tokens, progress=progress
    )
    return top_k(queries_QD, blocks, k=k)


# ---- the k best ----


def top_k(
    queries_QD: Vectors, blocks: Iterable[Vectors], *, k: int, progress: bool = False, total: int | None = None
) -> tuple[Indices, Vectors]:
    """The k documents with the highest dot product with each query, exactly, while the corpus streams by.

    Memory: one block, the scores of a tile, and 8 bytes for each of Q · K; however many documents there are, up to
    2^32. Scores are single precision; equal ones are ordered by index, lower first. (A matrix product may give equal
    vectors scores that differ in the last bit.)

    Args:
        blocks: float32 [B, D] each, in the order of the documents; B may differ.
        progress: show a bar on standard error; not together with `embed_blocks(progress=True)`.
        total: number of documents, for the bar.

    Returns:
        indices int64 [Q, min(k, documents)], best first, and scores float32 of the same shape.

    Raises:
        EvaluationError: k below 1, no documents, vectors with NaN or infinity, or of different dimensions.
    """
    if k < 1:
        raise EvaluationError(f"the best {k} documents were asked for", hint="ask for 1 or more")
    queries_QD = _checked(queries_QD, "query")
    best_QK = np.full((len(queries_QD), k), _NOTHING, np.int64)
    documents = 0
    for block_BD in with_progress(blocks, total=total, shown=progress):
        block_BD = _checked(block_BD, "document", first=documents, dimensions=queries_QD.shape[1])
        for rows, columns in _tiles(len(queries_QD), len(block_BD), k=k):
            scores = _dot(queries_QD[rows], block_BD[columns])
            _keep_best(best_QK[rows], scores, first=documents + columns.start)
        documents += len(block_BD)
    if not documents:
        raise EvaluationError("there are no documents to search")
    return _best_first(best_QK, kept=min(k, documents))


def top_k_of_scores(scores_QN: NDArray[np.floating], *, k: int) -> tuple[Indices, Vectors]:
    """The k best columns of each row of scores that are all there; shapes, ties and errors as in `top_k`."""
    scores_QN = np.asarray(scores_QN, np.float32)
    if k < 1 or scores_QN.ndim != 2 or not scores_QN.shape[1]:
        raise EvaluationError(f"the best {k} of scores of shape {scores_QN.shape} were asked for")
    if np.isnan(scores_QN).any():
        raise EvaluationError("NaN among the scores")
    best_QK = np.full((len(scores_QN), min(k, scores_QN.shape[1])), _NOTHING, np.int64)
    for rows, columns in _tiles(*scores_QN.shape, k=k):
        _keep_best(best_QK[rows], scores_QN[rows, columns], first=columns.start)
    return _best_first(best_QK, kept=best_QK.shape[1])


def _tiles(queries: int, documents: int, *, k: int) -> Iterator[tuple[slice, slice]]:
    """Ranges of queries and documents with about TILE_SCORES scores each, the k kept ones included."""
    rows = max(1, TILE_SCORES // (min(documents, BLOCK_TEXTS) + k)) if documents else 1
    for row in range(0, queries, rows):
        for column in range(0, documents, BLOCK_TEXTS):
            yield slice(row, row + rows), slice(column, min(column + BLOCK_TEXTS, documents))


def _dot(queries_QD: Vectors, block_BD: Vectors) -> Vectors:
    with np.errstate(over="ignore", invalid="ignore"):  # said better below
        scores_QB: Vectors = queries_QD @ block_BD.T
    if not np.isfinite(scores_QB).all():
        raise EvaluationError("a dot product is beyond single precision", hint="search with vectors of unit length")
    return scores_QB


def _keep_best(best_QK: Indices, scores_QB: Vectors, *, first: int) -> None:
    """Replace, in place, the keys of the best so far by those of the best of them and these scores; unsorted.

    Later documents must beat the worst that is kept, not equal it. Few do once many were seen: only those are sorted.
    """
    kept = best_QK.shape[1]
    worst_Q1 = _decoded(best_QK.min(axis=1, keepdims=True))[1]  # NaN where fewer than k were seen: nothing is below it
    query, column = np.nonzero(~(scores_QB <= worst_Q1))
    contenders_Q = np.bincount(query, minlength=len(best_QK))
    most = int(contenders_Q.max(initial=0))
    if not most:
        return
    keys = np.full((len(best_QK), kept + most), _NOTHING, np.int64)
    keys[:, :kept] = best_QK
    place = kept + np.arange(len(query)) - np.repeat(np.cumsum(contenders_Q) - contenders_Q, contenders_Q)
    keys[query, place] = _encoded(scores_QB[query, column], first + column)
    best_QK[:] = np.partition(keys, most, axis=1)[:, most:]


def _encoded(scores: Vectors, indices: Indices) -> Indices:
    """Score and document as one integer that sorts as they do: 32 bits of score, then 32 of index, lower first."""
    bits = (scores + np.float32(0)).view(np.int32).astype(np.int64)  # + 0 makes one zero of two
    ordered = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # the bits of negative floats sort backwards
    keys: Indices = (ordered << 32) + (_LAST_DOCUMENT - indices)
    return keys


def _decoded(keys: Indices) -> tuple[Indices, Vectors]:
    ordered = keys >> 32
    bits = np.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).astype(np.int32)
    return _LAST_DOCUMENT - (keys & _LAST_DOCUMENT), bits.view(np.float32)


def _best_first(best_QK: Indices, *, kept: int) -> tuple[Indices, Vectors]:
    """What the keys stand for; those that nothing was kept for sort last and are cut off."""
    return _decoded(np.sort(best_QK, axis=1)[:, ::-1][:, :kept])


def _checked(vectors: Vectors, kind: str, *, first: int = 0, dimensions: int | None = None) -> Vectors:
    vectors = np.asarray(vectors, np.float32)
    if vectors.ndim != 2 or vectors.shape[1] != (dimensions or vectors.shape[1]):
        raise EvaluationError(
            f"{kind} vectors have the shape {vectors.shape}; [n, {dimensions or 'dimensions'}] is needed",
            hint="queries and documents must be embedded by one model, with the same dimensions",
        )
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        index = first + int(np.argmin(finite))
        raise EvaluationError(f"the vector of {kind} {index} holds NaN or infinity", hint="embed it again")
    return vectors


# ---- blocks that outlive the process ----


def embed_blocks(
    embedder: "Embedder",
    texts: Iterable[str],
    *,
    folder: Path | None,
    role: Literal["query", "document"] = "document",
    dimensions: int | None = None,
    max_tokens: int | None = None,
    progress: bool = False,
    block_texts: int = BLOCK_TEXTS,
) -> Iterator[Vectors]:
    """Embed a corpus in blocks; those that an earlier run left in `folder` are read instead.

    Every block is written when it is made (4 · D bytes a text), so a run that is killed, in whatever way, loses at most
    one. Blocks of other texts, weights or settings are never used; they lie in FOLDER/<fingerprint>/ until somebody
    deletes them. Several runs may share a folder.

    Args:
        texts: read once, at most two blocks ahead of what is yielded, and past those that are on disk.
        folder: None: nothing is kept.
        dimensions: a trained prefix size; None: all.
        max_tokens: a lower limit than the model's; longer texts are cut at the end.
        progress: show a bar on standard error.

    Yields:
        float32 [at most block_texts, D] of unit length, in the order of the texts.

    Raises:
        InputError: a text is empty or no text, and the message names its index; or an option does not exist.
    """

    def embedded(missing: Iterable[str], *, bar: bool = False) -> Iterator[Vectors]:
        return embedder.embed_iter(
            missing,
            role,
            dimensions=dimensions,
            max_tokens=max_tokens,
            truncate="end",
            block_texts=block_texts,
            progress=bar,
        )

    if folder is None:
        return embedded(texts, bar=progress)
    settings = {
        "format": FORMAT,
        "fingerprint": embedder.fingerprint,
        "role": role,
        "dimensions": dimensions or embedder.dimensions,
        "max_tokens": max_tokens or embedder.max_tokens,
    }
    work = Work(texts=texts, folder=folder / embedder.fingerprint, block_texts=block_texts, settings=settings)
    return with_progress(work.completed(embedded(work.missing())), total=length_hint(texts), shown=progress)
