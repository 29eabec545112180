"""MS MARCO's way of writing training data: ids in one file, the texts behind them in others.

Read are the hard negatives of sentence-transformers (`{"qid", "pos": [pid], "neg": {system: [pid]}}`, with a
cross-encoder's scores to leave out negatives that may be positives), triples of ids (qid, pid, pid), qrels
(qid 0 pid relevance), and triples of texts.

Invariant: lines of one query (triples: of one query and positive) that follow each other become one example.
Does not know: how an id finds its text (data/lookups.py), stores, or how negatives are drawn.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from udever.errors import ExamplesError
from udever.training.data.layouts import Choices
from udever.training.data.lookups import LineIndex, Scores, ScoresOfOne
from udever.training.data.rows import Reading, Row, kind_of, read_cells, read_lines, read_rows
from udever.training.data.store_writer import TextExample

MARGIN = 3.0
"""How far below the lowest positive's score a negative's must be."""
PER_SYSTEM = 5
"""Negatives taken from each system that mined them."""
HARD_NEGATIVES = 'like {"qid": 7, "pos": [12], "neg": {"bm25": [34]}}'


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where the texts and scores behind the ids are."""

    collection: Path
    """`pid <tab> passage` lines."""
    queries: Path
    """`qid <tab> query` lines."""
    scores: Path | None = None
    """A cross-encoder's: the published pickle, or `qid <tab> pid <tab> score` lines."""
    margin: float = MARGIN
    per_system: int = PER_SYSTEM
    systems: tuple[str, ...] = ()
    """Whose negatives to take; empty: everybody's."""

    def files(self) -> list[Path]:
        """All of them."""
        return [path for path in (self.collection, self.queries, self.scores) if path]


class _Entry(NamedTuple):
    """An example in ids."""

    qid: str
    positives: list[str]
    negatives: list[str]
    place: str
    scores: ScoresOfOne | None = None


class MsMarco:
    """The opened texts and scores."""

    def __init__(self, sources: Sources, choices: Choices, *, work: Path) -> None:
        """Open them; `work` is a folder for what does not fit into memory."""
        self._sources, self._choices = sources, choices
        reading = choices.reading
        self._passages = LineIndex(sources.collection, work=work, reading=reading)
        self._queries = LineIndex(sources.queries, work=work, reading=reading)
        self._scores = Scores(sources.scores, work=work, reading=reading) if sources.scores else None

    def read(self, path: Path) -> Iterator[TextExample]:
        """The examples of a file of hard negatives, triples of ids, or qrels."""
        if kind_of(path) == "jsonl":
            entries = self._hard_negatives(path)
        elif self._scores is not None:
            raise ExamplesError(f"{path} has no use for scores", hint="they sort out the hard negatives of a jsonl")
        else:
            first = next((line for _, line in read_lines(path, Reading())), "").split()
            entries = self._qrels(path) if len(first) == 4 else self._triples(path)
        for entry in entries:
            try:
                example = self._example(entry)
            except ExamplesError as error:
                self._choices.reading.complain(error.message, hint=error.hint)
                continue
            yield example

    def _hard_negatives(self, path: Path) -> Iterator[_Entry]:
        for row in read_rows(path, self._choices.reading):
            try:
                entry = self._hard_negative(row)
            except ExamplesError as error:
                self._choices.reading.complain(error.message, hint=error.hint)
                continue
            yield entry

    def _hard_negative(self, row: Row) -> _Entry:
        qid, positives = str(_value(row, "qid", int, str)), _ids(row, "pos", _value(row, "pos", list))
        systems = self._sources.systems
        mined = {
            system: _ids(row, system, pids)
            for system, pids in _value(row, "neg", dict).items()
            if not systems or system in systems
        }
        scores = self._scores.of(qid) if self._scores else None
        good = self._far_enough(scores, positives) if scores else lambda _: True
        return _Entry(qid, positives, _drawn(mined, self._sources.per_system, good), row.place, scores)

    def _far_enough(self, scores: ScoresOfOne, positives: Iterable[str]) -> Callable[[str], bool]:
        known = [score for pid in positives if (score := scores.get(pid)) is not None]
        highest = min(known, default=float("-inf")) - self._sources.margin

        def test(pid: str) -> bool:
            score = scores.get(pid)
            if score is None:
                self._choices.dropped["negative without a score"] += 1
            elif score > highest:
                self._choices.dropped["negative within the margin of a positive"] += 1
            return score is not None and score <= highest

        return test

    def _triples(self, path: Path) -> Iterator[_Entry]:
        rows = read_cells(path, self._choices.reading, counts=(3,))
        for (qid, positive), group in groupby(rows, lambda row: (row[1][0], row[1][1])):
            numbered = list(group)
            yield _Entry(qid, [positive], [cells[2] for _, cells in numbered], f"{path}:{numbered[0][0]}")

    def _qrels(self, path: Path) -> Iterator[_Entry]:
        rows = ((number, line.split()) for number, line in read_lines(path, self._choices.reading))
        relevant = ((number, cells) for number, cells in rows if self._is_relevant(path, number, cells))
        for qid, group in groupby(relevant, lambda row: row[1][0]):
            numbered = list(group)
            yield _Entry(qid, [cells[2] for _, cells in numbered], [], f"{path}:{numbered[0][0]}")

    def _is_relevant(self, path: Path, number: int, cells: list[str]) -> bool:
        if len(cells) == 4 and cells[3].lstrip("-").isdigit():
            return int(cells[3]) > 0
        if cells:
            self._choices.reading.complain(f"{path}:{number}: no line of qrels", hint="qid 0 pid relevance")
        return False

    def _example(self, entry: _Entry) -> TextExample:
        pids = [*entry.positives, *entry.negatives]
        found = [entry.scores.get(pid) for pid in pids] if entry.scores else [None]
        return TextExample(
            _text(self._queries, entry.qid, entry.place),
            tuple(_text(self._passages, pid, entry.place) for pid in entry.positives),
            tuple(_text(self._passages, pid, entry.place) for pid in entry.negatives),
            None if None in found else tuple(score for score in found if score is not None),
            self._choices.task,
            bool(self._choices.symmetric),
        )


def is_ms_marco(columns: list[str], first: Mapping[str, Any]) -> bool:
    """Hard negatives by id."""
    return {"qid", "pos", "neg"} <= set(columns) and isinstance(first.get("neg"), dict)


def read_text_triples(path: Path, choices: Choices) -> Iterator[TextExample]:
    """Lines `query <tab> positive <tab> negative`, without a header."""
    rows = read_cells(path, choices.reading, counts=(2, 3))
    for (query, positive), group in groupby(rows, lambda row: (row[1][0], row[1][1])):
        negatives = tuple(cell for _, cells in group for cell in cells[2:])
        yield TextExample(query, (positive,), negatives, task=choices.task, symmetric=bool(choices.symmetric))


def _drawn(mined: dict[str, list[str]], per_system: int, good: Callable[[str], bool]) -> list[str]:
    """The first good ones of each system that no other gave before, the systems taking turns."""
    seen: set[str] = set()
    drawn: list[list[str]] = []
    for pids in mined.values():
        mine: list[str] = []
        for pid in pids:
            if len(mine) == per_system:
                break
            if pid not in seen and good(pid):
                mine.append(pid)
                seen.add(pid)
        drawn.append(mine)
    return [pid for turn in zip_longest(*drawn) for pid in turn if pid is not None]


def _text(texts: LineIndex, id_: str, place: str) -> str:
    try:
        return texts[id_]
    except KeyError:
        raise ExamplesError(f"{place}: {texts.path} has no {id_!r}", hint="do these files belong together?") from None


def _value(row: Row, name: str, *kinds: type) -> Any:
    value = row.values.get(name)
    if not isinstance(value, kinds) or isinstance(value, bool):
        expected = " or ".join({"str": "string", "int": "number"}.get(kind.__name__, kind.__name__) for kind in kinds)
        raise ExamplesError(f"{row.place}: {name!r} holds no {expected} but {str(value)[:40]!r}", hint=HARD_NEGATIVES)
    return value


def _ids(row: Row, name: str, values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, int | str) for value in values):
        raise ExamplesError(f"{row.place}: {name!r} holds no list of ids but {str(values)[:40]!r}", hint=HARD_NEGATIVES)
    return [str(value) for value in values]
