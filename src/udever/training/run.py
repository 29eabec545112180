"""A training run as a folder: what it is made of, its checkpoints, its log, its result.

    RUN/run.json  checkpoints/  log.jsonl  best/  delta/ (or model/)  loss.svg

Invariant: a run that is killed at any moment and resumed ends with the bytes of one that was not; a run never goes on
with another recipe, other data, another base or another number of processes than it began with.
Does not know: the command line or how progress is shown.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from udever.engine.folders import is_free, whole_file
from udever.errors import DivergedError, RunChangedError, TrainingError
from udever.training import checkpoint
from udever.training.distributed import World
from udever.training.recipe import Recipe, differences
from udever.training.step import StepReport, Trainer


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What decides a run's result."""

    recipe: Recipe
    data: tuple[str, ...]
    """Digests of the stores, then of the teacher's vectors, if there are any."""
    base: str
    """Digest of what training starts from: the base's weights, and a delta on them if the base is one."""
    processes: int
    precision: str
    """What products are made in: fp32, bf16 or tf32."""
    chunk_tokens: int | None
    """Tokens the model sees at once, which decides in what order gradients are summed; None: the run is from before
    this was noted."""
    threads: int | None = None
    """Of each process, which decide in what order a product is summed; None: as `chunk_tokens`."""

    def write(self, folder: Path) -> None:
        """As `run.json`, atomically."""
        content = msgspec.json.format(msgspec.json.encode(asdict(self) | {"recipe": self.recipe}), indent=1)
        with whole_file(folder / "run.json") as unfinished:
            unfinished.write_bytes(content + b"\n")

    @classmethod
    def read(cls, folder: Path) -> "Identity":
        """What a folder's run began with."""
        raw = json.loads((folder / "run.json").read_text("utf-8"))
        recipe = msgspec.convert(raw.pop("recipe"), Recipe)
        return cls(recipe=recipe, data=tuple(raw.pop("data")), chunk_tokens=raw.pop("chunk_tokens", None), **raw)

    def require_same(self, begun: "Identity") -> None:
        """Raises RunChangedError, showing each difference to what the run began with."""
        changed = differences(begun.recipe, self.recipe)
        noted = [name for name in ("chunk_tokens", "threads") if getattr(begun, name)]
        for name in ("data", "base", "processes", "precision", *noted):
            if (before := getattr(begun, name)) != (now := getattr(self, name)):
                changed.append(f"{name}: {before} → {now}")
        if changed:
            raise RunChangedError(
                f"this run began differently: {'; '.join(changed)}",
                hint="undo the change to go on, or train into another folder",
            )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What an evaluation found."""

    score: float
    """Higher is better."""
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """What the score is the mean of, as `udever.json` has it: protocol → name → number."""


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """What the command line wants to hear."""

    on_step: Callable[[StepReport], None] = lambda _: None
    evaluate: Callable[[], Measured] | None = None
    """Measure the model as it is now."""
    keep_best: Callable[[Sequence[Mapping[str, Any]]], object] = lambda _: None
    """Write the model as it is now into `best/`; what is given is the log, with what was measured as its last entry."""


def begun(folder: Path) -> Identity | None:
    """What the run in a folder began with; None if there is none."""
    return Identity.read(folder) if (folder / "run.json").is_file() else None


def begin(folder: Path, identity: Identity, *, resume: bool) -> None:
    """Make the folder, or see that it may go on.

    Raises:
        TrainingError: there is a run already and `resume` was not asked for, or nothing to resume, or something else.
        RunChangedError: something that decides the result changed.
    """
    earlier = begun(folder)
    if earlier and not resume:
        raise TrainingError(f"{folder} holds a run", hint="go on with --resume, or choose another folder")
    if resume and not earlier:
        raise TrainingError(f"{folder} holds no run to resume", hint="leave --resume out to begin one")
    if earlier:
        identity.require_same(earlier)
        checkpoint.sweep(folder / "checkpoints")
    else:
        if not is_free(folder):  # its delta/, model/ or best/ would be replaced, its checkpoints taken for the run's
            raise TrainingError(f"{folder} is not empty and holds no run", hint="choose another folder with --output")
        folder.mkdir(parents=True, exist_ok=True)
        identity.write(folder)


def train(
    trainer: Trainer, folder: Path, *, world: World, every: int, callbacks: Callbacks, tensorboard: bool = False
) -> None:
    """All steps that are left, from the newest checkpoint on.

    Args:
        every: steps between checkpoints; the last step always makes one.
        tensorboard: also log to `tensorboard/`, for the program of that name.

    Raises:
        DivergedError: the batch is written to `diverged.json`; the newest checkpoint is from before it.
    """
    done = _restore(trainer, folder)
    steps, evaluation = trainer.batches.steps, trainer.recipe.evaluate
    with _log(folder, done=done, world=world, tensorboard=tensorboard) as write:
        best = max((entry["score"] for entry in read_log(folder) if "score" in entry), default=float("-inf"))
        for number in range(done, steps):
            try:
                report = trainer.step(number)
            except DivergedError:
                _save_batch(trainer, folder / "diverged.json", number, world)
                raise
            write(_entry(report))
            callbacks.on_step(report)
            due = evaluation and (report.step % evaluation.every_steps == 0 or report.step == steps)
            if due and callbacks.evaluate:
                with trainer.whole_model():
                    measured = callbacks.evaluate() if world.is_main else Measured(score=best)
                    entry = {"step": report.step, "score": measured.score, "scores": measured.scores}
                    if measured.score > best:
                        best = measured.score
                        callbacks.keep_best([*read_log(folder), entry])
                    write(entry)
            if report.step % every == 0 or report.step == steps:  # after its score, that a kill cannot leave it out
                facts = checkpoint.Facts(step=report.step, processes=world.size)
                state = checkpoint.state_of(trainer.parameters, trainer.optimizer, kept=world.is_main)
                if world.is_main:
                    checkpoint.save(folder / "checkpoints", state, facts=facts)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The entries of `log.jsonl`; a last line that was cut off does not count."""
    path = folder / "log.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n")]


def last_scores(log: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """`Measured.scores` of the model after the last step that was logged; nothing if it was not measured."""
    if not log:
        return {}
    at_last = [entry for entry in log if entry["step"] == log[-1]["step"]]
    return next((entry["scores"] for entry in at_last if "scores" in entry), {})


def _restore(trainer: Trainer, folder: Path) -> int:
    path = checkpoint.newest(folder / "checkpoints")
    return checkpoint.load(path, trainer.parameters, trainer.optimizer).step if path else 0


@contextmanager
def _log(folder: Path, *, done: int, world: World, tensorboard: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Appends entries; those of steps that will be done again are taken out first."""
    if not world.is_main:
        yield lambda _: None
        return
    kept = [entry for entry in read_log(folder) if entry["step"] <= done]
    path = folder / "log.jsonl"
    with whole_file(path) as unfinished:  # a kill in between must not take the scores that name the best
        unfinished.write_text("".join(json.dumps(entry) + "\n" for entry in kept), "utf-8")
    with path.open("a", encoding="utf-8") as file, _board(folder, done=done, wanted=tensorboard) as show:

        def write(entry: dict[str, Any]) -> None:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            show(entry)

        yield write


@contextmanager
def _board(folder: Path, *, done: int, wanted: bool) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    if not wanted:
        yield lambda _: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1 if done else None) as writer:

        def show(entry: Mapping[str, Any]) -> None:
            for name, value in entry.items():
                if name not in ("step", "scores"):
                    writer.add_scalar(name, value, entry["step"])
            writer.flush()

        yield show


def _entry(report: StepReport) -> dict[str, Any]:
    return {
        "step": report.step,
        "loss": report.loss,
        **report.watched,
        "learning_rate": report.learning_rate,
        "gradient_norm": report.gradient_norm,
        "tokens": report.tokens,
        "seconds": round(report.seconds, 4),
    }


def _save_batch(trainer: Trainer, path: Path, number: int, world: World) -> None:
    if world.is_main:
        texts = [trainer.batches.text(store, text_id) for store, text_id in trainer.batches.of(number).texts]
        path.write_text(json.dumps({"step": number + 1, "texts": texts}, ensure_ascii=False, indent=1), "utf-8")
