"""`udever train`: a recipe, data and a base become a delta.

Does not know: how a step is computed, or what the files of a run hold.
"""

import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from udever.cli.options import JsonFlag, needing
from udever.errors import OptionError

if TYPE_CHECKING:
    from udever.training.run import Measured
    from udever.training.session import Session
    from udever.training.step import StepReport
    from udever.training.verify import Certificate

NOW = "now"
"""Where the model stands that is being measured, in the run's folder."""
UNITS = {"MB": 10**6, "GB": 10**9}
HOW = {
    "activations": "activations kept",
    "chunk": "embedded twice (GradCache)",
    "inputs": "embedded twice, of a chunk only the blocks' inputs kept",
}
"""What `Certificate.kept` says, in words."""


def train(
    recipe: Annotated[Path, Parameter(help="The recipe's TOML file.")],
    /,
    *,
    data: Annotated[Path, Parameter(help="Folder that the recipe's data paths are relative to.")] = Path(),
    output: Annotated[
        Path | None, Parameter(name=("--output", "-o"), help="The run's folder; default: runs/ and the recipe's name.")
    ] = None,
    resume: Annotated[bool, Parameter(negative=(), help="Go on with the run in that folder.")] = False,
    verify: Annotated[
        bool, Parameter(negative=(), help="Only compare a step's gradient with the naive one in float64.")
    ] = False,
    precision: Annotated[
        Literal["auto", "fp32", "bf16"], Parameter(help="Of products; auto: fp32 where matrices move.")
    ] = "auto",
    device: Annotated[str, Parameter(help="auto, cpu, cuda or cuda:N.")] = "auto",
    memory: Annotated[str, Parameter(help="For activations: auto (half of what is free), or such as 8GB.")] = "auto",
    tensorboard: Annotated[bool, Parameter(negative=(), help="Also log for TensorBoard, in the run's folder.")] = False,
    checkpoint_every: Annotated[int, Parameter(help="Steps between checkpoints.")] = 50,
    progress: Annotated[bool | None, Parameter(help="A progress bar on stderr; default: on a terminal.")] = None,
    as_json: JsonFlag = False,
) -> int:
    """Train a model by a recipe; kill it at any moment and go on with --resume.

    For several GPUs: torchrun --nproc-per-node 8 -m udever train RECIPE …
    """
    with needing("train", what="training"):
        if tensorboard:  # said now, not after the model is loaded
            import_module("tensorboard")
        from udever.training import recipe as recipes
        from udever.training import run
        from udever.training.session import open_session
    if checkpoint_every < 1:
        raise OptionError(f"--checkpoint-every is {checkpoint_every}", hint="pass 1 or more")
    parsed = recipes.load(recipe)
    folder = output or Path("runs") / parsed.name
    begun = run.begun(folder) if resume else None
    loading: dict[str, Any] = {"precision": precision, "device": device, "memory_bytes": _bytes(memory)}
    if begun:  # however much memory there is now, and however many cores
        loading |= {"chunk_tokens": begun.chunk_tokens, "threads": begun.threads}
    with open_session(parsed, data=data, **loading) as session:
        if verify:
            return _verify(session, as_json=as_json)
        shown = session.world.is_main and (sys.stderr.isatty() if progress is None else progress)
        options = {"every": checkpoint_every, "tensorboard": tensorboard}
        summary = _train(session, folder, recipe.parent, resume=resume, data=data, shown=shown, options=options)
        if session.world.is_main:
            _report(summary, as_json=as_json)
    return 0


def _train(
    session: "Session", folder: Path, beside: Path, *, resume: bool, data: Path, shown: bool, options: dict[str, Any]
) -> dict[str, Any]:
    from udever.training import plot, run

    evaluate = _evaluation(session, folder, beside, data=data)  # what is wrong with it is said before a run begins
    if session.world.is_main:
        run.begin(folder, session.identity, resume=resume)
        _say_never_drawn(session.batches.never_drawn, size=session.recipe.batch.size)
    session.world.wait()
    began = time.monotonic()
    with _progress(session.batches.steps, shown=shown) as on_step:
        callbacks = run.Callbacks(
            on_step=on_step,
            evaluate=evaluate,
            keep_best=lambda log: session.write(folder / "best", log=log),
        )
        run.train(session.trainer, folder, world=session.world, callbacks=callbacks, **options)
    result = folder / ("delta" if session.recipe.tune == "bitfit" else "model")
    log = run.read_log(folder)
    with session.trainer.whole_model():
        if session.world.is_main:
            session.write(result, log=log)
    if session.world.is_main:
        plot.draw(folder / "loss.svg", log)
        shutil.rmtree(folder / NOW, ignore_errors=True)
    return {
        "model": str(result),
        "steps": session.batches.steps,
        "last": {name: value for name, value in log[-1].items() if name not in ("step", "scores")} if log else {},
        "moved": session.moved,
        "seconds": round(time.monotonic() - began, 1),
    }


def _evaluation(session: "Session", folder: Path, beside: Path, *, data: Path) -> "Callable[[], Measured] | None":
    """Measures the model as it is now on the recipe's suite: the mean over its tasks, each the mean over its parts."""
    part = session.recipe.evaluate
    if part is None:
        return None
    from udever import Embedder
    from udever.evaluation import runner
    from udever.evaluation.encoder import Encoder
    from udever.evaluation.protocols.suite import read_suite
    from udever.training.run import Measured

    tasks = read_suite(beside / part.suite, data=data)

    def evaluate() -> Measured:
        model = Embedder.load(str(session.write(folder / NOW)), precision="fp32")
        outcomes = runner.run(tasks, Encoder(embedder=model), output=None)
        results = [outcome.result for outcome in outcomes]
        of_task = {result.task: mean(score.value for score in result.of("model")) for result in results}
        shown = {name: round(100 * value, 2) for name, value in of_task.items()}
        return Measured(score=mean(of_task.values()), scores={f"{results[0].protocol}, x 100": shown})

    return evaluate


def _verify(session: "Session", *, as_json: bool) -> int:
    from udever.training.session import case, not_certified
    from udever.training.verify import certify

    certificates = certify(case(session, examples=8, max_tokens=64))
    if as_json:
        beside = {"not_covered": not_certified(session)}
        rows = [{**vars(certificate), "holds": certificate.holds} | beside for certificate in certificates]
        print(json.dumps(rows))
    else:
        for certificate in certificates:
            print(_line(certificate))
        if (used := certificates[0].temperature) != session.recipe.contrast.temperature:
            print(f"at temperature {used:g}: at the recipe's own the batch is solved, and its gradient mere rounding")
        for what in not_certified(session):
            print(f"not covered: {what}")
    return 0 if all(certificate.holds for certificate in certificates) else 1


def _line(certificate: "Certificate") -> str:
    how = f"{certificate.precision}, {certificate.processes} process{'es' * (certificate.processes > 1)}"
    kept = HOW[certificate.kept]
    return (
        f"{'holds' if certificate.holds else 'FAILS'}  {how}, {kept}: relative error of the gradient "
        f"{certificate.relative_error:.1e}, allowed {certificate.allowed:.1e} "
        f"(worst: {certificate.worst_tensor} {certificate.worst_error:.1e})"
    )


def _report(summary: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary))
        return
    print(f"{summary['model']}: {summary['steps']:,} steps, {summary['moved']:,} numbers moved, {summary['seconds']} s")


def _say_never_drawn(tasks: Mapping[str, int], *, size: int) -> None:
    """One line for each task too small for a batch of its own; one for all where there are many."""
    if len(tasks) <= 5:
        for task, examples in tasks.items():
            said = f"task {task!r} has {examples:,} examples, fewer than a batch of {size:,}: none is drawn"
            print(said, file=sys.stderr)
        return
    largest = sorted(tasks, key=lambda task: -tasks[task])[:3]
    print(
        f"{len(tasks):,} tasks have fewer examples than a batch of {size:,}, {sum(tasks.values()):,} together: none "
        f"is drawn (the largest: {', '.join(f'{task!r} with {tasks[task]:,}' for task in largest)})",
        file=sys.stderr,
    )


@contextmanager
def _progress(steps: int, *, shown: bool) -> "Iterator[Callable[[StepReport], None]]":
    if not shown:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("loss {task.fields[loss]}  {task.fields[watched]}  lr {task.fields[rate]}"),
        TextColumn("{task.fields[speed]} tokens/s, padding 0, {task.fields[memory]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=steps, loss="–", watched="", rate="–", speed="–", memory="")

        def on_step(report: "StepReport") -> None:
            bar.update(
                task,
                completed=report.step,
                loss=f"{report.loss:.3f}",
                watched="  ".join(f"{name} {value:.3f}" for name, value in report.watched.items()),
                rate=f"{report.learning_rate:.1e}",
                speed=f"{report.tokens / report.seconds:,.0f}",
                memory=f"{_peak_bytes() / 1e9:.1f} GB",
            )

        yield on_step


def _peak_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _bytes(memory: str) -> int | None:
    """`8GB` as a number."""
    if memory == "auto":
        return None
    number, unit = memory[:-2], memory[-2:].upper()
    try:
        size = float(number) * UNITS[unit]
    except (ValueError, KeyError):
        size = math.nan
    if not 0 < size < math.inf:
        raise OptionError(f"--memory is {memory!r}", hint="pass auto, or a size such as 8GB or 500MB")
    return round(size)
