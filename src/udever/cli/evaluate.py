"""`udever evaluate`: a model's scores on MTEB, CodeSearchNet, Multi-CPR, your own data and installed Python packages.

Invariant: data is read and checked before the model is loaded, options before anything is measured; what is finished is
on disk before the next task begins; stdout holds one table, or one JSON object.
Does not know: how anything is measured (udever.evaluation), or how scores are shown (evaluate_view.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from udever.cli.options import JsonFlag, ModelChoice, Runtime, load
from udever.errors import OptionError

if TYPE_CHECKING:
    from udever.evaluation.runner import Task

app = App(
    name="evaluate",
    help="Measure a model: on MTEB, CodeSearchNet, Multi-CPR, your own data, or with no data at all.",
    help_epilogue="Start with: udever evaluate code-local. Then: udever report RESULTS, beside the published numbers.",
    help_format="plaintext",
)

SEEDS = 2**32
"""So many numpy's generator takes."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Measuring:
    """Under which options texts are embedded, and where scores go."""

    dimensions: Annotated[int | None, Parameter(help="Keep this many leading numbers; must be trained for.")] = None
    """None: all of them."""
    max_tokens: Annotated[int | None, Parameter(help="Longest text in tokens; longer ones are cut at the end.")] = None
    """None: the model's limit."""
    output: Annotated[
        Path | None,
        Parameter(name=("--output", "-o"), help="Folder for the results; run again to go on. Default: none is kept."),
    ] = None
    """A file a task, written when it is done."""
    force: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Measure again what the folder already has.")
    ] = False
    """Replaces what is there."""
    progress: Annotated[bool | None, Parameter(help="A progress bar on stderr; default: on a terminal.")] = None
    """None: on a terminal."""


@app.command
def suite(
    file: Annotated[Path, Parameter(help="A TOML file that lists tasks over local files.")],
    /,
    *,
    data: Annotated[Path | None, Parameter(help="Folder of the files it names. Default: the suite's own.")] = None,
    task: Annotated[tuple[str, ...], Parameter(negative=(), help="Only this task; repeat for more.")] = (),
    choice: ModelChoice = ModelChoice(),  # noqa: B008  frozen
    measuring: Measuring = Measuring(),
    runtime: Runtime = Runtime(),  # noqa: B008
    as_json: JsonFlag = False,
) -> None:
    """Measure a model on your own data.

    The TOML file lists tasks (sts, pairs, bitext, retrieval, code, classification) over .tsv and .jsonl files.
    """
    from udever.evaluation.protocols.suite import read_suite

    tasks = read_suite(file, data=data, names=task)
    _measure(tasks, choice, measuring, runtime, as_json=as_json)


@app.command(name="code-local")
def code_local(
    *,
    package: Annotated[
        tuple[str, ...], Parameter(negative=(), help="Installed package, as imported; repeat for more.")
    ] = (),
    candidates: Annotated[int, Parameter(help="Functions in a round; another number is another protocol.")] = 1000,
    rounds: Annotated[int | None, Parameter(help="At most so many rounds. Default: all that can be filled.")] = None,
    seed: Annotated[int, Parameter(help="Of the shuffle that makes the rounds.")] = 0,
    choice: ModelChoice = ModelChoice(),  # noqa: B008
    measuring: Measuring = Measuring(),
    runtime: Runtime = Runtime(),  # noqa: B008
    as_json: JsonFlag = False,
) -> None:
    """Find functions of installed Python packages by their docstrings: a benchmark with no download.

    Without --package: the standard library of the Python that runs udever. Nothing is imported, only parsed.
    """
    if rounds is not None and rounds < 1:
        raise OptionError(f"--rounds is {rounds}", hint="use at least 1")
    if not 0 <= seed < SEEDS:
        raise OptionError(f"--seed is {seed}", hint=f"use 0 to {SEEDS - 1}")
    from udever.evaluation.protocols.code_local import code_local as read

    tasks = [read(package, candidates=candidates, seed=seed, max_rounds=rounds)]
    _measure(tasks, choice, measuring, runtime, as_json=as_json)


@app.command
def codesearchnet(
    *,
    data: Annotated[Path, Parameter(help="The data set's folder: it holds go/final/jsonl/test/… and its like.")],
    language: Annotated[
        tuple[str, ...], Parameter(negative=(), help="Only this language; repeat for more. Default: all six.")
    ] = (),
    candidates: Annotated[int, Parameter(help="Functions in a round; another number is another protocol.")] = 1000,
    choice: ModelChoice = ModelChoice(),  # noqa: B008
    measuring: Measuring = Measuring(),
    runtime: Runtime = Runtime(),  # noqa: B008
    as_json: JsonFlag = False,
) -> None:
    """Find functions in six languages by their docstrings, among 1,000 candidates, as CodeSearchNet's scores are made.

    Reads the test split in the data set's own layout. Other numbers of candidates give scores of another name.
    """
    from udever.evaluation.protocols.codesearchnet import codesearchnet as read

    tasks = read(data, languages=language, candidates=candidates)
    _measure(tasks, choice, measuring, runtime, as_json=as_json)


@app.command(name="multi-cpr")
def multi_cpr(
    *,
    data: Annotated[Path, Parameter(help="The data set's folder: it holds ecom, video and medical.")],
    domain: Annotated[
        tuple[str, ...], Parameter(negative=(), help="Only this domain; repeat for more. Default: all three.")
    ] = (),
    sampled: Annotated[
        bool, Parameter(negative=(), show_default=False, help="The corpus is a sample: the scores get another name.")
    ] = False,
    choice: ModelChoice = ModelChoice(),  # noqa: B008
    measuring: Measuring = Measuring(),
    runtime: Runtime = Runtime(),  # noqa: B008
    as_json: JsonFlag = False,
) -> None:
    """Find Chinese passages of three domains in their full corpora, about a million each.

    With --output, embedded blocks are kept beside the results until a domain is done: an interrupted run goes on.
    """
    from udever.evaluation.protocols.multi_cpr import multi_cpr as read

    tasks = read(data, domains=domain, sampled=sampled)
    _measure(tasks, choice, measuring, runtime, as_json=as_json)


app.command("udever.cli.evaluate_mteb:mteb", name="mteb", help="Measure a model on tasks of MTEB.")


def _measure(
    tasks: "Sequence[Task]", choice: ModelChoice, measuring: Measuring, runtime: Runtime, *, as_json: bool
) -> None:
    from udever.cli import evaluate_view as view
    from udever.evaluation import runner
    from udever.evaluation.encoder import Encoder

    encoder = Encoder(
        embedder=load(choice.model, runtime), dimensions=measuring.dimensions, max_tokens=measuring.max_tokens
    )
    encoder.require_options()
    outcomes = runner.run(
        tasks,
        encoder,
        output=measuring.output,
        force=measuring.force,
        progress=view.is_shown(measuring.progress),
        finished=view.say_finished,
    )
    view.show(outcomes, output=measuring.output, as_json=as_json)
