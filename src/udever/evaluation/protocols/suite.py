"""Your own benchmark: one TOML file that lists tasks over local files.

    name = "mine"
    [[task]]
    kind = "sts"
    name = "headlines"
    file = "headlines.tsv"
    text1 = "left"
    …

Invariant: the whole suite is read and checked before anything is embedded; what a task's score depends on (its kind,
its options, a hash of its files' content) stands in its settings, file names do not.
Does not know: the kinds (suite_kinds.py), or how a file is read (datafiles.py).
"""

import difflib
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udever.errors import DatasetError, OptionError
from udever.evaluation.encoder import Encoder
from udever.evaluation.packages import require_package
from udever.evaluation.protocols import suite_tasks
from udever.evaluation.protocols.datafiles import listed, locate
from udever.evaluation.protocols.suite_kinds import KINDS, Files, Kind
from udever.evaluation.results import Score, slug


@dataclass(frozen=True, kw_only=True)
class LocalTask:
    """One task of a suite, its data read."""

    name: str
    protocol: str
    given: Mapping[str, Any]
    parts: Sequence[suite_tasks.Part]

    @property
    def texts(self) -> int:
        """How many will be embedded."""
        return sum(part.texts for part in self.parts)

    def settings(self) -> Mapping[str, Any]:
        """Kind, options, hash of the data."""
        return self.given

    def run(self, encoder: Encoder) -> list[Score]:
        """Measure each part."""
        return [score for part in self.parts for score in part.scores(encoder)]


def read_suite(file: Path, *, data: Path | None = None, names: Collection[str] = ()) -> list[LocalTask]:
    """Read a suite and the data of its tasks.

    Args:
        file: the TOML file.
        data: the folder that its file names are relative to; default: the folder of `file`.
        names: only these tasks.

    Raises:
        DatasetError: whatever is wrong with the suite or its data.
        EvaluationError: a task needs a package that is not installed.
        OptionError: a name that is no task's.
    """
    suite, specs = _parse(file)
    tasks = _named(specs, file)
    for name in names:
        if name not in tasks:
            raise OptionError(f"{file} has no task {name!r}", hint=f"it has {listed(tasks)}")
    wanted = {name: spec for name, spec in tasks.items() if not names or name in names}
    return [_read_task(name, spec, f"suite:{suite}", data or file.parent, file) for name, spec in wanted.items()]


def _parse(file: Path) -> tuple[str, list[dict[str, Any]]]:
    try:
        content = tomllib.loads(file.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DatasetError(f"{file}: not TOML: {error}") from None
    _require_known_keys(content, ("name", "task"), str(file))
    suite, specs = content.get("name"), content.get("task")
    if not isinstance(suite, str) or not suite:
        raise DatasetError(f"{file}: no name", hint='begin it with name = "…"; it stands with every score')
    if not isinstance(specs, list) or not specs or not all(isinstance(spec, dict) for spec in specs):
        raise DatasetError(f"{file}: no tasks", hint="each begins with [[task]]")
    return suite, specs


def _named(specs: Sequence[dict[str, Any]], file: Path) -> dict[str, dict[str, Any]]:
    """By name; names that differ only in what a file name cannot hold are one, for each task's result is a file."""
    tasks: dict[str, dict[str, Any]] = {}
    name_of: dict[str, str] = {}
    for number, spec in enumerate(specs, start=1):
        name = _name_of(spec, number, file)
        other = name_of.setdefault(slug(name), name)
        if name in tasks or other != name:
            raise DatasetError(
                f"{file}: two tasks have the same name: {other!r}, {name!r}",
                hint="each task's results need a file name of their own",
            )
        tasks[name] = spec
    return tasks


def _name_of(spec: Mapping[str, Any], number: int, file: Path) -> str:
    name = spec.get("name")
    if not isinstance(name, str) or not name:
        raise DatasetError(f"{file}: task {number} has no name")
    return name


def _read_task(name: str, spec: Mapping[str, Any], protocol: str, folder: Path, file: Path) -> LocalTask:
    place = f"{file}, task {name!r}"
    kind = KINDS.get(spec["kind"]) if isinstance(spec.get("kind"), str) else None
    if kind is None:
        raise DatasetError(f"{place}: its kind is {spec.get('kind')!r}", hint=f"there are {listed(KINDS)}")
    given = _options(spec, kind, place)
    if kind.package:
        require_package(kind.package)
    try:
        files = Files({key: _paths(given[key], folder) for key, option in kind.options.items() if option.file})
        parts = kind.read(files, given)
    except DatasetError as error:
        raise DatasetError(f"{place}: {error.message}", hint=error.hint) from None
    options = {key: value for key, value in given.items() if not kind.options[key].file}
    subsets = {
        key: list(given[key]) for key, option in kind.options.items() if option.file and isinstance(given[key], dict)
    }
    settings = {"kind": spec["kind"], **options, **subsets, "data": files.digest()}
    return LocalTask(name=name, protocol=protocol, given=settings, parts=parts)


def _options(spec: Mapping[str, Any], kind: Kind, place: str) -> dict[str, Any]:
    _require_known_keys(spec, ("kind", "name", *kind.options), place)
    given = {}
    for key, option in kind.options.items():
        value = spec.get(key, option.default)
        if value is None:
            raise DatasetError(f"{place}: {key!r} is missing")
        of_strings = (
            not option.file or not isinstance(value, dict) or all(isinstance(one, str) for one in value.values())
        )
        if not isinstance(value, option.type) or isinstance(value, bool) or not of_strings:
            raise DatasetError(f"{place}: {key!r} is {value!r}", hint=f"it takes {_described(option.type)}")
        given[key] = value
    if given.get("subset") and isinstance(given.get("file"), dict):
        raise DatasetError(f"{place}: subsets by a column and by files", hint="leave one of the two out")
    return given


def _require_known_keys(found: Collection[str], known: Sequence[str], place: str) -> None:
    for key in found:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {listed(known)}"
            raise DatasetError(f"{place}: unknown key {key!r}", hint=hint)


def _described(kinds: type | tuple[type, ...]) -> str:
    words = {str: "a string", int: "a whole number", list: "a list of strings", dict: "a table of strings"}
    return " or ".join(words[kind] for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))


def _paths(given: str | Mapping[str, str], folder: Path) -> dict[str, Path]:
    named = {"": given} if isinstance(given, str) else given
    return {subset: locate(folder, name) for subset, name in named.items()}
