"""`udever delta`: what a fine-tune moved, and deltas merged, extracted, averaged.

Invariant: an output appears whole under a name that was free, or not at all.
Does not know: how models are compared or written (deltas/comparing.py, deltas/tools.py).
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from udever.cli.options import JsonFlag

if TYPE_CHECKING:
    from udever.training.deltas.comparing import Change, Difference

app = App(name="delta", help="Show what a fine-tune moved; merge, extract and average deltas.", help_format="plaintext")

Output = Annotated[Path, Parameter(name=("--output", "-o"), help="The folder to write; it must not be there yet.")]
DType = Literal["exact", "fp32", "fp16", "bf16"]


@app.command
def diff(
    a: Annotated[str, Parameter(help="The model before: a delta, a checkpoint or a base BLOOM.")],
    b: Annotated[str, Parameter(help="The model after, of the same shape.")],
    /,
    *,
    plot: Annotated[Path | None, Parameter(help="Write a picture by layer and kind: FILE.svg.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show what moved between two models, by layer and kind.

    Of a base and a model trained on it, it proves what was trained.
    """
    from udever.training.deltas.comparing import diff as compare

    difference = compare(a, b)
    if plot is not None:
        from udever.training.deltas.plot import draw

        draw(plot, difference)
    if as_json:
        print(json.dumps(_facts(difference)))
        return
    _print(difference)


@app.command
def merge(
    delta: Annotated[str, Parameter(help="A folder with a delta, its built-in name or hub id.")],
    /,
    *,
    output: Output,
    dtype: Annotated[
        DType, Parameter(help="Of the weights; exact: as the base has them, fp32 where that would round what moved.")
    ] = "exact",
    as_json: JsonFlag = False,
) -> None:
    """Write a delta and its base as one full checkpoint, for udever and transformers."""
    from udever.training.deltas import tools as delta_tools

    delta_tools.merge(delta, output, storage=dtype)
    _done(output, as_json=as_json)


@app.command
def extract(
    full: Annotated[str, Parameter(help="A full checkpoint that was trained from the base.")],
    /,
    *,
    base: Annotated[str, Parameter(help="The checkpoint it was trained from.")],
    output: Output,
    kind: Annotated[
        Literal["absolute", "difference"], Parameter(help="Store values, or what to add to the base's.")
    ] = "absolute",
    as_json: JsonFlag = False,
) -> None:
    """Write what a full checkpoint differs in from its base as a delta.

    Refused if more than biases and the markers' rows moved; the tensors are named.
    """
    from udever.training.deltas import tools as delta_tools

    difference = delta_tools.extract(full, output, base=base, kind=kind)
    _done(output, as_json=as_json, moved=difference.moved)


@app.command
def average(
    *deltas: Annotated[str, Parameter(help="Two or more deltas of one base.")],
    output: Output,
    weight: Annotated[
        tuple[float, ...], Parameter(negative=(), help="A delta's share; once for each, in order. Default: all alike.")
    ] = (),
    name: Annotated[str, Parameter(help="The new delta's name.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Write the mean of deltas of one base."""
    from udever.training.deltas import tools as delta_tools

    delta_tools.average(deltas, output, weights=weight, name=name)
    _done(output, as_json=as_json)


def _done(folder: Path, *, as_json: bool, **facts: Any) -> None:
    size = sum(path.stat().st_size for path in folder.iterdir())
    if as_json:
        print(json.dumps({"output": str(folder), "bytes": size, **facts}))
    else:
        print(f"{folder}: {size / 1e6:,.2f} MB")


def _facts(difference: "Difference") -> dict[str, Any]:
    return asdict(difference) | {
        "moved": difference.moved,
        "others": difference.others,
        "only_biases_and_markers": not difference.others,
        "by_layer": _sums(difference.changes, by="layer"),
        "by_kind": _sums(difference.changes, by="kind"),
    }


def _sums(changes: "Iterable[Change]", *, by: str) -> list[dict[str, Any]]:
    groups: dict[str, list[Change]] = defaultdict(list)
    for change in changes:
        groups[getattr(change, by)].append(change)
    return [
        {
            by: name,
            "moved": sum(change.moved for change in group),
            "norm": sum(change.norm**2 for change in group) ** 0.5,
            "base_norm": sum(change.base_norm**2 for change in group) ** 0.5,
            "largest": max(change.largest for change in group),
        }
        for name, group in groups.items()
    ]


def _print(difference: "Difference") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    for by in ("kind", "layer"):
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column(by, overflow="fold")
        for heading in ("numbers", "norm", "of before", "largest"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in _sums(difference.changes, by=by):
            share = f"{row['norm'] / row['base_norm']:.1%}" if row["base_norm"] else "new"
            table.add_row(row[by], f"{row['moved']:,}", f"{row['norm']:.4g}", share, f"{row['largest']:.4g}")
        if difference.changes:
            console.print(table)
            console.print()
    console.print(_verdict(difference), soft_wrap=True)


def _verdict(difference: "Difference") -> str:
    moved, numbers = difference.moved, difference.numbers
    if not moved:
        return f"nothing moved: all {numbers:,} numbers are the same"
    summary = f"{moved:,} of {numbers:,} numbers moved ({moved / numbers:.3%})"
    if difference.others:
        return f"{summary}, not only biases and markers: {'; '.join(difference.others[:5])}" + (
            f"; … ({len(difference.others) - 5} more)" if len(difference.others) > 5 else ""
        )
    rows = len(difference.token_ids)
    return f"{summary}: only biases" + (f" and {rows} of the 4 markers' rows" if rows else "")
