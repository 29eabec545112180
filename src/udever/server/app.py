"""The application: settings in, ASGI out.

    Frame (id, time, limits, log) -> FastAPI (routes) -> endpoint -> pipeline

Invariant: what the lifespan opens it closes, in the opposite order; the process listens before its models are loaded.
Does not know: sockets or signals (run.py).
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from udever import __version__
from udever.catalog.manifests import load_catalog
from udever.errors import ModelError, UdeverError
from udever.server import admin_api, health, openai_api, text_api
from udever.server.access import Access
from udever.server.account_errors import StoreUnavailableError
from udever.server.console import ROUTER as CONSOLE
from udever.server.console import answer as page_or_json
from udever.server.console import prepare as prepare_pages
from udever.server.errors import ClientGoneError, Fault, fault_of
from udever.server.hosting import Hosting
from udever.server.middleware import Frame
from udever.server.pipeline import Service, record_of
from udever.server.settings import Settings
from udever.server.telemetry import Telemetry
from udever.server.tracing import Traced, tracer_provider

REFUSALS = (UdeverError, HTTPException, RequestValidationError, ValidationError)
MODELS_POLL_SECONDS = 0.2
DESCRIPTION = "OpenAI-compatible embeddings that get Udever right: roles, token ids, truncation that is never silent."


def create_app(settings: Settings, *, on_failure: Callable[[str, BaseException], None] | None = None) -> FastAPI:
    """The service as an ASGI application.

    Args:
        on_failure: called when a model cannot be loaded at start (in the loading thread) or the accounts cannot be
            opened, with a name for it and the error.

    Raises:
        CatalogError: a manifest in the settings' `catalog_dir` cannot be used; names the file and the field.
    """
    telemetry = Telemetry()
    catalog = load_catalog(settings.catalog_dir)
    service = Service(
        settings=settings,
        telemetry=telemetry,
        access=Access(settings, telemetry=telemetry),
        hosting=Hosting(settings, telemetry=telemetry, catalog=catalog),
        catalog=catalog,
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        report = on_failure or (lambda _name, _error: None)
        preparing = None
        try:
            await service.access.open()  # takes 20 ms; if it fails, no model has to be waited for
            service.hosting.start(on_failure=report)
            preparing = asyncio.create_task(_prepare_pages(service)) if settings.console else None
            yield
        except UdeverError as error:
            report("the accounts", error)
            raise
        finally:
            if preparing:
                preparing.cancel()
            service.hosting.close()
            await service.access.close()

    app = FastAPIOffline(  # the page at /docs must work where nothing else can be reached
        title="udever",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        exception_handlers=dict.fromkeys(
            (UdeverError, HTTPException, RequestValidationError, ValidationError), _refuse
        ),
        redirect_slashes=False,
    )
    app.state.service = service
    for module in (openai_api, text_api, health, admin_api):
        app.include_router(module.router)
    if settings.console:
        app.include_router(CONSOLE)
    app.add_middleware(Frame, settings=settings, telemetry=telemetry, answer=_answer)
    if settings.cors_origins:  # keys travel in a header: a page of another origin gets no session, that is in a cookie
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's client sends half a dozen of its own
            expose_headers=["*"],
        )
    if settings.otlp_endpoint:
        app.add_middleware(Traced, provider=tracer_provider(settings.otlp_endpoint))
    return app


async def _prepare_pages(service: Service) -> None:
    """Not before the models are there: until then they need the processor more."""
    while not service.hosting.ready:
        await asyncio.sleep(MODELS_POLL_SECONDS)
    await asyncio.to_thread(prepare_pages)


async def _refuse(request: Request, error: Exception) -> Response:
    """OpenAI's error body. What nobody foresaw does not come here but to the frame, which logs it."""
    fault = fault_of(error)
    if isinstance(error, ClientGoneError):
        raise error
    record_of(request).code = fault.code or ""
    if isinstance(error, (StoreUnavailableError, ModelError)):  # the client is not told why, the operator is
        request.app.state.service.telemetry.log.warning("refused", code=error.code, why=str(error))
    return await _answer(request, fault)


async def _answer(request: Request, fault: Fault) -> Response:
    """A page for a person, JSON for a program; without the console everyone is a program."""
    return await page_or_json(request, fault) if request.app.state.service.settings.console else fault.response()
