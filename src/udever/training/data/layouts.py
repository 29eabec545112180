"""What a row of training data means: one layout a family of published files.

    for example in read_layout(LAYOUTS["flagembedding"], rows, choices): ...

Invariant: nothing is guessed within a row. A string where a list belongs, a number where a text belongs, a missing
value is a complaint that names file and line.
Does not know: how files are read (rows.py), or what becomes of the examples. Layouts that span several files or rows
have files of their own: nli.py, ms_marco.py.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from udever.errors import ExamplesError
from udever.training.data.fields import as_number, complaint, kind_of_value, text_at, texts_at
from udever.training.data.rows import Reading, Row
from udever.training.data.store_writer import TextExample

PAIRS = (
    ("anchor", "positive"),
    ("query", "positive"),
    ("query", "positives"),
    ("query", "answer"),
    ("query", "passage"),
    ("query", "document"),
    ("question", "answer"),
    ("question", "passage"),
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("doc", "code"),
    ("docstring", "code"),
)
"""Names of a query's and its positive's column that are understood without --columns."""
NEGATIVE = re.compile(r"negative(_\d+)?|negatives")
LISTS = frozenset(["positives", "negatives", "pos", "neg"])
"""Columns that hold lists of texts; all others hold one."""
LABELS = ("label", "labels", "score", "similarity_score")
LANGUAGE = re.compile(r"[a-z]{2,3}([-_][A-Za-z]{2,4})?")
PIVOTS = ("en", "eng", "eng_Latn")
"""What English is called as a column of a parallel file."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the user says about the data."""

    task: str
    """Task of the examples; `{column}` stands for the row's value."""
    symmetric: bool | None = None
    """None: as the layout has it."""
    columns: tuple[str, ...] = ()
    """Query, positive, negatives…; empty: by their names."""
    min_score: float | None = None
    """Scored pairs count as positives from here on."""
    pivot: str | None = None
    """The language of a parallel file that the others are paired with; None: English."""
    contradictions: bool = False
    """Take contradicted hypotheses as hard negatives."""
    reading: Reading = field(default_factory=Reading)
    dropped: Counter[str] = field(default_factory=Counter)
    """Fills while reading: why rows gave no example."""

    def task_of(self, values: Mapping[str, Any], place: str) -> str:
        """The task's name for a row."""
        if "{" not in self.task:
            return self.task
        try:
            return self.task.format_map(values)
        except (KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
            raise ExamplesError(
                f"{place}: task {self.task!r} names no column: {error}", hint=f"columns: {', '.join(values)}"
            ) from None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A family of files."""

    summary: str
    """What a row looks like, for help and errors."""
    fits: Callable[[list[str], Mapping[str, Any]], bool]
    """Whether a file of these columns, with this first row, is of the family."""
    read: Callable[[Row, Choices], Iterable[TextExample]]
    """The examples of a row, none or many.

    Raises:
        ExamplesError: names the row's place.
    """
    symmetric: bool = False
    """Whether both sides are of one kind, unless the user says otherwise."""


def is_pair_layout(columns: list[str], _: Mapping[str, Any]) -> bool:
    """A known pair of names, without a label."""
    return bool(pairs_in(columns)) and not any(name in columns for name in LABELS)


def is_labelled(columns: list[str], first: Mapping[str, Any]) -> bool:
    """A known pair of names and a label that is no word."""
    labels = [first.get(name) for name in LABELS if name in columns]
    return len(pairs_in(columns)) == 1 and len(labels) == 1 and as_number(labels[0]) is not None


def is_flag_embedding(columns: list[str], _: Mapping[str, Any]) -> bool:
    """`query` and `pos`."""
    return {"query", "pos"} <= set(columns)


def is_tevatron(columns: list[str], _: Mapping[str, Any]) -> bool:
    """`query` and `positive_passages`."""
    return {"query", "positive_passages"} <= set(columns)


def is_wide(columns: list[str], _: Mapping[str, Any]) -> bool:
    """Only languages, English among them."""
    return len(columns) > 2 and all(map(LANGUAGE.fullmatch, columns)) and any(name in columns for name in PIVOTS)


def pairs_in(columns: Iterable[str]) -> list[tuple[str, str]]:
    """The known pairs of names among a file's columns."""
    names = set(columns)
    return [pair for pair in PAIRS if names.issuperset(pair)]


def read_layout(layout: Layout, rows: Iterable[Row], choices: Choices) -> Iterator[TextExample]:
    """The examples of rows; a bad row obeys `choices.reading`."""
    for row in rows:
        try:
            examples = list(layout.read(row, choices))
        except ExamplesError as error:
            choices.reading.complain(error.message, hint=error.hint)
            continue
        yield from examples


def read_columns(row: Row, choices: Choices) -> Iterator[TextExample]:
    """A query, a positive (or a list) and any number of negatives; also a teacher's `scores` of them."""
    query, positive, *rest = choices.columns or _named_columns(row)
    positives = _values(row, positive)
    negatives = tuple(text for name in rest for text in _values(row, name, optional=True))
    given = row.values.get("scores")
    scores = None if given is None else _scores(row, given, len(positives) + len(negatives))
    yield _example(row, choices, text_at(row, query), positives, negatives, scores)


def read_labelled(row: Row, choices: Choices) -> Iterator[TextExample]:
    """A pair with a label 1 or 0, or with a score to be compared with `min_score`."""
    query, positive = choices.columns[:2] or pairs_in(row.values)[0]
    if _is_positive(row, choices.min_score):
        yield _example(row, choices, text_at(row, query), (text_at(row, positive),))
    else:
        choices.dropped["pair that is no positive by its label"] += 1


def read_flag_embedding(row: Row, choices: Choices) -> Iterator[TextExample]:
    """`{"query", "pos": [...], "neg": [...], "pos_scores": [...], "neg_scores": [...]}`; a prompt is not read."""
    positives, negatives = texts_at(row, "pos"), texts_at(row, "neg", optional=True)
    of_positives, of_negatives = (row.values.get(name) for name in ("pos_scores", "neg_scores"))
    scores = None
    if of_positives is not None and (of_negatives is not None or not negatives):
        scores = _scores(row, of_positives, len(positives)) + _scores(row, of_negatives or [], len(negatives))
    elif (of_positives, of_negatives) != (None, None):
        raise complaint(row, "pos_scores and neg_scores do not stand together", hint="give both or none")
    yield _example(row, choices, text_at(row, "query"), positives, negatives, scores)


def read_tevatron(row: Row, choices: Choices) -> Iterator[TextExample]:
    """`{"query", "positive_passages": [{"title", "text"}], "negative_passages"}`; a title stands before its text."""
    positives, negatives = _passages(row, "positive_passages"), _passages(row, "negative_passages", optional=True)
    yield _example(row, choices, text_at(row, "query"), positives, negatives)


def read_wide(row: Row, choices: Choices) -> Iterator[TextExample]:
    """One sentence in many languages, a column each: every language asks for the pivot. Empty cells are no texts.

    The column's name is `{language}` for the task.
    """
    pivot = choices.pivot or next((name for name in PIVOTS if name in row.values), "")
    if pivot not in row.values:
        raise complaint(row, f"there is no language {pivot!r}", hint=f"--pivot one of {', '.join(row.values)}")
    answer = text_at(row, pivot)
    for language in row.values:
        if language != pivot and row.values[language] and answer:
            of_language = row._replace(values={**row.values, "language": language})
            yield _example(of_language, choices, text_at(row, language), (answer,))


LAYOUTS: dict[str, Layout] = {
    "columns": Layout(
        summary="query and positive, then negative, negative_1, … or negatives: sentence-transformers",
        fits=is_pair_layout,
        read=read_columns,
    ),
    "labelled": Layout(
        summary="two texts and a label (1: positive) or score", fits=is_labelled, read=read_labelled, symmetric=True
    ),
    "flagembedding": Layout(
        summary='jsonl {"query", "pos": […], "neg": […]}', fits=is_flag_embedding, read=read_flag_embedding
    ),
    "tevatron": Layout(
        summary='jsonl {"query", "positive_passages": [{"title", "text"}], "negative_passages": […]}',
        fits=is_tevatron,
        read=read_tevatron,
    ),
    "wide": Layout(
        summary="one sentence in many languages, a column each", fits=is_wide, read=read_wide, symmetric=True
    ),
}
"""Layouts whose rows stand for themselves."""


def _example(
    row: Row,
    choices: Choices,
    query: str,
    positives: tuple[str, ...],
    negatives: tuple[str, ...] = (),
    scores: tuple[float, ...] | None = None,
) -> TextExample:
    task = choices.task_of(row.values, row.place)
    return TextExample(query, positives, negatives, scores, task, bool(choices.symmetric))


def _named_columns(row: Row) -> tuple[str, ...]:
    found = pairs_in(row.values)
    if len(found) != 1:
        what = "no pair of columns is known" if not found else f"several pairs could be meant: {found}"
        raise complaint(row, what, hint=f"pass --columns QUERY,POSITIVE of {', '.join(row.values)}")
    return (*found[0], *(name for name in row.values if NEGATIVE.fullmatch(name)))


def _values(row: Row, name: str, *, optional: bool = False) -> tuple[str, ...]:
    if name in LISTS:
        return texts_at(row, name, optional=optional)
    return () if optional and row.values.get(name) is None else (text_at(row, name),)


def _passages(row: Row, name: str, *, optional: bool = False) -> tuple[str, ...]:
    if name not in row.values and not optional:
        raise complaint(row, f"there is no {name!r}", hint=f"it has {', '.join(row.values)}")
    passages = row.values.get(name, [])
    if not isinstance(passages, list):
        raise complaint(
            row, f"{name!r} holds {kind_of_value(passages)} where a list of passages belongs", hint='[{"text": …}]'
        )
    texts = []
    for passage in passages:
        if not isinstance(passage, dict):
            raise complaint(
                row, f"{name!r} holds {kind_of_value(passage)} where a passage belongs", hint='like {"text": "…"}'
            )
        inner = Row(passage, row.file, row.line)
        title = text_at(inner, "title") if passage.get("title") else ""
        texts.append(f"{title.strip()} {text_at(inner, 'text').strip()}".strip())
    return tuple(texts)


def _scores(row: Row, value: Any, count: int) -> tuple[float, ...]:
    if not isinstance(value, list) or any(isinstance(score, bool) or as_number(score) is None for score in value):
        raise complaint(row, "the scores are no list of numbers", hint="one number a text")
    if not all(math.isfinite(float(score)) for score in value):
        raise complaint(row, "a score is not finite", hint="one number a text")
    if len(value) != count:
        raise complaint(row, f"{len(value)} scores for {count} texts", hint="one number a text")
    return tuple(map(float, value))


def _is_positive(row: Row, min_score: float | None) -> bool:
    name = next(name for name in LABELS if name in row.values)
    value = as_number(row.values[name])
    if value is None:
        raise complaint(row, f"{name} is {row.values[name]!r}, no number", hint="labels are 1 (positive) and 0")
    if min_score is not None:
        return value >= min_score
    if name.startswith("label") and value in (0, 1):
        return value == 1
    raise complaint(
        row, f"{name} is {value:g}, which may mean anything", hint="pass --min-score: positives from there on"
    )
