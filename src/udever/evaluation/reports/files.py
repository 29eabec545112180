"""A report → report.md, report.csv, report.json and figures/*.svg, *.png in one folder.

Invariant: each file is whole or is not there (a temporary name, then renamed), and the same report gives the same
bytes: no file says when it was written.
Does not know: how numbers come about (report.py), or how a figure is drawn (figures.py).
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from udever.engine.folders import whole_file
from udever.evaluation.reports.report import Report
from udever.evaluation.reports.tables import Row, Table, grid

FIGURES = "figures"
PAGE = 2
"""Level of a table's heading on a page of its own."""
FORMATS = ("svg", "png")
DIGITS = 6
"""Of numbers for scripts: enough for any metric, and without the noise of multiplying by 100."""
CSV_COLUMNS = ("table", "protocol", "metric", "scale", "row", "kind", "column", "value", "note", "count", "source")


def write(report: Report, folder: Path) -> list[Path]:
    """Everything; returns the files. Without matplotlib there are no figures, and `has_figures` says so beforehand."""
    images = _figures(report) if has_figures() else {}
    files = {
        **{f"{FIGURES}/{name}": content for name, content in images.items()},
        "report.md": markdown(report, images=tuple(images)).encode(),
        "report.csv": _csv(report).encode(),
        "report.json": (json.dumps(as_json(report), ensure_ascii=False, indent=1) + "\n").encode(),
    }
    return [_write(folder / name, content) for name, content in files.items()]


def has_figures() -> bool:
    """Whether figures can be drawn here."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def _figures(report: Report) -> dict[str, bytes]:
    """File name → content."""
    from udever.evaluation.reports.figures import draw
    from udever.evaluation.results import slug

    return {
        f"{slug(table.id)}.{format_}": draw(table, format_)
        for table in report.tables
        if _worth_drawing(table)
        for format_ in FORMATS
    }


def _worth_drawing(table: Table) -> bool:
    """A single number is no picture."""
    return table.drawn and sum(cell.value is not None for row in table.rows for cell in row.cells) > 1


def as_json(report: Report) -> dict[str, Any]:
    """The report for scripts; values stand in each table's scale, under their column's name."""
    return {
        "models": [dict(model) for model in report.models],
        "notes": list(report.notes),
        "tables": [
            {
                "id": table.id,
                "title": table.title,
                "protocol": table.protocol,
                "about": table.about,
                "metric": table.metric,
                "scale": table.scale,
                "columns": list(table.columns),
                "notes": list(table.notes),
                "rows": [_json_row(row, table.columns) for row in table.rows],
            }
            for table in report.tables
        ],
    }


def _json_row(row: Row, columns: Sequence[str]) -> dict[str, Any]:
    """Cells without a number and without a reason for it are left out."""
    cells: dict[str, Mapping[str, Any]] = {}
    for column, cell in zip(columns, row.cells, strict=True):
        value = None if cell.value is None else round(cell.value, DIGITS)
        facts = {"value": value, "note": cell.note, "count": cell.count, "metrics": dict(cell.metrics)}
        if cell.value is not None or cell.note:
            cells[column] = {name: fact for name, fact in facts.items() if fact or name == "value"}
    return {"name": row.name, "kind": row.kind, **({"source": row.source} if row.source else {}), "cells": cells}


def _csv(report: Report) -> str:
    """One number a line; numbers in full, for a spreadsheet to round."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for table in report.tables:
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                if cell.value is not None or cell.note:
                    head = (table.id, table.protocol, table.metric, table.scale, row.name, row.kind, column)
                    value = "" if cell.value is None else repr(round(cell.value, DIGITS))
                    writer.writerow([*head, value, cell.note, cell.count or "", row.source])
    return buffer.getvalue()


def markdown(report: Report, *, images: Sequence[str] = (), level: int = PAGE) -> str:
    """The report as a page, or as a part of one.

    Args:
        images: names of the figures that lie beside it.
        level: of the tables' headings; PAGE: there is one over them.
    """
    parts = [*(["# Evaluation"] if level == PAGE else []), *(f"- {note}" for note in report.notes)]
    if report.models:
        parts.append("\n".join(["Measured:", "", *(f"- {_described(model)}" for model in report.models)]))
    parts += [_section(table, images, level=level) for table in report.tables]
    return "\n\n".join(parts) + "\n"


def _described(model: Mapping[str, object]) -> str:
    facts = [f"{name.replace('_', ' ')} {value}" for name, value in model.items() if name not in ("row", "model")]
    other = f" is {model['model']}" if model["model"] != model["row"] else ""
    return f"**{model['row']}**{other}: {', '.join(facts)}"


def _section(table: Table, images: Sequence[str], *, level: int) -> str:
    from udever.evaluation.results import slug

    parts = [f"{'#' * level} {table.title}", f"{table.about} Protocol: `{table.protocol}`; metric: {table.metric}."]
    image = f"{slug(table.id)}.svg"
    parts += [f"![{table.title}]({FIGURES}/{image})"] if image in images else []
    parts.append(_markdown_table(table))
    parts += [f"- {note}" for note in table.notes]
    sources = dict.fromkeys(row.source for row in table.rows if row.source)
    parts += [f"Published: {'; '.join(sources)}."] if sources else []
    return "\n\n".join(parts)


def _markdown_table(table: Table) -> str:
    head, *body = ([cell.replace("|", "\\|") for cell in line] for line in grid(table))
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *body))


def _write(path: Path, content: bytes) -> Path:
    with whole_file(path) as unfinished:
        unfinished.write_bytes(content)
    return path
