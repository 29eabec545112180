"""`udever evaluate mteb`: tasks of the Massive Text Embedding Benchmark, on a model with its roles.

Invariant: what is finished is on disk before the next task begins; stdout holds one table, or one JSON object.
Does not know: how a task is evaluated (evaluation/mteb/runs.py), or how scores are set beside published ones (report).
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from udever.cli.options import JsonFlag, ModelChoice, Runtime, load, needing

if TYPE_CHECKING:
    from udever.evaluation.mteb.adapter import UdeverEncoder
    from udever.evaluation.mteb.runs import Finished


def mteb(
    *,
    tasks: Annotated[
        tuple[str, ...],
        Parameter(negative=(), consume_multiple=True, show_default=False, help="Names of tasks: STS12 ArguAna …"),
    ] = (),
    benchmark: Annotated[str | None, Parameter(help='Or all tasks of one: "MTEB(eng, v1)", "MTEB(cmn, v1)", …')] = None,
    output: Annotated[Path, Parameter(name=("--output", "-o"), help="Folder for the results; run again to go on.")],
    languages: Annotated[
        tuple[str, ...],
        Parameter(
            negative=(),
            consume_multiple=True,
            show_default=False,
            help="Only subsets in these (ISO 639-3): deu zho-Hans …",
        ),
    ] = (),
    choice: ModelChoice = ModelChoice(),  # noqa: B008  frozen
    dimensions: Annotated[int | None, Parameter(help="Keep this many leading numbers; must be trained for.")] = None,
    max_tokens: Annotated[int | None, Parameter(help="Longest text in tokens; longer ones are cut at the end.")] = None,
    runtime: Runtime = Runtime(),  # noqa: B008
    force: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Measure again what the folder already has.")
    ] = False,
    progress: Annotated[bool | None, Parameter(help="Progress bars on stderr; default: on a terminal.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure a model on tasks of MTEB, in mteb's own result files.

    The data comes from the Hugging Face hub, or from its local cache. Finished tasks are kept: after an interruption,
    run the same command again.
    """
    with needing("eval", what="evaluating on MTEB"):
        _require("sentence_transformers")  # mteb-core does not, but mteb.evaluate asks for the classes of its models
        from udever.evaluation.mteb import runs as mteb_runs
        from udever.evaluation.mteb.adapter import UdeverEncoder, describe
    chosen = mteb_runs.select(names=tasks, benchmark=benchmark, languages=languages)
    embedder = load(choice.model, runtime)
    shape: dict[str, Any] = {"dimensions": dimensions, "max_tokens": max_tokens}
    meta = describe(embedder, name=choice.model, revision=runtime.revision, **shape)
    encoder = UdeverEncoder(embedder, meta=meta, **shape)
    shown = sys.stderr.isatty() if progress is None else progress
    results = mteb_runs.run(encoder, chosen, output=output, force=force, announce=_announce, progress=shown)
    finished = list(_reported(results, total=len(chosen)))
    if as_json:
        print(json.dumps({**_of_model(encoder), "tasks": [_as_json(task) for task in finished]}, ensure_ascii=False))
    else:
        _print_table(finished)


def _require(package: str) -> None:
    """Find, not import: that takes seconds, which a misspelt name need not wait for."""
    if find_spec(package) is None:
        raise ModuleNotFoundError(name=package)


def _announce(name: str) -> None:
    print(f"{name} …", file=sys.stderr, flush=True)


def _reported(results: Iterator["Finished"], *, total: int) -> Iterator["Finished"]:
    """The same, a line on stderr for each."""
    for done, task in enumerate(results, 1):
        how = "kept from an earlier run" if task.kept else f"{task.seconds:.1f} s"
        score = f"{task.metric} {100 * task.main_score:.2f}"
        print(f"{done}/{total} {task.task}: {score} ({how})", file=sys.stderr, flush=True)
        yield task


def _of_model(encoder: "UdeverEncoder") -> dict[str, Any]:
    meta = encoder.mteb_model_meta
    facts = ("name", "revision", "n_parameters", "embed_dim", "max_tokens", "experiment_kwargs")
    return {
        "model": meta.name,
        "fingerprint": meta.loader_kwargs["fingerprint"],
        **{fact: getattr(meta, fact) for fact in facts[1:]},
    }


def _as_json(task: "Finished") -> dict[str, Any]:
    return {**asdict(task), "path": str(task.path)}


def _print_table(finished: Sequence["Finished"]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for heading in ("task", "type", "subset", "main score", "x 100"):
        table.add_column(heading, justify="right" if heading == "x 100" else "left", overflow="fold")
    for task in finished:
        table.add_row(task.task, task.type, "", task.metric, f"{100 * task.main_score:.2f}")
        for part in task.scores if len(task.scores) > 1 else ():
            table.add_row("", "", f"{part.subset} ({part.split})", "", f"{100 * part.main_score:.2f}")
    Console(highlight=False, markup=False).print(table)
