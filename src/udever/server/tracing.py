"""OpenTelemetry: one span a request, sent only if there is an endpoint to send to.

Invariant: without an endpoint nothing of OpenTelemetry is imported; spans carry what the log carries, and no more.
Does not know: what the request was about.
"""

from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from udever.errors import OptionError


class Traced:
    """ASGI around the frame, so that the request's record is complete when the span ends."""

    def __init__(self, app: ASGIApp, *, provider: Any) -> None:
        self._app = app
        self._provider = provider
        self._tracer = provider.get_tracer("udever")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; traces begun by the client go on here (W3C traceparent)."""
        if scope["type"] == "lifespan":
            try:
                await self._app(scope, receive, send)
            finally:
                self._provider.shutdown()
            return
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        parent = extract({name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]})
        with self._tracer.start_as_current_span("request", context=parent, kind=SpanKind.SERVER) as span:
            await self._app(scope, receive, send)
            record = scope.get("state", {}).get("record")
            if record is None:  # a preflight, answered before the frame
                return
            span.update_name(f"{record.method} {record.route}")
            span.set_attributes({f"udever.{name}": value for name, value in vars(record).items() if value})


def tracer_provider(endpoint: str) -> Any:
    """What sends spans to `endpoint`, in the background.

    Raises:
        OptionError: the exporter is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise OptionError(
            "otlp_endpoint is set, but OpenTelemetry's exporter is not installed",
            hint="pip install 'udever[otel]'",
        ) from error
    provider = TracerProvider(resource=Resource.create({"service.name": "udever"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")))
    return provider
