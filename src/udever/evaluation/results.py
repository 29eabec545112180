"""What a measurement leaves behind: one JSON file a task, which says what was measured, how, and on which weights.

    OUTPUT/<model>/<protocol>/<task>.json

Invariant: a file that exists is whole (written to a temporary name, then renamed), and counts for a later run only if
it was made by the same weights (fingerprint) under the same settings; a score never travels without its protocol.
Does not know: how any score is computed, or how it is shown.
"""

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
    """Where a result of this model, protocol and task lies under `output`."""
    return output / slug(result.model) / slug(result.protocol) / f"{slug(result.task)}.json"


def write(output: Path, result: Result) -> Path:
    """Write atomically; returns the file. An older result of the same task is replaced."""
    path = path_of(output, result)
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps({"format": FORMAT, **asdict(result)}, ensure_ascii=False, indent=1) + "\n")
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
    settings = json.loads(json.dumps(wanted.settings))  # tuples come back as lists
    return found if (found.fingerprint, found.settings) == (wanted.fingerprint, settings) else None


def walk(folder: Path) -> Iterator[Path]:
    """Every JSON file under a folder that could be a result, sorted; temporary ones are left out."""
    return (path for path in sorted(folder.rglob("*.json")) if not path.name.startswith("."))
