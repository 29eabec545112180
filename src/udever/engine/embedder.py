"""The one door: texts in, float32 vectors out, exactly as the authors' models make them.

    for each block of texts: tokenise (a block ahead, in another thread) -> pack -> model -> restore the order

Invariant: a text's vector depends on the text, the role and the model only, never on its neighbours in the call.
Knows no file format and no HTTP.
"""

import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from udever.engine import loading
from udever.engine.ahead import one_ahead
from udever.engine.compute import closing_vectors
from udever.engine.options import Options, at_least_one, check_options, one_of, require_many
from udever.engine.progress import length_hint, with_progress
from udever.engine.registry import Manifest
from udever.errors import NonFiniteWeightsError, TooManyTokensError
from udever.model.config import BloomConfig
from udever.model.precision import Precision
from udever.tokenizer import ROLES, Role, Truncate, require_text

BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}
"""Tokens of a batch, by kind of device: what cores like best, and what keeps a large GPU busy."""
WARM_UP_TOKENS = 1024
"""From so much work on, preparing the weights for it pays: one long batch, or 16 short ones."""
SHORT_BATCH_TOKENS = 64
"""What a shorter batch counts as: it reads all weights, too."""
BLOCK_TEXTS = 8192
"""Texts sorted by length together; also what `embed_iter` yields at once."""

Vectors = NDArray[np.float32]


class Embedder:
    """A loaded Udever model. Make one with `Embedder.load`; it may be shared by threads that take turns."""

    def __init__(self, parts: loading.Parts) -> None:
        self._parts = parts
        self._cold_tokens: int | None = 0
        """Computed before `warm_up`, a short batch counted as `SHORT_BATCH_TOKENS`; None after it."""

    @classmethod
    def load(
        cls,
        name: str | os.PathLike[str],
        *,
        precision: str = "auto",
        device: str | torch.device = "auto",
        revision: str | None = None,
        token: str | None = None,
    ) -> "Embedder":
        """Load a built-in model ("udever-nano"), a local folder, or a hub id ("izhx/udever-bloom-1b1").

        Folder and hub id may be a full checkpoint or a delta, which finds its base by itself.

        Args:
            precision: "auto" (bf16 where the hardware has it, else fp32), "fp32", "bf16" or "int8".
            device: "auto" (cuda if there is one, else cpu), "cpu", "cuda" or "cuda:N".
            revision: branch, tag or commit of a hub model.
            token: access token of the hub; by default the one that is stored on this machine.

        Raises:
            ModelError: one subclass for each thing that can be wrong with the model's files.
            OptionError: an unknown precision or device.
        """
        found = loading.load(os.fspath(name), precision=precision, device=str(device), revision=revision, token=token)
        return cls(found)

    @property
    def name(self) -> str:
        """The model's name: as its manifest says, else as it was asked for."""
        return self._parts.name

    @property
    def config(self) -> BloomConfig:
        """The shape of the BLOOM underneath."""
        return self._parts.model.config

    @property
    def manifest(self) -> Manifest:
        """What the model's `udever.json` says of it."""
        return self._parts.manifest

    @property
    def dimensions(self) -> int:
        """Length of a full embedding."""
        return self.config.width

    @property
    def matryoshka(self) -> tuple[int, ...]:
        """Prefix sizes the model was trained for, ascending; empty if it was not."""
        return self.manifest.matryoshka

    @property
    def max_tokens(self) -> int:
        """Longest input, both markers included."""
        return self.manifest.max_tokens

    @property
    def precision(self) -> Precision:
        """The precision in use: "fp32", "bf16" or "int8"."""
        return self._parts.precision

    @property
    def device(self) -> str:
        """The device in use."""
        return str(self._parts.device)

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch unless a call says otherwise: 2,048 on a CPU, 32,768 on a GPU."""
        return BATCH_TOKENS[self._parts.device.type]

    @cached_property
    def fingerprint(self) -> str:
        """`udv1-…`: the same on every machine for the same weights, tokenizer, markers, token limit and precision.

        The first call on a machine hashes the weights (about a second per gigabyte); the hash is then cached on disk.
        """
        return self._parts.fingerprint()

    def count_tokens(self, texts: Sequence[str], role: Role = "query") -> list[int]:
        """Tokens of each text, both markers included, before any truncation."""
        require_many(texts)
        return self._parts.tokenizer.count(list(texts), role=one_of("role", role, ROLES))

    def embed(
        self,
        texts: Sequence[str],
        role: Role = "query",
        *,
        normalize: bool = True,
        dimensions: int | None = None,
        max_tokens: int | None = None,
        truncate: Truncate = "error",
        progress: bool = False,
        batch_tokens: int | None = None,
    ) -> Vectors:
        """Embed a list of texts of one role; duplicates are computed once.

        Args:
            role: "query" or "document".
            normalize: unit length; `False` gives the raw hidden states.
            dimensions: a trained prefix size (see `matryoshka`), cut before normalising; default all.
            max_tokens: a lower limit than the model's, both markers included.
            truncate: what to do with longer texts: "error", or cut the body's "end" or "start", never a marker.
            progress: show a bar on standard error.
            batch_tokens: tokens of a batch, by default the property of that name; changes speed and
                memory, not the vectors.

        Returns:
            float32 [len(texts), dimensions], in the order of `texts`.

        Raises:
            InputError: the message names the text's index; nothing was computed for an error of type or emptiness.
        """
        require_many(texts)
        texts = list(texts)
        options = check_options(
            self, role=role, normalize=normalize, dimensions=dimensions, max_tokens=max_tokens, truncate=truncate,
            batch_tokens=batch_tokens,
        )  # fmt: skip
        first_of: dict[str, int] = {}
        for index, text in enumerate(texts):
            require_text(text, index=index)
            first_of.setdefault(text, index)
        vectors = np.empty((len(first_of), options.dimensions), np.float32)
        done = 0
        blocks = self._blocks(first_of, BLOCK_TEXTS, options)
        try:
            for block in with_progress(blocks, total=len(first_of), shown=progress):
                vectors[done : done + len(block)] = block
                done += len(block)
        except TooManyTokensError as error:  # it counts distinct texts; the caller counts all
            index = list(first_of.values())[error.index]
            raise TooManyTokensError(index=index, tokens=error.tokens, max_tokens=error.max_tokens) from None
        if len(first_of) == len(texts):
            return vectors
        row_of = {text: row for row, text in enumerate(first_of)}
        return vectors[[row_of[text] for text in texts]]

    def embed_iter(
        self,
        texts: Iterable[str],
        role: Role = "document",
        *,
        normalize: bool = True,
        dimensions: int | None = None,
        max_tokens: int | None = None,
        truncate: Truncate = "error",
        progress: bool = False,
        batch_tokens: int | None = None,
        block_texts: int = BLOCK_TEXTS,
    ) -> Iterator[Vectors]:
        """Embed a stream of any length in flat memory; options as in `embed`.

        Yields:
            float32 [at most block_texts, dimensions], in the order of `texts`. One block is read ahead.
        """
        require_many(texts)
        options = check_options(
            self, role=role, normalize=normalize, dimensions=dimensions, max_tokens=max_tokens, truncate=truncate,
            batch_tokens=batch_tokens,
        )  # fmt: skip
        blocks = self._blocks(texts, at_least_one("block_texts", block_texts), options)
        return with_progress(blocks, total=length_hint(texts), shown=progress)

    def warm_up(self) -> None:
        """Lay the weights out for much work now, rather than when the first thousand tokens have shown that it comes.

        Takes about 6 seconds per billion weights on 2 cores in fp32 on a CPU without AVX-512, one second in bf16 on a
        CPU that has it, nothing elsewhere. For services, whose callers should not wait for it. Vectors from before and
        after are equal to 1e-6.
        """
        if self._cold_tokens is not None:
            self._parts.model.prepack()
            self._cold_tokens = None

    # ---- the same in steps, for callers that queue work themselves (batcher.py) ----

    def tokenize(
        self, texts: Sequence[str], role: Role = "query", *, max_tokens: int | None = None, truncate: Truncate = "error"
    ) -> list[list[int]]:
        """Token ids of each text, both markers included; options and errors as in `embed`."""
        require_many(texts)
        options = check_options(self, role=role, max_tokens=max_tokens, truncate=truncate)
        return self._parts.tokenizer.encode(
            list(texts), role=options.role, max_tokens=options.max_tokens, truncate=options.truncate
        )

    def forward(self, sequences: Sequence[Sequence[int]], *, batch_tokens: int | None = None) -> Vectors:
        """Raw hidden states float32 [len(sequences), width] of token ids; equal sequences are computed once.

        Raises:
            NonFiniteWeightsError: the model gave NaN or infinity.
        """
        row_of: dict[tuple[int, ...], int] = {}
        rows = [row_of.setdefault(tuple(sequence), len(row_of)) for sequence in sequences]
        if row_of:
            self._expect(sum(map(len, row_of)))
        budget = batch_tokens or self.batch_tokens
        out = closing_vectors(self._parts.model, list(row_of), batch_tokens=budget, device=self._parts.device)
        if not torch.isfinite(out).all():
            raise NonFiniteWeightsError(
                f"{self.name} gave a vector with NaN or infinity", hint="its token table is damaged: fetch it again"
            )
        vectors: Vectors = out.numpy()
        return vectors if len(row_of) == len(rows) else vectors[rows]

    def finish(self, raw: Vectors, *, normalize: bool = True, dimensions: int | None = None) -> Vectors:
        """Embeddings float32 [n, dimensions] from what `forward` gave; options as in `embed`."""
        return _finish(raw, check_options(self, normalize=normalize, dimensions=dimensions))

    def _expect(self, tokens: int) -> None:
        if self._cold_tokens is not None:
            self._cold_tokens += max(tokens, SHORT_BATCH_TOKENS)
            if self._cold_tokens >= WARM_UP_TOKENS:
                self.warm_up()

    def _blocks(self, texts: Iterable[str], size: int, options: Options) -> Iterator[Vectors]:
        """Vectors of `size` texts at a time, the next texts being tokenised while the model runs."""

        def tokenize(block: tuple[int, list[str]]) -> list[list[int]]:
            return self._parts.tokenizer.encode(
                block[1],
                role=options.role,
                max_tokens=options.max_tokens,
                truncate=options.truncate,
                first_index=block[0],
            )

        chunks = _chunks(texts, size)
        tokenized: Iterable[list[list[int]]]
        if isinstance(texts, Sized) and len(texts) <= size:  # nothing to be ahead of; a thread costs half a millisecond
            tokenized = map(tokenize, chunks)
        else:
            tokenized = one_ahead(tokenize, chunks, thread="udever-tokenize")
        for sequences in tokenized:
            yield self._run(sequences, options)

    def _run(self, sequences: list[list[int]], options: Options) -> Vectors:
        raw = self.forward(sequences, batch_tokens=options.batch_tokens)
        return _finish(raw, options)


def _finish(raw: Vectors, options: Options) -> Vectors:
    vectors = raw[:, : options.dimensions]
    if options.normalize:
        vectors = torch.nn.functional.normalize(torch.from_numpy(vectors), dim=1).numpy()
    return vectors


def _chunks(texts: Iterable[str], size: int) -> Iterator[tuple[int, list[str]]]:
    """Lists of `size` texts, each with the index of its first one."""
    iterator, first = iter(texts), 0
    while chunk := list(islice(iterator, size)):
        yield first, chunk
        first += len(chunk)
