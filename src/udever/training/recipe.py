"""A training run as one typed TOML file.

    recipe = load("recipe.toml");  recipe.digest -> goes into everything the run makes

Invariant: a `Recipe` that exists is one that can be run; an unknown key, a wrong type or an impossible number is an
error that names it. Values that decide the result are in the digest; where the data lies is not.
Does not know: data, models or devices.
"""

import hashlib
import math
import tomllib
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct, field

from udever.errors import RecipeError
from udever.training.bitfit import TUNES

Objective = Literal["contrastive", "distill"]
Schedule = Literal["constant", "linear", "cosine"]
Mixing = Literal["mixed", "one_task"]
Match = Literal["vectors", "similarities"]


class _Part(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file."""


class DataPart(_Part, frozen=True):
    """Examples, made by `udever data import`."""

    path: str
    """Folder, relative to `--data`."""
    weight: float = 1.0
    """How often it is drawn: 1 means each of its examples once an epoch."""
    paired: bool = True
    """False: an example's texts do not answer each other, so only the teacher's vectors are learned from them."""


class BatchPart(_Part, frozen=True):
    """How examples become batches."""

    size: int = 1024
    """Examples a step, over all processes."""
    epochs: float = 3.0
    mixing: Mixing = "mixed"
    """Whether a batch may hold examples of several tasks."""


class ContrastPart(_Part, frozen=True):
    """The contrastive loss."""

    temperature: float = 0.05
    negatives: int = 1
    """Hard negatives a query and step, rotated through the example's list; 0: in-batch ones only."""
    prefixes: tuple[int, ...] = ()
    """Matryoshka sizes to train besides the full width."""
    both_ways: bool = False
    """Also ask positives for their queries."""


class DistillPart(_Part, frozen=True):
    """Learning from a teacher's vectors."""

    targets: str
    """Folder of teacher vectors, relative to `--data`: one row a text id of the examples' store."""
    match: Match = "vectors"
    """Whether a text shall lie where the teacher has it, or be as near to the batch's others as there (any width)."""
    bank: int = 1024
    """Teacher vectors that student and teacher are compared over; not with similarities."""
    temperature: float = 0.1
    teacher_temperature: float = 0.0
    """With similarities; 0: the same. Small where a teacher's cosines lie close together, as e5's."""
    contrast_weight: float = 0.0
    """Of the contrastive loss beside it."""


class OptimizerPart(_Part, frozen=True):
    """AdamW."""

    learning_rate: float = 1e-4
    table_learning_rate: float = 0.0
    """Of the token table, where it moves; 0: the same."""
    weight_decay: float = 0.0
    """Of matrices; biases and norms never decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Schedule = "constant"
    warmup_epochs: float = 0.25
    clip_norm: float = 0.0
    """Largest norm of the gradient; 0: no limit."""


class EvaluatePart(_Part, frozen=True):
    """A suite to measure during training; the best checkpoint is kept."""

    suite: str
    """TOML file, relative to the recipe."""
    every_steps: int


class Recipe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides what a run makes."""

    name: str
    base: str
    """What the biases are trained on: a BLOOM or a Udever model, as `Embedder.load` takes names."""
    data: tuple[DataPart, ...]
    tune: str = "bitfit"
    """bitfit, all or last:N."""
    markers: bool = True
    """Whether the four markers' rows of the token table move."""
    objective: Objective = "contrastive"
    max_tokens: int = 300
    """Longest text, both markers included; longer ones are cut at the end."""
    seed: int = 42
    batch: BatchPart = field(default_factory=BatchPart)
    contrast: ContrastPart = field(default_factory=ContrastPart)
    optimizer: OptimizerPart = field(default_factory=OptimizerPart)
    distill: DistillPart | None = None
    evaluate: EvaluatePart | None = None

    def __post_init__(self) -> None:
        optimizer, distill = self.optimizer, self.distill or DistillPart(targets="")
        for key, value in _flat(msgspec.to_builtins(self)).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{key} is {value}; it must be a finite number")
        for holds, complaint in (
            (self.name.strip(" ."), f"name is {self.name!r}: the run's folder and the model are called so"),
            (self.data, "data is empty: name at least one [[data]] path"),
            (self.max_tokens >= 3, f"max_tokens is {self.max_tokens}; two markers and a token are 3"),
            (self.batch.size >= 2, f"batch.size is {self.batch.size}; in-batch negatives need 2"),
            (self.batch.epochs > 0, f"batch.epochs is {self.batch.epochs}; it must be above 0"),
            (self.contrast.temperature > 0, f"contrast.temperature is {self.contrast.temperature}; it must be above 0"),
            (self.contrast.negatives >= 0, f"contrast.negatives is {self.contrast.negatives}; it must be at least 0"),
            (optimizer.learning_rate > 0, f"optimizer.learning_rate is {optimizer.learning_rate}"),
            (optimizer.table_learning_rate >= 0, f"optimizer.table_learning_rate is {optimizer.table_learning_rate}"),
            (optimizer.weight_decay >= 0, f"optimizer.weight_decay is {optimizer.weight_decay}; it must be at least 0"),
            (optimizer.clip_norm >= 0, f"optimizer.clip_norm is {optimizer.clip_norm}; 0 means no limit"),
            (optimizer.warmup_epochs >= 0, f"optimizer.warmup_epochs is {optimizer.warmup_epochs}"),
            (all(0 <= beta < 1 for beta in optimizer.betas), f"optimizer.betas is {optimizer.betas}; each in [0, 1)"),
            (distill.temperature > 0, f"distill.temperature is {distill.temperature}; it must be above 0"),
            (distill.teacher_temperature >= 0, f"distill.teacher_temperature is {distill.teacher_temperature}"),
            (
                distill.match == "similarities" or not distill.teacher_temperature,
                'distill.teacher_temperature goes with match = "similarities"',
            ),
            (distill.bank >= 0, f"distill.bank is {distill.bank}; it must be at least 0"),
            (distill.contrast_weight >= 0, f"distill.contrast_weight is {distill.contrast_weight}"),
            (self.evaluate is None or self.evaluate.every_steps >= 1, "evaluate.every_steps must be at least 1"),
            (all(size >= 1 for size in self.contrast.prefixes), "a size in contrast.prefixes must be at least 1"),
            (all(part.weight > 0 for part in self.data), "a data weight must be above 0"),
            (
                (self.objective == "distill") == bool(self.distill),
                "objective distill and a [distill] table go together",
            ),
            (self._contrast_is_of_pairs(), "data with paired = false need objective distill and mixing one_task"),
            (self.tune in TUNES or self.tune.startswith("last:"), f"tune is {self.tune!r}; choose {', '.join(TUNES)}"),
        ):
            if not holds:
                raise ValueError(complaint)

    def _contrast_is_of_pairs(self) -> bool:
        """Whether no batch of the contrastive loss can hold texts that are no pairs."""
        is_apart = self.objective == "distill" and self.batch.mixing == "one_task"
        return is_apart or all(part.paired for part in self.data)

    @property
    def digest(self) -> str:
        """Sha256 (hex) over all values; equal for files that differ in comments or order only."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


def load(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        RecipeError: names the file, the key and what is wrong.
    """
    try:
        return msgspec.convert(tomllib.loads(path.read_text("utf-8")), Recipe)
    except FileNotFoundError:
        raise RecipeError(f"{path} does not exist", hint="pass a recipe's TOML file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise RecipeError(f"{path}: {error}", hint="see docs/training.md for the keys") from None


def differences(old: Recipe, new: Recipe) -> list[str]:
    """What changed, as `key: old → new`."""
    before, after = _flat(msgspec.to_builtins(old)), _flat(msgspec.to_builtins(new))
    return [
        f"{key}: {before.get(key)} → {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}{key}.").items()}
    if isinstance(value, list) and value and isinstance(value[0], dict | float):
        return {k: v for at, inner in enumerate(value) for k, v in _flat(inner, f"{prefix}{at}.").items()}
    return {prefix.removesuffix("."): value}
