"""Diagrams as SVG, drawn on the server.

    bars(("Retrieval", "STS"), (Series(name="1b1", values=(45.3, 81.5)), Series(name="ada-002", values=(49.3, 81.0))))

Lengths along the page are percentages and text keeps its size: a diagram is as readable on a phone as on a wide screen.
Invariant: nothing is told by colour alone: series keep their order in every group, dots differ in their shape, and
every shape carries its words as a title. A value that is not known leaves a gap, never a zero.
Does not know: where numbers come from.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date

from markupsafe import Markup

MOST_SERIES = 6
"""As many as can be told apart; style.css has a colour for each."""
BAR = 10
GAP = 3
LABEL = 17
BETWEEN_GROUPS = 14
WIDEST = 86.0
"""Percent of the width that the longest bar takes; the rest is for its number."""
LINE = 44
AXIS = 25
"""Where a line's axis lies below its top."""
DAY_HEIGHT = 150
DAY_TOP = 20


@dataclass(frozen=True, kw_only=True)
class Series:
    """One model's values, one for each label."""

    name: str
    values: Sequence[float | None]
    number: int | None = None
    """Which colour and mark, below `MOST_SERIES`; by default its place among the series."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Round numbers around some values."""

    low: float
    high: float
    step: float

    @classmethod
    def around(cls, values: Sequence[float]) -> "Axis":
        """From the step below the lowest value to the one above the highest."""
        low, high = min(values, default=0.0), max(values, default=1.0)
        step = _round_up((high - low) / 8)
        return cls(low=math.floor(low / step) * step, high=math.ceil(high / step) * step, step=step)

    def percent(self, value: float) -> float:
        """Where a value stands, of the width; 4 percent are left at both ends."""
        return 4 + 92 * (value - self.low) / ((self.high - self.low) or 1)

    def ticks(self) -> list[float]:
        """Values to write at the axis."""
        return [self.low + place * self.step for place in range(round((self.high - self.low) / self.step) + 1)]


def bars(
    labels: Sequence[str],
    series: Sequence[Series],
    *,
    title: str,
    description: str = "",
    maximum: float = 100.0,
    decimals: int = 1,
) -> Markup:
    """Groups of horizontal bars: a label, and below it a bar for each series that has a value."""
    shapes, y = [], 0
    for place, label in enumerate(labels):
        shapes.append(_text(label, x="0", y=y + 12))
        y += LABEL
        for number, one in _numbered(series):
            value = one.values[place]
            if value is not None:
                words = f"{one.name}, {label}: {value:.{decimals}f}"
                shapes.append(_bar(value / maximum, y=y, series=number, text=f"{value:.{decimals}f}", words=words))
                y += BAR + GAP
        y += BETWEEN_GROUPS - GAP
    return _svg(shapes, title=title, description=description, height=y - BETWEEN_GROUPS + GAP)


def ranking(
    labels: Sequence[str], values: Sequence[float], *, title: str, maximum: float = 100.0, decimals: int = 1
) -> Markup:
    """One line a label, for many labels: its name, a bar, the number."""
    shapes = []
    for place, (label, value) in enumerate(zip(labels, values, strict=True)):
        y = place * 22
        width = 58.0 * max(value, 0) / maximum
        shapes += [
            _text(label, x="0", y=y + 13),
            _rect(
                x="34%", y=y + 4, width=f"{width:.2f}%", height=BAR, series=0, words=f"{label}: {value:.{decimals}f}"
            ),
            _text(f"{value:.{decimals}f}", x=f"{34 + width:.2f}%", y=y + 13, dx=6, kind="label-quiet"),
        ]
    return _svg(shapes, title=title, description="", height=len(labels) * 22)


def dots(
    labels: Sequence[str], series: Sequence[Series], *, title: str, description: str = "", decimals: int = 1
) -> Markup:
    """One line a label and a mark a series, on an axis that begins near the lowest value: for small differences."""
    values = [value for one in series for value in one.values if value is not None]
    axis = Axis.around(values)
    shapes = list(_ticks(axis, height=len(labels) * LINE))
    for place, label in enumerate(labels):
        y = place * LINE
        shapes.append(_text(label, x="0", y=y + 13))
        shapes.append(_line("axis-strong", y + AXIS))
        for number, one in _numbered(series):
            value = one.values[place]
            if value is not None:
                words = f"{one.name}, {label}: {value:.{decimals}f}"
                shapes.append(_dot(number, x=axis.percent(value), y=y + AXIS, words=words))
    return _svg(shapes, title=title, description=description, height=len(labels) * LINE + 8)


def columns_by_day(
    days: Sequence[date],
    series: Sequence[Series],
    *,
    title: str,
    unit: str,
    text: Callable[[float], str] = "{:,.0f}".format,
) -> Markup:
    """A column a day, the series stacked in their order from the bottom.

    Args:
        unit: of the numbers, e.g. "tokens".
        text: how a number is written.
    """
    totals = [sum(one.values[place] or 0 for one in series) for place in range(len(days))]
    highest = _round_up(max(totals, default=0))
    step = 100 / max(len(days), 1)
    shapes = [*_day_axis(days, step), _text(f"{text(highest)} {unit}", x="0", y=12, kind="label-quiet")]
    for place, day in enumerate(days):
        base = 0.0
        for number, one in _numbered(series):
            value = one.values[place] or 0
            if value:
                height = DAY_HEIGHT * value / highest
                shapes.append(
                    _rect(
                        x=f"{place * step + step * 0.12:.3f}%", y=DAY_TOP + DAY_HEIGHT - base - height,
                        width=f"{step * 0.76:.3f}%", height=height, series=number,
                        words=f"{day:%d %b}, {one.name}: {text(value)} {unit}",
                    )
                )  # fmt: skip
                base += height
    return _svg(shapes, title=title, description="", height=DAY_TOP + DAY_HEIGHT + 20)


def key_mark(series: int, *, dot: bool = False) -> Markup:
    """The mark of a series for a legend, as bars or dots show it."""
    shape = _mark(series, 7, 7) if dot else Markup('<rect class="fill" y="2" width="14" height="10" rx="2"/>')
    return Markup('<svg class="series-{}" width="14" height="14" aria-hidden="true">{}</svg>').format(series, shape)


def _numbered(series: Sequence[Series]) -> Iterator[tuple[int, Series]]:
    for place, one in enumerate(series):
        yield place if one.number is None else one.number, one


def _bar(share: float, *, y: float, series: int, text: str, words: str) -> Markup:
    width = WIDEST * max(share, 0)
    return _rect(x="0", y=y, width=f"{width:.2f}%", height=BAR, series=series, words=words) + _text(
        text, x=f"{width:.2f}%", y=y + BAR - 0.5, dx=6, kind="label-strong" if series == 0 else "label-quiet"
    )


def _rect(*, x: str, y: float, width: str, height: float, series: int, words: str) -> Markup:
    return Markup(
        '<g class="series-{}"><rect class="fill" x="{}" y="{:g}" width="{}" height="{:g}" rx="1.5">'
        "<title>{}</title></rect></g>"
    ).format(series, x, round(y, 2), width, round(height, 2), words)


def _text(text: str, *, x: str, y: float, dx: float = 0, kind: str = "label", anchor: str = "start") -> Markup:
    return Markup('<text class="{}" x="{}" y="{:g}" dx="{:g}" text-anchor="{}">{}</text>').format(
        kind, x, round(y, 2), dx, anchor, text
    )


def _line(kind: str, y: float) -> Markup:
    return Markup('<line class="{}" x1="0" x2="100%" y1="{:g}" y2="{:g}"/>').format(kind, y, y)


def _ticks(axis: Axis, *, height: int) -> Iterator[Markup]:
    for value in axis.ticks():
        x = f"{axis.percent(value):.2f}%"
        yield Markup('<line class="axis" x1="{}" x2="{}" y1="18" y2="{:g}"/>').format(x, x, height - 13)
        yield _text(f"{value:g}", x=x, y=height, kind="label-quiet", anchor="middle")


def _dot(number: int, *, x: float, y: float, words: str) -> Markup:
    return Markup(
        '<svg class="series-{}" x="{:.2f}%" y="{:g}" overflow="visible"><g><title>{}</title>{}</g></svg>'
    ).format(number, x, round(y, 2), words, _mark(number, 0, 0))


_MARKS = (
    '<circle class="fill" cx="{x:.1f}" cy="{y:.1f}" r="4.2"/>',
    '<rect class="fill" x="{l:.1f}" y="{t:.1f}" width="7.4" height="7.4"/>',
    '<path class="fill" d="M{x:.1f} {t:.1f}l4.5 7.6h-9z"/>',
    '<path class="fill" d="M{x:.1f} {t:.1f}l4.6 3.7-4.6 4.6-4.6-4.6z"/>',
    '<path class="stroke" d="M{l:.1f} {t:.1f}l7.4 7.4m0-7.4l-7.4 7.4"/>',
    '<path class="stroke" d="M{l:.1f} {y:.1f}h7.4m-3.7-3.7v7.4"/>',
)


def _mark(number: int, x: float, y: float) -> Markup:
    return Markup(_MARKS[number].format(x=x, y=y, l=x - 3.7, t=y - 3.7))  # numbers only


def _day_axis(days: Sequence[date], step: float) -> Iterator[Markup]:
    bottom = DAY_TOP + DAY_HEIGHT
    for y, kind in ((DAY_TOP, "axis"), (DAY_TOP + DAY_HEIGHT / 2, "axis"), (bottom, "axis-strong")):
        yield _line(kind, y)
    every = max(1, math.ceil(len(days) / 5))
    for place, day in enumerate(days):
        if place % every == 0:
            yield _text(f"{day.day} {day:%b}", x=f"{place * step:.3f}%", y=bottom + 16, kind="label-quiet")


def _round_up(value: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    return next(step * unit for step in (1, 2, 5, 10) if step * unit >= value)


def _svg(shapes: Sequence[Markup], *, title: str, description: str, height: float) -> Markup:
    about = Markup("<desc>{}</desc>").format(description) if description else Markup("")
    return Markup('<svg role="img" aria-label="{}" width="100%" height="{:g}"><title>{}</title>{}{}</svg>').format(
        title, height, title, about, Markup("").join(shapes)
    )
