"""The kinds of task a suite can hold: the keys each takes, and how its files become texts and labels.

Invariant: what cannot be measured is refused here, before anything is embedded: an empty text, one label only,
judgements of unknown documents, fewer functions than candidates.
Does not know: TOML (suite.py), or how a kind is measured (suite_tasks.py).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udever.errors import DatasetError
from udever.evaluation.protocols import suite_tasks
from udever.evaluation.protocols.code_search import CodePairs, in_one_round, in_rounds
from udever.evaluation.protocols.datafiles import Table, digest, listed, read_table
from udever.evaluation.protocols.ranking import judgements

DOCUMENT_IDS = ("id", "_id", "docid", "pid")
QUERY_IDS = ("qid", "id", "_id")
QREL_COLUMNS = (("qid", "query-id"), ("docid", "pid", "corpus-id"), ("rel", "score", "relevance"))
"""Usual names of id columns, BEIR's among them."""
TITLE = "title"
"""Put before a document's text where the corpus has it."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """A key that a kind of task takes."""

    type: type | tuple[type, ...] = str
    default: Any = None
    """None: the key must be there."""
    file: bool = False
    """It names a file, or a table of subset = file."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of task: its keys, and how they become texts and labels."""

    options: Mapping[str, Option]
    read: Callable[["Files", Mapping[str, Any]], list[suite_tasks.Part]]
    package: str = ""
    """Of the extra `eval`, if it cannot be measured without one; as imported."""


@dataclass(frozen=True)
class Files:
    """The files that a task names; a key names one, or one for each subset."""

    paths: Mapping[str, Mapping[str, Path]]

    def table(self, key: str) -> Table:
        """The one file of a key."""
        (path,) = self.paths[key].values()
        return read_table(path)

    def subsets(self, given: Mapping[str, Any]) -> Iterator[tuple[str, Table]]:
        """The parts of `file`: a file each, or by the column `subset`; rows as `where` wants them."""
        for subset, path in self.paths["file"].items():
            table = read_table(path).where(_wanted(given["where"]))
            yield from table.by(given["subset"]).items() if given["subset"] else [(subset, table)]

    def digest(self) -> str:
        """Of all content, in the order of the keys."""
        return digest(*(path for key in sorted(self.paths) for path in self.paths[key].values()))


def _read_sts(files: Files, given: Mapping[str, Any]) -> list[suite_tasks.Part]:
    parts: list[suite_tasks.Part] = []
    for subset, table in files.subsets(given):
        left, right = table.strings(given["text1"]), table.strings(given["text2"])
        judged = table.numbers(given["score"])
        if len(set(judged)) < 2:
            raise DatasetError(
                f"{_part(table, subset)}: every score is {judged[0]:g}", hint="nothing correlates with that"
            )
        parts.append(suite_tasks.Sts(subset=subset, left=left, right=right, judged=judged))
    return parts


def _read_pairs(files: Files, given: Mapping[str, Any]) -> list[suite_tasks.Part]:
    parts: list[suite_tasks.Part] = []
    for subset, table in files.subsets(given):
        labels = table.integers(given["label"])
        for row, label in zip(table.rows, labels, strict=True):
            if label not in (0, 1):
                raise DatasetError(f"{table.path}:{row.line}: {given['label']!r} holds {label}, neither 0 nor 1")
        if not any(labels):
            raise DatasetError(f"{_part(table, subset)}: no label is 1", hint="1 means that the texts belong together")
        left, right = table.strings(given["text1"]), table.strings(given["text2"])
        parts.append(suite_tasks.Pairs(subset=subset, left=left, right=right, labels=labels))
    return parts


def _read_bitext(files: Files, given: Mapping[str, Any]) -> list[suite_tasks.Part]:
    table = files.table("file")
    pivot = table.strings(given["pivot"])
    languages = given["languages"] or [column for column in table.columns if column != given["pivot"]]
    columns = {language: table.strings_if_any(language) for language in languages}
    empty = [language for language, column in columns.items() if not any(column)]
    if empty or not columns:
        raise DatasetError(f"{table.path}: no sentence in {listed(empty) if empty else 'any language but the pivot'}")
    return [suite_tasks.Bitext(pivot=pivot, languages=columns)]


def _read_retrieval(files: Files, given: Mapping[str, Any]) -> list[suite_tasks.Part]:
    corpus, queries, qrels = (files.table(key) for key in ("corpus", "queries", "qrels"))
    document_ids = _unique(corpus, corpus.strings(corpus.first_of(DOCUMENT_IDS)))
    query_ids = _unique(queries, queries.strings(queries.first_of(QUERY_IDS)))
    query, document, grade = (qrels.first_of(names) for names in QREL_COLUMNS)
    return [
        suite_tasks.Retrieval(
            document_ids=document_ids,
            documents=_documents(corpus, title=given["title"], text=given["text"]),
            judgements=judgements(
                dict(zip(query_ids, queries.strings("text"), strict=True)),
                set(document_ids),
                list(zip(qrels.strings(query), qrels.strings(document), qrels.integers(grade), strict=True)),
                place=str(qrels.path),
            ),
        )
    ]


def _documents(corpus: Table, *, title: str, text: str) -> list[str]:
    """Title and text in one, a blank between them, as mteb and BEIR do; an empty document stays."""
    texts = corpus.strings(text, may_be_empty=True)
    if not title or (title == TITLE and TITLE not in corpus.columns):
        return texts
    titles = corpus.strings_if_any(title)
    return [f"{first} {rest}".strip() for first, rest in zip(titles, texts, strict=True)]


def _read_code(files: Files, given: Mapping[str, Any]) -> list[suite_tasks.Part]:
    parts: list[suite_tasks.Part] = []
    for subset, table in files.subsets(given):
        pairs, candidates = len(table.rows), given["candidates"]
        try:
            rounds = in_rounds(pairs, candidates=candidates, seed=0) if candidates else in_one_round(pairs)
        except DatasetError as error:
            raise DatasetError(f"{_part(table, subset)}: {error.message}", hint=error.hint) from None
        queries, documents = table.strings(given["doc"]), table.strings(given["code"])
        parts.append(CodePairs(subset=subset, queries=queries, documents=documents, rounds=rounds))
    return parts


def _read_classification(files: Files, given: Mapping[str, Any]) -> list[suite_tasks.Part]:
    train, test = (files.table(key).where(_wanted(given["where"])) for key in ("train", "test"))
    train_labels, test_labels = (table.strings(given["label"]) for table in (train, test))
    if len(set(train_labels)) < 2:
        raise DatasetError(f"{train.path}: all labels are {train_labels[0]!r}", hint="there is nothing to tell apart")
    unseen = sorted(set(test_labels).difference(train_labels))
    if unseen:
        raise DatasetError(f"{test.path}: labels that {train.path} does not have: {listed(unseen)}")
    train_texts, test_texts = (table.strings(given["text"]) for table in (train, test))
    return [
        suite_tasks.Classification(
            train_texts=train_texts, train_labels=train_labels, test_texts=test_texts, test_labels=test_labels
        )
    ]


def _part(table: Table, subset: str) -> str:
    return f"{table.path} ({subset})" if subset else str(table.path)


def _unique(table: Table, ids: list[str]) -> list[str]:
    seen: set[str] = set()
    for row, one in zip(table.rows, ids, strict=True):
        if one in seen:
            raise DatasetError(f"{table.path}:{row.line}: the id {one!r} stands there twice")
        seen.add(one)
    return ids


def _wanted(where: Mapping[str, Any]) -> dict[str, list[str]]:
    """A column's wanted value, or a list of them; numbers as they stand in the file."""
    return {
        column: [str(value) for value in (values if isinstance(values, list) else [values])]
        for column, values in where.items()
    }


_FILE = Option(type=str, file=True)
_SUBSETS = {
    "file": Option(type=(str, dict), file=True),
    "subset": Option(default=""),
    "where": Option(type=dict, default={}),
}
_TWO_TEXTS = {"text1": Option(default="text1"), "text2": Option(default="text2")}

KINDS: Mapping[str, Kind] = {
    "sts": Kind(options={**_SUBSETS, **_TWO_TEXTS, "score": Option(default="score")}, read=_read_sts),
    "pairs": Kind(options={**_SUBSETS, **_TWO_TEXTS, "label": Option(default="label")}, read=_read_pairs),
    "bitext": Kind(
        options={"file": _FILE, "pivot": Option(default="eng_Latn"), "languages": Option(type=list, default=[])},
        read=_read_bitext,
    ),
    "retrieval": Kind(
        options={
            "corpus": _FILE,
            "queries": _FILE,
            "qrels": _FILE,
            "title": Option(default=TITLE),
            "text": Option(default="text"),
        },
        read=_read_retrieval,
        package="bm25s",
    ),
    "code": Kind(
        options={
            **_SUBSETS,
            "doc": Option(default="doc"),
            "code": Option(default="code"),
            "candidates": Option(type=int, default=0),
        },
        read=_read_code,
        package="bm25s",
    ),
    "classification": Kind(
        options={
            "train": _FILE,
            "test": _FILE,
            "text": Option(default="text"),
            "label": Option(default="label"),
            "where": Option(type=dict, default={}),
        },
        read=_read_classification,
        package="sklearn",
    ),
}
"""Kind → what it takes and how it is read."""
