"""Writes examples, given as texts, into a new store.

    with new_store(folder, tokenizer=..., max_tokens=300) as writer: writer.add(examples)

Invariant: the folder appears complete or not at all; the same examples in the same order give the same digest, whatever
the sizes they are added in.
Does not know: files of texts, or the order examples will be drawn in.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from udever import __version__
from udever.errors import ExamplesError
from udever.tokenizer import MARKER_TOKENS, UdeverTokenizer
from udever.training.data.columns import BlockWriter
from udever.training.data.examples import EXAMPLES, FORMAT, KNOWN, STORE, TEXTS
from udever.training.data.known import write_known
from udever.training.data.text_index import TextIndex, digest_of, keys_of

TEXT_SCHEMA = pa.schema([("key", pa.int64()), ("token_ids", pa.list_(pa.int32())), ("text", pa.large_string())])
EXAMPLE_SCHEMA = pa.schema(
    [
        ("query", pa.int32()),
        ("positives", pa.list_(pa.int32())),
        ("negatives", pa.list_(pa.int32())),
        ("scores", pa.list_(pa.float32())),
        ("task", pa.dictionary(pa.int32(), pa.string())),
        ("symmetric", pa.bool_()),
    ]
)


class TextExample(NamedTuple):
    """An example in words; fields as in `examples.Example`."""

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    scores: tuple[float, ...] | None = None
    task: str = "default"
    symmetric: bool = False


@contextmanager
def new_store(
    folder: Path,
    *,
    tokenizer: UdeverTokenizer,
    max_tokens: int,
    max_negatives: int | None = None,
    overwrite: bool = False,
) -> Iterator["StoreWriter"]:
    """A writer of a store that takes its name when the block ends without an exception.

    Args:
        max_tokens: longest text, both markers included; longer ones are cut at the end.
        max_negatives: keep the first so many of each example; None: all.
        overwrite: take the place of a store of that name.

    Raises:
        ExamplesError: something stands under that name already, or nothing was added.
    """
    check_target(folder, overwrite=overwrite)
    unfinished = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    unfinished.mkdir(parents=True)
    try:
        writer = StoreWriter(unfinished, tokenizer=tokenizer, max_tokens=max_tokens, max_negatives=max_negatives)
        with writer:
            yield writer
        if not writer.examples:
            dropped = ", ".join(f"{count:,} × {why}" for why, count in sorted(writer.dropped.items()) if count)
            raise ExamplesError("not one example is left", hint=f"dropped: {dropped or 'nothing'}")
        _take_name(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Refuse, before any work is done, a folder that must not be replaced.

    Raises:
        ExamplesError: it exists and may not be overwritten, or is no store.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / STORE).is_file():
        raise ExamplesError(f"{folder} exists and holds no examples", hint="choose another name")
    if not overwrite:
        raise ExamplesError(f"{folder} exists", hint="choose another name, or pass --overwrite")


def _take_name(unfinished: Path, folder: Path) -> None:
    old = unfinished.with_suffix(".old")
    if folder.exists():
        folder.rename(old)
    unfinished.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


class StoreWriter:
    """Appends examples to the store it stands for."""

    def __init__(
        self, folder: Path, *, tokenizer: UdeverTokenizer, max_tokens: int, max_negatives: int | None = None
    ) -> None:
        self.dropped: Counter[str] = Counter()
        """Why and how often an example or one of its texts was left out."""
        self.tokens = 0
        """Of all distinct texts, markers not counted."""
        self.cut = 0
        """Distinct texts that were longer than the limit."""
        self.task_counts: Counter[str] = Counter()
        self.without_negatives = 0
        self.about: dict[str, Any] = {}
        """More to say in `store.json`, set before the block ends; then all that it says."""
        self._folder, self._tokenizer = folder, tokenizer
        self._max_tokens, self._max_negatives = max_tokens, max_negatives
        self._seen_texts, self._seen_examples = TextIndex(), TextIndex()
        self._tasks: dict[str, int] = {}
        self._texts = BlockWriter(folder / TEXTS, TEXT_SCHEMA)
        self._examples = BlockWriter(folder / EXAMPLES, EXAMPLE_SCHEMA)

    @property
    def work(self) -> Path:
        """A folder for files that are gone when the store is done."""
        path = self._folder / "work"
        path.mkdir(exist_ok=True)
        return path

    @property
    def examples(self) -> int:
        """Examples kept so far."""
        return self._examples.rows

    @property
    def texts(self) -> int:
        """Distinct texts so far."""
        return self._texts.rows

    def add(self, examples: Sequence[TextExample], *, limit: int | None = None) -> None:
        """Append examples, but for what no example may hold and for those that are there already.

        Args:
            limit: keep at most this many of them.
        """
        cleaned = [kept for example in examples if (kept := self._clean(example))]
        digests = [[digest_of(text.encode()) for text in _texts_of(example)] for example in cleaned]
        rows = [_row_digest(example, of_texts) for example, of_texts in zip(cleaned, digests, strict=True)]
        _, new = self._seen_examples.add(rows)
        self.dropped["duplicate"] += len(rows) - len(new)
        new = new[:limit]
        if new:
            self._append([cleaned[row] for row in new], [digests[row] for row in new])

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        for writer in (self._texts, self._examples):
            writer.__exit__(kind, error, traceback)
        if kind is None and self.examples:
            self._finish()

    def _clean(self, example: TextExample) -> TextExample | None:
        """The example without what it must not hold; None if nothing is left to learn from."""
        if not example.query.strip():
            self.dropped["empty query"] += 1
            return None
        seen = {example.query}
        positives, kept = self._fresh(example.positives, seen, "positive")
        if not positives:
            self.dropped["no positive left"] += 1
            return None
        negatives, kept_negatives = self._fresh(example.negatives, seen, "negative")
        negatives, kept_negatives = negatives[: self._max_negatives], kept_negatives[: self._max_negatives]
        scores = example.scores
        if scores is not None:
            first = len(example.positives)
            places = [*kept, *(first + i for i in kept_negatives)]
            scores = tuple(scores[i] + 0.0 for i in places)  # of equal scores, one form: 1 is 1.0, and -0.0 is 0.0
        return example._replace(positives=positives, negatives=negatives, scores=scores)

    def _fresh(self, texts: Sequence[str], seen: set[str], kind: str) -> tuple[tuple[str, ...], list[int]]:
        """The texts that are not empty and not in `seen`, which grows; and their places."""
        kept = []
        for place, text in enumerate(texts):
            if not text.strip():
                self.dropped[f"empty {kind}"] += 1
            elif text in seen:
                self.dropped[f"{kind} that is the query or stands beside it twice"] += 1
            else:
                seen.add(text)
                kept.append(place)
        return tuple(texts[place] for place in kept), kept

    def _append(self, examples: list[TextExample], digests: list[list[bytes]]) -> None:
        flat = list(chain.from_iterable(digests))
        ids, new = self._seen_texts.add(flat)
        texts = list(chain.from_iterable(map(_texts_of, examples)))
        self._append_texts([texts[place] for place in new], [flat[place] for place in new])
        at, queries, positives, negatives = 0, [], [], []
        for example in examples:
            first = at + 1 + len(example.positives)
            queries.append(ids[at])
            positives.append(ids[at + 1 : first])
            at = first + len(example.negatives)
            negatives.append(ids[first:at])
        self._count(examples)
        codes = pa.array([self._tasks.setdefault(e.task, len(self._tasks)) for e in examples], pa.int32())
        columns = [
            pa.array(queries, pa.int32()),
            pa.array(positives, pa.list_(pa.int32())),
            pa.array(negatives, pa.list_(pa.int32())),
            pa.array([example.scores for example in examples], pa.list_(pa.float32())),
            pa.DictionaryArray.from_arrays(codes, pa.array(list(self._tasks), pa.string())),
            pa.array([example.symmetric for example in examples], pa.bool_()),
        ]
        self._examples.add(pa.record_batch(columns, schema=EXAMPLE_SCHEMA))

    def _count(self, examples: Sequence[TextExample]) -> None:
        self.task_counts.update(example.task for example in examples)
        self.without_negatives += sum(not example.negatives for example in examples)

    def _append_texts(self, texts: list[str], digests: list[bytes]) -> None:
        # One token more than is kept tells which texts are cut.
        marked = self._tokenizer.encode(texts, role="document", max_tokens=self._max_tokens + 1, truncate="end")
        room = self._max_tokens - MARKER_TOKENS
        bodies = [np.array(ids[1:-1][:room], np.int32) for ids in marked]
        self.tokens += sum(map(len, bodies))
        self.cut += sum(len(ids) > self._max_tokens for ids in marked)
        columns = [
            pa.array(keys_of(digests), pa.int64()),
            pa.array(bodies, pa.list_(pa.int32())),
            pa.array(texts, pa.large_string()),
        ]
        self._texts.add(pa.record_batch(columns, schema=TEXT_SCHEMA))

    def _finish(self) -> None:
        shutil.rmtree(self._folder / "work", ignore_errors=True)
        write_known(self._folder / KNOWN, examples=self._folder / EXAMPLES, texts=self._folder / TEXTS)
        facts = {"format": FORMAT, "tokenizer": self._tokenizer.digest, "max_tokens": self._max_tokens}
        self.about = {
            **facts,
            "digest": self._digest(facts),
            "examples": self.examples,
            "texts": self.texts,
            "tokens": self.tokens,
            "cut_texts": self.cut,
            "without_negatives": self.without_negatives,
            "tasks": dict(self.task_counts),
            "dropped": {why: count for why, count in sorted(self.dropped.items()) if count},
            **self.about,
            "udever": __version__,
            "files": {name: (self._folder / name).stat().st_size for name in (TEXTS, EXAMPLES, KNOWN)},
        }
        for name in (TEXTS, EXAMPLES, KNOWN):
            _sync(self._folder / name)
        (self._folder / STORE).write_text(json.dumps(self.about, ensure_ascii=False, indent=1) + "\n", "utf-8")
        _sync(self._folder / STORE)

    def _digest(self, facts: Mapping[str, Any]) -> str:
        sha256 = hashlib.sha256(json.dumps({**facts, "tasks": list(self._tasks)}, sort_keys=True).encode())
        for writer in (self._texts, self._examples):
            sha256.update(writer.digest())
        return sha256.hexdigest()


def _texts_of(example: TextExample) -> tuple[str, ...]:
    return (example.query, *example.positives, *example.negatives)


def _row_digest(example: TextExample, digests: Sequence[bytes]) -> bytes:
    """Of all that makes an example another one."""
    rest = (len(example.positives), example.scores, example.task, example.symmetric)
    return digest_of(b"".join(digests) + repr(rest).encode())


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
