"""One measurement after the other: skip what an earlier run has, measure, check, write.

    for task in tasks: outcome = measure(task, encoder, …); finished(outcome)

Invariant: a task's file is written at once when its scores are there and are numbers, and is trusted by a later run
only for the same weights, data and settings (results.py); whatever interrupts a run leaves the finished tasks whole.
Does not know: how a task gets its scores, or how they are shown.
"""

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from udever.engine.progress import Watch, progress_bar
from udever.errors import EvaluationError, ResultFileError
from udever.evaluation import results
from udever.evaluation.encoder import Encoder
from udever.evaluation.results import Result, Score

BLOCKS = "blocks"
"""Folder beside a task's result that holds embedded blocks while it is measured."""


class Task(Protocol):
    """Something that can be measured."""

    @property
    def name(self) -> str:
        """Among the tasks of its protocol."""

    @property
    def protocol(self) -> str:
        """How it is measured; stands with each score."""

    @property
    def texts(self) -> int:
        """How many texts are embedded for it, for the progress bar."""

    def settings(self) -> Mapping[str, Any]:
        """What besides the model can change a score: a hash of the data, seeds, columns, …; as JSON has it."""

    def run(self, encoder: Encoder) -> Sequence[Score]:
        """Measure."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a task."""

    result: Result
    reused: bool = False
    """It was found, not measured again."""
    path: Path | None = None
    """Its file; None if nothing is kept."""


def run(
    tasks: Sequence[Task],
    encoder: Encoder,
    *,
    output: Path | None,
    force: bool = False,
    progress: bool = False,
    finished: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Measure every task, in order.

    Args:
        tasks: with their data read: a mistake in the last one's data should not cost the time of the first.
        encoder: the model and its options.
        output: folder of results; None keeps nothing.
        force: measure again what is there.
        progress: a bar on standard error.
        finished: called after each task.
    """
    outcomes = []
    with progress_bar(shown=progress) as watch:
        for task in tasks:
            advance = _Advance(task, watch)
            outcome = measure(task, replace(encoder, advance=advance), output=output, force=force)
            outcomes.append(outcome)
            finished(outcome)
    return outcomes


def measure(task: Task, encoder: Encoder, *, output: Path | None, force: bool = False) -> Outcome:
    """One task: its earlier result if there is one that fits, else a new one, written under `output`."""
    from udever import __version__

    wanted = Result(
        task=task.name,
        protocol=task.protocol,
        model=encoder.embedder.name,
        fingerprint=encoder.embedder.fingerprint,
        settings={**task.settings(), **encoder.settings()},
        version=__version__,
        scores=(),
    )
    found = None if output is None or force else _earlier(output, wanted)
    if output is not None and found is not None:
        return Outcome(result=found, reused=True, path=results.path_of(output, found))
    folder = None if output is None else results.path_of(output, wanted).parent / BLOCKS / results.slug(task.name)
    started = time.perf_counter()
    try:
        scores = _checked(tuple(task.run(replace(encoder, folder=folder))))
    except EvaluationError as error:
        raise type(error)(f"{task.name}: {error.message}", hint=error.hint) from error
    result = replace(
        wanted,
        scores=scores,
        seconds=round(time.perf_counter() - started, 3),
        date=datetime.now(tz=UTC).isoformat(timespec="seconds"),
    )
    return _kept(result, output, folder)


def _earlier(output: Path, wanted: Result) -> Result | None:
    try:
        return results.find(output, wanted)
    except ResultFileError as error:
        raise ResultFileError(error.message, hint="--force measures again and replaces it") from None


def _kept(result: Result, output: Path | None, folder: Path | None) -> Outcome:
    if output is None or folder is None:
        return Outcome(result=result)
    path = results.write(output, result)
    if folder.is_dir():
        shutil.rmtree(folder)  # gigabytes that nothing needs any more
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()
    return Outcome(result=result, path=path)


def _checked(scores: tuple[Score, ...]) -> tuple[Score, ...]:
    if not scores:
        raise EvaluationError("no score came out")
    for score in scores:
        for metric, value in {score.metric: score.value, **score.metrics}.items():
            if not math.isfinite(value):
                of = " ".join(part for part in (score.system, score.subset) if part)
                raise EvaluationError(f"{metric} of {of} is {value}", hint="is all of its data the same?")
    return scores


class _Advance:
    """Counts the texts of a task on the bar."""

    def __init__(self, task: Task, watch: Watch) -> None:
        self._task, self._watch, self._done = task, watch, 0
        self(0)

    def __call__(self, texts: int) -> None:
        self._done += texts
        self._watch(self._task.name, self._done, self._task.texts)
