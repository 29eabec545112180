"""The playground over HTTP: a real service, its grid beside the API's vectors, who may play, and who pays."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from html import unescape
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from udever.server.accounts import Accounts, open_accounts
from udever.server.app import create_app
from udever.server.console.playground.play import (
    MARKERS,
    MAX_CHARACTERS,
    MAX_DOCUMENTS,
    MAX_QUERIES,
    MAX_TOTAL_CHARACTERS,
)
from udever.server.settings import Settings
from udever.tokenizer import MARKERS as TRUE_MARKERS

MODEL = "udever-nano"
SIZES = [64, 128, 256]
CREDIT = 10**9
GUEST_REQUESTS, GUEST_TOKENS = 6, 400
QUERIES = ["When does the museum open?", "明天会下雨吗？", "sort a list"]
DOCUMENTS = ["Das Museum öffnet um neun.", "Rain is expected tomorrow.", "people.sort((a, b) => a - b)", "x"]
RUN = {"model": MODEL, "queries": QUERIES, "documents": DOCUMENTS}
FORM = {"model": MODEL, "query": QUERIES, "document": DOCUMENTS}
SECRET_TEXT = "Zanzibar-7421-unlogged"
CELL = re.compile(r'<td class="h\d( best)?" data-c="([^"]+)" data-r="([^"]+)" data-h="(\d+)"><b>([^<]+)</b>')


def error(response: httpx.Response) -> tuple[int, str | None, str]:
    body = response.json()["error"]
    return response.status_code, body["param"], body["code"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('playground') / 'udever.sqlite'}"


@pytest.fixture(scope="module")
def accounts(url: str) -> Iterator[Accounts]:
    with open_accounts(url) as opened:
        yield opened


@pytest.fixture(scope="module")
def server(start_server: Callable[..., Any], accounts: Accounts, url: str) -> Any:
    """Keys are needed; guests may play a little."""
    return start_server(
        "--log-level",
        "debug",
        env={
            "UDEVER_DATABASE_URL": url,
            "UDEVER_PLAYGROUND_OPEN": "true",
            "UDEVER_PLAYGROUND_REQUESTS_PER_MINUTE": str(GUEST_REQUESTS),
            "UDEVER_PLAYGROUND_TOKENS_PER_MINUTE": str(GUEST_TOKENS),
        },
    )


@pytest.fixture(scope="module")
def accounts_names() -> Iterator[int]:
    return count()


@pytest.fixture
def secret(accounts: Accounts, accounts_names: Iterator[int]) -> str:
    """The key of an account of its own, with credit."""
    secret, key = accounts.keys.create(account=f"player-{next(accounts_names)}")
    accounts.ledger.topup(key.account, microcredits=CREDIT)
    return secret


@pytest.fixture
def guest(server: Any, accounts_names: Iterator[int]) -> Iterator[httpx.Client]:
    """A visitor from an address of its own."""
    number = next(accounts_names)
    address = {"x-forwarded-for": f"10.1.{number // 256}.{number % 256}"}
    with httpx.Client(base_url=server.url, headers=address, timeout=60) as client:
        yield client


@pytest.fixture
def player(guest: httpx.Client, secret: str) -> httpx.Client:
    """A visitor who is signed in."""
    return sign_in(guest, secret)


def sign_in(client: httpx.Client, secret: str) -> httpx.Client:
    answer = client.post("/signin", data={"key": secret, "next": "/playground"})
    assert answer.status_code == 303
    page = client.get("/playground", headers={"accept": "text/html"}).text
    client.headers["x-csrf-token"] = re.search(r'<meta name="csrf" content="([0-9a-f]{64})">', page)[1]
    return client


@pytest.fixture
def vectors(server: Any, secret: str) -> Callable[..., np.ndarray]:
    """vectors(texts, role, dimensions=64) are the API's own."""

    def embed(texts: list[str], role: str, **fields: Any) -> np.ndarray:
        body = {"model": MODEL, "input": texts, "input_type": role, **fields}
        headers = {"authorization": f"Bearer {secret}"}
        data = httpx.post(f"{server.url}/v1/embeddings", json=body, headers=headers, timeout=60).json()["data"]
        return np.array([row["embedding"] for row in data])

    return embed


def cells(page: str) -> list[tuple[list[float], list[int], bool, str]]:
    """(cosines by size, ranks by size, framed, what is shown) of each cell of a page's grid."""
    return [
        ([float(x) for x in cosines.split(",")], [int(x) for x in ranks.split(",")], bool(best), shown)
        for best, cosines, ranks, _, shown in CELL.findall(page)
    ]


# ---- what a run says


def test_the_grid_is_the_cosines_of_the_apis_vectors_at_every_size(player: httpx.Client, vectors: Any) -> None:
    sizes = player.post("/playground/run", json=RUN).json()["sizes"]
    assert [size["dimensions"] for size in sizes] == SIZES
    for size in sizes:
        dimensions = size["dimensions"]
        queries, documents = (
            vectors(texts, role, dimensions=dimensions) for texts, role in ((QUERIES, "query"), (DOCUMENTS, "document"))
        )
        expected = queries @ documents.T
        np.testing.assert_allclose(size["cosines"], expected, atol=1e-5)
        assert size["ranks"] == (np.argsort(np.argsort(-expected, axis=1), axis=1) + 1).tolist()
    assert sizes[-1]["agreement"] == {"best_kept": 3, "queries": 3, "spearman": 1.0, "kendall": 1.0}


def test_a_shorter_vectors_agreement_is_told(player: httpx.Client) -> None:
    sizes = player.post("/playground/run", json=RUN).json()["sizes"]
    full = np.argmin(sizes[-1]["ranks"], axis=1)
    for size in sizes:
        assert size["agreement"]["best_kept"] == sum(np.argmin(size["ranks"], axis=1) == full)


def test_tokens_price_time_and_map(player: httpx.Client, server: Any, secret: str) -> None:
    told = player.post("/playground/run", json={**RUN, "dimensions": 64}).json()
    headers = {"authorization": f"Bearer {secret}"}
    for field, texts in (("query", QUERIES), ("document", DOCUMENTS)):
        body = {"model": f"{MODEL}:{field}", "input": texts}
        counted = httpx.post(f"{server.url}/v1/tokenize", json=body, headers=headers).json()
        side = told["queries" if field == "query" else "documents"]
        assert [text["tokens"] for text in side] == [row["tokens"] for row in counted["data"]]
    assert told["dimensions"] == 64
    assert (
        told["microcredits"]
        == told["usage"]["total_tokens"]
        == sum(t["tokens"] for t in told["queries"] + told["documents"])
    )
    latency = told["latency"]
    assert 0 < latency["model_seconds"] < latency["total_seconds"]
    assert latency["queue_seconds"] + latency["model_seconds"] < latency["total_seconds"]
    points = np.array(told["map"]["queries"] + told["map"]["documents"])
    assert points.shape == (7, 2)
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-6)
    assert told["markers"] == {role: list(pair) for role, pair in TRUE_MARKERS.items()}


def test_the_markers_are_the_tokenizers() -> None:
    assert dict(MARKERS) == dict(TRUE_MARKERS)


# ---- who plays, who pays


def test_a_run_is_charged_once_to_who_is_signed_in(player: httpx.Client, accounts: Accounts, secret: str) -> None:
    account = accounts.keys.authenticate(secret).account
    told = player.post("/playground/run", json=RUN).json()
    page = player.post("/playground", data=FORM, headers={"accept": "text/html"})
    assert page.status_code == 200
    assert told["charged"]
    assert told["balance_microcredits"] == CREDIT - told["microcredits"]
    assert accounts.ledger.balance(account) == CREDIT - 2 * told["microcredits"]
    [used] = accounts.ledger.usage(account=account)
    assert (used.tokens, used.requests) == (2 * told["usage"]["total_tokens"], 2)
    assert accounts.ledger.audit().sound


def test_who_cannot_pay_is_told_so_and_keeps_their_texts(server: Any, guest: httpx.Client, accounts: Accounts) -> None:
    poor, _ = accounts.keys.create(account="poor player")
    sign_in(guest, poor)
    assert error(guest.post("/playground/run", json=RUN)) == (402, None, "insufficient_quota")
    page = guest.post("/playground", data=FORM, headers={"accept": "text/html"})
    assert page.status_code == 402
    assert "microcredits are needed" in page.text
    assert all(text in unescape(page.text) for text in QUERIES + DOCUMENTS)


def test_a_session_needs_its_token(player: httpx.Client) -> None:
    for path, body in (
        ("/playground/run", {"json": RUN}),
        ("/playground/count", {"json": RUN}),
        ("/playground", {"data": FORM}),
    ):
        assert error(player.post(path, headers={"x-csrf-token": "0" * 64}, **body)) == (403, None, "csrf_failed")
        assert error(player.post(path, headers={"sec-fetch-site": "cross-site"}, **body)) == (403, None, "csrf_failed")


def test_a_keys_scope_holds_here_too(guest: httpx.Client, accounts: Accounts) -> None:
    narrow, _ = accounts.keys.create(account="narrow", models=["another"])
    accounts.ledger.topup("narrow", microcredits=CREDIT)
    sign_in(guest, narrow)
    assert error(guest.post("/playground/run", json=RUN))[0] == 403
    assert error(guest.post("/playground/count", json=RUN))[0] == 403
    page = guest.get("/playground", headers={"accept": "text/html"}).text
    assert re.search(r'<option value="udever-nano" selected disabled>\s*udever-nano: not for your key', page)


def test_guests_play_for_nothing_and_not_for_ever(guest: httpx.Client) -> None:
    body = {"model": MODEL, "queries": ["a"], "documents": ["b"]}
    told = guest.post("/playground/run", json=body).json()
    assert (told["charged"], told["balance_microcredits"]) == (False, None)
    answers = [guest.post("/playground/run", json=body) for _ in range(GUEST_REQUESTS)]
    assert [answer.status_code for answer in answers] == [200] * (GUEST_REQUESTS - 1) + [429]
    assert error(answers[-1])[2] == "rate_limit_exceeded"
    assert int(answers[-1].headers["retry-after"]) >= 1
    page = guest.post("/playground", data=FORM, headers={"accept": "text/html"})
    assert page.status_code == 429
    assert "requests per minute" in page.text
    other = guest.post("/playground/run", json=body, headers={"x-forwarded-for": "10.200.0.1"})
    assert other.status_code == 200


def test_guests_have_so_many_tokens(guest: httpx.Client) -> None:
    long = {**RUN, "documents": ["word " * 300]}
    assert guest.post("/playground/run", json=long).status_code == 200
    refused = guest.post("/playground/run", json=long)
    assert error(refused)[2] == "rate_limit_exceeded"
    assert "tokens per minute" in refused.json()["error"]["message"]


def test_a_playground_that_is_not_open_refuses_strangers(tmp_path: Path) -> None:
    with in_process(database_url=f"sqlite:///{tmp_path / 'closed.sqlite'}", load="lazy") as client:
        for path in ("/playground/run", "/playground/count"):
            assert error(client.post(path, json=RUN)) == (401, None, "invalid_api_key")
        page = client.get("/playground", headers={"accept": "text/html"})
        assert page.status_code == 200
        assert 'href="/signin?next=/playground"' in page.text
        refused = client.post("/playground", data=FORM, headers={"accept": "text/html"})
        assert refused.status_code == 401
        assert QUERIES[1] in refused.text
        assert client.get("/health/ready").status_code == 200
        assert "udever-nano" in client.app.state.service.hosting.states  # and it was loaded for nobody
        assert client.app.state.service.hosting.states["udever-nano"] == "waiting"


def test_a_server_without_accounts_is_open_and_counting_loads_nothing() -> None:
    with in_process(auth=False, load="lazy") as client:
        assert error(client.post("/playground/count", json=RUN))[::2] == (503, "model_loading")
        told = client.post("/playground/run", json=RUN).json()
        assert told["charged"] is False
        assert client.post("/playground/count", json=RUN).json()["total_tokens"] == told["usage"]["total_tokens"]
        for _ in range(30):  # the API beside it has no limit either
            assert client.post("/playground/run", json=RUN).status_code == 200


def in_process(**fields: Any) -> TestClient:
    """A service within this process, for settings that need no other."""
    return TestClient(create_app(Settings(**fields)), base_url="http://127.0.0.1")


# ---- limits


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"queries": []}, (400, "queries", "empty_array")),
        ({"documents": []}, (400, "documents", "empty_array")),
        ({"queries": [""]}, (400, "queries[0]", "empty_string")),
        ({"queries": ["a"] * (MAX_QUERIES + 1)}, (400, "queries", "array_above_max_length")),
        ({"documents": ["a"] * (MAX_DOCUMENTS + 1)}, (400, "documents", "array_above_max_length")),
        ({"documents": ["a", "a" * (MAX_CHARACTERS + 1)]}, (400, "documents[1]", "string_above_max_length")),
        (
            {"documents": ["ab " * 1300] * (MAX_TOTAL_CHARACTERS // 3900 + 1)},
            (400, "documents", "string_above_max_length"),
        ),
        ({"documents": ["a", "word " * 700]}, (400, "documents[1]", "context_length_exceeded")),
        ({"dimensions": 100}, (400, "dimensions", "invalid_value")),
        ({"model": "nobody"}, (404, "model", "model_not_found")),
        ({"question": "?"}, (400, "question", "unknown_parameter")),
        ({"queries": [1]}, (400, "queries[0]", "invalid_type")),
    ],
)
def test_what_cannot_be_run_is_named_and_costs_nothing(
    player: httpx.Client, accounts: Accounts, secret: str, fields: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    assert error(player.post("/playground/run", json={**RUN, **fields})) == expected
    assert accounts.ledger.balance(accounts.keys.authenticate(secret).account) == CREDIT


def test_the_largest_run_fits(player: httpx.Client) -> None:
    length = MAX_TOTAL_CHARACTERS // (MAX_QUERIES + MAX_DOCUMENTS)
    texts = [(f"{i} " + "河 the river and the sea " * 50)[:length] for i in range(MAX_DOCUMENTS)]
    form = {"model": MODEL, "query": texts[:MAX_QUERIES], "document": texts}
    page = player.post("/playground", data=form, headers={"accept": "text/html"})
    assert page.status_code == 200, re.findall(r'role="alert">.*?</div>', page.text, re.S)
    assert len(cells(page.text)) == MAX_QUERIES * MAX_DOCUMENTS


# ---- counting


def test_counting_is_free_and_an_empty_row_counts_nothing(
    player: httpx.Client, accounts: Accounts, secret: str
) -> None:
    body = {"model": MODEL, "queries": ["a text", "", " \n"], "documents": ["word " * 700, "a text"]}
    told = player.post("/playground/count", json=body).json()
    assert told["queries"][1:] == [0, 0]
    assert told["queries"][0] == told["documents"][1] > 2
    assert told["documents"][0] > told["max_tokens"] == 512
    assert told["total_tokens"] == told["microcredits"] == sum(told["queries"] + told["documents"])
    assert accounts.ledger.balance(accounts.keys.authenticate(secret).account) == CREDIT


def test_counting_has_a_limit_by_address_too(guest: httpx.Client) -> None:
    body = {"model": MODEL, "queries": ["a"], "documents": []}
    codes = {guest.post("/playground/count", json=body).status_code for _ in range(300)}
    assert codes == {200, 429}


# ---- the page


def test_the_page_shows_the_runs_numbers(player: httpx.Client) -> None:
    told = player.post("/playground/run", json=RUN).json()
    page = player.post("/playground", data={**FORM, "sized": MODEL, "size": "1"}, headers={"accept": "text/html"})
    found = cells(page.text)
    assert len(found) == len(QUERIES) * len(DOCUMENTS)
    for index, (cosines, ranks, framed, shown) in enumerate(found):
        row, column = divmod(index, len(DOCUMENTS))
        np.testing.assert_allclose(cosines, [size["cosines"][row][column] for size in told["sizes"]], atol=2e-6)
        assert ranks == [size["ranks"][row][column] for size in told["sizes"]]
        assert framed == (ranks[1] == 1)
        assert float(shown.replace("−", "-")) == pytest.approx(cosines[1], abs=0.0051)
    assert page.headers["cache-control"] == "no-store"
    assert len(page.content) < 100_000


def test_line_breaks_of_a_form_are_those_of_the_api(player: httpx.Client) -> None:
    code = "def f(x):\n    return x\n"
    told = player.post("/playground/run", json={**RUN, "documents": [code]}).json()
    page = player.post(
        "/playground", data={**FORM, "document": [code.replace("\n", "\r\n")]}, headers={"accept": "text/html"}
    )
    np.testing.assert_allclose(
        [cell[0][2] for cell in cells(page.text)], np.ravel(told["sizes"][2]["cosines"]), atol=2e-6
    )
    assert f">\n{code}</textarea>" in page.text


def test_rows_come_and_go_without_a_script(guest: httpx.Client) -> None:
    def rows(**fields: str) -> tuple[list[str], list[str]]:
        page = guest.post("/playground", data={**FORM, **fields}, headers={"accept": "text/html"})
        assert page.status_code == 200
        page, _, _ = page.text.partition("<template")
        return tuple(
            [unescape(text) for text in re.findall(rf'name="{role}"[^>]*>\n([^<]*)</textarea>', page)]
            for role in ("query", "document")
        )

    assert rows(add="query") == ([*QUERIES, ""], DOCUMENTS)
    assert rows(remove="document-1") == (QUERIES, [DOCUMENTS[0], *DOCUMENTS[2:]])
    assert rows(remove="query-99") == (QUERIES, DOCUMENTS)
    assert rows(remove="nobody--1", add="all")[0] == QUERIES
    assert rows(query="", remove="query-0") == ([""], DOCUMENTS)
    assert len(rows(document=["d"] * MAX_DOCUMENTS, add="document")[1]) == MAX_DOCUMENTS


def test_an_empty_row_is_not_sent_and_the_others_keep_their_numbers(player: httpx.Client) -> None:
    form = {**FORM, "query": ["a", " ", "b"], "document": ["c"]}
    page = player.post("/playground", data=form, headers={"accept": "text/html"}).text
    assert re.findall(r'<th scope="row"><span class="grid-label">(\w+)', page) == ["Q1", "Q3"]
    wrong = player.post(
        "/playground", data={**form, "query": ["a", "", "word " * 700]}, headers={"accept": "text/html"}
    )
    assert wrong.status_code == 400
    assert re.search(r'id="query-3"[^>]*aria-invalid="true"', wrong.text)
    assert "however Q3 has" in wrong.text
    nothing = player.post("/playground", data={**form, "query": ["", " "]}, headers={"accept": "text/html"})
    assert nothing.status_code == 400
    assert "Write a query first." in nothing.text


def test_what_is_typed_is_text(guest: httpx.Client) -> None:
    nasty = [
        "</textarea><script>alert(1)</script>",
        "'\"><img src=x onerror=alert(1)>",
        "{{ 7 * 7 }}",
        "</code></pre><b>",
    ]
    form = {"model": MODEL, "query": nasty, "document": nasty, "preset": "<script>", "size": "<b>", "sized": MODEL}
    page = guest.post("/playground", data=form, headers={"accept": "text/html"}).text
    assert len(cells(page)) == 16
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "</pre><b>" not in page
    assert "{{ 7 * 7 }}" in page
    bad_model = guest.post("/playground", data={**form, "model": "<script>x</script>"}, headers={"accept": "text/html"})
    assert bad_model.status_code == 404
    assert "<script>x" not in bad_model.text


@pytest.mark.parametrize("preset", ["languages", "code", "faq", "blank", "nobody's", ""])
def test_presets(guest: httpx.Client, preset: str) -> None:
    page = guest.get("/playground", params={"preset": preset, "model": MODEL}, headers={"accept": "text/html"})
    assert page.status_code == 200
    assert len(page.content) < 40_000
    assert page.headers["content-security-policy"].startswith("default-src 'none'")


# ---- nothing is kept


def test_texts_are_neither_logged_nor_stored(
    player: httpx.Client, guest: httpx.Client, server: Any, url: str, accounts: Accounts
) -> None:
    for text in (SECRET_TEXT, f"{SECRET_TEXT} " * 200, f"{SECRET_TEXT} " * 1000):
        body = {**RUN, "queries": [text], "documents": [text]}
        player.post("/playground/run", json=body)
        player.post("/playground/count", json=body)
        player.post("/playground", data={**FORM, "query": text}, headers={"accept": "text/html"})
        player.post("/playground", data={**FORM, "model": text}, headers={"accept": "text/html"})
    player.post(
        "/playground/run", content=f'{{"{SECRET_TEXT}": '.encode(), headers={"content-type": "application/json"}
    )
    lines = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
    runs = [line for line in lines if line.get("route") == "/playground/run" and line.get("tokens")]
    assert runs
    assert {"queue_seconds", "model_seconds"} <= runs[-1].keys()
    assert SECRET_TEXT not in server.log
    folder = Path(url.removeprefix("sqlite:///")).parent
    assert not any(SECRET_TEXT.encode() in path.read_bytes() for path in folder.iterdir())


# ---- requests to copy


def test_the_requests_to_copy_run_and_give_the_grid(player: httpx.Client, secret: str, tmp_path: Path) -> None:
    nasty = ['it\'s "quoted" $HOME `id`\n\\ JSON', "JSON", "${process.env.PATH}", "\u2028 end'; --"]
    form = {"model": MODEL, "query": QUERIES, "document": nasty, "sized": MODEL, "size": "0"}
    page = player.post("/playground", data=form, headers={"accept": "text/html"}).text
    expected = np.array([cell[0][0] for cell in cells(page)]).reshape(3, 4)
    codes = re.findall(r'aria-label="(curl|Python|JavaScript)"><code>(.*?)</code>', page, re.S)
    copied = {title: unescape(re.sub(r"</?span[^>]*>", "", code)) for title, code in codes}
    assert secret not in page

    def run(*command: str) -> str:
        environment = os.environ | {"UDEVER_KEY": secret, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    decoder, told = json.JSONDecoder(), run("bash", "-c", copied["curl"])
    first, end = decoder.raw_decode(told)
    second = decoder.decode(told[end:])
    queries, documents = (np.array([row["embedding"] for row in answer["data"]]) for answer in (first, second))
    np.testing.assert_allclose(queries @ documents.T, expected, atol=1e-5)
    python = copied["Python"] + "\nprint((queries @ documents.T).tolist())"
    np.testing.assert_allclose(json.loads(run(sys.executable, "-c", python).splitlines()[-1]), expected, atol=1e-5)
    script = tmp_path / "copied.mjs"
    script.write_text(
        copied["JavaScript"].replace("console.log(", "console.log(JSON.stringify(").replace("));", ")));")
    )
    if node := _node():
        np.testing.assert_allclose(json.loads(run(node, str(script))), expected, atol=1e-5)


def _node() -> str | None:
    import shutil

    return shutil.which("node")
