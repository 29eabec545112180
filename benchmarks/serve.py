"""How fast the service answers: `udever serve` beside sentence-transformers behind FastAPI, and beside the bare engine.

    python benchmarks/serve.py                 # writes docs/serving-performance.{json,md}
    python benchmarks/serve.py --seconds 3 --clients 1 8 --rounds 1 --json /tmp/x.json

Clients are locust users in a process of their own on the same machine; they take a share of its cores, the same from
every server. Each round runs every server at every number of clients, in turns; ratios compare within a round.
"""

import argparse
import contextlib
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoding.machine import as_json, describe
from encoding.report import machine_lines, replace_sections, table

from udever import Embedder
from udever.cli.stdlib import standard_library

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
MODEL, ROLE = "udever-nano", "query"
START_SECONDS = 120.0
BULK_ITEMS = 64
IDLE_QUERIES = 400
IDLE_TURN = 40
IDLE_PAUSE_SECONDS = 0.3
MAX_CHARACTERS = 400


@dataclass(frozen=True, kw_only=True)
class Load:
    """What clients do at once."""

    clients: int
    items: int
    """Texts a request."""

    @property
    def name(self) -> str:
        """As a row of the table."""
        return f"{self.clients} client{'s' * (self.clients > 1)}, {self.items} text{'s' * (self.items > 1)} a request"


@dataclass(frozen=True, kw_only=True)
class Server:
    """One way to serve the model."""

    label: str
    command: list[str]
    key: str = "none"
    environment: Mapping[str, str] | None = None


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    options = _options(argv)
    torch.set_num_threads(options.threads)
    embedder = Embedder.load(MODEL)
    texts = [function.document[:MAX_CHARACTERS] for function in standard_library()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "texts.json").write_text(json.dumps(texts), "utf-8")
        rounds = [_round(folder, embedder, texts, options) for _ in range(options.rounds)]
    results = {
        "machine": as_json(describe(threads=options.threads)),
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": options.seconds,
        "rounds": rounds,
    }
    body = "\n".join(_report(rounds))
    print(body)
    options.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    page = options.json.with_suffix(".md")
    replace_sections(page, [("machine", machine_lines(results)), ("serving", body)], title="The service's speed")


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, default=DOCS / "serving-performance.json")
    return parser.parse_args(argv)


def _round(folder: Path, embedder: Embedder, texts: list[str], options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {"engine": {"texts_per_second": _engine(embedder, texts)}}
    loads = [Load(clients=n, items=1) for n in options.clients] + [Load(clients=4, items=BULK_ITEMS)]
    for server in _servers(folder):
        print(f"{server.label} …", file=sys.stderr, flush=True)
        with _running(server, folder) as url:
            _check_equal(url, server, embedder, texts[:8])
            measured: dict[str, Any] = {"idle": _idle(url, server, embedder, texts)}
            for load in loads:
                measured[load.name] = _load(url, server, load, folder=folder, seconds=options.seconds)
            found[server.label] = measured
    return found


def _servers(folder: Path) -> list[Server]:
    database = {"UDEVER_DATABASE_URL": f"sqlite:///{folder / 'accounts.sqlite'}"}
    udever = [sys.executable, "-m", "udever"]
    create = [*udever, "keys", "create", "--account", "bench", "--credits", "1000000"]
    key = subprocess.run(create, env={**os.environ, **database}, capture_output=True, text=True, check=True)
    model = str(Path(sys.modules["udever"].__file__ or "").parent / "builtin" / MODEL)
    serve = [*udever, "serve", "--log-level", "warning", "--port", "{port}"]
    return [
        Server(label="udever serve", command=serve, key=key.stdout.strip(), environment=database),
        Server(label="udever serve --no-auth", command=[*serve, "--no-auth"]),
        Server(
            label="sentence-transformers behind FastAPI",
            command=[sys.executable, "-m", "serving.peer", model, "{port}"],
        ),
    ]


@contextlib.contextmanager
def _running(server: Server, folder: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [part.format(port=port) for part in server.command]
    environment = {**os.environ, **(server.environment or {})}
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=HERE, env=environment, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(f"{url}/health/ready", process, folder)
            yield url
        finally:
            process.terminate()
            process.wait(START_SECONDS)


def _wait(url: str, process: "subprocess.Popen[bytes]", folder: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.1)
    raise SystemExit(f"the server did not start:\n{(folder / 'server.log').read_text()[-2000:]}")


def _ask(client: http.client.HTTPConnection, server: Server, texts: list[str]) -> Any:
    body = json.dumps({"model": f"{MODEL}:{ROLE}", "input": texts, "encoding_format": "base64"})
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {server.key}"}
    client.request("POST", "/v1/embeddings", body, headers)
    answer = client.getresponse()
    content = answer.read()
    if answer.status != HTTPStatus.OK:
        raise SystemExit(f"{server.label}: {answer.status} {content[:500]!r}")
    return json.loads(content)


def _check_equal(url: str, server: Server, embedder: Embedder, texts: list[str]) -> None:
    """Only servers that give the right vectors are compared."""
    data = _ask(http.client.HTTPConnection(url.removeprefix("http://"), timeout=120), server, texts)["data"]
    vectors = np.stack([np.frombuffer(b64decode(item["embedding"]), "<f4") for item in data])
    worst = float((vectors * embedder.embed(texts, ROLE)).sum(1).min())
    if worst < 0.9999:
        raise SystemExit(f"{server.label} gives other vectors: cosine {worst}")


def _engine(embedder: Embedder, texts: list[str]) -> float:
    """Texts a second without a server."""
    began = time.perf_counter()
    embedder.embed(texts, ROLE)
    return len(set(texts)) / (time.perf_counter() - began)


def _idle(url: str, server: Server, embedder: Embedder, texts: list[str]) -> dict[str, float]:
    """One client on one connection, one text at a time, in turns with the engine: medians in milliseconds.

    The client is the standard library's, which takes least of what is measured.
    """
    client = http.client.HTTPConnection(url.removeprefix("http://"), timeout=120)
    client.connect()
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    engine, over = [], []
    for start in range(0, IDLE_QUERIES, IDLE_TURN):
        turn = texts[start : start + IDLE_TURN]
        own = _median_ms(lambda text: embedder.embed([text], ROLE), turn)
        time.sleep(IDLE_PAUSE_SECONDS)  # threads that wait for work keep a core busy for a while
        served = _median_ms(lambda text: _ask(client, server, [text]), turn)
        engine.append(own)
        over.append(served - own)
    client.close()
    return {"engine_ms": statistics.median(engine), "over_ms": statistics.median(over)}


def _median_ms(work: Callable[[str], object], texts: Sequence[str]) -> float:
    samples = []
    for text in texts:
        began = time.perf_counter()
        work(text)
        samples.append(1000 * (time.perf_counter() - began))
    return statistics.median(samples)


def _load(url: str, server: Server, load: Load, *, folder: Path, seconds: float) -> dict[str, float]:
    environment = {
        **os.environ,
        "BENCH_TEXTS": str(folder / "texts.json"),
        "BENCH_ITEMS": str(load.items),
        "BENCH_MODEL": f"{MODEL}:{ROLE}",
        "BENCH_KEY": server.key,
    }
    command = [
        sys.executable, "-m", "locust", "--locustfile", str(HERE / "serving" / "locustfile.py"), "--headless",
        "--host", url, "--users", str(load.clients), "--spawn-rate", str(load.clients),
        "--run-time", f"{seconds:.0f}s", "--json", "--loglevel", "ERROR", "--only-summary", "--reset-stats",
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    try:
        [stats] = json.loads(done.stdout)
    except ValueError:
        raise SystemExit(f"locust failed: {done.stderr[-2000:]}") from None
    if stats["num_failures"]:
        raise SystemExit(f"{server.label}: {stats['num_failures']} of {stats['num_requests']} requests failed")
    span = stats["last_request_timestamp"] - stats["start_time"]
    times = sorted((int(ms), count) for ms, count in stats["response_times"].items())
    return {
        "texts_per_second": load.items * stats["num_requests"] / span,
        "p50_ms": _percentile(times, 0.50),
        "p99_ms": _percentile(times, 0.99),
    }


def _percentile(times: list[tuple[int, int]], share: float) -> float:
    """Of (milliseconds, how often), ascending."""
    left = share * sum(count for _, count in times)
    for milliseconds, count in times:
        left -= count
        if left <= 0:
            return milliseconds
    return times[-1][0]


def _report(rounds: list[dict[str, Any]]) -> Iterator[str]:
    servers = [label for label in rounds[0] if label != "engine"]
    peer = servers[-1]
    engine_rate = statistics.median(r["engine"]["texts_per_second"] for r in rounds)
    yield f"Bare engine: {engine_rate:.0f} texts/s. Medians of {len(rounds)} rounds."
    yield ""
    rows = []
    for label in servers:
        engine, over = (statistics.median(r[label]["idle"][name] for r in rounds) for name in ("engine_ms", "over_ms"))
        rows.append([label, f"{engine:.1f}", f"{over:+.1f}"])
    yield from table(("idle, one text at a time", "the engine, ms", "over it, ms"), rows)
    yield ""
    head = ("", "server", "texts/s", "p50, ms", "p99, ms", f"× {peer}", "× bare engine")
    yield from table(head, [_row(rounds, load, label, peer) for load in list(rounds[0][peer])[1:] for label in servers])


def _row(rounds: list[dict[str, Any]], load: str, label: str, peer: str) -> list[str]:
    def middle(value: Any) -> float:
        return statistics.median(value(r) for r in rounds)

    def rate(r: dict[str, Any], name: str) -> float:
        found: float = r[name][load]["texts_per_second"]
        return found

    return [
        load,
        label,
        f"{middle(lambda r: rate(r, label)):.0f}",
        f"{middle(lambda r: r[label][load]['p50_ms']):.0f}",
        f"{middle(lambda r: r[label][load]['p99_ms']):.0f}",
        f"{middle(lambda r: rate(r, label) / rate(r, peer)):.2f}",
        f"{middle(lambda r: rate(r, label) / r['engine']['texts_per_second']):.2f}",
    ]


if __name__ == "__main__":
    main()
