"""How fast `udever bulk` is: beside the bare engine and sentence-transformers' multi-process pool, on one Parquet file.

    python benchmarks/bulk.py                                        # writes docs/bulk-performance.{json,md}
    python benchmarks/bulk.py --rows 10000 --memory-rows 400000      # as the page was made, on an idle machine

Each round runs every way once, in turns, each in a fresh process; ratios compare within a round. Loading is left out
everywhere; reading, tokenising and writing are in for `udever bulk` only. All must give the same vectors. Memory is
that of the process and its children, over the time of one long run of short texts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from encoding.machine import as_json, describe
from encoding.report import machine_lines, replace_sections, table

from udever.cli.stdlib import standard_library

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
PLOT = "bulk-memory.svg"
SAMPLE_SECONDS = 0.1
BULK, ENGINE, POOL = "udever bulk", "bare engine, texts in memory", "sentence-transformers, multi-process pool"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    options = _options(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder / "texts.parquet", options.rows, characters=options.characters)
        _write(folder / "short.parquet", options.memory_rows, characters=options.memory_characters)
        _export(folder / "exported")
        rounds = [_round(folder, options) for _ in range(options.rounds)]
        memory = _memory(folder, options)
    results = {
        "machine": as_json(describe(threads=options.threads)),
        "date": datetime.now(UTC).date().isoformat(),
        "model": "udever-nano",
        "rows": options.rows,
        "rounds": rounds,
        "memory": memory,
    }
    body = "\n".join(report(results))
    print(body)
    options.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    (options.json.parent / "img").mkdir(exist_ok=True)
    _draw(memory, options.json.parent / "img" / PLOT)
    page = options.json.with_suffix(".md")
    replace_sections(page, [("machine", machine_lines(results)), ("bulk", body)], title="The speed of udever bulk")


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000, help="of the file that is embedded every way")
    parser.add_argument("--characters", type=int, default=300, help="of a text, at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-rows", type=int, default=40_000, help="of the run whose memory is drawn")
    parser.add_argument("--memory-characters", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, default=DOCS / "bulk-performance.json")
    return parser.parse_args(argv)


def _write(path: Path, rows: int, *, characters: int) -> None:
    """Real texts, each made different from the others by its number."""
    texts = [function.document[:characters] for function in standard_library()]
    numbered = [f"{texts[row % len(texts)]} {row}" for row in range(rows)]
    pq.write_table(pa.table({"id": range(rows), "text": numbered}), path, row_group_size=50_000)


def _export(folder: Path) -> None:
    command = ["udever", "export", "udever-nano", "--format", "sentence-transformers", "--no-check", "-o", str(folder)]
    subprocess.run([sys.executable, "-m", *command], check=True, stdout=subprocess.DEVNULL)


def _round(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    file, output = str(folder / "texts.parquet"), folder / f"out-{time.monotonic_ns()}"
    found = {
        ENGINE: _watched(["bulking.ways", "engine", file], options.threads)[0],
        BULK: _bulk(file, output, options.threads)[0],
        POOL: _watched(["bulking.ways", "pool", file, str(folder / "exported")], options.threads)[0],
    }
    first = np.stack(pq.read_table(output / "vectors")["embedding"].to_numpy()[:8])
    for label in (ENGINE, POOL):
        cosine = float((np.array(found[label].pop("first")) * first).sum(1).min())
        if cosine < 0.9999:
            raise SystemExit(f"{label} gives other vectors: cosine {cosine}")
    return found


def _bulk(file: str, output: Path, threads: int) -> tuple[dict[str, Any], list[tuple[float, int]]]:
    command = ["udever", "bulk", file, "--output", str(output), "--columns", "id", "--json", "--no-progress"]
    found, samples = _watched(command, threads)
    sizes = {path.relative_to(output): path.stat().st_size for path in output.rglob("*") if path.is_file()}
    kept = ("seconds", "rows", "tokens", "shards", "dimensions", "peak_bytes")
    return {name: found[name] for name in kept} | {
        "vector_file_bytes": sum(size for path, size in sizes.items() if path.parts[0] == "vectors"),
        "other_file_bytes": sum(size for path, size in sizes.items() if path.parts[0] != "vectors"),
    }, samples


def _watched(command: list[str], threads: int) -> tuple[dict[str, Any], list[tuple[float, int]]]:
    """What a module prints as JSON, and (seconds, bytes) of its memory meanwhile."""
    print(f"{' '.join(command[:3])} …", file=sys.stderr, flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    began, samples = time.perf_counter(), []
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=HERE, env=environment, stdout=out, stderr=errors
        )
        while process.poll() is None:
            samples.append((round(time.perf_counter() - began, 2), _resident(process.pid)))
            time.sleep(SAMPLE_SECONDS)
        for file in (out, errors):
            file.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{errors.read()[-2000:]}")
        found: dict[str, Any] = json.loads(out.read())
    return found | {"peak_bytes": max((size for _, size in samples), default=0)}, samples


def _resident(pid: int) -> int:
    """Bytes of a process and its children; pages that they share count for each."""
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


def _memory(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    found, samples = _bulk(str(folder / "short.parquet"), folder / "long", options.threads)
    step = max(1, len(samples) // 300)
    return found | {"samples": samples[::step]}


def report(results: dict[str, Any]) -> Iterator[str]:
    """The page's tables."""
    rounds, memory = results["rounds"], results["memory"]
    rows, tokens = results["rows"], rounds[0][BULK]["tokens"]
    yield (
        f"{results['model']}, {rows:,} rows of {tokens / rows:.0f} tokens on average in one Parquet file; medians of"
        f" {len(rounds)} rounds."
    )
    yield ""
    cells = []
    for label in (BULK, ENGINE, POOL):
        seconds = statistics.median(r[label]["seconds"] for r in rounds)
        ratios = [f"{_ratio(rounds, label, other):.2f}" if other != label else "" for other in (ENGINE, POOL)]
        peak = statistics.median(r[label]["peak_bytes"] for r in rounds)
        cells.append([label, f"{rows / seconds:,.0f}", f"{tokens / seconds:,.0f}", *ratios, f"{peak / 1e6:,.0f} MB"])
    yield from table(("", "rows/s", "tokens/s", "× bare engine", "× the pool", "peak memory"), cells)
    yield ""
    quarters = _quarters(memory["samples"])
    yield (
        f"![Memory over time](img/{PLOT})\n\nMemory over a run of {memory['rows']:,} short texts"
        f" ({memory['tokens'] / memory['rows']:.0f} tokens, {memory['shards']} shards, {memory['seconds']:.0f} s;"
        f" {memory['rows'] / memory['seconds']:,.0f} rows/s): {memory['peak_bytes'] / 1e6:,.0f} MB at most; on average"
        f" {', '.join(f'{size / 1e6:,.0f}' for size in quarters)} MB in its quarters."
    )


def _ratio(rounds: list[dict[str, Any]], label: str, other: str) -> float:
    return statistics.median(r[other]["seconds"] / r[label]["seconds"] for r in rounds)


def _quarters(samples: Sequence[tuple[float, int]]) -> list[float]:
    """Mean memory in each quarter of the time."""
    return [float(part.mean()) for part in np.array_split(np.array([size for _, size in samples]), 4)]


def _draw(memory: dict[str, Any], path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "udever", "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(7, 2.6), layout="constrained")
        axes = figure.subplots()
        seconds, sizes = zip(*memory["samples"], strict=True)
        axes.plot(seconds, [size / 1e6 for size in sizes], color="#2a6f97", linewidth=1.5)
        axes.set(xlabel="seconds", ylabel="MB resident", ylim=(0, None), xlim=(0, None))
        axes.set_title(f"udever bulk, {memory['rows']:,} rows", loc="left", fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
        figure.savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
