"""Every refusal as OpenAI writes it: exception → status, type, param, code, headers.

    {"error": {"message": …, "type": …, "param": …, "code": …}}

Invariant: whatever is raised below ends in this body; a fault nobody foresaw says nothing of its cause to the client.
Codes and types are OpenAI's where it has one for the case, so that its SDKs and their wrappers react as they should.
Does not know: which endpoint raised.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from udever.errors import (
    DimensionsError,
    EmptyTextError,
    InputError,
    ModelError,
    OverloadedError,
    QueueClosedError,
    SequenceFailedError,
    TextTypeError,
    TooManyTokensError,
    UdeverError,
)
from udever.server.account_errors import (
    AccountError,
    EndedKeyError,
    HandOnError,
    InsufficientCreditError,
    InvalidKeyError,
    RateLimitedError,
    ScopeError,
    StoreUnavailableError,
    UnknownAccountError,
    UnknownKeyError,
)
from udever.server.windows import Window

INVALID = "invalid_request_error"
SERVER = "server_error"
SOON_SECONDS = 119.0
"""SDKs take a `retry-after-ms` beyond two minutes for a slip."""
BEARER = MappingProxyType({"www-authenticate": "Bearer"})
MOST_NAMED = 20
"""Unknown fields that an answer names, by so many characters each: a body may have a million of them."""
LONGEST_NAME = 100
CLIENT_GONE = 499
"""Written to the log only: nobody is there to read it."""


class RequestError(UdeverError):
    """The request cannot be served as it stands; says itself what the answer is."""

    code = "invalid_request"

    def __init__(
        self, message: str, *, code: str, param: str | None = None, status: int = 400, kind: str = INVALID
    ) -> None:
        super().__init__(message)
        self.code = code
        self.param = param
        self.status = status
        self.kind = kind


class ModelLoadingError(UdeverError):
    """The model is not loaded yet."""

    code = "model_loading"

    def __init__(self, name: str, *, retry_after_seconds: float) -> None:
        super().__init__(f"the model {name!r} is being loaded", hint="try again in a moment")
        self.retry_after_seconds = retry_after_seconds


class ClientGoneError(UdeverError):
    """The client closed the connection before it had its answer."""

    code = "client_gone"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One answer that is an error."""

    status: int
    message: str
    code: str | None
    kind: str = INVALID
    """OpenAI's `type`."""
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        """The JSON of the answer."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return orjson.dumps({"error": error})

    def response(self) -> Response:
        """The answer; a client that is told to come again must not hold a half-read body open."""
        return Response(self.body(), self.status, headers=dict(self.headers), media_type="application/json")


def fault_of(error: Exception) -> Fault:
    """The answer to an exception: by the nearest class in the table."""
    for cls in type(error).__mro__:
        if cls in _FAULTS:
            return _FAULTS[cls](error)
    return Fault(
        status=500,
        message="The server had an error while processing your request.",
        code="internal_error",
        kind=SERVER,
    )


@contextmanager
def placed(place: Callable[[int], str]) -> Iterator[None]:
    """Inside, an error about text i is raised as one about the request's field, e.g. `input[3]`."""
    try:
        yield
    except (EmptyTextError, TextTypeError, TooManyTokensError, SequenceFailedError) as error:
        param = place(error.index)
        match error:
            case TooManyTokensError():  # litellm knows it by its first words, if no quotation mark follows
                message = (
                    f"This model's maximum context length is {error.max_tokens} tokens, markers included, however "
                    f"{param} has {error.tokens} tokens. Shorten it, or set truncate to end or start."
                )
                raise RequestError(message, code="context_length_exceeded", param=param) from error
            case SequenceFailedError():
                message = f"The model failed on {param}; the other texts of the request are not at fault."
                raise RequestError(message, code=error.code, param=param, status=500, kind=SERVER) from error
            case EmptyTextError():
                raise RequestError(f"{param} is empty: an empty text has no embedding.", code="empty_string",
                                   param=param) from error  # fmt: skip
            case _:
                raise RequestError(f"{param} is no valid text.", code="invalid_type", param=param) from error


def retry_headers(seconds: float) -> dict[str, str]:
    """When to come again, in seconds for everyone, and in milliseconds for SDKs if it is soon."""
    headers = {"retry-after": str(math.ceil(seconds) or 1)}
    return headers | ({"retry-after-ms": str(math.ceil(seconds * 1000) or 1)} if seconds < SOON_SECONDS else {})


def limit_headers(*, requests: Window | None, tokens: Window | None) -> dict[str, str]:
    """`x-ratelimit-*` for the limits that the key has."""
    headers = {}
    for unit, window in (("requests", requests), ("tokens", tokens)):
        if window is not None:
            headers[f"x-ratelimit-limit-{unit}"] = str(window.limit)
            headers[f"x-ratelimit-remaining-{unit}"] = str(window.remaining)
            headers[f"x-ratelimit-reset-{unit}"] = f"{math.ceil(window.reset_seconds * 1000)}ms"
    return headers


def unknown_parameters(names: Sequence[str]) -> RequestError:
    """A body has fields that no request of its kind has; the first of them are named."""
    named = [name[:LONGEST_NAME] for name in names[:MOST_NAMED]]
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    noun = "parameter" if len(names) == 1 else "parameters"
    return RequestError(f"Unknown {noun}: {', '.join(named)}{more}.", param=named[0], code="unknown_parameter")


def validation_fault(errors: list[Any]) -> Fault:
    """What pydantic found, as OpenAI says it: the first complaint."""
    first = errors[0]
    param = _param(first["loc"])
    if first["type"] == "json_invalid":
        return Fault(status=400, message=f"The body is no valid JSON: {first['ctx']['error']}.", code="invalid_json")
    if first["type"] == "missing":
        message = f"Missing required parameter: {param}."
        return Fault(status=400, message=message, param=param, code="missing_required_parameter")
    message = f"Invalid value for {param or 'the body'}: {first['msg'][:1].lower()}{first['msg'][1:]}."
    return Fault(status=400, message=message, param=param or None, code=_code(first["type"]))


_VALIDATION_CODES = {
    "greater_than_equal": "integer_below_min_value",
    "less_than_equal": "integer_above_max_value",
    "string_too_short": "empty_string",
    "string_too_long": "string_above_max_length",
    "too_short": "empty_array",
    "too_long": "array_above_max_length",
}


def _code(pydantic_type: str) -> str:
    default = "invalid_type" if pydantic_type.endswith("_type") else "invalid_value"
    return _VALIDATION_CODES.get(pydantic_type, default)


def _param(loc: tuple[str | int, ...]) -> str:
    """`("documents", 3, "text")` → `documents[3].text`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc if part not in ("body", "query")]
    return "".join(parts).removeprefix(".")


def _http(error: HTTPException) -> Fault:
    messages = {
        404: ("There is no such address here.", "unknown_url"),
        405: ("This address does not take this method.", "method_not_supported"),
    }
    message, code = messages.get(error.status_code, (str(error.detail), "invalid_request"))
    return Fault(status=error.status_code, message=message, code=code, headers=error.headers or {})


def _request(error: RequestError) -> Fault:
    headers = BEARER if error.status == 401 else {}
    return Fault(
        status=error.status, message=error.message, code=error.code, kind=error.kind, param=error.param, headers=headers
    )


def _retry(error: Any, *, message: str = "") -> Fault:
    return Fault(
        status=503,
        message=message or f"{error}.",
        code=error.code,
        kind=SERVER,
        headers=retry_headers(getattr(error, "retry_after_seconds", 1.0)),
    )


def _rate_limited(error: RateLimitedError) -> Fault:
    headers = limit_headers(requests=error.requests, tokens=error.tokens)
    headers |= retry_headers(error.retry_after_seconds) if error.retryable else {"x-should-retry": "false"}
    kind = "tokens" if error.what == "tokens" else "requests"
    return Fault(status=429, message=f"Rate limit reached: {error}.", code=error.code, kind=kind, headers=headers)


def _scope(error: ScopeError) -> Fault:
    # For a model OpenAI says 403 with this code; wrappers know it.
    code = "model_not_found" if error.what == "model" else "insufficient_permissions"
    return Fault(status=403, message=f"{error}.", code=code)


_FAULTS: Mapping[type[BaseException], Callable[[Any], Fault]] = {
    RequestError: _request,
    ValidationError: lambda e: validation_fault(e.errors(include_url=False, include_input=False)),
    RequestValidationError: lambda e: validation_fault(list(e.errors())),
    HTTPException: _http,
    ClientGoneError: lambda e: Fault(status=CLIENT_GONE, message=e.message, code=e.code),
    InvalidKeyError: lambda e: Fault(
        status=401, message=f"Incorrect API key provided: {e}.", code=e.code, headers=BEARER
    ),
    EndedKeyError: lambda e: Fault(status=409, message=f"{e.message}.", code=e.code),
    HandOnError: lambda e: Fault(status=403, message=f"{e}.", code=e.code),
    ScopeError: _scope,
    RateLimitedError: _rate_limited,
    InsufficientCreditError: lambda e: Fault(
        status=402, message=f"{e}.", code=e.code, kind="insufficient_quota", headers={"x-should-retry": "false"}
    ),
    UnknownKeyError: lambda e: Fault(status=404, message=f"{e}.", code=e.code),
    UnknownAccountError: lambda e: Fault(status=404, message=f"{e}.", code=e.code),
    AccountError: lambda e: Fault(status=400, message=f"{e}.", code=e.code),
    StoreUnavailableError: lambda e: _retry(e, message="The accounts are not available; try again in a moment."),
    ModelLoadingError: _retry,
    OverloadedError: _retry,
    QueueClosedError: lambda e: _retry(e, message="The model cannot answer just now; try again in a moment."),
    ModelError: lambda e: Fault(
        status=503, message="The model cannot be loaded; the operator's log says why.", code=e.code, kind=SERVER
    ),
    DimensionsError: lambda e: Fault(status=400, message=f"{e}.", code="invalid_value", param="dimensions"),
    InputError: lambda e: Fault(status=400, message=f"{e}.", code="invalid_value"),
}
