"""`udever card`: the scores of result files into a model card.

Does not know: how a card is made (training/card.py) or tables are built (evaluation/reports).
"""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from udever.cli.options import needing
from udever.errors import OptionError


def card(
    model: Annotated[Path, Parameter(help="Folder of a model that udever train made, or its README.md.")],
    /,
    *,
    results: Annotated[
        tuple[Path, ...],
        Parameter(negative=(), consume_multiple=True, help="Files or folders that udever evaluate or mteb wrote."),
    ],
    against: Annotated[
        str | None,
        Parameter(help="Published models to show beside them, with commas; none for no published numbers."),
    ] = None,
) -> None:
    """Put scores into a model's card, beside the published numbers that were measured the same way.

    Scores that stand there are replaced.
    """
    with needing("train", what="the card"):
        from udever.training.card import with_scores
    from udever.cli.report import chosen
    from udever.engine.folders import whole_file
    from udever.engine.registry import CARD
    from udever.evaluation.reports.files import markdown
    from udever.evaluation.reports.gather import gather
    from udever.evaluation.reports.report import build

    path = model / CARD if model.is_dir() else model
    if not path.is_file():
        raise OptionError(f"there is no {path}", hint="name the folder that udever train wrote")
    made = build(gather(results), against=chosen(against))
    tables = markdown(made, level=3)
    text = with_scores(path.read_text("utf-8"), tables)
    with whole_file(path) as unfinished:
        unfinished.write_text(text, "utf-8")
    print(f"{len(made.tables)} tables → {path}", file=sys.stderr)
