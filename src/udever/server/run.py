"""Listen, serve, stop: uvicorn with the limits of a public server.

Invariant: SIGTERM ends listening at once, lets requests finish within the grace time and the process exit with 0; a
client that is slow with its headers, sends too many, or does not read its answer is cut off without the application.
A client that offers another protocol, as Java's does with each request (h2c), is answered in this one.
Does not know: what is served.
"""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from udever.errors import UdeverError
from udever.server.app import create_app
from udever.server.errors import Fault
from udever.server.settings import Settings
from udever.server.telemetry import configure_logging

log = logging.getLogger(__name__)


_OFFERS = (b"upgrade", b"http2-settings")
"""Headers that offer another protocol, and what `Connection` says of them."""


class ServeError(UdeverError):
    """The service cannot start."""

    code = "cannot_serve"


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        OptionError: settings that do not go together.
        ServeError: the address is taken, the accounts cannot be opened, or a model cannot be loaded.
    """
    settings.check()
    configure_logging(settings.log_level)
    failures: list[tuple[str, BaseException]] = []

    def stop(name: str, error: BaseException) -> None:
        failures.append((name, error))
        server.should_exit = True

    app = create_app(settings, on_failure=stop)
    listener = _listen(settings)
    server = _Server(
        uvicorn.Config(
            app,
            http=partial(_GuardedProtocol, settings=settings),  # type: ignore[arg-type]
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=True,
            forwarded_allow_ips=list(settings.trusted_proxies),
            timeout_keep_alive=settings.keep_alive_seconds,
            timeout_graceful_shutdown=settings.grace_seconds,
        )
    )

    def is_news(record: logging.LogRecord) -> bool:
        """Not the traceback of a failure that the line at the end says; others stay in the log."""
        said = record.getMessage()
        return not ("Traceback" in said and any(str(error) in said for _, error in failures))

    logging.getLogger("uvicorn.error").addFilter(is_news)
    log.info("listening on http://%s:%d", *listener.getsockname()[:2])
    try:
        server.run(sockets=[listener])
    except SystemExit:  # uvicorn's way to say that the application did not start
        failures.append(("the service", ServeError("the log says why")))
    if failures:
        name, error = failures[0]
        raise ServeError(f"{name} cannot be used: {error}") from error


class _Server(uvicorn.Server):
    """A signal asks it to stop, and then it has done what it was asked: the exit code is 0."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        def stop(number: int, frame: FrameType | None) -> None:
            self.handle_exit(number, frame)

        previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class _GuardedProtocol(HttpToolsProtocol):
    """HTTP with limits on the size of headers, on the time they take, and on the time an answer takes to be read."""

    def __init__(self, *args: Any, settings: Settings, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limit_bytes = settings.max_header_bytes
        self._limit_seconds = settings.header_seconds
        self._send_seconds = settings.send_seconds
        self._header_bytes: int | None = 0
        """Of the headers being read; None while a body is."""
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        """Runs while an answer waits to be read."""
        self._offer: tuple[bytes, int] | None = None
        """Of a request that offers another protocol: its head without the offer, and where in the data its body is."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer = self.loop.call_later(self._limit_seconds, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        if self._unread is not None:
            self._unread.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser no more header bytes than are allowed, so that none pile up in it."""
        while data and not self.transport.is_closing():
            room = len(data) if self._header_bytes is None else self._limit_bytes - self._header_bytes
            if room <= 0:
                self._refuse(431, "request_headers_too_large", f"The headers exceed {self._limit_bytes:,} bytes.")
                return
            piece, data = data[:room], data[room:]
            if self._header_bytes is not None:
                self._header_bytes += len(piece)
            super().data_received(piece)
            if self._offer is not None:
                (head, body), self._offer = self._offer, None
                self.parser = httptools.HttpRequestParser(self)  # the old one takes what follows for the other protocol
                data = head + piece[body:] + data

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0
        if self._unread is not None and not self.transport.get_write_buffer_size():
            self._unread.cancel()  # the answer before was read
            self._unread = None
        self._disarm()
        self._timer = self.loop.call_later(self._limit_seconds, self._too_slow)

    def on_headers_complete(self) -> None:
        self._disarm()
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._offer = (self._head_without_offer(), 0)
            return
        self._header_bytes = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._header_bytes = 0
        if self._offer is None:
            super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        error = sys.exception()  # httptools' way to say where the head ended
        if self._offer is not None and error is not None:
            self._offer = (self._offer[0], error.args[0])

    def _head_without_offer(self) -> bytes:
        lines = [b"%s %s HTTP/1.1" % (self.parser.get_method(), self.url)]
        for name, value in self.headers:
            if name == b"connection":
                value = b", ".join(
                    token for token in map(bytes.strip, value.split(b",")) if token.lower() not in _OFFERS
                )
            if value and name not in _OFFERS:
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._unread is None and self.transport.get_write_buffer_size():
            self._unread = self.loop.call_later(self._send_seconds, self._too_lazy)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "invalid_http", msg)

    def _too_slow(self) -> None:
        self._refuse(408, "request_timeout", "The headers did not arrive in time.")

    def _too_lazy(self) -> None:
        self._unread = None
        if self.transport.get_write_buffer_size():  # closing would wait until it is read
            self.transport.abort()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: int, code: str, message: str) -> None:
        if self.transport.is_closing():
            return
        body = Fault(status=status, message=message, code=code).body()
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise ServeError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}", hint="choose another --port"
        ) from error
    return listener
