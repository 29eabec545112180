"""What operators see: Prometheus metrics, one JSON log line a request, traces if they have somewhere to go.

Invariant: no text, no key and no exception message is ever written; of an exception only its type and where it arose.
A registry of its own, so that two services in one process do not mix.
Does not know: what the numbers are used for.
"""

import logging
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from udever.server.inputs import Prepared

if TYPE_CHECKING:
    from udever.engine.batcher import Batcher, BatchStats

REQUEST_SECONDS = (0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)
BATCH_FILL = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
REQUEST_TOKENS = (8, 32, 128, 512, 2048, 8192, 32768, 131072, 300000)
RECENT_BATCHES = 4096
"""Remembered of a model, for the operator's page."""


@dataclass(kw_only=True)
class Record:
    """What is known of one request when it ends; filled on its way."""

    request_id: str
    method: str
    began: float = field(default_factory=time.perf_counter)
    route: str = "unmatched"
    """The route's pattern; never the raw address, which a client may fill with anything."""
    status: int = 0
    key: str = ""
    """The key's id, which is no secret."""
    model: str = ""
    role: str = ""
    texts: int = 0
    tokens: int = 0
    truncated: int = 0
    microcredits: int = 0
    queue_seconds: float = 0.0
    """From its tokens being queued to the first batch with some of them."""
    model_seconds: float = 0.0
    """From there to its last vector; other requests' texts may share the batches."""
    code: str = ""
    """Of the error, if it was one."""

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self.began


class Telemetry:
    """The metrics of one service, and its log."""

    def __init__(self, *, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        self.registry = registry
        self.log = structlog.stdlib.get_logger("udever.server")

        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(f"udever_{name}", meaning, labels, registry=registry)

        def histogram(name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"udever_{name}", meaning, labels, buckets=buckets, registry=registry)

        def gauge(name: str, meaning: str, *labels: str) -> Gauge:
            return Gauge(f"udever_{name}", meaning, labels, registry=registry)

        self._requests = counter("requests", "Requests answered.", "route", "status")
        self._seconds = histogram("request_seconds", "From the first byte to the answer.", REQUEST_SECONDS, "route")
        self._errors = counter("errors", "Requests that ended in an error.", "code")
        self.in_flight = gauge("requests_in_flight", "Requests being served now.")
        self._texts = counter("texts", "Texts embedded.", "model", "role")
        self._tokens = counter("tokens", "Tokens embedded, markers included.", "model", "role")
        self._request_tokens = histogram("request_tokens", "Tokens of a request.", REQUEST_TOKENS, "model")
        self._cut_texts = counter("truncated_texts", "Texts that were cut.", "model")
        self._cut_tokens = counter("truncated_tokens", "Tokens that were cut away.", "model")
        self._batches = counter("batches", "Batches run.", "model")
        self._batch_texts = counter("batch_texts", "Texts in those batches.", "model")
        self._batch_tokens = counter(
            "batch_tokens", "Tokens in those batches; packed, so there is no padding.", "model"
        )
        self._fill = histogram("batch_fill_ratio", "Tokens of a batch by its budget.", BATCH_FILL, "model")
        self._batch_seconds = histogram("batch_seconds", "Time of a batch.", REQUEST_SECONDS, "model")
        self._queue_tokens = gauge("queue_tokens", "Tokens that wait or are being computed.", "model")
        self._queue_seconds = gauge("queue_drain_seconds", "When all that is queued will be done.", "model")
        self._ready = gauge("model_ready", "1 if the model takes work.", "model")
        self._restarts = gauge("model_thread_restarts", "How often the model's thread failed and began again.", "model")
        self._recent: dict[str, deque[tuple[float, BatchStats]]] = {}
        self._credits = counter("microcredits", "Microcredits by what became of them.", "outcome")

    @property
    def serving(self) -> int:
        """Requests being served now."""
        return int(next(iter(self.in_flight.collect())).samples[0].value)

    def exposition(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)

    def watch(self, model: str, batcher: "Batcher") -> None:
        """Read a queue's gauges whenever they are asked for."""
        self._queue_tokens.labels(model).set_function(lambda: batcher.queued_tokens)
        self._queue_seconds.labels(model).set_function(lambda: batcher.drain_seconds)
        self._ready.labels(model).set_function(lambda: float(batcher.ready))
        self._restarts.labels(model).set_function(lambda: batcher.restarts)

    def on_batch(self, model: str) -> "Callable[[BatchStats], None]":
        """What a batcher calls after each batch."""
        batches, texts, tokens = (c.labels(model) for c in (self._batches, self._batch_texts, self._batch_tokens))
        fill, seconds = self._fill.labels(model), self._batch_seconds.labels(model)
        recent = self._recent.setdefault(model, deque(maxlen=RECENT_BATCHES))

        def observe(stats: "BatchStats") -> None:
            batches.inc()
            texts.inc(stats.sequences)
            tokens.inc(stats.tokens)
            fill.observe(stats.tokens / stats.budget_tokens)
            seconds.observe(stats.seconds)
            recent.append((time.monotonic(), stats))

        return observe

    def recent(self, model: str, *, seconds: float) -> "list[BatchStats]":
        """A model's batches of the last so many seconds, oldest first; no more than RECENT_BATCHES."""
        began = time.monotonic() - seconds
        return [stats for moment, stats in self._recent.get(model, deque()).copy() if moment >= began]

    def embedded(self, prepared: Prepared, *, model: str, role: str) -> None:
        """Texts whose vectors have been computed."""
        self._texts.labels(model, role).inc(len(prepared.sequences))
        self._tokens.labels(model, role).inc(prepared.tokens)
        if prepared.cut:
            self._cut_texts.labels(model).inc(len(prepared.cut))
            self._cut_tokens.labels(model).inc(sum(prepared.cut.values()))

    def credits(self, outcome: str, microcredits: int) -> None:
        """`outcome`: debited, settled or refunded."""
        self._credits.labels(outcome).inc(microcredits)

    def finished(self, record: Record) -> None:
        """One request has its answer."""
        self._requests.labels(record.route, record.status).inc()
        self._seconds.labels(record.route).observe(record.seconds)
        if record.code:
            self._errors.labels(record.code).inc()
        if record.tokens:
            self._request_tokens.labels(record.model).observe(record.tokens)
        known = {name: value for name, value in vars(record).items() if value and name != "began"}
        quiet = record.route.startswith("/health") or record.route == "/metrics"
        (self.log.debug if quiet else self.log.info)("request", **known, seconds=round(record.seconds, 6))

    def fault(self, record: Record, error: BaseException) -> None:
        """An exception nobody foresaw."""
        self.log.error("fault", request_id=record.request_id, route=record.route, **describe(error))


def describe(error: BaseException) -> dict[str, Any]:
    """An exception without its message, which may quote a text: type and places, innermost last."""
    frames = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    return {"exception": type(error).__name__, "where": frames[-12:]}


def configure_logging(level: str) -> None:
    """JSON lines on stderr for everything that logs in this process."""

    def without_message(_logger: Any, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        error = event.pop("exc_info", None)
        error = error[1] if isinstance(error, tuple) else error
        return {**event, **describe(error)} if isinstance(error, BaseException) else event

    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            without_message,
            structlog.processors.JSONRenderer(),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(renderer)
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for noisy in ("httpx", "httpcore", "alembic", "asyncio", "uvicorn.access", "filelock", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
