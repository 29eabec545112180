"""The OpenAPI document: which body an endpoint takes, which answers it gives.

The endpoints read their bodies themselves (one strict, fast JSON reader with OpenAI's errors), so it is said here.
Invariant: the document names every field of schemas.py and every status that is answered on purpose.
Does not know: the endpoints' work.
"""

from typing import Any

from fastapi import Security
from fastapi.security import HTTPBearer
from pydantic import BaseModel

from udever.server.schemas import ErrorAnswer

BEARER = Security(HTTPBearer(auto_error=False, description="An API key: `udk-…`."))
"""Says in the document that a key is needed; pipeline.caller checks it."""
Responses = dict[int | str, dict[str, Any]]

ERRORS = {
    400: "The request cannot be served as it stands.",
    401: "No API key, or one that is not valid.",
    402: "The account's credit does not cover the request.",
    403: "The key may not do this.",
    404: "There is no such model, key, account or address.",
    408: "The body did not arrive in time.",
    409: "The key is revoked or has expired.",
    413: "The body is too large.",
    415: "The body is no JSON.",
    429: "A limit of the key is reached; see Retry-After.",
    500: "The server is at fault.",
    503: "The server cannot do it now; see Retry-After.",
}


def answers(model: type[BaseModel] | None = None, *, status: int = 200, description: str = "Done.") -> Responses:
    """`responses` of a route: the model on success, OpenAI's error otherwise."""
    success: dict[str, Any] = {"description": description}
    errors: Responses = {code: {"description": text, "model": ErrorAnswer} for code, text in ERRORS.items()}
    return {status: success | ({"model": model} if model else {}), **errors}


def takes(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route: its JSON body."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
