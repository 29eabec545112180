"""What an account used, as a chart by day and model and as a sum by model.

Invariant: chart, sums and the rows they come from agree, however many models there are.
Does not know: how a chart is drawn (models/charts.py).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from markupsafe import Markup

from udever.server.books import UsageRow
from udever.server.console.models.charts import MOST_SERIES, Series, columns_by_day, key_mark

OTHERS = "all others"


@dataclass(frozen=True, kw_only=True)
class ModelTotal:
    """One model's share of a period."""

    model: str
    requests: int
    texts: int
    tokens: int
    microcredits: int


@dataclass(frozen=True, kw_only=True)
class UsageChart:
    """A picture and its legend."""

    picture: Markup
    legend: Sequence[tuple[Markup, str]]
    """(mark, model), as stacked from the bottom."""


def totals(rows: Sequence[UsageRow]) -> list[ModelTotal]:
    """By model, the most tokens first."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for row in rows:
        parts = (row.requests, row.texts, row.tokens, row.microcredits)
        sums[row.model or ""] = [whole + part for whole, part in zip(sums[row.model or ""], parts, strict=True)]
    found = [
        ModelTotal(model=model, requests=requests, texts=texts, tokens=tokens, microcredits=microcredits)
        for model, (requests, texts, tokens, microcredits) in sums.items()
    ]
    return sorted(found, key=lambda total: (-total.tokens, total.model))


def usage_chart(rows: Sequence[UsageRow], *, until: date, days: int) -> UsageChart:
    """Tokens a day up to `until`; models beyond those that can be told apart are one.

    A day on which more was refunded than used counts as nothing: the refund belongs to work of the day before.
    """
    spelled = [until - timedelta(days=back) for back in reversed(range(days))]
    ranked = [total.model for total in totals(rows)]
    named = ranked if len(ranked) <= MOST_SERIES else ranked[: MOST_SERIES - 1]
    tokens: dict[tuple[str, date | None], int] = defaultdict(int)
    for row in rows:
        tokens[row.model if row.model in named else OTHERS, row.day] += row.tokens
    names = named if named == ranked else [*named, OTHERS]
    series = [Series(name=name, values=[max(tokens[name, day], 0) for day in spelled]) for name in names]
    picture = columns_by_day(spelled, series, title=f"Tokens by day and model, the last {days} days", unit="tokens")
    return UsageChart(picture=picture, legend=[(key_mark(number), name) for number, name in enumerate(names)])
