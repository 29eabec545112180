"""POST /v1/embeddings to OpenAI's contract: every field, every documented error, nothing silent."""

import json
import re
from base64 import b64decode
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

MODEL = "udever-nano"
LIMIT = 512
LONG = "one two three four five six seven " * 200


def fault(response: httpx.Response) -> tuple[int, str, str | None, str | None]:
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return response.status_code, body["error"]["type"], body["error"]["param"], body["error"]["code"]


INVALID = "invalid_request_error"
BAD_FIELDS: list[tuple[dict[str, Any], str | None, str]] = [
    ({"input": None}, "input", "invalid_type"),
    ({"input": 3}, "input", "invalid_type"),
    ({"input": {"text": "a"}}, "input", "invalid_type"),
    ({"input": True}, "input", "invalid_type"),
    ({"input": ""}, "input", "empty_string"),
    ({"input": []}, "input", "empty_array"),
    ({"input": ["a", "b", "c", ""]}, "input[3]", "empty_string"),
    ({"input": ["a", None]}, "input[1]", "invalid_type"),
    ({"input": ["a", 1]}, "input[1]", "invalid_type"),
    ({"input": [1, "a"]}, "input", "invalid_type"),
    ({"input": [1, 2.5]}, "input", "invalid_type"),
    ({"input": [True]}, "input[0]", "invalid_type"),
    ({"input": [[1], []]}, "input[1]", "empty_array"),
    ({"input": [[1], ["a"]]}, "input[1]", "invalid_type"),
    ({"input": [[[1]]]}, "input[0]", "invalid_type"),
    ({"input": [[1], [-1]]}, "input[1]", "invalid_value"),
    ({"input": [100_256]}, "input", "invalid_value"),
    ({"input": [10**30]}, "input", "invalid_value"),
    ({"input": [[50], [10**9]], "token_ids": "native"}, "input[1]", "invalid_value"),
    ({"input": ["a"] * 2049}, "input", "array_above_max_length"),
    ({"input": [[5]] * 2049}, "input", "array_above_max_length"),
    ({"input": ["a", LONG]}, "input[1]", "context_length_exceeded"),
    ({"input": LONG}, "input", "context_length_exceeded"),
    ({"input": [50] * 600, "token_ids": "native"}, "input", "context_length_exceeded"),
    ({"model": None}, "model", "invalid_type"),
    ({"model": ""}, "model", "empty_string"),
    ({"dimensions": 0}, "dimensions", "integer_below_min_value"),
    ({"dimensions": 100}, "dimensions", "invalid_value"),
    ({"dimensions": 512}, "dimensions", "invalid_value"),
    ({"dimensions": "64"}, "dimensions", "invalid_type"),
    ({"encoding_format": "hex"}, "encoding_format", "invalid_value"),
    ({"input_type": "passage"}, "input_type", "invalid_value"),
    ({"model": f"{MODEL}:query", "input_type": "document"}, "input_type", "invalid_value"),
    ({"truncate": "middle"}, "truncate", "invalid_value"),
    ({"token_ids": "o200k_base"}, "token_ids", "invalid_value"),
    ({"user": 7}, "user", "invalid_type"),
    ({"dimension": 64}, "dimension", "unknown_parameter"),
]


@pytest.mark.parametrize(
    ("fields", "param", "code"), BAD_FIELDS, ids=[f"{p}-{c}-{i}" for i, (_, p, c) in enumerate(BAD_FIELDS)]
)
def test_a_bad_field_is_named(client: Any, fields: dict[str, Any], param: str | None, code: str) -> None:
    response = client.post("/v1/embeddings", {"model": MODEL, "input": "a"} | fields)
    assert fault(response) == (400, INVALID, param, code)


def test_missing_fields_are_named(client: Any) -> None:
    assert fault(client.post("/v1/embeddings", {"model": MODEL})) == (
        400,
        INVALID,
        "input",
        "missing_required_parameter",
    )
    assert fault(client.post("/v1/embeddings", {"input": "a"})) == (400, INVALID, "model", "missing_required_parameter")


def test_unknown_fields_are_all_named(client: Any) -> None:
    response = client.embed("a", dimension=64, turncate="end")
    assert "dimension, turncate" in response.json()["error"]["message"]


def test_of_very_many_unknown_fields_some_are_named(client: Any) -> None:
    many = client.embed("a", **{f"x{i}": 1 for i in range(400_000)})
    assert fault(many) == (400, INVALID, "x0", "unknown_parameter")
    named = ", ".join(f"x{i}" for i in range(20))
    assert many.json()["error"]["message"] == f"Unknown parameters: {named} and 399,980 more."
    long = client.embed("a", **{"y" * 1_000_000: 1})
    assert fault(long) == (400, INVALID, "y" * 100, "unknown_parameter")
    assert len(long.content) < 1000


def test_an_unknown_model(client: Any) -> None:
    for name in ("text-embedding-3-small", "no/such:query", f"{MODEL}:passage", ":query"):
        response = client.post("/v1/embeddings", {"model": name, "input": "a"})
        assert fault(response) == (404, INVALID, "model", "model_not_found")


def test_too_many_tokens_in_one_request(client: Any) -> None:
    response = client.embed(["six words that make ten tokens " * 40] * 2048)
    assert fault(response) == (400, "max_tokens_per_request", None, "max_tokens_per_request")


JSON = {"content-type": "application/json"}
BAD_BODIES: list[tuple[bytes, dict[str, str], int, str]] = [
    (b"", JSON, 400, "invalid_json"),
    (b"{", JSON, 400, "invalid_json"),
    (b'{"model": "udever-nano", "input": "\xff\xfe"}', JSON, 400, "invalid_json"),
    (b'{"model": "udever-nano", "input": "\\ud800"}', JSON, 400, "invalid_json"),
    (b'{"model": "udever-nano", "input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", JSON, 400, "invalid_json"),
    (b"[]", JSON, 400, "invalid_type"),
    (b'"text"', JSON, 400, "invalid_type"),
    (b"null", JSON, 400, "invalid_type"),
    (b'{"model": "udever-nano", "input": "a"}', {"content-type": "text/plain"}, 415, "unsupported_content_type"),
    (b'{"model": "udever-nano", "input": "a"}', {}, 415, "unsupported_content_type"),
    (b"model=udever-nano", {"content-type": "application/x-www-form-urlencoded"}, 415, "unsupported_content_type"),
    (b"\x1f\x8b", JSON | {"content-encoding": "gzip"}, 415, "unsupported_content_type"),
]


@pytest.mark.parametrize(("content", "headers", "status", "code"), BAD_BODIES)
def test_a_bad_body(client: Any, content: bytes, headers: dict[str, str], status: int, code: str) -> None:
    response = client.http.post("/v1/embeddings", content=content, headers=headers)
    assert fault(response) == (status, INVALID, None, code)


def test_other_addresses_and_methods(client: Any) -> None:
    assert fault(client.post("/v1/chat/completions", {})) == (404, INVALID, None, "unknown_url")
    assert fault(client.http.get("/v1/embeddings")) == (405, INVALID, None, "method_not_supported")
    assert fault(client.http.get("/v1/models/no/such")) == (404, INVALID, "model", "model_not_found")


@pytest.mark.parametrize("encoding_format", [None, "float", "base64"])
def test_encodings_are_the_same_numbers(client: Any, same: Callable[..., None], encoding_format: str | None) -> None:
    data = client.embed(["a", "b"], encoding_format=encoding_format).json()["data"]
    rows = [row["embedding"] for row in data]
    if encoding_format == "base64":
        rows = [np.frombuffer(b64decode(row), "<f4") for row in rows]
    same(rows, ["a", "b"], "document")
    assert [row["index"] for row in data] == [0, 1]
    assert {row["object"] for row in data} == {"embedding"}


def test_floats_lose_nothing(client: Any) -> None:
    text = "K2"
    exact = np.frombuffer(b64decode(client.embed(text, encoding_format="base64").json()["data"][0]["embedding"]), "<f4")
    spoken = np.array(client.embed(text).json()["data"][0]["embedding"], np.float32)
    assert np.array_equal(exact, spoken)


@pytest.mark.parametrize("dimensions", [64, 128, 256])
def test_dimensions(client: Any, same: Callable[..., None], dimensions: int) -> None:
    row = client.embed("a text", dimensions=dimensions).json()["data"][0]["embedding"]
    same([row], ["a text"], "document", dimensions=dimensions)


@pytest.mark.parametrize(
    ("model", "input_type", "role"),
    [
        (MODEL, None, "document"),
        (MODEL, "query", "query"),
        (MODEL, "search_query", "query"),
        (MODEL, "document", "document"),
        (MODEL, "search_document", "document"),
        (f"{MODEL}:query", None, "query"),
        (f"{MODEL}:document", None, "document"),
        (f"{MODEL}:query", "search_query", "query"),
    ],
)
def test_roles(client: Any, same: Callable[..., None], model: str, input_type: str | None, role: str) -> None:
    response = client.post("/v1/embeddings", {"model": model, "input": "how tall", "input_type": input_type})
    assert response.headers["x-udever-role"] == role
    assert response.json()["model"] == model
    same([response.json()["data"][0]["embedding"]], ["how tall"], role)


def test_the_answer_stands_in_the_order_of_the_input(client: Any, same: Callable[..., None]) -> None:
    texts = [f"text {i} " + "word " * (i * 7 % 90) for i in range(200)]
    data = client.embed(texts).json()["data"]
    same([row["embedding"] for row in data], texts, "document")


def test_2048_inputs(client: Any, same: Callable[..., None]) -> None:
    texts = [f"text {i % 50}" for i in range(2048)]
    data = client.embed(texts).json()["data"]
    assert len(data) == 2048
    same([row["embedding"] for row in data[:50]], texts[:50], "document")
    assert data[50]["embedding"] == pytest.approx(data[0]["embedding"], abs=1e-5)


def test_headers_of_an_answer(client: Any, embedder: Any) -> None:
    headers = client.embed("a").headers
    assert headers["x-request-id"].startswith("req_")
    assert int(headers["openai-processing-ms"]) >= 0
    assert headers["x-udever-fingerprint"] == embedder.fingerprint
    assert headers["x-request-id"] != client.embed("a").headers["x-request-id"]


@pytest.mark.parametrize("truncate", ["end", "start"])
def test_what_is_cut_is_reported(client: Any, embedder: Any, same: Callable[..., None], truncate: str) -> None:
    texts = ["short", LONG]
    body = client.embed(texts, truncate=truncate).json()
    same([row["embedding"] for row in body["data"]], texts, "document", truncate=truncate)
    cut = embedder.count_tokens([LONG])[0] - LIMIT
    assert body["usage"]["truncated"] == [{"index": 1, "tokens": cut, "param": "input[1]"}]
    assert body["usage"]["prompt_tokens"] == LIMIT + embedder.count_tokens(["short"])[0]


def test_a_text_of_exactly_the_limit_is_not_cut(client: Any, embedder: Any) -> None:
    text = "a" + " a" * (LIMIT - 3)
    assert embedder.count_tokens([text]) == [LIMIT]
    assert "truncated" not in client.embed(text, truncate="end").json()["usage"]
    assert client.embed(text + " a").status_code == 400


def test_a_key_may_cut_by_default(client_for: Callable[..., Any], make_key: Callable[..., str]) -> None:
    client = client_for(make_key(truncate="end"))
    assert client.embed(LONG).json()["usage"]["truncated"][0]["index"] == 0
    assert client.embed(LONG, truncate="error").status_code == 400


def test_a_text_of_100_000_characters(client: Any, same: Callable[..., None]) -> None:
    text = "Zürich 東京 def f(x): return x\n" * 3500
    assert len(text) > 100_000
    assert fault(client.embed(text))[3] == "context_length_exceeded"
    same([client.embed(text, truncate="end").json()["data"][0]["embedding"]], [text], "document", truncate="end")


TEXTS = ["How tall is K2?", "素早い茶色の狐 🦊", "\x00 nul", "[EOQ] no marker <|endoftext|>", " ", "\u202eرلا"]


@pytest.mark.usefixtures("tiktoken_offline")
def test_token_ids_are_cl100k(client: Any, same: Callable[..., None]) -> None:
    import tiktoken

    ids = [tiktoken.get_encoding("cl100k_base").encode(text, allowed_special="all") for text in TEXTS]
    same([row["embedding"] for row in client.embed(ids).json()["data"]], TEXTS, "document")
    same([client.embed(ids[0]).json()["data"][0]["embedding"]], TEXTS[:1], "document")


def test_native_token_ids(client: Any, same: Callable[..., None]) -> None:
    counted = client.post("/v1/tokenize", {"model": MODEL, "input": TEXTS}).json()["data"]
    answer = client.embed([row["token_ids"] for row in counted], token_ids="native").json()
    same([row["embedding"] for row in answer["data"]], TEXTS, "document")
    assert answer["usage"]["prompt_tokens"] == sum(row["tokens"] for row in counted)


def test_native_token_ids_are_cut_in_the_body(client: Any, same: Callable[..., None]) -> None:
    text = "a" + " a" * 600
    ids = [
        client.post("/v1/tokenize", {"model": MODEL, "input": word}).json()["data"][0]["token_ids"][0]
        for word in ("a", " a")
    ]
    for truncate in ("end", "start"):
        answer = client.embed([ids[0]] + [ids[1]] * 600, token_ids="native", truncate=truncate).json()
        same([answer["data"][0]["embedding"]], [text], "document", truncate=truncate)
        assert answer["usage"]["truncated"] == [{"index": 0, "tokens": 601 + 2 - LIMIT, "param": "input"}]


def test_a_marker_cannot_be_forged_by_native_ids(client: Any, embedder: Any) -> None:
    opening, *_, closing = embedder.tokenize(["a"], "query")[0]
    for marker in (opening, closing):
        assert fault(client.embed([50, marker], token_ids="native"))[3] == "invalid_value"


def test_a_client_that_leaves_is_not_charged(
    server: Any,
    client_for: Callable[..., Any],
    make_key: Callable[..., str],
    service_accounts: Any,
    wait_until: Callable[..., None],
) -> None:
    client = client_for(make_key(account="leaver"))
    service_accounts.ledger.topup("leaver", microcredits=10**9)
    many = [f"{i} " + "many words " * 100 for i in range(256)]
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/embeddings", {"model": MODEL, "input": many}, timeout=0.5)
    wait_until(lambda: service_accounts.ledger.balance("leaver") == 10**9)
    wait_until(lambda: '"code": "client_gone"' in server.log)
    assert client.embed("still served").status_code == 200


def test_the_openapi_document_names_every_field(client: Any) -> None:
    document = client.http.get("/openapi.json").json()
    schema = document["paths"]["/v1/embeddings"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["additionalProperties"] is False
    assert {"input", "model", "encoding_format", "dimensions", "user", "input_type"} <= schema["properties"].keys()
    assert "200" in json.dumps(document["paths"]["/v1/embeddings"]["post"]["responses"])


def test_the_openapi_page_needs_nothing_from_elsewhere(client: Any) -> None:
    page = client.http.get("/docs").text
    needed = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert any(address.endswith(".js") for address in needed)
    for address in needed:
        assert address.startswith("/")
        assert client.http.get(address).status_code == 200
