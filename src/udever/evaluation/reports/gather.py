"""Result files, ours and mteb's, from any number of folders → one list in which equal protocols may be compared.

    Gathered(entries, notes) = gather([Path("results"), Path("mteb/results")])

Invariant: two entries of the same protocol and task were measured on the same data under the same settings; where they
were not, the smaller group (of equal ones the older) gets a protocol of its own ("… #2") and a note says what differs.
No two entries have the same row, protocol and task: of repeated runs the newest stays, and a note says so if their
scores differ.
Does not know: published numbers, means or tables.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from udever.errors import ResultFileError
from udever.evaluation import results
from udever.evaluation.reports import mteb_files
from udever.evaluation.results import Result

ROW_SETTINGS = ("dimensions", "max_tokens")
"""Settings that make another row of the same table, as other weights do; any other makes another table."""

FINGERPRINT_CHARACTERS = len("udv1-") + 8
"""Shown of a fingerprint; more where so many do not tell two rows apart."""

RowKey = tuple[str, str, str]
"""Model, fingerprint, row settings: what one row of a table is."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One task of one model, and the name of its row."""

    row: str
    """The model's name, and what tells it from another of the same name."""
    result: Result


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """Everything that was found."""

    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()


def gather(paths: Iterable[Path]) -> Gathered:
    """Read files and folders; JSON of other kinds in a folder is passed over.

    Raises:
        ResultFileError: a path that is not there or holds no result, unreadable JSON, a result of another shape.
    """
    found = [result for path in paths for result in _read(path)]
    kept, repeated = _newest(found)
    separated, differing = _separated(kept)
    names = _row_names(separated)
    entries = tuple(Entry(row=names[_row_key(result)], result=result) for result in separated)
    return Gathered(entries=entries, notes=(*repeated, *differing))


def _read(path: Path) -> list[Result]:
    if not path.exists():
        raise ResultFileError(f"{path} does not exist", hint="pass what udever evaluate wrote under --output")
    found = [result for file in ([path] if path.is_file() else results.walk(path)) for result in _parse(file)]
    if not found:
        raise ResultFileError(
            f"{path}: no result here", hint="pass files or folders that udever evaluate or mteb wrote"
        )
    return found


def _parse(path: Path) -> Iterator[Result]:
    """One result, or none if the file is something else."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ResultFileError(f"{path}: no readable JSON: {error}") from None
    if mteb_files.is_result(content):
        yield mteb_files.to_result(content, path)
    elif mteb_files.is_old_result(content):
        raise ResultFileError(f"{path}: a result from before mteb 1.11", hint="load and save it with a current mteb")
    elif isinstance(content, dict) and {"format", "protocol"} <= content.keys():
        yield results.read(path)


def _row_key(result: Result) -> RowKey:
    settings = {name: result.settings.get(name) for name in ROW_SETTINGS}
    return result.model, result.fingerprint, json.dumps(settings)


def _newest(found: Sequence[Result]) -> tuple[list[Result], list[str]]:
    groups: dict[tuple[Any, ...], list[Result]] = defaultdict(list)
    for result in found:
        groups[_row_key(result), result.protocol, result.task, _conditions(result)].append(result)
    kept, notes = [], []
    for group in groups.values():
        newest = max(group, key=lambda result: result.date)
        kept.append(newest)
        if any(result.scores != newest.scores for result in group):
            notes.append(
                f"{newest.model} has {len(group)} different results of {newest.protocol} / {newest.task};"
                f" the newest ({newest.date or 'undated'}) is shown."
            )
    return kept, notes


def _conditions(result: Result) -> str:
    """What has to be equal for a comparison: every setting that belongs to the task, not to the model."""
    return json.dumps({key: value for key, value in result.settings.items() if key not in ROW_SETTINGS}, sort_keys=True)


def _separated(found: Sequence[Result]) -> tuple[list[Result], list[str]]:
    """Each protocol's tasks under one set of conditions; the less common ones move to a protocol "… #2", "… #3", …"""
    dates: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for result in found:
        dates[result.protocol, result.task][_conditions(result)].append(result.date)
    order = {key: _by_number_and_date(alike) for key, alike in dates.items()}
    moved, notes = [], []
    for result in found:
        ranked = order[result.protocol, result.task]
        number = ranked.index(_conditions(result))
        moved.append(replace(result, protocol=f"{result.protocol} #{number + 1}") if number else result)
    for (protocol, task), ranked in order.items():
        for number, other in enumerate(ranked[1:], 2):
            differing = ", ".join(_differing(json.loads(ranked[0]), json.loads(other)))
            notes.append(f"{protocol} / {task}: measured with other {differing}: not comparable, shown as #{number}.")
    return moved, notes


def _by_number_and_date(alike: Mapping[str, Sequence[str]]) -> list[str]:
    """Conditions by how many results have them; of equally many those first that were last measured under."""
    return sorted(alike, key=lambda conditions: (len(alike[conditions]), max(alike[conditions])), reverse=True)


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in {*one, *other} if one.get(key) != other.get(key))


def _row_names(found: Sequence[Result]) -> dict[RowKey, str]:
    """The model's name; only where several rows share it, also what they differ in."""
    rows: dict[tuple[str, bool], list[RowKey]] = defaultdict(list)
    for result in found:
        rivals = rows[result.model, result.protocol == mteb_files.PROTOCOL]  # mteb names revisions its own way
        if _row_key(result) not in rivals:
            rivals.append(_row_key(result))
    return {key: _row_name(key, keys) for keys in rows.values() for key in keys}


def _row_name(key: RowKey, rivals: Sequence[RowKey]) -> str:
    model, fingerprint, settings = key
    parts = []
    fingerprints = {rival[1] for rival in rivals}
    if len(fingerprints) > 1:
        parts.append(f"@{fingerprint[: _telling(fingerprints)]}")
    for name, value in json.loads(settings).items():
        if len({json.loads(rival[2])[name] for rival in rivals}) > 1:
            parts.append(f"{value} {name.replace('_', ' ')}")
    return " ".join([model, *parts])


def _telling(fingerprints: Collection[str]) -> int:
    """How many characters it takes to tell them apart."""
    lengths = count(FINGERPRINT_CHARACTERS)
    return next(length for length in lengths if len({one[:length] for one in fingerprints}) == len(fingerprints))
