"""What surrounds every request: an id, its time, the limits of its body, one log line, and an answer whatever happens.

Invariant: every request gets exactly one answer and one line in the log; the body is never read further than its limit
or waited for longer than the settings say.
Does not know: the endpoints. Plain ASGI, because each layer of Starlette's helper costs time and hides disconnects.
"""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from udever.server.errors import ClientGoneError, Fault, RequestError, fault_of
from udever.server.settings import Settings
from udever.server.telemetry import Record, Telemetry


class Frame:
    """The outermost part of the application that is ours."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        telemetry: Telemetry,
        answer: Callable[[Request, Fault], Awaitable[Response]],
    ) -> None:
        self._app = app
        self._answer = answer
        self._settings = settings
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; the server's own start and stop pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = Record(request_id=f"req_{uuid.uuid4().hex}", method=scope["method"])
        scope.setdefault("state", {})["record"] = record
        body = _Body(scope, receive=receive, settings=self._settings)
        answering = _Answering(record, send=send, body=body)
        with self._telemetry.in_flight.track_inprogress():
            try:
                await self._app(scope, body.receive, answering.send)
            except Exception as error:  # noqa: BLE001  the last line of defence
                await self._apologise(error, record, answering, scope=scope, receive=receive)
            finally:
                record.route = _pattern(scope)
                self._telemetry.finished(record)

    async def _apologise(
        self, error: Exception, record: Record, answering: "_Answering", *, scope: Scope, receive: Receive
    ) -> None:
        """An answer to what no handler caught; nothing if one has begun, or nobody is there."""
        fault = fault_of(error)
        record.code, record.status = fault.code or "", record.status or fault.status
        if fault.status == 500:
            self._telemetry.fault(record, error)
        if not answering.begun and not isinstance(error, ClientGoneError):
            answer = await self._answer(Request(scope), fault)
            await answer(scope, receive, answering.send)


class _Body:
    """`receive`, which refuses a body that is too large or too slow."""

    def __init__(self, scope: Scope, *, receive: Receive, settings: Settings) -> None:
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"0")
        self._declared_bytes = int(declared) if declared.isdigit() else 0
        self._receive = receive
        self._limit_bytes = settings.max_body_bytes
        self._end = time.monotonic() + settings.body_seconds
        self._received_bytes = 0
        self._complete = False
        self.unread = bool(self._declared_bytes) or b"transfer-encoding" in headers
        """Whether more of it may come."""

    async def receive(self) -> Message:
        """The next piece; after the last one, the end of the connection.

        Raises:
            RequestError: too large, or not there in time.
            ClientGoneError: the client left in the middle of it.
        """
        if self._complete:
            return await self._receive()
        if self._declared_bytes > self._limit_bytes:
            raise _too_large(self._limit_bytes)
        try:
            async with asyncio.timeout(self._end - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            raise RequestError("The body did not arrive in time.", code="request_timeout", status=408) from None
        if message["type"] == "http.disconnect":
            raise ClientGoneError("the client closed the connection")
        self._received_bytes += len(message.get("body", b""))
        if self._received_bytes > self._limit_bytes:
            raise _too_large(self._limit_bytes)
        self.unread = message.get("more_body", False)
        self._complete = not self.unread
        return message


class _Answering:
    """`send` with our headers."""

    def __init__(self, record: Record, *, send: Send, body: _Body) -> None:
        self._record = record
        self._send = send
        self._body = body
        self.begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            self._record.status = message["status"]
            message["headers"] = [*message["headers"], *self._headers()]
        await self._send(message)

    def _headers(self) -> list[tuple[bytes, bytes]]:
        headers = [
            (b"x-request-id", self._record.request_id.encode()),
            (b"openai-processing-ms", str(round(self._record.seconds * 1000)).encode()),
        ]
        # Nobody wants the rest of a body that was refused, however slowly it comes.
        return [*headers, (b"connection", b"close")] if self._body.unread else headers


def _too_large(limit: int) -> RequestError:
    return RequestError(f"The body is larger than {limit:,} bytes.", code="request_too_large", status=413)


def _pattern(scope: Scope) -> str:
    route = scope.get("route")
    return getattr(route, "path", "unmatched")
