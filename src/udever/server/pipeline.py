"""One request's way through the service, the same for every endpoint that embeds.

    prepare (token ids) -> admit (limits, debit) -> queue -> vectors -> settle

Invariant: nothing is computed that was not admitted, and nothing is kept that was not answered.
Does not know: the shapes of requests and answers (openai_api.py, text_api.py).
"""

import asyncio
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel
from pydantic_core import from_json
from starlette.requests import Request

from udever.catalog.manifests import ModelManifest
from udever.server.access import Access
from udever.server.auth import Key
from udever.server.errors import ClientGoneError, RequestError, limit_headers, placed, unknown_parameters
from udever.server.hosting import Hosted, Hosting, Loaded
from udever.server.inputs import Prepared, Texts, check_total
from udever.server.ledger import Admission
from udever.server.schemas import TRUNCATIONS, Role, TokenIds, Truncate
from udever.server.settings import Settings
from udever.server.telemetry import Record, Telemetry

if TYPE_CHECKING:
    from udever.engine.embedder import Embedder, Vectors

Body = TypeVar("Body", bound=BaseModel)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Service:
    """The parts that every endpoint works with."""

    settings: Settings
    telemetry: Telemetry
    access: Access
    hosting: Hosting
    catalog: Mapping[str, ModelManifest]
    """What is known of each model beforehand, served or not."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One field's texts in one role."""

    texts: Texts
    role: Role


@dataclass(frozen=True, kw_only=True)
class Done:
    """What came of a request's jobs, in their order."""

    jobs: Sequence[Job]
    prepared: Sequence[Prepared]
    vectors: "Sequence[Vectors]"
    headers: Mapping[str, str]

    @property
    def usage(self) -> dict[str, object]:
        """OpenAI's usage, and what was cut."""
        tokens = sum(prepared.tokens for prepared in self.prepared)
        usage: dict[str, object] = {"prompt_tokens": tokens, "total_tokens": tokens}
        cut = [
            {"index": index, "tokens": tokens, "param": job.texts.place(index)}
            for job, prepared in zip(self.jobs, self.prepared, strict=True)
            for index, tokens in prepared.cut.items()
        ]
        return usage | {"truncated": cut} if cut else usage


def service_of(request: Request) -> Service:
    """The parts of the service that got this request."""
    service: Service = request.app.state.service
    return service


def record_of(request: Request) -> Record:
    """What is noted about this request."""
    record: Record = request.scope["state"]["record"]
    return record


def address_of(request: Request) -> str:
    """The client's IP address, as the trusted proxies say; a socket without one counts as this machine."""
    return request.client.host if request.client else "127.0.0.1"


async def caller(request: Request) -> Key | None:
    """The key that the request came with; None if none is needed."""
    key = await service_of(request).access.authenticate(request.headers.get("authorization"))
    record_of(request).key = key.id if key else ""
    return key


async def admin(request: Request, *, changing: bool = False) -> Key:
    """The admin key that the request came with.

    Args:
        changing: the request is to change something, which wants the key's newest secret.
    """
    key = await caller(request)
    if key is None:
        raise RequestError("This server runs without accounts.", code="no_accounts", status=404)
    key.require_admin()
    if changing:
        key.require_current()
    return key


async def read_body(request: Request, model: type[Body]) -> Body:
    """The JSON body as what it should be.

    Raises:
        RequestError: another content type, or fields that are not known.
        ValidationError: no valid JSON (UTF-8, not too deep), or a field is missing or not what it should be.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json" or "content-encoding" in request.headers:
        message = "The body must be plain JSON, with the header Content-Type: application/json."
        raise RequestError(message, code="unsupported_content_type", status=415)
    body = await request.body()
    if unknown := _unknown_names(body, model):
        raise unknown_parameters(unknown)
    return model.model_validate_json(body)


def _unknown_names(body: bytes, model: type[BaseModel]) -> list[str]:
    """Looked for before pydantic does, which would make an error with a copy of the body for each."""
    try:
        fields = from_json(body, cache_strings=False)
    except ValueError:  # pydantic says what is wrong with it
        return []
    return [name for name in fields if name not in model.model_fields] if isinstance(fields, dict) else []


async def embed(
    request: Request,
    key: Key | None,
    *,
    hosted: Hosted,
    jobs: Sequence[Job],
    truncate: Truncate | None,
    token_ids: TokenIds = "cl100k_base",
    dimensions: int | None = None,
) -> Done:
    """Unit vectors of all jobs, for one debit.

    Raises:
        RequestError: an item that cannot be embedded, or a size the model was not trained for.
        AccountError, OverloadedError, ClientGoneError, …: see errors.py for what becomes of each.
    """
    service, record = service_of(request), record_of(request)
    if key is not None:
        for job in jobs:
            key.require_scope(model=hosted.name, role=job.role)
    loaded = await hosted.get()
    check_dimensions(loaded.embedder, dimensions)
    cutting = truncation(key, asked=truncate, default=service.settings.truncate)
    prepared = [await hosted.prepare(job.texts, role=job.role, truncate=cutting, token_ids=token_ids) for job in jobs]
    sequences = [sequence for each in prepared for sequence in each.sequences]
    tokens = sum(each.tokens for each in prepared)
    check_total(tokens)
    record.model, record.role, record.texts, record.tokens = hosted.name, jobs[-1].role, len(sequences), tokens
    record.truncated = sum(len(each.cut) for each in prepared)
    record.microcredits = tokens * hosted.microcredits_per_token
    hosted.require_room(tokens)
    async with service.access.paid(
        key, request_id=record.request_id, model=hosted.name, role=jobs[-1].role,
        tokens=tokens, texts=len(sequences), microcredits=record.microcredits,
    ) as admission:  # fmt: skip
        raw = await _unless_client_leaves(request, _embed(hosted, sequences, jobs, record=record))
    for job, each in zip(jobs, prepared, strict=True):
        service.telemetry.embedded(each, model=hosted.name, role=job.role)
    vectors = loaded.embedder.finish(raw, dimensions=dimensions)
    headers = _headers(loaded, admission)
    return Done(jobs=jobs, prepared=prepared, vectors=_parted(vectors, prepared), headers=headers)


def truncation(key: Key | None, *, asked: Truncate | None, default: Truncate) -> Truncate:
    """What happens to over-long texts: as the request says, else the key, else the server."""
    of_key = next((choice for choice in TRUNCATIONS if key and choice == key.truncate), None)
    return asked or of_key or default


def trained_sizes(embedder: "Embedder") -> list[int]:
    """What `dimensions` may be, ascending; the last one is the full size."""
    return sorted({*embedder.matryoshka, embedder.dimensions})


def check_dimensions(embedder: "Embedder", dimensions: int | None) -> None:
    """Before anything is computed or paid. Raises RequestError."""
    trained = trained_sizes(embedder)
    if dimensions is not None and dimensions not in trained:
        message = f"Invalid value for dimensions: this model was trained for {', '.join(map(str, trained))}."
        raise RequestError(message, code="invalid_value", param="dimensions")


async def _embed(hosted: Hosted, sequences: list[list[int]], jobs: Sequence[Job], *, record: Record) -> "Vectors":
    def place(index: int) -> str:
        for job in jobs:
            if index < len(job.texts.items):
                return job.texts.place(index)
            index -= len(job.texts.items)
        raise IndexError(index)

    asked, began = time.perf_counter(), list[float]()
    with placed(place):
        vectors = await hosted.embed(sequences, on_start=lambda: began.append(time.perf_counter()))
    record.queue_seconds = round(began[0] - asked, 6)
    record.model_seconds = round(time.perf_counter() - began[0], 6)
    return vectors


async def _unless_client_leaves(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The work's result; the work is cancelled when the client closes the connection."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(request.receive())  # the body has been read: all that can come is the end
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError("the client closed the connection")
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()


def _parted(vectors: "Vectors", prepared: Sequence[Prepared]) -> "list[Vectors]":
    parts, start = [], 0
    for each in prepared:
        parts.append(vectors[start : start + len(each.sequences)])
        start += len(each.sequences)
    return parts


def _headers(loaded: Loaded, admission: Admission | None) -> dict[str, str]:
    headers = {"x-udever-fingerprint": loaded.fingerprint}
    if admission is not None:
        headers |= limit_headers(requests=admission.requests, tokens=admission.tokens)
        headers["x-udever-balance-microcredits"] = str(admission.balance_microcredits)
    return headers
