"""`udever mine`: a store of examples → the same examples with hard negatives that a model found.

Invariant: stdout carries the result and nothing else; how many examples are left with few negatives is always said.
Does not know: how negatives are found (mining/mine.py).
"""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from udever.cli.data import Store
from udever.cli.options import JsonFlag, ModelChoice, Runtime, load


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Filters:
    """What may be an answer that nobody noted; several hold together."""

    margin: Annotated[
        float | None, Parameter(help="Negatives score so much below the lowest positive; default without others: 0.05.")
    ] = None
    percentile: Annotated[
        float | None, Parameter(help="Negatives score at most this share of the lowest positive's score.")
    ] = None
    max_score: Annotated[float | None, Parameter(help="Negatives score at most this.")] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Search:
    """Where and how far to look."""

    top: Annotated[int, Parameter(help="Nearest texts to look at, known positives not counted.")] = 100
    skip_top: Annotated[int, Parameter(help="Leave out the first so many of them.")] = 0
    search: Annotated[
        Literal["exact", "ivf"], Parameter(help="Compare with all texts, or with the nearest clusters' only.")
    ] = "exact"
    lists: Annotated[int | None, Parameter(help="ivf: clusters; default: by the number of texts.")] = None
    probes: Annotated[int | None, Parameter(help="ivf: clusters looked into; default: an eighth.")] = None
    dimensions: Annotated[int | None, Parameter(help="Search with so many leading numbers; must be trained for.")] = (
        None
    )
    max_tokens: Annotated[
        int | None, Parameter(help="Longest text, two markers included; longer ones are cut. Default: the store's.")
    ] = None


def mine(
    store: Store,
    /,
    *,
    output: Annotated[Path, Parameter(name=("--output", "-o"), help="The store to make.")],
    choice: ModelChoice = ModelChoice(),  # noqa: B008  frozen
    teacher: Annotated[str | None, Parameter(help="A model whose scores of all texts are written beside them.")] = None,
    task: Annotated[
        tuple[str, ...], Parameter(negative=(), show_default=False, help="Mine for this task only; repeatable.")
    ] = (),
    negatives: Annotated[int, Parameter(help="Hard negatives of each example, at most.")] = 8,
    append: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Keep the hard negatives that are there.")
    ] = False,
    filters: Filters = Filters(),
    search: Search = Search(),
    runtime: Runtime = Runtime(),  # noqa: B008
    overwrite: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Replace a store of that name.")
    ] = False,
    progress: Annotated[bool | None, Parameter(help="A progress bar on stderr; default: on a terminal.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Find hard negatives: texts that a model takes for answers and that are none.

    Run it again after an interrupt: vectors and negatives that are there, in OUTPUT.work, are not computed again.
    """
    from udever.engine.progress import progress_bar
    from udever.training.data.examples import ExampleStore
    from udever.training.mining.mine import MiningOptions
    from udever.training.mining.mine import mine as mine_store

    options = MiningOptions(
        tasks=task, negatives=negatives, append=append, **asdict(filters), **asdict(search)
    ).checked()
    opened = ExampleStore.open(store)
    model = load(choice.model, runtime)
    started = time.perf_counter()
    with progress_bar(shown=sys.stderr.isatty() if progress is None else progress) as watch:
        about = mine_store(
            opened,
            output,
            model=model,
            options=options,
            teacher=load(teacher, replace(runtime, revision=None)) if teacher else None,
            overwrite=overwrite,
            watch=watch,
        )
    _report(about, output, seconds=time.perf_counter() - started, as_json=as_json)


def _report(about: Mapping[str, Any], output: Path, *, seconds: float, as_json: bool) -> None:
    mined = about["mined"]
    for why, count in about["dropped"].items():
        print(f"dropped {count:,} × {why}", file=sys.stderr)
    if mined["with_fewer"]:
        print(
            f"{mined['with_fewer']:,} of {mined['examples']:,} examples have fewer than"
            f" {about['options']['negatives']} mined negatives, {mined['with_none']:,} have none",
            file=sys.stderr,
        )
    print(
        f"{mined['negatives']:,} hard negatives for {mined['examples']:,} examples → {output}: {seconds:.1f} s",
        file=sys.stderr,
    )
    if as_json:
        print(json.dumps({**about, "output": str(output), "seconds": round(seconds, 3)}, ensure_ascii=False))
