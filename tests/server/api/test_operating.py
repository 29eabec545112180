"""Starting, health, stopping, limits, metrics and logs of a real process."""

import asyncio
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from udever.server.accounts import open_accounts
from udever.server.app import create_app
from udever.server.settings import Settings
from udever.server.telemetry import configure_logging

MODEL = "udever-nano"
EMBED = {"model": MODEL, "input": "a text"}
SECRET_TEXT = "xylophone-quagmire"


def serve(*flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`udever serve` that ends by itself."""
    command = [sys.executable, "-m", "udever", "serve", *flags]
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def tight(start_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server with narrow limits, set by a file."""
    config = tmp_path_factory.mktemp("tight") / "udever.toml"
    config.write_text(
        "auth = false\nmax_body_bytes = 65536\nmax_header_bytes = 4096\n"
        'cors_origins = ["https://app.example.com"]\n'
        "header_seconds = 1\nbody_seconds = 1\nsend_seconds = 1\nkeep_alive_seconds = 1\n"
    )
    return start_server("--config", str(config))


def test_it_is_alive_before_it_is_ready_and_drains_at_the_end(start_server: Callable[..., Any], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'life.sqlite'}"
    with open_accounts(url) as accounts:
        secret, _ = accounts.keys.create(account="a")
        accounts.ledger.topup("a", microcredits=10**9)
        began = time.monotonic()
        server = start_server(env={"UDEVER_DATABASE_URL": url}, ready=False)
        server.wait("/health/live")
        early = httpx.get(f"{server.url}/health/ready")
        assert early.status_code == 503
        assert early.json()["models"] == {MODEL: "loading"}
        with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {secret}"}, timeout=60) as client:
            assert client.post("/v1/embeddings", json=EMBED).status_code == 200  # it waits for the model
            assert time.monotonic() - began < 30
            server.wait("/health/ready")
            many = {"model": MODEL, "input": [f"{i} " + "many words " * 60 for i in range(128)]}
            with ThreadPoolExecutor(1) as pool:
                last = pool.submit(client.post, "/v1/embeddings", json=many)
                while "udever_requests_in_flight 2.0" not in httpx.get(f"{server.url}/metrics").text:
                    assert not last.done()
                assert server.stop() == 0
                assert len(last.result().json()["data"]) == 128
        audit = accounts.ledger.audit()
        assert audit.sound
        assert audit.open_requests == 0


def test_a_second_after_the_grace_it_is_over(start_server: Callable[..., Any]) -> None:
    server = start_server("--no-auth", "--grace-seconds", "1")
    many = {"model": MODEL, "input": [f"{i} " + "many words " * 200 for i in range(700)]}
    with ThreadPoolExecutor(1) as pool, httpx.Client(timeout=60) as client:
        cut_off = pool.submit(client.post, f"{server.url}/v1/embeddings", json=many)
        time.sleep(0.5)
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 6
        assert isinstance(cut_off.exception(), httpx.TransportError) or cut_off.result().status_code >= 500


def test_ctrl_c_stops_it_too(start_server: Callable[..., Any]) -> None:
    assert start_server("--no-auth", "--load", "lazy").stop(number=signal.SIGINT) == 0


def test_a_lazy_model_is_loaded_by_its_first_request(
    start_server: Callable[..., Any], same: Callable[..., None]
) -> None:
    server = start_server(
        "--no-auth", "--load", "lazy", "--model", f"mine={MODEL}", "--model", MODEL, "--model", "gone=/gone"
    )
    waiting = dict.fromkeys(("mine", MODEL, "gone"), "waiting")
    assert httpx.get(f"{server.url}/health/ready").json()["models"] == waiting
    answer = httpx.post(f"{server.url}/v1/embeddings", json={"model": "mine:query", "input": "a"}, timeout=60)
    same([answer.json()["data"][0]["embedding"]], ["a"], "query")
    server.wait("/health/ready")
    assert httpx.post(f"{server.url}/v1/embeddings", json={"model": "gone", "input": "a"}).status_code >= 400
    health = httpx.get(f"{server.url}/health/ready")  # else no request would come any more, that could try again
    assert (health.status_code, health.json()["models"]) == (200, waiting | {"mine": "ready", "gone": "failed"})


def test_beside_a_large_request_small_ones_are_served_and_the_next_large_one_is_refused(
    start_server: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    env = {"UDEVER_BATCH_TOKENS": "256", "UDEVER_MAX_WAIT_SECONDS": "1"}
    url = start_server("--no-auth", env=env).url
    large = {"model": MODEL, "input": ["many words " * 100] * 300}
    with httpx.Client(base_url=url, timeout=120) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/v1/embeddings", json=large)
        wait_until(lambda: _drain_seconds(client.get("/metrics").text) > 1.5)
        small = [client.post("/v1/embeddings", json=EMBED) for _ in range(5)]
        refused = client.post("/v1/embeddings", json=large)
        assert [answer.status_code for answer in small] == [200] * 5
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert first.result().status_code == 200


def _drain_seconds(metrics: str) -> float:
    families = {family.name: family for family in text_string_to_metric_families(metrics)}
    return families["udever_queue_drain_seconds"].samples[0].value


def test_while_it_loads_a_request_may_be_told_to_come_again(start_server: Callable[..., Any]) -> None:
    server = start_server("--no-auth", env={"UDEVER_LOAD_WAIT_SECONDS": "0"}, ready=False)
    server.wait("/health/live")
    response = httpx.post(f"{server.url}/v1/embeddings", json=EMBED)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "model_loading"
    assert response.headers["retry-after"] == "1"


def test_a_model_that_is_not_there_ends_it() -> None:
    done = serve("--no-auth", "--port", "0", "--model", "no-such-model")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: the model no-such-model cannot be used")


def test_a_taken_port_is_one_clear_line(server: Any) -> None:
    done = serve("--no-auth", "--port", str(server.port))
    assert done.returncode == 1
    assert "cannot listen on" in done.stderr.splitlines()[-1]


def test_no_auth_only_for_this_machine() -> None:
    done = serve("--no-auth", "--host", "0.0.0.0")
    assert done.returncode == 2
    assert "--insecure-no-auth" in done.stderr


@pytest.mark.parametrize("url", ["mysql://root:hunter2@nowhere/x", "postgresql://root:hunter2@127.0.0.1:1/x"])
def test_an_unusable_database_is_one_clear_line(url: str) -> None:
    done = serve("--port", "0", UDEVER_DATABASE_URL=url, UDEVER_PEPPER="p" * 32)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: the accounts cannot be used: ")
    assert "hunter2" not in done.stderr
    assert "Traceback" not in done.stderr


def test_print_config_shows_what_counts_and_no_secret(tmp_path: Path) -> None:
    config = tmp_path / "udever.toml"
    config.write_text('port = 1111\nhost = "::1"\nmax_wait_seconds = 5.0\n[prices]\n"izhx/udever-bloom-7b1" = 20\n')
    env = {
        "UDEVER_PORT": "2222", "UDEVER_HOST": "localhost", "UDEVER_PEPPER": "pepper-that-is-secret",
        "UDEVER_DATABASE_URL": "postgresql://udever:hunter2@db:5432/udever?sslpassword=hunter2",
        "UDEVER_MODELS": "udever-nano, a/b", "UDEVER_OTLP_ENDPOINT": "https://me:hunter2@traces",
    }  # fmt: skip
    out = serve("--print-config", "--config", str(config), "--port", "3333", **env).stdout
    assert "port = 3333" in out  # flag, variable and file
    assert 'host = "localhost"' in out  # variable and file
    assert "max_wait_seconds = 5.0" in out  # file
    assert "max_body_bytes = 8388608" in out  # default
    assert 'models = ["udever-nano", "a/b"]' in out
    assert '[prices]\n"izhx/udever-bloom-7b1" = 20' in out
    assert "hunter2" not in out
    assert "pepper-that-is-secret" not in out
    assert "postgresql://udever:********@db:5432/udever?sslpassword=********" in out


@pytest.mark.parametrize(
    ("flags", "env", "named"),
    [
        ((), {"UDEVER_PORT": "http"}, "port"),
        (("--port", "99999"), {}, "port"),
        ((), {"UDEVER_LOAD": "later"}, "load"),
        (("--config", "/nowhere.toml"), {}, "/nowhere.toml"),
        ((), {"UDEVER_MODELS": ""}, "models"),
    ],
)
def test_a_bad_setting_is_named(flags: tuple[str, ...], env: dict[str, str], named: str) -> None:
    done = serve("--print-config", *flags, **env)
    assert done.returncode == 2
    assert named in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("password", ["a/b#c", "a?b", "[x", "p@ss%2F"])
def test_a_password_is_masked_however_it_is_spelled(password: str) -> None:
    done = serve("--print-config", UDEVER_DATABASE_URL=f"postgresql://udever:{password}@db/udever")
    assert (done.returncode, done.stderr) == (0, "")
    assert password not in done.stdout
    assert "********@db/udever" in done.stdout


def test_an_unknown_setting_in_the_file_is_named(tmp_path: Path) -> None:
    config = tmp_path / "udever.toml"
    config.write_text("prot = 1\n")
    done = serve("--print-config", "--config", str(config))
    assert (done.returncode, "prot" in done.stderr) == (2, True)


# ---- limits ----


def raw(server: Any, data: bytes, *, seconds: float = 8.0) -> bytes:
    """Send bytes; everything that comes back until the server closes, or b"" if it does not."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        connection.sendall(data)
        received = b""
        try:
            while piece := connection.recv(65536):
                received += piece
        except ConnectionResetError:
            pass
        return received


def error_code(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


HEAD = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


def test_a_declared_body_that_is_too_large(tight: Any) -> None:
    assert error_code(raw(tight, HEAD + b"content-length: 999999999\r\n\r\n")) == (413, "request_too_large")


def test_a_body_that_grows_too_large(tight: Any) -> None:
    chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    assert error_code(raw(tight, HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunk * 4)) == (
        413,
        "request_too_large",
    )


def test_a_body_that_never_comes(tight: Any) -> None:
    assert error_code(raw(tight, HEAD + b"content-length: 100\r\n\r\n{")) == (408, "request_timeout")


def test_headers_that_never_end(tight: Any) -> None:
    assert error_code(raw(tight, HEAD + b"x-slow: ")) == (408, "request_timeout")
    assert error_code(raw(tight, b"")) == (408, "request_timeout")


def test_headers_that_are_too_many(tight: Any) -> None:
    for headers in (b"x-large: " + b"a" * 10_000, b"".join(b"x-%d: a\r\n" % i for i in range(1000))):
        assert error_code(raw(tight, HEAD + headers)) == (431, "request_headers_too_large")


def test_what_is_no_http(tight: Any) -> None:
    assert error_code(raw(tight, b"\x16\x03\x01 hello\r\n\r\n")) == (400, "invalid_http")


@pytest.mark.parametrize("pieces", [1, 7, 40])
def test_a_client_that_offers_another_protocol_is_answered_in_this_one(tight: Any, pieces: int) -> None:
    """As the JDK's client does with each request over http://."""
    body = json.dumps({"model": MODEL, "input": "a text"}).encode()
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    for framed in (b"content-length: %d\r\n\r\n" % len(body) + body, b"transfer-encoding: chunked\r\n\r\n" + chunked):
        request = HEAD + offer + framed
        second = b"GET /health/live HTTP/1.1\r\nhost: x\r\n" + offer + b"\r\n"
        with socket.create_connection(("127.0.0.1", tight.port), timeout=20) as connection:
            step = -(-len(request) // pieces)
            for first in range(0, len(request), step):
                connection.sendall(request[first : first + step])
                time.sleep(0.002)
            connection.sendall(second)
            received = b""
            while b"live" not in received:
                piece = connection.recv(65536)
                assert piece, received[:500]
                received += piece
        assert received.count(b"HTTP/1.1 200 OK") == 2
        assert b'"embedding"' in received


def test_a_connection_that_is_read_late_but_read_lives_on(tight: Any) -> None:
    """The time to read counts for each answer, not from the first one on a connection."""
    body = json.dumps({"model": MODEL, "input": ["a"] * 2048}).encode()
    request = HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
    with socket.create_connection(("127.0.0.1", tight.port), timeout=30) as connection:
        for _ in range(3):
            connection.sendall(request)
            received, size = b"", None
            while size is None or len(received) < size:
                piece = connection.recv(65536)
                assert piece, f"cut off after {len(received):,} bytes"
                received += piece
                time.sleep(0.002)
                if size is None and b"\r\n\r\n" in received:
                    head = received.partition(b"\r\n\r\n")[0]
                    size = len(head) + 4 + int(re.search(rb"(?i)content-length: (\d+)", head)[1])


def test_an_idle_connection_is_closed(tight: Any) -> None:
    began = time.monotonic()
    answer = raw(tight, b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n")
    assert b'{"status":"live"}' in answer
    assert 0.5 < time.monotonic() - began < 5


def test_a_client_that_does_not_read_its_answer(tight: Any) -> None:
    body = json.dumps({"model": MODEL, "input": ["a"] * 2048}).encode()
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect(("127.0.0.1", tight.port))
        lazy.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
        time.sleep(4)
        received = 0
        with suppress(ConnectionResetError):
            while piece := lazy.recv(65536):
                received += len(piece)
    assert received < 2048 * 256 * 8  # of more than 10 bytes a number


def test_only_the_named_origins_may_call_from_a_browser(tight: Any) -> None:
    for origin, allowed in (("https://app.example.com", True), ("https://evil.example.com", False)):
        preflight = {
            "origin": origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,x-stainless-os,x-stainless-retry-count",
        }
        asked = httpx.options(f"{tight.url}/v1/embeddings", headers=preflight)
        got = httpx.post(f"{tight.url}/v1/embeddings", json={"model": MODEL}, headers={"origin": origin})
        assert got.status_code == 400
        for answer in (asked, got):
            assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)
            assert "access-control-allow-credentials" not in answer.headers
        assert (asked.status_code == 200) == allowed


def test_without_accounts_there_is_nothing_to_administer(tight: Any) -> None:
    response = httpx.get(f"{tight.url}/v1/admin/keys")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "no_accounts")


def test_it_still_serves(tight: Any) -> None:
    with httpx.Client(base_url=tight.url) as client:
        for _ in range(3):
            assert client.post("/v1/embeddings", json=EMBED).status_code == 200


# ---- metrics, logs, traces ----


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_count_what_happened(start_server: Callable[..., Any], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'metrics.sqlite'}"
    with open_accounts(url) as accounts:
        secret, _ = accounts.keys.create(account="a")
        accounts.ledger.topup("a", microcredits=10**9)
    server = start_server(env={"UDEVER_DATABASE_URL": url})
    with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {secret}"}) as client:
        tokens = client.post("/v1/embeddings", json=EMBED | {"input": ["a", "b c"]}).json()["usage"]["total_tokens"]
        cut = client.post("/v1/embeddings", json=EMBED | {"input": "a " * 2000, "truncate": "end"}).json()["usage"]
        client.post("/v1/embeddings", json=EMBED | {"input": ""})
        client.get("/some/made/up/address")
        found = samples(client.get("/metrics").text)

    def value(name: str, **labels: str) -> float:
        return found[f"udever_{name}", frozenset(labels.items())]

    total = tokens + cut["total_tokens"]
    assert value("requests_total", route="/v1/embeddings", status="200") == 2
    assert value("requests_total", route="/v1/embeddings", status="400") == 1
    assert value("requests_total", route="unmatched", status="404") == 1
    assert value("errors_total", code="empty_string") == 1
    assert value("tokens_total", model=MODEL, role="document") == total
    assert value("texts_total", model=MODEL, role="document") == 3
    assert value("truncated_texts_total", model=MODEL) == 1
    assert value("truncated_tokens_total", model=MODEL) == cut["truncated"][0]["tokens"]
    assert value("microcredits_total", outcome="debited") == total
    assert value("model_ready", model=MODEL) == 1
    assert value("queue_tokens", model=MODEL) == 0
    assert value("batches_total", model=MODEL) >= 2
    assert value("batch_tokens_total", model=MODEL) >= total
    assert value("request_seconds_count", route="/v1/embeddings") == 3


def test_no_text_and_no_key_is_ever_written(
    server: Any, client_for: Callable[..., Any], api_key: str, make_key: Callable[..., str]
) -> None:
    client = client_for(api_key)
    long = f"{SECRET_TEXT} " * 2000
    for body in (
        {"model": MODEL, "input": SECRET_TEXT},
        {"model": MODEL, "input": [SECRET_TEXT, ""]},
        {"model": MODEL, "input": long},
        {"model": SECRET_TEXT, "input": "a"},
        {"model": MODEL, "input": "a", SECRET_TEXT: 1},
        {"model": MODEL, "input": "a", "user": SECRET_TEXT},
        {"model": MODEL, "input": "a", "encoding_format": SECRET_TEXT},
    ):
        client.post("/v1/embeddings", body)
    client.post("/v1/rerank", {"model": MODEL, "query": SECRET_TEXT, "documents": [SECRET_TEXT]})
    client.http.get(f"/{SECRET_TEXT}", params={"api_key": api_key})
    client.http.post(
        "/v1/embeddings", content=f'{{"input": {SECRET_TEXT}'.encode(), headers={"content-type": "application/json"}
    )
    client_for(make_key(account="broke")).embed(SECRET_TEXT)
    client_for("udk-" + "x" * 40).embed("a")
    written = server.log + client.http.get("/metrics").text
    assert SECRET_TEXT not in written
    assert "udk-" not in written
    assert api_key[4:12] not in written


def test_a_fault_nobody_foresaw_tells_nobody_anything(capsys: pytest.CaptureFixture[str]) -> None:
    app = create_app(Settings(auth=False, load="lazy"))

    @app.get("/fail")
    async def fail() -> None:
        raise LookupError(SECRET_TEXT)

    configure_logging("info")
    answer = asyncio.run(_get(app, "/fail"))
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    logging.getLogger("some.library").exception("it failed", exc_info=LookupError(SECRET_TEXT))
    written = capsys.readouterr().err
    assert SECRET_TEXT not in answer.text + written
    fault, request, library = map(json.loads, written.splitlines())
    assert (fault["exception"], "fail" in fault["where"][-1]) == ("LookupError", True)
    assert (request["status"], request["route"]) == (500, "/fail")
    assert (library["event"], library["exception"]) == ("it failed", "LookupError")


async def _get(app: Any, path: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.get(path)


def test_every_line_of_the_log_is_json_and_requests_have_their_id(
    server: Any, client: Any, wait_until: Callable[..., None]
) -> None:
    request_id = client.embed("a").headers["x-request-id"]
    wait_until(lambda: request_id in server.log)  # it is written when the answer is gone
    (line,) = [line for line in map(json.loads, server.log.splitlines()) if line.get("request_id") == request_id]
    assert line["event"] == "request"
    assert line["route"] == "/v1/embeddings"
    assert (line["status"], line["model"], line["role"], line["texts"]) == (200, MODEL, "document", 1)
    assert line["key"].startswith("key-")
    assert line["seconds"] > 0


def test_traces_go_where_they_are_told(start_server: Callable[..., Any]) -> None:
    received: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{collector.server_address[1]}"
        server = start_server("--no-auth", env={"UDEVER_OTLP_ENDPOINT": endpoint})
        trace = "4bf92f3577b34da6a3ce929d0e0e4736"
        headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
        answer = httpx.post(f"{server.url}/v1/embeddings", json=EMBED | {"input": SECRET_TEXT}, headers=headers)
        assert answer.status_code == 200
        assert server.stop() == 0
        collector.shutdown()
    assert {path for path, _ in received} == {"/v1/traces"}
    sent = b"".join(body for _, body in received)
    assert bytes.fromhex(trace) in sent
    assert b"POST /v1/embeddings" in sent
    assert answer.headers["x-request-id"].encode() in sent
    assert SECRET_TEXT.encode() not in sent
