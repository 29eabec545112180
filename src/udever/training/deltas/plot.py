"""What moved between two models as a picture: a square for each layer and kind, darker where more moved.

Knows nothing of how the difference was found.
"""

import math
from pathlib import Path

from udever.engine.folders import whole_file
from udever.errors import UdeverError
from udever.training.deltas.comparing import Difference


def draw(path: Path, difference: Difference) -> None:
    """Write an SVG.

    Raises:
        UdeverError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UdeverError("the plot needs the package matplotlib", hint="pip install matplotlib") from error
    changes = difference.changes
    layers = sorted(
        {c.layer for c in changes}, key=lambda layer: (layer == "final", layer != "embedding", _number(layer))
    )
    kinds = list(dict.fromkeys(change.kind for change in changes))
    grid = [[math.nan] * len(layers) for _ in kinds]
    for change in changes:
        grid[kinds.index(change.kind)][layers.index(change.layer)] = change.norm / math.sqrt(change.numbers)
    figure = Figure(figsize=(3 + 0.35 * len(layers), 1 + 0.3 * len(kinds)))
    axes = figure.subplots()
    if grid:
        image = axes.imshow(grid, cmap="Greys", vmin=0, aspect="auto")
        figure.colorbar(image, ax=axes, label="root mean square of the difference")
    axes.set_xticks(range(len(layers)), layers, rotation=90)
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_title(f"{difference.a} → {difference.b}", loc="left", fontsize=10)
    with whole_file(path) as unfinished, mpl.rc_context({"svg.hashsalt": "udever", "svg.fonttype": "none"}):
        figure.savefig(unfinished, format="svg", metadata={"Date": None}, bbox_inches="tight")


def _number(layer: str) -> int:
    return int(layer) if layer.isdigit() else -1
