"""A run's curves as a picture: loss, learning rate, what was watched, scores.

Does not know: the run's other files.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from udever.engine.folders import whole_file

SMOOTHING = 0.9
"""Of the line over the single steps' points."""
QUIET = ("step", "learning_rate", "gradient_norm", "tokens", "seconds")


def draw(path: Path, entries: Sequence[Mapping[str, Any]]) -> bool:
    """Write the curves of a log as SVG, atomically; False where matplotlib is not installed, or nothing is logged."""
    steps = [entry for entry in entries if "loss" in entry]
    if not steps:
        return False
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        return False
    watched = dict.fromkeys(name for entry in steps for name in entry if name not in (*QUIET, "loss"))
    curves = ["loss", *watched]
    scores = [(entry["step"], entry["score"]) for entry in entries if "score" in entry]
    figure = Figure(figsize=(4.5 * (len(curves) + bool(scores)), 3), layout="constrained")
    axes = figure.subplots(1, len(curves) + bool(scores), squeeze=False)[0]
    for axis, name in zip(axes, curves, strict=False):
        seen = [entry for entry in steps if name in entry]  # a batch without targets has no cosine, for one
        values, at = [entry[name] for entry in seen], [entry["step"] for entry in seen]
        axis.plot(at, values, ".", markersize=2, color="0.75")
        axis.plot(at, _smooth(values), color="0.1", linewidth=1.2)
        axis.set_title(name, loc="left", fontsize=10)
    if scores:
        axes[-1].plot(*zip(*scores, strict=True), "o-", color="0.1", markersize=3, linewidth=1.2)
        axes[-1].set_title("score", loc="left", fontsize=10)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlabel("step")
    with whole_file(path) as unfinished, mpl.rc_context({"svg.hashsalt": "udever", "svg.fonttype": "none"}):
        figure.savefig(unfinished, format="svg", metadata={"Date": None})
    return True


def _smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving average, unbiased at the start."""
    mean, weight, out = 0.0, 0.0, []
    for value in values:
        mean, weight = SMOOTHING * mean + (1 - SMOOTHING) * value, SMOOTHING * weight + (1 - SMOOTHING)
        out.append(mean / weight)
    return out
