"""Endpoints beside OpenAI's: count tokens, rerank documents, compare texts.

Invariant: a rerank score is the cosine of a query and a document, each embedded in its role; counting costs nothing.
Does not know: how texts become vectors (pipeline.py) or errors become answers (errors.py).
"""

from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from udever.server.errors import RequestError
from udever.server.inputs import Texts, read_texts
from udever.server.openai_api import json_response
from udever.server.openapi import BEARER, answers, takes
from udever.server.pipeline import Job, caller, embed, read_body, record_of, service_of
from udever.server.schemas import (
    MAX_ITEMS,
    RerankAnswer,
    RerankRequest,
    SimilarityAnswer,
    SimilarityRequest,
    TokenizeAnswer,
    TokenizeRequest,
)

router = APIRouter(tags=["Text"], dependencies=[BEARER])


@router.post("/v1/tokenize", responses=answers(TokenizeAnswer), openapi_extra=takes(TokenizeRequest))
async def tokenize(request: Request) -> Response:
    """Tokens, ids and the price of embedding these texts; free of charge."""
    key = await caller(request)
    body = await read_body(request, TokenizeRequest)
    hosted, role = service_of(request).hosting.find(body.model, input_type=body.input_type)
    if key is not None:
        key.require_scope(model=hosted.name, role=role)
    texts = read_texts(body.input, param="input", ids=True)
    prepared = await hosted.prepare(texts, role=role, truncate="end", token_ids=body.token_ids)
    data = [
        {"index": i, "tokens": len(ids) + prepared.cut.get(i, 0), "token_ids": ids[1:-1]}
        for i, ids in enumerate(prepared.sequences)
    ]
    answer = {
        "object": "list",
        "data": data,
        "model": body.model,
        "max_tokens": (await hosted.get()).embedder.max_tokens,
        "total_tokens": prepared.tokens,
        "microcredits": prepared.tokens * hosted.microcredits_per_token,
    }
    return json_response(answer, headers={"x-udever-role": role})


@router.post("/v1/rerank", responses=answers(RerankAnswer), openapi_extra=takes(RerankRequest))
async def rerank(request: Request) -> Response:
    """Documents by their cosine with the query, best first."""
    key = await caller(request)
    body = await read_body(request, RerankRequest)
    hosted, _ = service_of(request).hosting.find(body.model)
    query = _one_text(body.query, param="query")
    documents = read_texts(body.documents, param="documents", objects=True)
    if documents.single:
        raise RequestError("documents must be a list.", code="invalid_type", param="documents")
    jobs = [Job(texts=query, role="query"), Job(texts=documents, role="document")]
    done = await embed(request, key, hosted=hosted, jobs=jobs, truncate=body.truncate)
    scores = done.vectors[1] @ done.vectors[0][0]
    best = np.argsort(-scores, kind="stable")[: body.top_n]
    results: list[dict[str, Any]] = [{"index": int(i), "relevance_score": float(scores[i])} for i in best]
    if body.return_documents:
        results = [result | {"document": {"text": documents.items[result["index"]]}} for result in results]
    answer = {
        "id": record_of(request).request_id,
        "object": "list",
        "model": body.model,
        "results": results,
        "usage": done.usage,
    }
    return json_response(answer, headers=done.headers)


@router.post("/v1/similarity", responses=answers(SimilarityAnswer), openapi_extra=takes(SimilarityRequest))
async def similarity(request: Request) -> Response:
    """Cosines of all pairs of a text of `a` and a text of `b`."""
    key = await caller(request)
    body = await read_body(request, SimilarityRequest)
    hosted, _ = service_of(request).hosting.find(body.model)
    a, b = read_texts(body.a, param="a"), read_texts(body.b, param="b")
    if len(a.items) + len(b.items) > MAX_ITEMS:
        message = f"a and b have more than {MAX_ITEMS} texts together."
        raise RequestError(message, code="array_above_max_length", param="b")
    jobs = [Job(texts=a, role=body.role_a), Job(texts=b, role=body.role_b)]
    done = await embed(request, key, hosted=hosted, jobs=jobs, truncate=body.truncate)
    cosines = np.ascontiguousarray(done.vectors[0] @ done.vectors[1].T)
    answer = {"object": "list", "model": body.model, "similarity": cosines, "usage": done.usage}
    return json_response(answer, headers=done.headers)


def _one_text(raw: Any, *, param: str) -> Texts:
    if not isinstance(raw, str):
        raise RequestError(f"Invalid type for {param}: a text is needed.", code="invalid_type", param=param)
    return read_texts(raw, param=param)
