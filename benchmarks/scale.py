"""What many documents cost: hours, money and storage, computed from what was measured here.

    python benchmarks/scale.py                                      # renews the tables of docs/scale.md
    python benchmarks/scale.py --documents 5e6 --tokens 400 --price 1.20 --print

Invariant: every speed comes from a JSON file that a benchmark wrote; what was not measured has no number here.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encoding.report import replace_sections, table

from bulk import BULK

DOCS = Path(__file__).parent.parent / "docs"
HOURS_A_WEEK = 168
WIDTHS = {"udever-nano": 256, "560m": 1024, "1b1": 1536, "3b": 2560, "7b1": 4096}
"""Dimensions of the model, and of the published sizes."""
NUMBER_BYTES = {"float32": (4, 0), "float16": (2, 0), "int8": (1, 4)}
"""Bytes of a number, and of a row's scale."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the reader has, and pays."""

    documents: float
    tokens_per_document: float
    """On average, both markers included."""
    price_per_hour: float
    """Of one machine."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A machine's speed with a model."""

    what: str
    tokens_per_second: float
    source: str
    """The file that says so."""


def hours(work: Work, tokens_per_second: float) -> float:
    """Of one machine: tokens a document × documents ÷ tokens a second."""
    return work.documents * work.tokens_per_document / tokens_per_second / 3600


def storage_bytes(documents: float, dimensions: int, dtype: str) -> float:
    """Of the vectors alone, before Parquet's own few bytes a row."""
    number, scale = NUMBER_BYTES[dtype]
    return documents * (dimensions * number + scale)


def speeds(docs: Path) -> Iterator[Measured]:
    """All that was measured: end to end where `udever bulk` was, else the engine on strings."""
    bulk = _read(docs / "bulk-performance.json")
    if bulk:
        rates = [found[BULK]["tokens"] / found[BULK]["seconds"] for found in bulk["rounds"]]
        yield Measured(
            what=f"{bulk['model']}, {_machine(bulk)}, `udever bulk`",
            tokens_per_second=statistics.median(rates),
            source="bulk-performance.json",
        )
    for file in ("performance.json", "performance-cuda.json"):
        engine = _read(docs / file)
        for shape, result in (engine or {}).get("shapes", {}).items():
            if rates := list(_rates(result, "udever-embed")):
                yield Measured(
                    what=f"shape {shape}, {_machine(engine or {})}, engine",
                    tokens_per_second=statistics.median(rates),
                    source=file,
                )


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def _machine(results: Mapping[str, Any]) -> str:
    machine = results["machine"]
    return machine["gpu"] or f"{machine['threads']} threads of CPU"


def _rates(result: Mapping[str, Any], peer: str) -> Iterator[float]:
    for each in result["rounds"]:
        if peer in each["seconds"]:
            yield result["peers"][peer]["tokens"] / each["seconds"][peer]


def time_table(work: Work, measured: Sequence[Measured]) -> Iterator[str]:
    """Hours, machines and money."""
    rows = []
    for each in measured:
        of_one = hours(work, each.tokens_per_second)
        rows.append(
            [
                f"{each.what} ([{each.source}]({each.source}))",
                f"{each.tokens_per_second:,.0f}",
                f"{of_one:,.0f}",
                f"{max(1, -(-of_one // HOURS_A_WEEK)):,.0f}",
                f"{of_one * work.price_per_hour:,.0f}",
            ]
        )
    head = ("model and machine", "tokens/s", "machine-hours", "machines for one week", "money")
    yield f"{work.documents:,.0f} documents of {work.tokens_per_document:g} tokens; **example price**" + (
        f" {work.price_per_hour:g} a machine-hour, in whatever money you pay."
    )
    yield ""
    yield from table(head, rows)


def storage_table(documents: float) -> Iterator[str]:
    """Gigabytes for each model size and number format."""
    rows = [
        [name, f"{width:,}", *(f"{storage_bytes(documents, width, dtype) / 1e9:,.0f} GB" for dtype in NUMBER_BYTES)]
        for name, width in WIDTHS.items()
    ]
    yield f"Vectors of {documents:,.0f} documents:"
    yield ""
    yield from table(("model", "dimensions", *NUMBER_BYTES), rows)


def overhead_line(docs: Path) -> str:
    """What lies beside the numbers, as measured."""
    bulk = _read(docs / "bulk-performance.json")
    if not bulk:
        return "What Parquet and the manifest add is measured by `python benchmarks/bulk.py`."
    memory = bulk["memory"]
    extra = memory["vector_file_bytes"] / memory["rows"] - storage_bytes(1, memory["dimensions"], "float32")
    return (
        f"Measured on {memory['rows']:,} rows in {memory['shards']} shards (float32, one number carried along): Parquet"
        f" and the carried column {'add' if extra >= 0 else 'save'} {abs(extra):.0f} bytes a row; manifest and receipts"
        f" are {memory['other_file_bytes'] / memory['shards'] / 1e3:.1f} kB a shard."
    )


def sections(work: Work, docs: Path) -> Iterator[tuple[str, str]]:
    """(name, Markdown) of what is generated."""
    yield "time", "\n".join(time_table(work, list(speeds(docs))))
    yield "storage", "\n".join([*storage_table(work.documents), "", overhead_line(docs)])


def main(argv: Sequence[str] | None = None) -> None:
    """Print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=float, default=1e9)
    parser.add_argument("--tokens", type=float, default=100.0, help="of a document, on average")
    parser.add_argument("--price", type=float, default=0.10, help="of a machine-hour; an example, yours differs")
    parser.add_argument("--print", action="store_true", help="print the tables, write nothing")
    options = parser.parse_args(argv)
    work = Work(documents=options.documents, tokens_per_document=options.tokens, price_per_hour=options.price)
    if options.print:
        print("\n\n".join(body for _, body in sections(work, DOCS)))
    else:
        replace_sections(DOCS / "scale.md", sections(work, DOCS), title="At scale")


if __name__ == "__main__":
    main()
