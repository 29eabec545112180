"""A run of mteb's tasks: choose them, evaluate what no earlier run has finished, leave mteb's own JSON behind.

    OUTPUT/mteb/results/<owner__model>/<revision>/[experiments/<choices>/]<task>.json

That is the layout of mteb's `ResultCache` and of the leaderboard's results repository; `model_meta.json` and
`run_settings.jsonl` lie beside the scores.

Invariant: a file under a task's own name holds every split and subset that was asked for. What an interrupted run has
of a task waits under a hidden name (`.<task>.json`), and the next run goes on from there.
Does not know: roles (adapter.py), or the hub (data.py).
"""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import mteb
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.cache import ResultCache
from mteb.get_tasks import TASK_LIST
from mteb.models import ModelMeta
from mteb.results import TaskResult

from udever.errors import EvaluationError, OptionError, UdeverError
from udever.evaluation.mteb.adapter import UdeverEncoder
from udever.evaluation.mteb.data import HubData

FOLDER = "mteb"
"""Under the output folder: mteb's own tree, apart from the results of `evaluation.results`."""
READ_TEXTS = 256
"""Texts that mteb reads from its tables at once; the model's batches are counted in tokens."""


@dataclass(frozen=True, kw_only=True)
class SubsetScore:
    """The main score of a part of a task."""

    split: str
    subset: str
    """ "default" where the task has no subsets."""
    languages: tuple[str, ...]
    """Like "eng-Latn"."""
    main_score: float


@dataclass(frozen=True, kw_only=True)
class Finished:
    """One task, whole."""

    task: str
    type: str
    metric: str
    """The name of the main score."""
    main_score: float
    """Mean over splits and subsets, as mteb takes it."""
    scores: tuple[SubsetScore, ...]
    seconds: float
    kept: bool
    """It was there from an earlier run."""
    path: Path


def select(
    *, names: Sequence[str] = (), benchmark: str | None = None, languages: Sequence[str] = ()
) -> list[mteb.AbsTask]:
    """Tasks by name, or those of a benchmark; of a task in many languages, the subsets that hold one of `languages`.

    Args:
        languages: ISO 639-3 codes, with or without a script: "deu", "zho-Hans". Tasks in no such language are left out.

    Raises:
        OptionError: an unknown name (says which are close), a task that is not of text alone, or nothing left.
    """
    if bool(names) == bool(benchmark):
        raise OptionError("either tasks or a benchmark must be named", hint="pass --tasks NAME …, or --benchmark NAME")
    chosen = _benchmark(benchmark) if benchmark else [_task(name) for name in dict.fromkeys(names)]
    foreign = [task.metadata.name for task in chosen if set(task.metadata.modalities) != {"text"}]
    if foreign:
        raise OptionError(f"not tasks of text alone: {_listed(foreign)}", hint="this is a model of text and code")
    tasks = [task for task in (_in_languages(task, languages) for task in chosen) if task is not None]
    if not tasks:
        raise OptionError(
            f"none of the tasks has a subset in {', '.join(languages)}",
            hint="codes are those of ISO 639-3: eng, zho-Hans",
        )
    return tasks


def run(
    encoder: UdeverEncoder,
    tasks: Sequence[mteb.AbsTask],
    *,
    output: Path,
    force: bool = False,
    announce: Callable[[str], None] | None = None,
    progress: bool = False,
) -> Iterator[Finished]:
    """Evaluate task after task, and yield each when its file is written.

    Args:
        force: evaluate again what an earlier run has.
        announce: called with a task's name before work on it begins; not for a task that an earlier run finished.
        progress: show bars for what is embedded.

    Raises:
        DatasetUnavailableError: a task's data is neither here nor to be had; earlier tasks are finished and kept.
        EvaluationError: mteb failed on a task.
    """
    work = _Work(encoder, _Results(output / FOLDER, tasks), force=force, announce=announce, progress=progress)
    return (work.finish(task) for task in tasks)


class _Work:
    """What all tasks of a run share."""

    def __init__(
        self,
        encoder: UdeverEncoder,
        results: "_Results",
        *,
        force: bool,
        announce: Callable[[str], None] | None,
        progress: bool,
    ) -> None:
        self.encoder = encoder
        self.results = results
        self.force = force
        self.announce = announce or (lambda _: None)
        self.progress = progress
        self.data = HubData()

    def finish(self, task: mteb.AbsTask) -> Finished:
        """From the files of an earlier run, or by evaluating what they lack."""
        with _quietly(progress=self.progress):
            if isinstance(task, AbsTaskAggregate):
                parts = [self.finish(part) for part in _parts(task)]
                if self.force:  # else mteb would find the old mean of the new parts
                    self.results.get_task_result_path(task.metadata.name, self.meta).unlink(missing_ok=True)
                return self._finished(task, self._evaluate(task), kept=all(part.kept for part in parts))
            earlier = None if self.force else self.results.load_task_result(task.metadata.name, self.meta)
            usable = earlier is not None and earlier.is_mergeable(task)  # of the same revision of the data
            if earlier and usable and not earlier.get_missing_evaluations(task):
                self.results.save_to_cache(earlier, self.meta)
                return self._finished(task, earlier, kept=True)
            self.announce(task.metadata.name)
            self.data.load(task)
            try:
                return self._finished(task, self._evaluate(task, anew=not usable), kept=False)
            finally:
                task.unload_data()

    @property
    def meta(self) -> ModelMeta:
        return self.encoder.mteb_model_meta

    def _evaluate(self, task: mteb.AbsTask, *, anew: bool = False) -> TaskResult:
        try:
            found = mteb.evaluate(
                self.encoder,
                task,
                cache=self.results,
                overwrite_strategy="always" if anew else "only-missing",
                encode_kwargs={"batch_size": READ_TEXTS, "show_progress_bar": self.progress},
                show_progress_bar=False,
                co2_tracker=False,
                public_only=False,
            )
        except UdeverError:
            raise
        except Exception as error:  # a task's own code, sklearn, pytrec_eval, … raise what they like
            name = task.metadata.name
            raise EvaluationError(
                f"mteb failed on task {name}: {type(error).__name__}: {error}", hint="--debug shows where"
            ) from error
        return found.task_results[0]

    def _finished(self, task: mteb.AbsTask, result: TaskResult, *, kept: bool) -> Finished:
        scores = tuple(
            SubsetScore(
                split=split,
                subset=score["hf_subset"],
                languages=tuple(score["languages"]),
                main_score=float(score["main_score"]),
            )
            for split in task.eval_splits
            for score in result.scores[split]
            if isinstance(task, AbsTaskAggregate) or score["hf_subset"] in task.hf_subsets
        )
        return Finished(
            task=task.metadata.name,
            type=str(task.metadata.type),
            metric=task.metadata.main_score,
            main_score=sum(score.main_score for score in scores) / len(scores),
            scores=scores,
            seconds=result.evaluation_time or 0.0,
            kept=kept,
            path=self.results.get_task_result_path(task.metadata.name, self.meta),
        )


class _Results(ResultCache):
    """mteb's cache, in which a file under a task's own name is whole and an unreadable one does not count."""

    def __init__(self, folder: Path, tasks: Iterable[mteb.AbsTask]) -> None:
        super().__init__(folder)
        self._tasks: Mapping[str, mteb.AbsTask] = {part.metadata.name: part for task in tasks for part in _parts(task)}

    def load_task_result(self, task_name: str, model_name: Any, *args: Any, **kwargs: Any) -> TaskResult | None:
        """What an earlier run left: an interrupted one knows more than the one before it."""
        try:
            unfinished = _unfinished(self.get_task_result_path(task_name, model_name))
            if unfinished.is_file():
                return TaskResult.from_disk(unfinished)
            return super().load_task_result(task_name, model_name, *args, **kwargs)
        except (ValueError, KeyError, TypeError):  # cut off by a full disk or a killed process
            return None

    def save_to_cache(self, task_result: TaskResult, model_name: Any, *args: Any, **kwargs: Any) -> None:
        """mteb calls this after every subset, too."""
        whole = self.get_task_result_path(task_result.task_name, model_name)
        task = self._tasks.get(task_result.task_name)
        if task and task_result.get_missing_evaluations(task):
            whole.parent.mkdir(parents=True, exist_ok=True)
            task_result.to_disk(_unfinished(whole))
            return
        super().save_to_cache(task_result, model_name, *args, **kwargs)
        _unfinished(whole).unlink(missing_ok=True)


def _parts(task: mteb.AbsTask) -> list[mteb.AbsTask]:
    """The tasks that are evaluated for this one: itself, or those that it is a mean of."""
    return list(task.metadata.tasks) if isinstance(task, AbsTaskAggregate) else [task]


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}")


def _task(name: str) -> mteb.AbsTask:
    try:
        return mteb.get_task(name)
    except KeyError:
        known = sorted(task.metadata.name for task in TASK_LIST)
        raise OptionError(f"mteb has no task {name!r}", hint=_close(name, known)) from None


def _benchmark(name: str) -> list[mteb.AbsTask]:
    try:
        return list(mteb.get_benchmark(name).tasks)
    except KeyError:
        known = sorted(benchmark.name for benchmark in mteb.get_benchmarks())
        raise OptionError(f"mteb has no benchmark {name!r}", hint=_close(name, known)) from None


def _close(name: str, known: Sequence[str]) -> str:
    """Case is what people get wrong first."""
    spelled = {each.casefold(): each for each in known}
    close = [spelled[each] for each in get_close_matches(name.casefold(), spelled, n=3)]
    return f"did you mean {' or '.join(close)}?" if close else f"it has {len(known):,}, named as on its leaderboard"


def _listed(names: Sequence[str], *, shown: int = 5) -> str:
    more = f", and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _in_languages(task: mteb.AbsTask, languages: Sequence[str]) -> mteb.AbsTask | None:
    """The task with the subsets it has and of them those in the languages; None if there are none."""
    if not languages:
        return task
    known = {code for codes in task.metadata.hf_subsets_to_langscripts.values() for code in codes}
    wanted = set(languages)
    if not any(code in wanted or code.partition("-")[0] in wanted for code in known):
        return None
    try:
        return copy(task).filter_languages(list(languages), hf_subsets=task.hf_subsets)
    except ValueError:  # the languages are in subsets that the benchmark has left out
        return None


@contextmanager
def _quietly(*, progress: bool) -> Iterator[None]:
    """mteb's remarks on its own tasks and code are nothing that a user of udever can act on."""
    loggers = [logging.getLogger(name) for name in ("mteb", "datasets")]
    levels = [logger.level for logger in loggers]
    bars = datasets.are_progress_bars_disabled()
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        if not progress:
            datasets.disable_progress_bars()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(mteb|sklearn)\.")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
