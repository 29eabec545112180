"""POST /v1/tokenize, /v1/rerank and /v1/similarity."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

MODEL = "udever-nano"
QUERY = "fox"
DOCUMENTS = ["The dog sleeps.", "A red fox jumps over the fence.", "fox fox fox", "8611 metres"]


def code(response: Any) -> tuple[int, str | None, str | None]:
    error = response.json()["error"]
    return response.status_code, error["param"], error["code"]


def test_tokenize_counts_what_is_charged(client: Any, embedder: Any) -> None:
    texts = ["a text", "long " * 1000]
    body = client.post("/v1/tokenize", {"model": f"{MODEL}:query", "input": texts}).json()
    counts = embedder.count_tokens(texts, "query")
    assert [row["tokens"] for row in body["data"]] == counts
    assert body["data"][0]["token_ids"] == embedder.tokenize(["a text"], "query")[0][1:-1]
    assert body["max_tokens"] == embedder.max_tokens
    assert body["total_tokens"] == body["microcredits"] == counts[0] + embedder.max_tokens


def test_tokenize_is_free(client_for: Callable[..., Any], make_key: Callable[..., str], service_accounts: Any) -> None:
    client = client_for(make_key(account="poor"))
    assert client.post("/v1/tokenize", {"model": MODEL, "input": "a"}).status_code == 200
    assert service_accounts.ledger.balance("poor") == 0
    assert code(client.embed("a")) == (402, None, "insufficient_quota")


@pytest.mark.parametrize("as_objects", [False, True])
def test_rerank_scores_are_cosines(client: Any, embedder: Any, as_objects: bool) -> None:
    documents = [{"text": text, "id": 7} for text in DOCUMENTS] if as_objects else DOCUMENTS
    answer = client.post(
        "/v1/rerank", {"model": MODEL, "query": QUERY, "documents": documents, "return_documents": True}
    )
    cosines = embedder.embed(DOCUMENTS, role="document") @ embedder.embed([QUERY], role="query")[0]
    results = answer.json()["results"]
    assert [result["index"] for result in results] == list(np.argsort(-cosines))
    for result in results:
        assert result["relevance_score"] == pytest.approx(cosines[result["index"]], abs=1e-5)
        assert result["document"]["text"] == DOCUMENTS[result["index"]]
    tokens = embedder.count_tokens([QUERY], "query") + embedder.count_tokens(DOCUMENTS, "document")
    assert answer.json()["usage"]["total_tokens"] == sum(tokens)


def test_rerank_top_n(client: Any) -> None:
    body = {"model": MODEL, "query": QUERY, "documents": DOCUMENTS}
    every = client.post("/v1/rerank", body).json()["results"]
    best = client.post("/v1/rerank", body | {"top_n": 2}).json()["results"]
    assert [result["index"] for result in best] == [result["index"] for result in every[:2]]
    assert len(client.post("/v1/rerank", body | {"top_n": 99}).json()["results"]) == 4


def test_rerank_says_what_was_cut_and_where(client: Any) -> None:
    body = {"model": MODEL, "query": "long " * 1000, "documents": ["a", "long " * 1000]}
    assert code(client.post("/v1/rerank", body)) == (400, "query", "context_length_exceeded")
    cut = client.post("/v1/rerank", body | {"truncate": "end"}).json()["usage"]["truncated"]
    assert [row["param"] for row in cut] == ["query", "documents[1]"]


@pytest.mark.parametrize(
    ("fields", "param", "expected"),
    [
        ({"query": ["a"]}, "query", "invalid_type"),
        ({"query": ""}, "query", "empty_string"),
        ({"documents": "a"}, "documents", "invalid_type"),
        ({"documents": []}, "documents", "empty_array"),
        ({"documents": ["a", {}]}, "documents[1]", "invalid_type"),
        ({"documents": ["a", {"text": ""}]}, "documents[1]", "empty_string"),
        ({"documents": [[1]]}, "documents[0]", "invalid_type"),
        ({"top_n": 0}, "top_n", "integer_below_min_value"),
        ({"topn": 1}, "topn", "unknown_parameter"),
    ],
)
def test_rerank_refuses(client: Any, fields: dict[str, Any], param: str, expected: str) -> None:
    body = {"model": MODEL, "query": QUERY, "documents": DOCUMENTS} | fields
    assert code(client.post("/v1/rerank", body)) == (400, param, expected)


def test_similarity_of_all_pairs(client: Any, embedder: Any) -> None:
    body = {"model": MODEL, "a": DOCUMENTS[:2], "b": DOCUMENTS, "role_b": "document"}
    answer = client.post("/v1/similarity", body).json()
    expected = embedder.embed(DOCUMENTS[:2], role="query") @ embedder.embed(DOCUMENTS, role="document").T
    np.testing.assert_allclose(answer["similarity"], expected, atol=1e-5)
    alone = client.post("/v1/similarity", {"model": MODEL, "a": "x", "b": "x"}).json()["similarity"]
    assert alone == [[pytest.approx(1.0, abs=1e-5)]]


def test_similarity_is_bounded(client: Any) -> None:
    body = {"model": MODEL, "a": ["a"] * 1025, "b": ["b"] * 1025}
    assert code(client.post("/v1/similarity", body)) == (400, "b", "array_above_max_length")


@pytest.mark.parametrize("path", ["/v1/tokenize", "/v1/rerank", "/v1/similarity"])
def test_an_unknown_model(client: Any, path: str) -> None:
    fields = {"/v1/tokenize": {"input": "a"}, "/v1/rerank": {"query": "a", "documents": ["b"]}}
    response = client.post(path, {"model": "other", **fields.get(path, {"a": "a", "b": "b"})})
    assert code(response) == (404, "model", "model_not_found")
