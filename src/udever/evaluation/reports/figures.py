"""A table → one figure, SVG or PNG: small bars side by side for few columns, a heat map for many.

Invariant: the same table gives the same bytes on one version of matplotlib; what tells measured, published and baseline
apart survives a greyscale print, and every number that is drawn is also written.
Does not know: protocols, files. matplotlib is imported here, so this module is imported late.
"""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from udever.evaluation.reports.tables import NOTHING, Kind, Row, Table, is_wide

INK = "#1b1f24"
QUIET = "#6b7280"
MEASURED, PUBLISHED = "#1f4e79", "#b9c7d6"
BARS: dict[Kind, dict[str, Any]] = {
    "measured": {"facecolor": MEASURED, "edgecolor": MEASURED},
    "published": {"facecolor": PUBLISHED, "edgecolor": PUBLISHED},
    "baseline": {"facecolor": "white", "edgecolor": QUIET, "hatch": "////"},
}
TONES: dict[Kind, str] = {"measured": "dark", "published": "light", "baseline": "hatched"}
"""Different on grey paper, too."""

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 8,
    "text.parse_math": False,  # a name with two dollar signs is no formula
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "hatch.linewidth": 0.5,
    "hatch.color": QUIET,
    "svg.hashsalt": "udever",
    "svg.fonttype": "path",
}
METADATA: dict[str, dict[str, Any]] = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
DPI = 160

PANELS = 4
"""Bar panels side by side, at most."""
PANEL_INCHES, BAR_INCHES = 1.55, 0.21
HEAD_INCHES, FOOT_INCHES, GAP_INCHES = 0.72, 0.2, 0.42

CELL_INCHES, ROW_INCHES = 0.5, 0.19
HEAT = LinearSegmentedColormap.from_list("udever", ["#ffffff", "#dbe4ee", "#7d9dbd", "#1f4e79", "#0c2238"])
HEAT_ROWS, HEAT_INCHES = 18, 11.0
"""Rows of a block of a heat map; more go into further blocks beside it, as long as it does not get wider than this."""
DARK = 0.55
"""Of the range of colours, from where on white writing is easier to read."""


def draw(table: Table, format_: str) -> bytes:
    """The figure of a table, as "svg" or "png"."""
    with rc_context(STYLE), warnings.catch_warnings():
        # A name in a script that DejaVu lacks shows boxes here; the tables have it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = _heat_map(table) if is_wide(table) else _bars(table)
        FigureCanvasAgg(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=format_, dpi=DPI, metadata=METADATA[format_])
        return buffer.getvalue()


# Bars


def _bars(table: Table) -> Figure:
    """A panel a column, a bar a row, all in one scale."""
    down = -(-len(table.columns) // PANELS)
    across = -(-len(table.columns) // down)
    names = 0.072 * max(len(row.name) for row in table.rows) + 0.15
    tall = BAR_INCHES * len(table.rows)
    width = max(names + PANEL_INCHES * across, _headline_inches(table))
    height = HEAD_INCHES + FOOT_INCHES + down * tall + (down - 1) * GAP_INCHES
    figure = Figure(figsize=(width, height))
    low, high = _limits(table)
    for index, column in enumerate(table.columns):
        left = names + PANEL_INCHES * (index % across)
        bottom = height - HEAD_INCHES - tall - (index // across) * (tall + GAP_INCHES)
        axes = figure.add_axes((left / width, bottom / height, (PANEL_INCHES - 0.1) / width, tall / height))
        _panel(axes, table, index, named=index % across == 0)
        axes.set_xlim(low, high + (high - low) * 0.38)  # room for the numbers
        axes.set_title(column, loc="left", fontsize=8, fontweight="bold", pad=4)
    _headline(figure, table)
    return figure


def _panel(axes: Axes, table: Table, index: int, *, named: bool) -> None:
    for place, row in enumerate(table.rows):
        cell = row.cells[index]
        if cell.value is not None:
            axes.barh(place, cell.value, height=0.68, linewidth=0.6, **BARS[row.kind])
        text = cell.text(table.decimals)
        axes.annotate(
            text,
            (max(cell.value or 0, 0), place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            color=INK if cell.value is not None else QUIET,
            fontweight=_weight(row) if cell.value is not None else "normal",
        )
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.spines["left"].set_position(("data", 0))  # this makes new ticks, so it comes before they are named
    axes.spines["left"].set_linewidth(0.6)
    axes.set_ylim(len(table.rows) - 0.4, -0.6)
    axes.tick_params(length=0, labelsize=7.5)
    axes.set_xticks([])
    axes.set_yticks(range(len(table.rows)) if named else [], [row.name for row in table.rows] if named else [])
    for label, row in zip(axes.get_yticklabels(), table.rows, strict=False):
        label.set_fontweight(_weight(row))


def _limits(table: Table) -> tuple[float, float]:
    """Bars begin at 0."""
    values = _values(table.rows)
    return min(0.0, *values), max(0.0, *values)


def _values(rows: Sequence[Row]) -> list[float]:
    return [cell.value for row in rows for cell in row.cells if cell.value is not None]


def _weight(row: Row) -> str:
    return "bold" if row.kind == "measured" else "normal"


def _headline(figure: Figure, table: Table) -> None:
    """Title, and below it metric, protocol and how to read the figure."""
    width, height = figure.get_size_inches()
    left = 0.1 / width
    figure.text(left, 1 - 0.1 / height, table.title, va="top", fontsize=10, fontweight="bold")
    figure.text(left, 1 - 0.29 / height, _subtitle(table), va="top", fontsize=7, color=QUIET)


def _headline_inches(table: Table) -> float:
    """Enough for the wider of its two lines."""
    return 0.2 + max(0.098 * len(table.title), 0.06 * len(_subtitle(table)))


def _subtitle(table: Table) -> str:
    scale = " × 100" if table.scale == 100 else ""
    return f"{table.metric}{scale} · protocol {table.protocol} · {_legend(table)}".removesuffix(" · ")


def _legend(table: Table) -> str:
    """Only where there is something to tell apart."""
    kinds = [kind for kind in TONES if any(row.kind == kind for row in table.rows)]
    if is_wide(table):
        return f"sorted by {table.rows[0].name}" if len(table.rows) > 1 else ""
    return ", ".join(f"{TONES[kind]}: {kind}" for kind in kinds) if len(kinds) > 1 else ""


# Heat map


def _heat_map(table: Table) -> Figure:
    """Columns of the table downwards, in blocks, best first by the first row; the table's rows across."""
    order = sorted(range(len(table.columns)), key=lambda index: _rank(table.rows[0], index))
    names = 0.062 * max(map(len, table.columns)) + 0.12
    longest = max(len(row.name) for row in table.rows)
    across = names + CELL_INCHES * len(table.rows) + 0.15
    most = max(HEAT_ROWS, -(-len(order) // max(1, int(HEAT_INCHES / across))))
    per_block = -(-len(order) // -(-len(order) // most))  # as even as can be
    blocks = [order[first : first + per_block] for first in range(0, len(order), per_block)]
    head = 0.62 + 0.045 * longest
    width = max(across * len(blocks) + 0.045 * longest, _headline_inches(table))  # the last slanted name runs out
    height = head + ROW_INCHES * len(blocks[0]) + 0.15
    figure = Figure(figsize=(width, height))
    for place, block in enumerate(blocks):
        wide, tall = CELL_INCHES * len(table.rows), ROW_INCHES * len(block)
        left = place * across + names
        axes = figure.add_axes((left / width, 1 - (head + tall) / height, wide / width, tall / height))
        _block(axes, table, block)
    _headline(figure, table)
    return figure


def _rank(row: Row, index: int) -> tuple[bool, float, int]:
    value = row.cells[index].value
    return (value is None, -(value or 0.0), index)


def _block(axes: Axes, table: Table, block: Sequence[int]) -> None:
    everything = _values(table.rows)
    low, high = min(everything), max(everything)
    values = np.array([[_or_nan(row.cells[index].value) for row in table.rows] for index in block])
    axes.imshow(values, cmap=HEAT, vmin=low, vmax=high, aspect="auto")
    for (down, across), value in np.ndenumerate(values):
        dark = high > low and (value - low) / (high - low) > DARK  # never for NaN
        text = NOTHING if np.isnan(value) else f"{value:.{min(table.decimals, 1)}f}"
        axes.text(across, down, text, ha="center", va="center", fontsize=7, color="white" if dark else INK)
    axes.tick_params(length=0, labelsize=7, pad=2)
    axes.set_yticks(range(len(block)), [table.columns[index] for index in block])
    axes.set_xticks(range(len(table.rows)), [row.name for row in table.rows], rotation=40, ha="left", va="bottom")
    axes.xaxis.tick_top()
    for label, row in zip(axes.get_xticklabels(), table.rows, strict=True):
        label.set_rotation_mode("anchor")
        label.set_fontweight(_weight(row))
    axes.spines[:].set_visible(False)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
