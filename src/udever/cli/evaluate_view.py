"""How `udever evaluate` looks: a line a task on stderr while it runs, then one table, or one JSON object, on stdout.

Invariant: a mean over subsets is called one, and no score stands without the protocol and the baselines it was measured
beside. Scores are shown times 100.
Does not know: how a score is made.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from udever.evaluation.results import Result, Score
    from udever.evaluation.runner import Outcome

ROWS_OF_SUBSETS = 12
"""More subsets than that stand below the table, side by side."""

SYSTEMS = ("model", "bm25", "random")
NUMBER_WIDTH = 8


def is_shown(progress: bool | None) -> bool:
    """Whether to show a bar, where the command line need not say."""
    return sys.stderr.isatty() if progress is None else progress


def say_finished(outcome: "Outcome") -> None:
    """One line: what came out, or that it was there."""
    result = outcome.result
    how = f"measured before, {outcome.path}" if outcome.reused else f"{result.seconds:.1f} s"
    print(f"{result.task}: {_mean(result, 'model')} {result.scores[0].metric} ({how})", file=sys.stderr, flush=True)


def show(outcomes: "Sequence[Outcome]", *, output: Path | None, as_json: bool) -> None:
    """Print what all tasks gave."""
    if as_json:
        print(json.dumps({"results": [_described(outcome) for outcome in outcomes]}, ensure_ascii=False))
    else:
        screen = Console(highlight=False, markup=False)
        screen.print(_table([outcome.result for outcome in outcomes]))
        for outcome in outcomes:
            _show_subsets(outcome.result, screen)
    where = f"results in {output}" if output else "nothing was kept: --output FOLDER keeps results for udever report"
    print(where, file=sys.stderr)


def _described(outcome: "Outcome") -> dict[str, Any]:
    return {
        **asdict(outcome.result),
        "reused": outcome.reused,
        "path": str(outcome.path) if outcome.path else None,
    }


def _table(results: "Sequence[Result]") -> Table:
    first = results[0]
    systems = [system for system in SYSTEMS if any(result.of(system) for result in results)]
    table = Table(
        title=f"{first.model}, {first.protocol}",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
        header_style="bold",
    )
    table.add_column("task")
    table.add_column("metric x 100")
    table.add_column("of", justify="right")
    for system in systems:
        table.add_column(first.model if system == "model" else system, justify="right", overflow="fold")
    for result in results:
        subsets = result.of("model")
        name = result.task if len(subsets) == 1 else f"{result.task}, mean of {len(subsets)}"
        count = sum(score.count for score in subsets)
        table.add_row(name, subsets[0].metric, f"{count:,}", *(_mean(result, system) for system in systems))
        if 1 < len(subsets) <= ROWS_OF_SUBSETS:
            for score in subsets:
                values = (_value(_subset(result, system, score.subset)) for system in systems)
                table.add_row(f"  {score.subset}", "", f"{score.count:,}", *values)
    return table


def _show_subsets(result: "Result", screen: Console) -> None:
    scores = result.of("model")
    if len(scores) <= ROWS_OF_SUBSETS:
        return
    screen.print(f"\n{result.task}")
    width = max(len(score.subset) for score in scores) + NUMBER_WIDTH
    columns = max(1, (screen.width - 2) // width)
    for first in range(0, len(scores), columns):
        row = scores[first : first + columns]
        cells = (f"{score.subset} {_value(score):>4}".ljust(width) for score in row)
        screen.print("  " + "".join(cells).rstrip())


def _subset(result: "Result", system: str, subset: str) -> "Score | None":
    return next((score for score in result.of(system) if score.subset == subset), None)


def _mean(result: "Result", system: str) -> str:
    scores = result.of(system)
    return f"{100 * fmean(score.value for score in scores):.1f}" if scores else ""


def _value(score: "Score | None") -> str:
    return f"{100 * score.value:.1f}" if score else ""
