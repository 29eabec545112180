"""mteb's own result files → `Result`, without mteb: its JSON layout since 1.11, whoever wrote it.

    {"task_name", "mteb_version", "scores": {split: [{"hf_subset", "main_score", metric: value, …}]}} + model_meta.json

Invariant: scores come out as 0 to 1, whichever of the two scales a file uses; of several splits one counts, the same
for every model; a score that is null or NaN is absent.
Does not know: which tasks belong together (mteb_tasks.py), or our own result files (results.py).
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from udever.errors import ResultFileError
from udever.evaluation.reports.mteb_tasks import METRICS, counts, split_of
from udever.evaluation.results import Result, Score

PROTOCOL = "mteb"
MAIN = "main_score"
META = "model_meta.json"
EXPERIMENTS = "experiments"
"""REVISION/experiments/CHOICES/TASK.json: results under options that are not the model's defaults."""

OTHER_SPLITS = ("test", "dev", "validation")
"""For tasks outside mteb_tables: the first of these that there is, else the first of the file."""


def is_result(content: Any) -> bool:
    """Whether parsed JSON claims to be a result of mteb."""
    return isinstance(content, dict) and "task_name" in content and isinstance(content.get("scores"), dict)


def is_old_result(content: Any) -> bool:
    """Whether it is one from before mteb 1.11, which mteb itself has to translate."""
    return isinstance(content, dict) and "mteb_dataset_name" in content


def to_result(content: Mapping[str, Any], path: Path) -> Result:
    """A parsed file as a result; `Score.metric` is "main_score", or what the published tables take instead of it.

    Raises:
        ResultFileError: it claims to be a result and is shaped otherwise.
    """
    try:
        task = str(content["task_name"])
        split = _split(task, content["scores"])
        divisor = _divisor(content["scores"].values())
        scores = tuple(score for entry in content["scores"].get(split, []) for score in _score(task, entry, divisor))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        described = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ResultFileError(f"{path}: not a result of mteb: {described}") from None
    model, revision = _model(path)
    return Result(
        task=task,
        protocol=PROTOCOL,
        model=model,
        fingerprint=revision,
        scores=scores,
        settings={"split": split},
        date=_date(content.get("date")),
    )


def _split(task: str, scores: Mapping[str, Any]) -> str:
    """The one that counts; a task of MTEB(eng, v1) that was run on another split has no score that counts."""
    wanted = split_of(task)
    if wanted in scores or counts(task):
        return wanted
    if not scores:
        raise ValueError("no split")
    return next((split for split in OTHER_SPLITS if split in scores), next(iter(scores)))


def _divisor(splits: Iterable[Sequence[Mapping[str, Any]]]) -> float:
    """Results that mteb took over from model cards are in percent; a score above 1 in any split gives them away."""
    return 100.0 if any(_number(entry[MAIN]) > 1 for entries in splits for entry in entries) else 1.0


def _score(task: str, entry: Mapping[str, Any], divisor: float) -> list[Score]:
    metric = next((name for name in METRICS.get(task, ()) if name in entry), MAIN)
    value = _number(entry[metric])
    if value == -math.inf:
        return []
    metrics = {MAIN: _number(entry[MAIN]) / divisor} if metric != MAIN and _number(entry[MAIN]) > -math.inf else {}
    return [Score(metric=metric, value=value / divisor, count=0, subset=str(entry["hf_subset"]), metrics=metrics)]


def _number(value: Any) -> float:
    """-inf for null and NaN, which mteb writes where it has no score."""
    return -math.inf if value is None or math.isnan(value) else float(value)


def _model(path: Path) -> tuple[str, str]:
    """(name, revision), from model_meta.json or from the folders …/NAME/REVISION/[experiments/CHOICES/]TASK.json."""
    folder = path.absolute().parent
    experiment = folder.parent.name == EXPERIMENTS
    top = folder.parents[1] if experiment else folder
    meta = next((place / META for place in (folder, top) if (place / META).is_file()), None)
    name, revision = _from_meta(meta) if meta else (top.parent.name.replace("__", "/"), top.name)
    return (f"{name} ({folder.name})" if experiment else name), revision


def _from_meta(meta: Path) -> tuple[str, str]:
    try:
        content = json.loads(meta.read_text("utf-8"))
        return str(content["name"]), str(content.get("revision") or "")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultFileError(f"{meta}: not mteb's description of a model: {error}") from None


def _date(stamp: Any) -> str:
    """mteb writes seconds since 1970, or null."""
    if not isinstance(stamp, int | float):
        return ""
    return datetime.fromtimestamp(stamp, tz=UTC).isoformat(timespec="seconds")
