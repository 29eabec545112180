"""Who may do what, who pays, and what an operator can do over HTTP."""

import json
import signal
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from udever.server.accounts import open_accounts
from udever.server.schemas import CreateKeyRequest

MODEL = "udever-nano"
KEYS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "wrong": {},
    "revoked": {"revoked": True},
    "expired": {"expired": True},
    "other model": {"models": ["another-model"]},
    "query only": {"roles": ["query"]},
    "plain": {},
    "admin": {"admin": True},
}
EMBED = ("POST", "/v1/embeddings", {"model": MODEL, "input": "a"})
QUERY = ("POST", "/v1/embeddings", {"model": MODEL, "input": "a", "input_type": "query"})
RERANK = ("POST", "/v1/rerank", {"model": MODEL, "query": "a", "documents": ["b"]})
COUNT = ("POST", "/v1/tokenize", {"model": MODEL, "input": "a"})
SIMILAR = ("POST", "/v1/similarity", {"model": MODEL, "a": "a", "b": "b"})
MODELS = ("GET", "/v1/models", None)
RETRIEVE = ("GET", f"/v1/models/{MODEL}", None)
LIST_KEYS = ("GET", "/v1/admin/keys", None)
BALANCES = ("GET", "/v1/admin/accounts", None)
USAGE = ("GET", "/v1/admin/usage", None)
MAKE_KEY = ("POST", "/v1/admin/keys", {"account": "matrix"})
REVOKE = ("DELETE", "/v1/admin/keys/key-nobody", None)
CHANGE = ("PATCH", "/v1/admin/keys/key-nobody", {"name": "x"})
LIVE = ("GET", "/health/live", None)
ADMIN = [LIST_KEYS, BALANCES, USAGE, MAKE_KEY, REVOKE, CHANGE]
ENDPOINTS = [EMBED, QUERY, RERANK, COUNT, SIMILAR, MODELS, RETRIEVE, *ADMIN, LIVE]


def expected(who: str, endpoint: tuple[str, str, Any]) -> int:
    if endpoint == LIVE:
        return 200
    if who in ("none", "wrong", "revoked", "expired"):
        return 401
    if endpoint in ADMIN and who != "admin":
        return 403
    if who == "other model" and endpoint not in (MODELS, RETRIEVE):
        return 403
    if who == "other model" and endpoint == RETRIEVE:
        return 404
    if who == "query only" and endpoint in (EMBED, RERANK, COUNT):
        return 403
    if endpoint in (REVOKE, CHANGE):
        return 404
    return 201 if endpoint == MAKE_KEY else 200


@pytest.fixture(scope="module")
def secrets(make_key: Callable[..., str]) -> dict[str, str | None]:
    made = {who: make_key(**fields) if fields is not None else None for who, fields in KEYS.items()}
    return made | {"wrong": str(made["plain"])[:-4] + "0000"}


@pytest.mark.parametrize("who", KEYS)
def test_the_matrix(client_for: Callable[..., Any], secrets: dict[str, str | None], who: str) -> None:
    client = client_for(secrets[who])
    for endpoint in ENDPOINTS:
        method, path, body = endpoint
        response = client.http.request(method, path, json=body)
        assert response.status_code == expected(who, endpoint), (endpoint, response.text)
        if response.status_code == 401:
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert str(secrets[who]) not in response.text
        if response.status_code == 403:
            assert response.json()["error"]["code"] in ("model_not_found", "insufficient_permissions")


@pytest.mark.parametrize("header", ["", "Bearer", "Basic dXNlcjpwYXNz", "Bearer udk-", "Bearer \xff\xfe", "x"])
def test_odd_authorization_headers(client_for: Callable[..., Any], header: str) -> None:
    client = client_for(None)
    response = client.http.post("/v1/embeddings", headers={"authorization": header.encode("latin-1")}, json=EMBED[2])
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"


def test_a_key_sees_the_models_of_its_scope(client_for: Callable[..., Any], make_key: Callable[..., str]) -> None:
    def seen(**scope: Any) -> list[str]:
        return [model["id"] for model in client_for(make_key(**scope)).http.get("/v1/models").json()["data"]]

    assert seen() == [MODEL, f"{MODEL}:query", f"{MODEL}:document"]
    assert seen(roles=["query"]) == [MODEL, f"{MODEL}:query"]
    assert seen(models=["other"]) == []


def test_usage_is_paid_exactly(
    client_for: Callable[..., Any], make_key: Callable[..., str], service_accounts: Any, wait_until: Callable[..., None]
) -> None:
    client = client_for(make_key(account="payer"))
    service_accounts.ledger.topup("payer", microcredits=1000)
    response = client.embed(["one", "two three"])
    tokens = response.json()["usage"]["total_tokens"]
    assert response.headers["x-udever-balance-microcredits"] == str(1000 - tokens)
    assert client.embed("").status_code == 400
    assert service_accounts.ledger.balance("payer") == 1000 - tokens
    wait_until(lambda: service_accounts.ledger.audit().open_requests == 0)
    assert service_accounts.ledger.audit().sound


def test_fifty_clients_cannot_overdraw(
    client_for: Callable[..., Any], make_key: Callable[..., str], service_accounts: Any
) -> None:
    client = client_for(make_key(account="crowd"))
    cost = client.post("/v1/tokenize", {"model": MODEL, "input": "one text"}).json()["microcredits"]
    service_accounts.ledger.topup("crowd", microcredits=20 * cost + cost - 1)
    with ThreadPoolExecutor(50) as pool:
        statuses = list(pool.map(lambda _: client.embed("one text").status_code, range(50)))
    assert sorted(statuses) == [200] * 20 + [402] * 30
    assert service_accounts.ledger.balance("crowd") == cost - 1
    refused = client.embed("one text")
    assert refused.headers["x-should-retry"] == "false"
    assert refused.json()["error"]["type"] == refused.json()["error"]["code"] == "insufficient_quota"


def test_limits_stand_in_the_headers(client_for: Callable[..., Any], make_key: Callable[..., str]) -> None:
    client = client_for(make_key(requests_per_minute=2, tokens_per_minute=1000))
    headers = client.embed("a").headers
    assert headers["x-ratelimit-limit-requests"] == "2"
    assert headers["x-ratelimit-remaining-requests"] == "1"
    assert headers["x-ratelimit-limit-tokens"] == "1000"
    assert 990 < int(headers["x-ratelimit-remaining-tokens"]) < 1000
    assert headers["x-ratelimit-reset-requests"].endswith("ms")
    client.embed("a")
    refused = client.embed("a")
    assert refused.status_code == 429
    assert refused.json()["error"] | {"message": ""} == {
        "message": "", "type": "requests", "param": None, "code": "rate_limit_exceeded"
    }  # fmt: skip
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert 0 < int(refused.headers["retry-after-ms"]) <= 60_000
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"


def test_a_request_larger_than_the_whole_limit_is_not_to_be_retried(
    client_for: Callable[..., Any], make_key: Callable[..., str]
) -> None:
    refused = client_for(make_key(tokens_per_minute=10)).embed("word " * 100)
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "tokens")
    assert refused.headers["x-should-retry"] == "false"


def test_one_request_after_the_other_is_never_concurrent(
    client_for: Callable[..., Any], make_key: Callable[..., str]
) -> None:
    client = client_for(make_key(max_concurrent=1))
    assert [client.embed("a").status_code for _ in range(20)] == [200] * 20


def test_an_operators_day(
    client_for: Callable[..., Any], make_key: Callable[..., str], wait_until: Callable[..., None]
) -> None:
    boss = client_for(make_key(admin=True))
    made = boss.post("/v1/admin/keys", {"account": "shop", "name": "web", "requests_per_minute": 100}).json()
    shop = client_for(made["secret"])
    assert shop.embed("a").status_code == 402
    topup = boss.post("/v1/admin/accounts/shop/topups", {"microcredits": 50, "note": "invoice 1"})
    assert (topup.status_code, topup.json()["balance_microcredits"]) == (201, 50)
    tokens = shop.embed("a").json()["usage"]["total_tokens"]
    rows = boss.http.get("/v1/admin/usage", params={"account": "shop", "group_by": ["model", "role"]}).json()["data"]
    assert [(row["model"], row["role"], row["tokens"], row["requests"]) for row in rows] == [
        (MODEL, "document", tokens, 1)
    ]
    balances = {
        row["account"]: row["balance_microcredits"] for row in boss.http.get("/v1/admin/accounts").json()["data"]
    }
    assert balances["shop"] == 50 - tokens
    listed = boss.http.get("/v1/admin/keys", params={"account": "shop"})
    assert [key["name"] for key in listed.json()["data"]] == ["web"]
    assert made["secret"] not in listed.text
    key_id = made["key"]["id"]
    assert made["key"]["made_by"] == boss.http.get("/v1/admin/keys").json()["data"][-2]["id"]
    limited = boss.http.patch(f"/v1/admin/keys/{key_id}", json={"roles": ["query"], "expires_in_seconds": 900}).json()
    assert (limited["roles"], limited["requests_per_minute"], limited["name"]) == (["query"], 100, "web")
    assert limited["expires_at"] > datetime.now(UTC).isoformat()
    assert shop.embed("a").status_code == 403
    freed = {"roles": None, "requests_per_minute": None, "expires_in_seconds": None}
    freed_key = boss.http.patch(f"/v1/admin/keys/{key_id}", json=freed).json()
    assert freed_key == made["key"] | {"requests_per_minute": None, "expires_at": None}
    assert "x-ratelimit-limit-requests" not in shop.embed("a").headers
    rotated = boss.post(f"/v1/admin/keys/{key_id}/rotate", {"grace_seconds": 0}).json()
    wait_until(lambda: shop.embed("a").status_code == 401)
    assert client_for(rotated["secret"]).embed("a").status_code == 200
    assert boss.http.delete(f"/v1/admin/keys/{key_id}").json()["revoked_at"]
    assert client_for(rotated["secret"]).embed("a").status_code == 401


def test_an_admins_secret_that_was_rotated_away_can_look_but_change_nothing(
    client_for: Callable[..., Any], make_key: Callable[..., str], service_accounts: Any
) -> None:
    leaked = make_key(admin=True, account="leak")
    victim = service_accounts.keys.authenticate(make_key(account="victim"))
    fresh, boss = service_accounts.keys.rotate(leaked[:12], grace_seconds=600)
    before = service_accounts.keys.list()
    thief = client_for(leaked)
    assert thief.http.get("/v1/admin/keys").status_code == 200
    for method, path, body in (
        ("POST", "/v1/admin/keys", {"account": "leak", "admin": True}),
        ("POST", f"/v1/admin/keys/{boss.id}/rotate", {}),
        ("PATCH", f"/v1/admin/keys/{victim.id}", {"name": "x"}),
        ("DELETE", f"/v1/admin/keys/{victim.id}", None),
        ("DELETE", f"/v1/admin/keys/{boss.id}", None),
        ("POST", "/v1/admin/accounts/leak/topups", {"microcredits": 10}),
    ):
        refused = thief.http.request(method, path, json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "beyond_own_key"), path
    assert service_accounts.keys.list() == before
    assert service_accounts.ledger.balance("leak") == 0
    assert client_for(fresh).post("/v1/admin/accounts/leak/topups", {"microcredits": 10}).status_code == 201


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/v1/admin/accounts/nobody/topups", {"microcredits": 1}, 404, "unknown_account"),
        ("DELETE", "/v1/admin/keys/key-none", None, 404, "unknown_key"),
        ("POST", "/v1/admin/keys/key-none/rotate", {}, 404, "unknown_key"),
        ("PATCH", "/v1/admin/keys/key-none", {}, 404, "unknown_key"),
        ("PATCH", "/v1/admin/keys/key-none", {"admin": True}, 400, "unknown_parameter"),
        ("PATCH", "/v1/admin/keys/key-none", {"max_concurrent": 0}, 400, "integer_below_min_value"),
        ("POST", "/v1/admin/keys", {}, 400, "missing_required_parameter"),
        ("POST", "/v1/admin/keys", {"account": "a", "roles": ["passage"]}, 400, "invalid_value"),
        ("GET", "/v1/admin/usage?since=yesterday", None, 400, "invalid_value"),
        ("GET", "/v1/admin/usage?group_by=colour", None, 400, "invalid_value"),
    ],
)
def test_admin_errors(
    client_for: Callable[..., Any],
    make_key: Callable[..., str],
    method: str,
    path: str,
    body: Any,
    status: int,
    code: str,
) -> None:
    response = client_for(make_key(admin=True)).http.request(method, path, json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code), response.text


def test_a_topup_may_be_repeated(client_for: Callable[..., Any], make_key: Callable[..., str]) -> None:
    boss = client_for(make_key(admin=True))
    boss.post("/v1/admin/keys", {"account": "twice"})
    body = {"microcredits": 50, "once": "invoice-7"}
    answers = [boss.post("/v1/admin/accounts/twice/topups", body) for _ in range(3)]
    assert [(answer.status_code, answer.json()["balance_microcredits"]) for answer in answers] == [(201, 50)] * 3
    other = boss.post("/v1/admin/accounts/twice/topups", body | {"microcredits": 51})
    assert (other.status_code, other.json()["error"]["code"]) == (400, "invalid_value")


def test_many_wrong_items_are_one_complaint() -> None:
    with pytest.raises(ValidationError) as refusal:
        CreateKeyRequest.model_validate_json(json.dumps({"account": "a", "models": [1] * 1000}))
    assert refusal.value.error_count() == 1


def test_sign_up_is_off_unless_the_operator_wants_it(client_for: Callable[..., Any]) -> None:
    response = client_for(None).post("/v1/signup")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "signup_disabled")


def test_what_a_killed_server_left_open_is_refunded(
    start_server: Callable[..., Any], tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    url = f"sqlite:///{tmp_path / 'killed.sqlite'}"
    with open_accounts(url) as accounts:
        secret, _ = accounts.keys.create(account="a")
        accounts.ledger.topup("a", microcredits=10**9)
        server = start_server(env={"UDEVER_DATABASE_URL": url})
        headers = {"authorization": f"Bearer {secret}"}
        with httpx.Client(base_url=server.url, headers=headers, timeout=60) as client, ThreadPoolExecutor(4) as pool:
            assert client.post("/v1/embeddings", json=EMBED[2]).status_code == 200
            wait_until(lambda: accounts.ledger.audit().open_requests == 0)
            paid = accounts.ledger.balance("a")
            many = {"model": MODEL, "input": [f"{i} " + "many words " * 100 for i in range(150)]}
            lost = [pool.submit(client.post, "/v1/embeddings", json=many) for _ in range(3)]
            while accounts.ledger.audit().open_requests < 3:
                assert not any(request.done() for request in lost)
            server.stop(number=signal.SIGKILL)
            assert all(isinstance(request.exception(), httpx.TransportError) for request in lost)
    with open_accounts(url, clock=lambda: time.time() + 120) as later:  # when the leases have run out
        assert later.ledger.recover() == 3
        assert later.ledger.balance("a") == paid
        audit = later.ledger.audit()
        assert audit.sound
        assert audit.open_requests == 0


def test_a_database_that_is_locked_is_waited_for_or_said(
    client: Any, service_url: str, service_accounts: Any, wait_until: Callable[..., None]
) -> None:
    with closing(sqlite3.connect(service_url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        try:
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(client.embed, "a")
                time.sleep(1.0)
                assert client.http.get("/health/live").status_code == 200  # the event loop does not wait
                assert not waiting.done() or waiting.result().status_code == 503
                time.sleep(5.0)
        finally:
            other.execute("ROLLBACK")
        response = waiting.result()
    if response.status_code != 200:
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "store_unavailable"
        assert int(response.headers["retry-after"]) >= 1
    assert client.embed("a").status_code == 200
    wait_until(lambda: service_accounts.ledger.audit().open_requests == 0)
    assert service_accounts.ledger.audit().sound


def test_sign_up_gives_credit_a_few_times_a_day(start_server: Callable[..., Any], tmp_path: Path) -> None:
    env = {"UDEVER_DATABASE_URL": f"sqlite:///{tmp_path / 'free.sqlite'}", "UDEVER_SIGNUP_MICROCREDITS": "100"}
    url = start_server(env=env).url
    here, there = ({"x-forwarded-for": address} for address in ("203.0.113.7", "203.0.113.8"))
    made = [httpx.post(f"{url}/v1/signup", headers=here) for _ in range(4)]
    assert [response.status_code for response in made] == [201, 201, 201, 429]
    assert int(made[3].headers["retry-after"]) > 3600
    assert "retry-after-ms" not in made[3].headers
    assert httpx.post(f"{url}/v1/signup", headers=there).status_code == 201
    headers = {"authorization": f"Bearer {made[0].json()['secret']}"}
    answer = httpx.post(f"{url}/v1/embeddings", json=EMBED[2], headers=headers)
    assert int(answer.headers["x-udever-balance-microcredits"]) == 100 - answer.json()["usage"]["total_tokens"]


def test_a_key_that_has_ended_is_not_changed(client_for: Callable[..., Any], make_key: Callable[..., str]) -> None:
    boss = client_for(make_key(admin=True))
    dead = make_key(account="dead", revoked=True)[:12]
    for answer in (
        boss.http.patch(f"/v1/admin/keys/{dead}", json={"name": "x"}),
        boss.post(f"/v1/admin/keys/{dead}/rotate", {}),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "key_ended")
        assert "revoked" in answer.json()["error"]["message"]
