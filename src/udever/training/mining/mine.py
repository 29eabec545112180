"""Hard negatives: what a model takes for an answer and is none. What `udever mine` does.

    for each block of examples: search their queries' nearest texts -> leave out answers and what may be one -> pick
    then, with a teacher: score all; then write the new store

Invariant: no negative is its query or a known positive of it, in whatever example; none scores above what the filters
allow; memory stays flat but for about 50 bytes a text and what data/store_writer.py says. An interrupted run goes on
with the vectors and the negatives it had.
Does not know: the command line, or how vectors are searched (vector_search.py) or kept (vector_files.py).
"""

import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from udever.engine.embedder import Embedder
from udever.errors import ExamplesError, OptionError
from udever.tokenizer import MIN_TOKENS, Role, UdeverTokenizer
from udever.training.data.columns import Blocks
from udever.training.data.examples import TEXTS, Example, ExampleStore
from udever.training.data.store_writer import StoreWriter, TextExample, check_target, new_store
from udever.training.mining.kept import Ids, Watch, kept, key, unwatched
from udever.training.mining.vector_files import Reader, VectorSet, embed_texts
from udever.training.mining.vector_search import NOTHING, Exact, Ivf, Plan, nearest

BLOCK_EXAMPLES = 1024
"""Examples whose queries are searched together: each reads all vectors once."""
DEFAULT_MARGIN = 0.05
"""If no filter is asked for."""

DOCUMENT_ROLE: dict[bool, Role] = {False: "document", True: "query"}
"""Symmetric → what its positives and negatives are read as."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class MiningOptions:
    """What to look for, where, and what to leave out."""

    tasks: tuple[str, ...] = ()
    """Mine for the examples of these, among their texts; other examples stay as they are. Empty: all."""
    top: int = 100
    """Nearest texts looked at, known positives not counted."""
    skip_top: int = 0
    """Of these, the first so many are left out."""
    negatives: int = 8
    """Picked at most, the nearest first."""
    margin: float | None = None
    """A negative's score is at least so much below the example's lowest positive's."""
    percentile: float | None = None
    """A negative's score is at most this share of the example's lowest positive's."""
    max_score: float | None = None
    """A negative's score is at most this."""
    search: Literal["exact", "ivf"] = "exact"
    lists: int | None = None
    """ivf: clusters; None: by the number of texts."""
    probes: int | None = None
    """ivf: clusters looked into; None: by the number of clusters."""
    append: bool = False
    """Keep the negatives that are there, in front of the mined ones."""
    dimensions: int | None = None
    """Leading numbers of the vectors to search with; None: all."""
    max_tokens: int | None = None
    """Longest text, markers included; longer ones are cut at the end. None: the store's limit, or the model's."""

    def checked(self) -> "MiningOptions":
        """With the default filter if there is none.

        Raises:
            OptionError: a value that cannot be, or that contradicts another.
        """
        ivf = self.search == "ivf"
        for holds, complaint, way_out in (
            (self.search in ("exact", "ivf"), f"search is {self.search!r}", "exact or ivf"),
            (self.top > 0, f"top is {self.top}", "at least 1"),
            (0 <= self.skip_top < self.top, f"skip_top is {self.skip_top}", f"from 0 to top - 1: {self.top - 1}"),
            (self.negatives > 0, f"negatives is {self.negatives}", "at least 1"),
            (self.margin is None or -2 <= self.margin <= 2, f"margin is {self.margin}", "scores are cosines: -2 to 2"),
            (self.percentile is None or 0 < self.percentile <= 1, f"percentile is {self.percentile}", "like 0.95"),
            (self.max_score is None or -1 <= self.max_score <= 1, f"max_score is {self.max_score}", "-1 to 1"),
            (ivf or self.lists is None, "exact search has no lists", "pass --search ivf too"),
            (ivf or self.probes is None, "exact search has no probes", "pass --search ivf too"),
            (self.lists is None or self.lists > 0, f"lists is {self.lists}", "at least 1"),
            (self.probes is None or self.probes > 0, f"probes is {self.probes}", "at least 1"),
            (self.max_tokens is None or self.max_tokens >= MIN_TOKENS, f"max_tokens is {self.max_tokens}", "more"),
        ):
            if not holds:
                raise OptionError(complaint, hint=way_out)
        filters = (self.margin, self.percentile, self.max_score)
        return replace(self, margin=DEFAULT_MARGIN) if filters == (None, None, None) else self

    def limit(self, positive: float) -> float:
        """The largest score a negative may have, the lowest positive scoring `positive`."""
        limits = [np.inf]
        if self.margin is not None:
            limits.append(positive - self.margin)
        if self.percentile is not None:  # a share of a negative score lies above it, and an answer's score may not
            limits.append(min(positive, self.percentile * positive))
        if self.max_score is not None:
            limits.append(self.max_score)
        return float(min(limits))

    def reader(self, model: Embedder, store: ExampleStore, *, dimensions: int | None) -> Reader:
        """How `model` reads the store's texts."""
        longest = min(self.max_tokens or store.max_tokens, model.max_tokens)
        return Reader(model=model, max_tokens=longest, dimensions=dimensions)


def work_folder(output: Path) -> Path:
    """Where vectors lie until the store `output` is done."""
    return output.with_name(output.name + ".work")


def mine(
    store: ExampleStore,
    output: Path,
    *,
    model: Embedder,
    options: MiningOptions,
    teacher: Embedder | None = None,
    overwrite: bool = False,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Write a store of the same examples with mined negatives to `output`.

    Args:
        teacher: scores the positives and negatives of the examples mined for; by default they have no scores.

    Returns:
        what the new store's `store.json` says.

    Raises:
        ExamplesError: a task that is not there, or something in the way of `output`.
        OptionError: options that cannot be.
    """
    options = options.checked()
    if output.resolve() == store.folder.resolve():
        raise OptionError(f"{output} is the store that is read", hint="choose another --output")
    check_target(output, overwrite=overwrite)
    chosen = _chosen(store, options.tasks)
    if options.max_tokens and options.max_tokens > model.max_tokens:
        raise OptionError(f"max_tokens is {options.max_tokens}", hint=f"{model.name} takes up to {model.max_tokens}")
    work = work_folder(output)
    space = _Space(
        store, map(store.example, chosen.tolist()), options.reader(model, store, dimensions=options.dimensions)
    )
    picks = _Miner(store, space.embedded(work, watch), options, model.device).mine(chosen, work, watch)
    mined = _Mined(store, chosen, picks, append=options.append)
    scoring = None
    if teacher is not None:
        reader = options.reader(teacher, store, dimensions=None)
        scoring = _Space(store, map(mined.example, chosen.tolist()), reader).embedded(work, watch)
    tokens = _StoredTokens(store)
    with new_store(
        output, tokenizer=cast(UdeverTokenizer, tokens), max_tokens=store.max_tokens, overwrite=overwrite
    ) as writer:
        _write(writer, tokens, mined, scoring, watch)
        writer.about = _about(store, options, mined, model=model, teacher=teacher)
    shutil.rmtree(work, ignore_errors=True)
    return writer.about


def _chosen(store: ExampleStore, tasks: tuple[str, ...]) -> Ids:
    unknown = [task for task in tasks if task not in store.tasks]
    if unknown:
        raise ExamplesError(
            f"{store.folder} has no task {unknown[0]!r}", hint=f"its tasks: {', '.join(map(repr, store.tasks))}"
        )
    return np.sort(np.concatenate([store.tasks[task] for task in set(tasks or store.tasks)]))


def _score(query: NDArray[np.float32], documents: NDArray[np.float32]) -> NDArray[np.float32]:
    scores: NDArray[np.float32] = documents @ query
    return scores


class _Space:
    """What one model makes of the texts of some examples."""

    def __init__(self, store: ExampleStore, examples: Iterable[Example], reader: Reader) -> None:
        self._store, self._reader = store, reader
        queries, pools = np.zeros(store.text_count, bool), np.zeros((2, store.text_count), bool)
        for example in examples:
            queries[example.query] = True
            pools[int(example.symmetric), [*example.positives, *example.negatives]] = True
        self.pools: dict[bool, Ids] = {kind: np.flatnonzero(pools[int(kind)]) for kind in (False, True)}
        """Symmetric → ids of all positives and negatives."""
        self._masks: dict[Role, Mask] = {"query": queries | pools[1], "document": pools[0]}
        self._sets: dict[Role, VectorSet] = {}

    def embedded(self, folder: Path, watch: Watch) -> "_Space":
        """Itself, with all vectors there."""
        for role, mask in self._masks.items():
            ids = np.flatnonzero(mask)
            if len(ids):
                self._sets[role] = embed_texts(
                    self._store, ids, reader=self._reader, role=role, folder=folder, watch=watch
                )
        return self

    def described(self) -> dict[str, Any]:
        """What its vectors depend on."""
        return self._reader.described(self._store)

    def queries(self, ids: Ids) -> NDArray[np.float32]:
        """Vectors of queries."""
        return self._sets["query"].take(ids)

    def documents(self, *, symmetric: bool) -> VectorSet:
        """Vectors of positives and negatives."""
        return self._sets[DOCUMENT_ROLE[symmetric]]

    def scores(self, example: Example) -> tuple[float, ...]:
        """Of the positives, then the negatives."""
        query = self.queries(np.array([example.query]))[0]
        texts = np.array([*example.positives, *example.negatives])
        return tuple(_score(query, self.documents(symmetric=example.symmetric).take(texts)).tolist())


class _Miner:
    """Finds negatives, as text ids."""

    def __init__(self, store: ExampleStore, space: _Space, options: MiningOptions, device: str) -> None:
        self._store, self._space, self._options, self._device = store, space, options, device
        self._keys = np.concatenate(list(Blocks(store.folder / TEXTS).numbers("key")))
        self._plans: dict[bool, Plan] = {}

    def mine(self, chosen: Ids, work: Path, watch: Watch) -> NDArray[np.int32]:
        """[len(chosen), negatives], on disk; NOTHING where no more were found."""
        return kept(
            work / key(self._space.described() | {"options": asdict(self._options)}, chosen),
            lambda part: self._mine_block(chosen[part]),
            rows=len(chosen),
            block_rows=BLOCK_EXAMPLES,
            what="searching",
            watch=watch,
        )

    def _mine_block(self, indices: Ids) -> NDArray[np.int32]:
        picks = np.full((len(indices), self._options.negatives), NOTHING, np.int32)
        examples = list(map(self._store.example, indices.tolist()))
        taken = [self._taken(int(index), example) for index, example in zip(indices, examples, strict=True)]
        for symmetric in {example.symmetric for example in examples}:
            places = [place for place, example in enumerate(examples) if example.symmetric == symmetric]
            pool, documents = self._space.pools[symmetric], self._space.documents(symmetric=symmetric)
            queries, of_place = np.unique([examples[place].query for place in places], return_inverse=True)
            vectors = self._space.queries(queries)
            # Answers take places among the nearest and are no negatives: look that much further.
            count = min(len(pool), self._options.top + max(len(taken[place]) for place in places))
            scores, rows = nearest(
                vectors, documents.vectors, self._plan(symmetric=symmetric), count=count, device=self._device
            )
            for place, query in zip(places, of_place.tolist(), strict=True):
                positives = documents.take(np.array(examples[place].positives))
                limit = self._options.limit(float(_score(vectors[query], positives).min()))
                found = scores[query], np.where(rows[query] < 0, NOTHING, documents.ids[rows[query]])
                picked = self._pick(*found, taken[place], limit)
                picks[place, : len(picked)] = picked
        return picks

    def _pick(self, scores: NDArray[np.float32], ids: Ids, taken: NDArray[np.int64], limit: float) -> Ids:
        free = (ids != NOTHING) & ~np.isin(self._keys[ids], taken)
        ids, scores = (each[free][self._options.skip_top : self._options.top] for each in (ids, scores))
        picked: Ids = ids[scores <= limit][: self._options.negatives]
        return picked

    def _taken(self, index: int, example: Example) -> NDArray[np.int64]:
        """Keys of what must not become a negative."""
        own = [example.query, *example.positives, *(example.negatives if self._options.append else ())]
        return np.unique([*self._store.known_positives(index), *self._keys[own].tolist()])

    def _plan(self, *, symmetric: bool) -> Plan:
        if symmetric not in self._plans:
            documents, o = self._space.documents(symmetric=symmetric), self._options
            rows = documents.rows(self._space.pools[symmetric])
            self._plans[symmetric] = (
                Exact(rows)
                if o.search == "exact"
                else Ivf(documents.vectors, rows, lists=o.lists, probes=o.probes, device=self._device)
            )
        return self._plans[symmetric]


class _Mined:
    """The examples of a store with other negatives."""

    def __init__(self, store: ExampleStore, chosen: Ids, picks: NDArray[np.int32], *, append: bool) -> None:
        self.store, self.picks = store, picks
        self._append = append
        self._row = np.full(len(store), NOTHING)
        self._row[chosen] = np.arange(len(chosen))

    def is_mined(self, index: int) -> bool:
        """Whether negatives were looked for."""
        return bool(self._row[index] != NOTHING)

    def example(self, index: int) -> Example:
        """With its new negatives and, if they were looked for, without scores."""
        example = self.store.example(index)
        if not self.is_mined(index):
            return example
        row = self.picks[self._row[index]]
        kept = example.negatives if self._append else ()
        return replace(example, negatives=(*kept, *row[row != NOTHING].tolist()), scores=None)


class _StoredTokens:
    """Stands in for the tokenizer that made a store: its texts' token ids are there, and it may be far away."""

    def __init__(self, store: ExampleStore) -> None:
        self.digest = store.tokenizer_digest
        self.id_of: dict[str, int] = {}
        """Text → its id, of the texts that are written next."""
        self._store = store

    def encode(self, texts: list[str], **_options: Any) -> list[list[int]]:
        """Token ids between two markers, which the writer takes off again."""
        return [[0, *self._store.token_ids(self.id_of[text]), 0] for text in texts]


def _write(writer: StoreWriter, tokens: _StoredTokens, mined: _Mined, scoring: _Space | None, watch: Watch) -> None:
    indices, text = iter(range(len(mined.store))), mined.store.text
    while block := list(islice(indices, BLOCK_EXAMPLES)):
        tokens.id_of, written = {}, []
        for index in block:
            example = mined.example(index)
            ids = (example.query, *example.positives, *example.negatives)
            tokens.id_of.update((text(text_id), text_id) for text_id in ids)
            written.append(
                TextExample(
                    query=text(example.query),
                    positives=tuple(map(text, example.positives)),
                    negatives=tuple(map(text, example.negatives)),
                    scores=scoring.scores(example) if scoring and mined.is_mined(index) else example.scores,
                    task=example.task,
                    symmetric=example.symmetric,
                )
            )
        writer.add(written)
        watch("writing", block[-1] + 1, len(mined.store))


def _about(
    store: ExampleStore, options: MiningOptions, mined: _Mined, *, model: Embedder, teacher: Embedder | None
) -> dict[str, Any]:
    found = (mined.picks != NOTHING).sum(1)
    told = {name: value for name, value in asdict(options).items() if value not in (None, (), False)}
    told |= {"model": model.name, "fingerprint": model.fingerprint}
    if teacher is not None:
        told |= {"teacher": teacher.name, "teacher_fingerprint": teacher.fingerprint}
    return {
        "cut_texts": store.about["cut_texts"],
        "options": told,
        "sources": [{"file": store.folder.name, "sha256": store.digest}],
        "made_from": {name: store.about[name] for name in ("options", "sources", "made_from") if name in store.about},
        "mined": {
            "examples": len(found),
            "negatives": int(found.sum()),
            "with_fewer": int((found < options.negatives).sum()),
            "with_none": int((found == 0).sum()),
        },
    }
