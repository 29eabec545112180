"""What a measurement leaves behind: one JSON file a task, which says what was measured, how, and on which weights.

    OUTPUT/<model>/<protocol>/<task>.json
    OUTPUT/<model>/<protocol>/<task>-<8 hex digits>.json      of other weights or settings than the file above

Invariant: a file that exists is whole (written to a temporary name, then renamed), counts for a later run only if it
was made by the same weights (fingerprint) under the same settings, and is never replaced by a result of others; a score
never travels without its protocol.
Does not know: how any score is computed, or how it is shown.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from udever.engine.folders import whole_file
from udever.errors import ResultFileError

FORMAT = 1
"""Of the JSON layout; raised when an older reader would misread a file."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number, and what it is the number of."""

    metric: str
    """The main metric: "mrr@10", "spearman", "accuracy", … (names as in `evaluation.metrics`)."""
    value: float
    """0 to 1 (-1 to 1 for correlations); reports show it times 100."""
    count: int
    """Queries, pairs or texts that the value is taken over."""
    subset: str = ""
    """Language, domain or other part of the task; empty if it has none."""
    system: str = "model"
    """ "model", or a baseline measured on the same task: "bm25", "random"."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Other metrics of the same run, by name."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The scores of one model on one task, with everything needed to trust them."""

    task: str
    protocol: str
    """How it was measured, e.g. "codesearchnet-1k", "multi-cpr", "code-local-1k", "suite:nano-dev"."""
    model: str
    fingerprint: str
    """Of the weights, tokenizer, markers, limits and precision: `Embedder.fingerprint`."""
    scores: tuple[Score, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What besides the weights could change the scores: data file hashes, seeds, dimensions, limits."""
    seconds: float = 0.0
    date: str = ""
    """ISO 8601, UTC, of the end of the run."""
    version: str = ""
    """Of udever."""

    def of(self, system: str = "model") -> tuple[Score, ...]:
        """The scores of the model, or of one baseline."""
        return tuple(score for score in self.scores if score.system == system)


def slug(name: str) -> str:
    """A name as a file name: `izhx/udever-bloom-1b1` → `izhx__udever-bloom-1b1`."""
    return re.sub(r"[^\w.+-]", "_", name.replace("/", "__"))


def path_of(output: Path, result: Result) -> Path:
    """Where a result of this model, protocol and task lies under `output`, or is to lie.

    Under the task's name, if no result of other weights or settings has it; else the name ends in a hash of both.
    """
    plain = output / slug(result.model) / slug(result.protocol) / f"{slug(result.task)}.json"
    own = plain.with_name(f"{plain.stem}-{hashlib.sha256(_identity(result).encode()).hexdigest()[:8]}.json")
    return own if own.exists() or _is_of_another(plain, result) else plain


def write(output: Path, result: Result) -> Path:
    """Write atomically; returns the file. An older result of the same weights and settings is replaced."""
    path = path_of(output, result)
    with whole_file(path) as unfinished:
        content = json.dumps({"format": FORMAT, **asdict(result)}, ensure_ascii=False, indent=1)
        unfinished.write_text(content + "\n", "utf-8")
    return path


def read(path: Path) -> Result:
    """Read one file.

    Raises:
        ResultFileError: not a result of ours, or of a later format.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        if content.pop("format") != FORMAT:
            raise ResultFileError(f"{path}: written by a later udever", hint="upgrade udever to read it")
        content["scores"] = tuple(Score(**score) for score in content["scores"])
        return Result(**content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultFileError(f"{path}: not a result of udever evaluate: {error}") from None


def find(output: Path, wanted: Result) -> Result | None:
    """The result that an earlier run left for the same task, weights and settings; None if there is none.

    `wanted` is the result to be, its scores still empty.
    """
    path = path_of(output, wanted)
    if not path.is_file():
        return None
    found = read(path)
    return found if _identity(found) == _identity(wanted) else None


def walk(folder: Path) -> Iterator[Path]:
    """Every JSON file under a folder that could be a result, sorted; temporary ones are left out."""
    return (path for path in sorted(folder.rglob("*.json")) if not path.name.startswith("."))


def _identity(result: Result) -> str:
    """The weights and settings; a score of others is another score."""
    return json.dumps([result.fingerprint, result.settings], sort_keys=True)


def _is_of_another(path: Path, result: Result) -> bool:
    """Whether a whole result of other weights or settings lies there; one that is not whole may be replaced."""
    try:
        return path.is_file() and _identity(read(path)) != _identity(result)
    except ResultFileError:
        return False
