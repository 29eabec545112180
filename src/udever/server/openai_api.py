"""OpenAI's endpoints: embeddings and models, to its contract in every field, and `udever`'s roles beside it.

Invariant: an answer's vectors stand in the order of the input, each made in the role that was asked for.
Does not know: how texts become vectors (pipeline.py) or errors become answers (errors.py).
"""

from base64 import b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from udever.catalog.manifests import ModelManifest
from udever.server.auth import Key
from udever.server.errors import RequestError
from udever.server.hosting import Hosted
from udever.server.inputs import ROLES, read_texts, split_model
from udever.server.openapi import BEARER, answers, takes
from udever.server.pipeline import Job, caller, embed, read_body, service_of
from udever.server.schemas import EmbeddingList, EmbeddingRequest, Model, ModelList

if TYPE_CHECKING:
    from udever.engine.embedder import Vectors

CREATED = 1_767_225_600
"""OpenAI's `created` of a model whose month nobody knows: a constant (2026-01-01), so that replicas agree."""
router = APIRouter(tags=["OpenAI"], dependencies=[BEARER])


@router.post("/v1/embeddings", responses=answers(EmbeddingList), openapi_extra=takes(EmbeddingRequest))
async def create_embeddings(request: Request) -> Response:
    """Vectors of a text, of many texts, or of token ids."""
    key = await caller(request)
    body = await read_body(request, EmbeddingRequest)
    hosted, role = service_of(request).hosting.find(body.model, input_type=body.input_type)
    texts = read_texts(body.input, param="input", ids=True)
    done = await embed(
        request, key, hosted=hosted, jobs=[Job(texts=texts, role=role)], truncate=body.truncate,
        token_ids=body.token_ids, dimensions=body.dimensions,
    )  # fmt: skip
    data = encode(done.vectors[0], encoding_format=body.encoding_format)
    answer = {"object": "list", "data": data, "model": body.model, "usage": done.usage}
    return json_response(answer, headers={**done.headers, "x-udever-role": role})


@router.get("/v1/models", responses=answers(ModelList))
async def list_models(request: Request) -> Response:
    """The models that the key may use, each also under its two role-carrying ids."""
    key = await caller(request)
    service = service_of(request)
    suffixes = ("", *(f":{role}" for role in ROLES))
    rows = [
        describe(hosted, f"{hosted.name}{suffix}")
        for hosted in service.hosting.models.values()
        for suffix in suffixes
        if _allowed(key, hosted, f"{hosted.name}{suffix}")
    ]
    return json_response({"object": "list", "data": rows})


@router.get("/v1/models/{model:path}", responses=answers(Model))
async def retrieve_model(request: Request, model: str) -> Response:
    """One model; its id may hold slashes."""
    key = await caller(request)
    hosted, _ = service_of(request).hosting.find(model)
    if not _allowed(key, hosted, model):
        raise _no_model(model)
    return json_response(describe(hosted, model))


def encode(vectors: "Vectors", *, encoding_format: Literal["float", "base64"] | None) -> list[dict[str, Any]]:
    """OpenAI's list of embeddings. Floats are left to orjson, which writes float32 in its shortest form."""
    if encoding_format == "base64":
        little = vectors.astype("<f4", copy=False)
        rows: list[Any] = [b64encode(row.tobytes()).decode("ascii") for row in little]
    else:
        rows = list(vectors)
    return [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]


def json_response(answer: Any, *, headers: Mapping[str, str] | None = None, status: int = 200) -> Response:
    """JSON, with numpy arrays as lists: 20 times faster than the standard library for long vectors."""
    content = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, status, headers=dict(headers or {}), media_type="application/json")


def describe(hosted: Hosted, model_id: str) -> dict[str, Any]:
    """A model as OpenAI describes it, and what one wants to know of an embedder: from the loaded model, else the
    catalogue.
    """
    _, role = split_model(model_id)
    loaded, listed = hosted.loaded, hosted.manifest
    sizes = listed.dimensions if listed else ()
    owner, slash, _ = hosted.name.rpartition("/")
    return {
        "id": model_id,
        "object": "model",
        "created": _created(listed),
        "owned_by": owner if slash else "udever",
        "role": role,
        "title": listed.title if listed else hosted.name,
        "license": (listed.licence if listed else loaded.embedder.manifest.license if loaded else "") or None,
        "dimensions": loaded.embedder.dimensions if loaded else max(sizes, default=None),
        "matryoshka": list(loaded.embedder.matryoshka) if loaded else None,
        "max_tokens": loaded.embedder.max_tokens if loaded else listed.max_tokens if listed else None,
        "fingerprint": loaded.fingerprint if loaded else None,
        "microcredits_per_token": hosted.microcredits_per_token,
    }


def _created(listed: ModelManifest | None) -> int:
    """When it was published: the first second of that month."""
    month = listed.published if listed else None
    return int(datetime(month.year, month.month, 1, tzinfo=UTC).timestamp()) if month else CREATED


def _allowed(key: Key | None, hosted: Hosted, model_id: str) -> bool:
    """A bare id is shown to every key that may use the model in some role."""
    role = None if model_id == hosted.name else split_model(model_id)[1]
    return key is None or key.allows(model=hosted.name, role=role)


def _no_model(model_id: str) -> RequestError:
    message = f"The model `{model_id}` does not exist or you do not have access to it."
    return RequestError(message, code="model_not_found", status=404, param="model")
