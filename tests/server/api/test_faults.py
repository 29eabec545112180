"""What breaks while a real process serves: its model, its disk, its database. Each time it says so, and goes on."""

import resource
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from udever.server.accounts import Accounts, open_accounts

MODEL = "udever-nano"
CRASHING = str(Path(__file__).with_name("crashing.py"))
CRASH, FAIL = 77, 78
GONE_SECONDS = 5.0


def embed(client: httpx.Client, *texts: str) -> httpx.Response:
    return client.post("/v1/embeddings", json={"model": MODEL, "input": list(texts)})


def text_of(tokens: int, embedder: Any) -> str:
    """A text that the model reads as exactly so many tokens, markers included."""
    text = "a" + " a" * (tokens - 3)
    assert embedder.count_tokens([text]) == [tokens]
    return text


@pytest.fixture
def funded(tmp_path: Path) -> Iterator[tuple[str, Accounts, dict[str, str]]]:
    """A SQLite database's URL, its accounts, and the headers of a key with credit."""
    url = f"sqlite:///{tmp_path / 'faults.sqlite'}"
    with open_accounts(url) as accounts:
        yield url, accounts, key_with_credit(accounts)


def crashing_server(start_server: Callable[..., Any], url: str) -> Any:
    environment = {"UDEVER_DATABASE_URL": url, "CRASH": str(CRASH), "FAIL": str(FAIL)}
    return start_server(env=environment, program=(CRASHING,))


def key_with_credit(accounts: Accounts) -> dict[str, str]:
    secret, _ = accounts.keys.create(account="a")
    accounts.ledger.topup("a", microcredits=10**9)
    return {"authorization": f"Bearer {secret}"}


def test_a_model_thread_that_dies_turns_ready_red_and_begins_again(
    start_server: Callable[..., Any], funded: tuple[str, Accounts, dict[str, str]], embedder: Any
) -> None:
    url, accounts, headers = funded
    server = crashing_server(start_server, url)
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as client:
        assert embed(client, "fine").status_code == 200
        paid = accounts.ledger.balance("a")
        dead = embed(client, text_of(CRASH, embedder))
        assert client.get("/health/ready").status_code == 503
        assert client.get("/health/live").status_code == 200
        assert (dead.status_code, dead.json()["error"]["type"]) == (503, "server_error")
        assert "out of order" not in dead.text + server.log
        assert int(dead.headers["retry-after"]) >= 1
        server.wait("/health/ready")
        assert accounts.ledger.balance("a") == paid
        assert embed(client, "fine").status_code == 200
        assert f'udever_model_thread_restarts{{model="{MODEL}"}} 1.0' in client.get("/metrics").text


def test_a_text_that_fails_in_the_model_fails_alone_and_is_named(
    start_server: Callable[..., Any], funded: tuple[str, Accounts, dict[str, str]], embedder: Any
) -> None:
    url, accounts, headers = funded
    server = crashing_server(start_server, url)
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as client, ThreadPoolExecutor(8) as pool:
        embed(client, "fine")
        before = accounts.ledger.balance("a")
        bad = pool.submit(embed, client, "one", "two", text_of(FAIL, embedder), "four")
        good = list(pool.map(lambda i: embed(client, f"neighbour {i}"), range(20)))
        assert [response.status_code for response in good] == [200] * 20
        assert bad.result().status_code == 500
        assert bad.result().json()["error"]["param"] == "input[2]"
        assert "ValueError" in server.log
        assert "out of order" not in bad.result().text + server.log
        assert client.get("/health/ready").status_code == 200
        used = sum(response.json()["usage"]["total_tokens"] for response in good)
        assert accounts.ledger.balance("a") == before - used


def test_a_full_disk_is_said_and_nothing_is_lost(
    start_server: Callable[..., Any], funded: tuple[str, Accounts, dict[str, str]]
) -> None:
    """The kernel refuses each write beyond a file size, as it does on a full disk."""
    url, accounts, headers = funded
    server = start_server(env={"UDEVER_DATABASE_URL": url})
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as client:
        assert embed(client, "fine").status_code == 200
        before = accounts.ledger.balance("a")
        _, hard = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (4096, hard))
        full = embed(client, "no room to write what this costs")
        live = client.get("/health/live")
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        assert live.status_code == 200
        assert (full.status_code, full.json()["error"]["code"]) == (503, "store_unavailable")
        assert int(full.headers["retry-after"]) >= 1
        assert accounts.ledger.balance("a") == before
        after = embed(client, "fine")
        assert after.status_code == 200
        assert accounts.ledger.balance("a") == before - after.json()["usage"]["total_tokens"]
        assert accounts.ledger.audit().sound
    assert server.stop(number=signal.SIGTERM) == 0


def assert_only_answers_were_paid(database_url: str, pepper: str, spent: list[httpx.Response]) -> None:
    tokens = sum(response.json()["usage"]["total_tokens"] for response in spent if response.status_code == 200)
    with open_accounts(database_url, pepper=pepper) as accounts:
        audit = accounts.ledger.audit()
        assert (audit.sound, audit.open_requests) == (True, 0)
        assert accounts.ledger.balance("a") == 10**9 - tokens


@pytest.mark.postgres
def test_postgresql_gone_for_five_seconds(
    start_server: Callable[..., Any], cluster: Any, postgres_url: str, wait_until: Callable[..., None]
) -> None:
    pepper = "a pepper for tests only"
    with open_accounts(postgres_url, pepper=pepper) as accounts:
        headers = key_with_credit(accounts)
    server = start_server(env={"UDEVER_DATABASE_URL": postgres_url, "UDEVER_PEPPER": pepper})
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as client:
        spent = [embed(client, "before")]
        cluster.stop()
        try:
            back = time.monotonic() + GONE_SECONDS
            while time.monotonic() < back:
                refused = embed(client, "meanwhile")
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
                assert int(refused.headers["retry-after"]) >= 1
                assert client.get("/health/live").status_code == 200
                time.sleep(0.5)
        finally:
            cluster.start()
        wait_until(lambda: (spent.append(embed(client, "after")) or spent[-1].status_code) == 200)
    assert server.stop() == 0
    assert_only_answers_were_paid(postgres_url, pepper, spent)


@pytest.mark.postgres
def test_postgresql_read_only_for_a_while(
    start_server: Callable[..., Any], cluster: Any, postgres_url: str, wait_until: Callable[..., None]
) -> None:
    pepper, name = "a pepper for tests only", postgres_url.partition("@/")[2].partition("?")[0]
    with open_accounts(postgres_url, pepper=pepper) as accounts:
        headers = key_with_credit(accounts)

    def set_read_only(value: str) -> None:
        cluster.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = {value}")
        cluster.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")

    server = start_server(env={"UDEVER_DATABASE_URL": postgres_url, "UDEVER_PEPPER": pepper})
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as client:
        spent = [embed(client, "before")]
        wait_until(lambda: client.get("/metrics").text.count('outcome="settled"') > 0)
        set_read_only("on")
        for _ in range(5):
            refused = embed(client, "meanwhile")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
            assert int(refused.headers["retry-after"]) >= 1
        set_read_only("off")
        wait_until(lambda: (spent.append(embed(client, "after")) or spent[-1].status_code) == 200)
    assert server.stop() == 0
    assert_only_answers_were_paid(postgres_url, pepper, spent)
