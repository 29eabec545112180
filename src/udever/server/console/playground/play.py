"""One run of the playground: queries and documents in, grid out, paid for as the API is.

    who pays -> count -> (a guest's limits) -> pipeline.embed, once, at full size -> grid at every size, map

Invariant: the vectors are those of /v1/embeddings, and one debit pays for all of them; no text is kept or logged.
Does not know: pages and forms (page.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request as HttpRequest

from udever.server.auth import Key
from udever.server.console import sessions
from udever.server.console.playground.grid import Size, sizes
from udever.server.console.playground.guests import Guests
from udever.server.console.playground.projection import Projection, project
from udever.server.errors import ModelLoadingError, RequestError
from udever.server.hosting import RETRY_SECONDS, Hosted
from udever.server.inputs import ROLES, Prepared, read_texts
from udever.server.pipeline import Job, address_of, check_dimensions, embed, record_of, service_of, trained_sizes
from udever.server.schemas import Request, Role
from udever.server.settings import Settings

MAX_QUERIES = 16
MAX_DOCUMENTS = 32
MAX_CHARACTERS = 4000
"""Of one text."""
MAX_TOTAL_CHARACTERS = 50_000
"""Of all texts together."""
COUNTS_PER_MINUTE = 240
"""How often an address may ask for token counts, which cost nothing."""
BALANCE = "x-udever-balance-microcredits"
MARKERS: dict[Role, tuple[str, str]] = {"query": ("[BOQ]", "[EOQ]"), "document": ("[BOD]", "[EOD]")}
"""As in udever.tokenizer, which takes a while to import."""

Text = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]


class PlayRequest(Request):
    """What the playground is asked to compare."""

    model: str = Field(min_length=1, max_length=200)
    queries: list[Text] = Field(min_length=1, max_length=MAX_QUERIES)
    documents: list[Text] = Field(min_length=1, max_length=MAX_DOCUMENTS)
    dimensions: int | None = Field(None, ge=1, description="The size to show first: one of the model's.")


class CountRequest(Request):
    """Texts to count; they may be empty, as they are while somebody writes."""

    model: str = Field(min_length=1, max_length=200)
    queries: list[Annotated[str, Field(max_length=MAX_CHARACTERS)]] = Field(max_length=MAX_QUERIES)
    documents: list[Annotated[str, Field(max_length=MAX_CHARACTERS)]] = Field(max_length=MAX_DOCUMENTS)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One text as the model reads it."""

    tokens: int
    """Markers included."""
    cut: int = 0
    """Tokens that were cut away, if the key or the server says so."""


@dataclass(frozen=True, kw_only=True)
class Played:
    """What came of a run."""

    model: str
    dimensions: int
    """The size that was asked for."""
    queries: tuple[Reading, ...]
    documents: tuple[Reading, ...]
    sizes: tuple[Size, ...]
    """At each size the model was trained for, ascending; the last one is full."""
    projection: Projection
    """Of the full vectors, queries first."""
    microcredits: int
    """The price."""
    balance_microcredits: int | None
    """What the account has left; None where nobody pays."""
    charged: bool
    """Whether somebody paid it."""
    queue_seconds: float
    model_seconds: float
    total_seconds: float
    """From the first byte of the request until here."""

    @property
    def tokens(self) -> int:
        """Of all texts."""
        return sum(reading.tokens for reading in (*self.queries, *self.documents))

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        points, count = self.projection.points, len(self.queries)
        return {
            "object": "playground.run",
            "model": self.model,
            "dimensions": self.dimensions,
            "queries": [vars(reading) for reading in self.queries],
            "documents": [vars(reading) for reading in self.documents],
            "markers": MARKERS,
            "sizes": [_describe(size) for size in self.sizes],
            "map": {"queries": points[:count], "documents": points[count:], "kept": self.projection.kept},
            "usage": {"prompt_tokens": self.tokens, "total_tokens": self.tokens},
            "microcredits": self.microcredits,
            "charged": self.charged,
            "balance_microcredits": self.balance_microcredits,
            "latency": {
                "queue_seconds": self.queue_seconds,
                "model_seconds": self.model_seconds,
                "total_seconds": self.total_seconds,
            },
        }


def is_open(request: HttpRequest) -> bool:
    """Whether one may play without a key."""
    service = service_of(request)
    return service.access.is_open or service.settings.playground_open


async def play(request: HttpRequest, ask: PlayRequest) -> Played:
    """Compare each query with each document.

    Raises:
        RequestError: nobody who may play, too much text, no such model or size.
        RateLimitedError: a guest's limits, or those of the key; and what else `pipeline.embed` raises.
    """
    key = _payer(request)
    check_characters(ask.queries, ask.documents)
    hosted, _ = service_of(request).hosting.find(ask.model)
    jobs = _jobs(ask)
    if key is None and not service_of(request).access.is_open:
        await _admit_guest(request, hosted, jobs)
    loaded = await hosted.get()
    check_dimensions(loaded.embedder, ask.dimensions)
    done = await embed(request, key, hosted=hosted, jobs=jobs, truncate=None)
    record, trained = record_of(request), trained_sizes(loaded.embedder)
    return Played(
        model=hosted.name,
        dimensions=ask.dimensions or trained[-1],
        queries=_readings(done.prepared[0]),
        documents=_readings(done.prepared[1]),
        sizes=sizes(done.vectors[0], done.vectors[1], dimensions=trained),
        projection=project([*done.vectors[0], *done.vectors[1]]),
        microcredits=record.microcredits,
        balance_microcredits=int(balance) if (balance := done.headers.get(BALANCE)) else None,
        charged=key is not None,
        queue_seconds=record.queue_seconds,
        model_seconds=record.model_seconds,
        total_seconds=round(record.seconds, 6),
    )


async def count(request: HttpRequest, ask: CountRequest) -> dict[str, Any]:
    """Tokens of each text and the price of a run; free. An empty text has no tokens, for it would not be sent.

    Raises:
        RequestError, RateLimitedError: as `play`.
        ModelLoadingError: counting does not load a model.
    """
    key = _payer(request)
    check_characters(ask.queries, ask.documents)
    _doors(request).counts.admit(address_of(request))
    hosted, _ = service_of(request).hosting.find(ask.model)
    if key is not None:
        key.require_scope(model=hosted.name)
    if hosted.loaded is None:
        raise ModelLoadingError(hosted.name, retry_after_seconds=RETRY_SECONDS)
    queries = await count_texts(hosted, ask.queries, role="query")
    documents = await count_texts(hosted, ask.documents, role="document")
    tokens = sum(queries) + sum(documents)
    return {
        "object": "playground.count",
        "model": hosted.name,
        "queries": queries,
        "documents": documents,
        "total_tokens": tokens,
        "microcredits": tokens * hosted.microcredits_per_token,
        "max_tokens": hosted.loaded.embedder.max_tokens,
    }


async def count_texts(hosted: Hosted, texts: Sequence[str], *, role: Role) -> list[int]:
    """Tokens of each text, before anything is cut; 0 for one without any letters. Loads the model if need be."""
    written = [(index, text) for index, text in enumerate(texts) if text.strip()]
    counts = [0] * len(texts)
    if written:
        read = read_texts([text for _, text in written], param="texts")
        readings = _readings(await hosted.prepare(read, role=role, truncate="end"))
        for (index, _), reading in zip(written, readings, strict=True):
            counts[index] = reading.tokens + reading.cut
    return counts


def check_characters(queries: Sequence[str], documents: Sequence[str]) -> None:
    """Raises RequestError: too much text in all."""
    characters = sum(map(len, (*queries, *documents)))
    if characters > MAX_TOTAL_CHARACTERS:
        message = (
            f"The texts have {characters:,} characters together; the playground takes {MAX_TOTAL_CHARACTERS:,}. "
            "The API takes more."
        )
        raise RequestError(message, code="string_above_max_length", param="documents")


@dataclass(frozen=True, kw_only=True)
class _Doors:
    """The limits by address of one service."""

    runs: Guests
    counts: Guests


def _doors(request: HttpRequest) -> _Doors:
    state = request.app.state
    if not hasattr(state, "playground"):
        state.playground = _new_doors(service_of(request).settings)
    doors: _Doors = state.playground
    return doors


def _new_doors(settings: Settings) -> _Doors:
    return _Doors(
        runs=Guests(
            requests_per_minute=settings.playground_requests_per_minute,
            tokens_per_minute=settings.playground_tokens_per_minute,
        ),
        counts=Guests(requests_per_minute=COUNTS_PER_MINUTE),
    )


def _payer(request: HttpRequest) -> Key | None:
    """The key of whoever is signed in; None for a guest where guests are welcome."""
    viewer = sessions.viewer(request)
    if viewer is not None:
        return viewer.key
    if is_open(request):
        return None
    raise RequestError("Sign in with a key to use the playground.", code="invalid_api_key", status=401)


async def _admit_guest(request: HttpRequest, hosted: Hosted, jobs: Sequence[Job]) -> None:
    """What a guest's run takes is known when its texts are counted; the counting is limited too."""
    _doors(request).counts.admit(address_of(request))
    prepared = [await hosted.prepare(job.texts, role=job.role, truncate="end") for job in jobs]
    _doors(request).runs.admit(address_of(request), tokens=sum(each.tokens for each in prepared))


def _jobs(ask: PlayRequest) -> list[Job]:
    texts = (read_texts(ask.queries, param="queries"), read_texts(ask.documents, param="documents"))
    return [Job(texts=each, role=role) for each, role in zip(texts, ROLES, strict=True)]


def _readings(prepared: Prepared) -> tuple[Reading, ...]:
    return tuple(Reading(tokens=len(ids), cut=prepared.cut.get(i, 0)) for i, ids in enumerate(prepared.sequences))


def _describe(size: Size) -> dict[str, Any]:
    return vars(size) | {"agreement": vars(size.agreement)}
