"""One shard: read → tokenise → embed → write. The same on a laptop and on any machine of a cluster.

    worker = Worker(job, storage, model);  receipt = worker.write(worker.embed(worker.tokenize(worker.read(shard))))

Invariant: a shard's files depend on the shard, the job and the kind of machine only: batches are formed inside a shard.
Doing a shard twice, at once or by two machines, does no harm: files appear whole, and with the same bytes.
Does not know: other shards, runners, progress bars.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from udever.bulk.formats import FORMATS, Block, Written
from udever.bulk.job import Job
from udever.bulk.plan import Shard
from udever.bulk.reading import Reader
from udever.bulk.receipts import Receipt, StageName, reasons_of, receipt_name, shard_name
from udever.bulk.rows import Loaded, load
from udever.bulk.storage import Storage
from udever.engine.embedder import Embedder

TICK_BATCHES = 16
"""Batches between two calls of `tick`: a shard of long documents takes a large model minutes."""

Tick = Callable[[int, int], None]
"""Called with rows and tokens that were done since the last call."""


def no_tick(_rows: int, _tokens: int) -> None:
    """Nobody watches."""


@dataclass(frozen=True, kw_only=True)
class Tokenized:
    """A shard's texts as token ids."""

    shard: Shard
    loaded: Loaded
    sequences: list[list[int]]


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """A shard's vectors."""

    shard: Shard
    loaded: Loaded
    vectors: NDArray[np.float32]
    texts: int
    """Texts that were embedded for this shard."""
    tokens: int
    """Theirs, markers included."""


class Worker:
    """Does shards of one job with one loaded model.

    Its four steps are apart so that a runner may overlap them: each step may run in its own thread, one shard at a
    time in each.
    """

    stage: StageName = "embed"

    def __init__(
        self,
        job: Job,
        storage: Storage,
        model: Embedder,
        *,
        batch_tokens: int | None = None,
        tick: Tick = no_tick,
    ) -> None:
        self._job, self._storage, self._model = job, storage, model
        self._batch_tokens = batch_tokens or model.batch_tokens
        self._tick = tick
        options = job.options
        self._reader = Reader(
            text_columns=options.text_columns, carried=job.carried, texts_only=options.template is None
        )

    def close(self) -> None:
        """Close the file that was read last."""
        self._reader.close()

    def read(self, shard: Shard) -> tuple[Shard, Loaded]:
        """The shard's texts."""
        return shard, load(self._reader.read(shard), self._job.options)

    def tokenize(self, read: tuple[Shard, Loaded]) -> Tokenized:
        """Token ids; a text that is too long becomes a bad row."""
        shard, loaded = read
        options, limit = self._job.options, self._job.max_tokens
        cut = "end" if options.truncate == "error" else options.truncate
        sequences = self._model.tokenize(loaded.texts, options.role, max_tokens=limit, truncate=cut)
        if options.truncate == "error":
            full = [place for place, sequence in enumerate(sequences) if len(sequence) == limit]
            counts = self._model.count_tokens([loaded.texts[place] for place in full], options.role)
            faults = {
                place: ("too_many_tokens", f"the text has {count} tokens, markers included; the limit is {limit}")
                for place, count in zip(full, counts, strict=True)
                if count > limit
            }
            loaded = loaded.without(faults)
            sequences = [sequence for place, sequence in enumerate(sequences) if place not in faults]
        return Tokenized(shard=shard, loaded=loaded, sequences=sequences)

    def embed(self, tokenized: Tokenized) -> Embedded:
        """Vectors; equal texts of the shard are computed once."""
        sequences, options = tokenized.sequences, self._job.options
        row_of: dict[tuple[int, ...], int] = {}
        rows = np.array([row_of.setdefault(tuple(sequence), len(row_of)) for sequence in sequences], np.int64)
        vectors = self._model.finish(self._forward(list(row_of), rows), dimensions=options.dimensions)[rows]
        self._tick(tokenized.shard.rows - len(sequences), 0)
        return Embedded(
            shard=tokenized.shard,
            loaded=tokenized.loaded,
            vectors=vectors,
            texts=len(sequences),
            tokens=sum(map(len, sequences)),
        )

    def _forward(self, distinct: Sequence[tuple[int, ...]], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Raw hidden states of distinct sequences, longest first.

        Args:
            rows: which of them each text of the shard is.
        """
        self._model.warm_up()  # a run's bytes must not depend on how much its process has embedded before
        raw = np.empty((len(distinct), self._model.dimensions), np.float32)
        lengths = np.fromiter(map(len, distinct), np.int64, len(distinct))
        times = np.bincount(rows, minlength=len(distinct))
        for places in _groups(lengths, tokens=TICK_BATCHES * self._batch_tokens):
            raw[places] = self._model.forward([distinct[place] for place in places], batch_tokens=self._batch_tokens)
            self._tick(int(times[places].sum()), int((times * lengths)[places].sum()))
        return raw

    def write(self, embedded: Embedded) -> Receipt:
        """The shard's files, and behind them its receipt."""
        name = shard_name(embedded.shard, self._job.digest)
        block = Block(
            file=embedded.shard.input.found.name,
            numbers=embedded.loaded.numbers,
            table=embedded.loaded.table,
            vectors=embedded.vectors,
        )
        written = FORMATS[self._job.options.format].write(self._storage, name, block, self._job)
        receipt = receipt_of(embedded, written, stage=self.stage)
        self._storage.write(receipt_name(name), receipt.to_json(embedded.loaded.bad))
        return receipt


def receipt_of(embedded: Embedded, written: Written, *, stage: StageName) -> Receipt:
    """What to remember of a shard."""
    return Receipt(
        stage=stage,
        index=embedded.shard.index,
        rows=embedded.shard.rows,
        vectors=len(embedded.loaded.numbers),
        texts=embedded.texts,
        tokens=embedded.tokens,
        reasons=reasons_of(embedded.loaded.bad),
        files=written.files,
        fragment=written.fragment,
    )


def _groups(lengths: NDArray[np.int64], *, tokens: int) -> Iterator[NDArray[np.int64]]:
    """Places of sequences with about so many tokens together, longest first; ties keep their order."""
    order = np.argsort(-lengths, kind="stable")
    group = np.cumsum(lengths[order]) // tokens
    return (places for places in np.split(order, np.flatnonzero(np.diff(group)) + 1) if len(places))
