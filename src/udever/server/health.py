"""Is the process alive, does it take work, what do the metrics say: for orchestrators, without a key.

Invariant: `live` answers as soon as the process listens, whatever the model does; nothing here says a secret.
Does not know: requests or accounts.
"""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from udever.server.openai_api import json_response
from udever.server.pipeline import service_of

router = APIRouter(tags=["Operating"])


@router.get("/health/live", responses={200: {"description": "The process is alive."}})
async def live() -> Response:
    """Alive."""
    return json_response({"status": "live"})


@router.get(
    "/health/ready",
    responses={200: {"description": "Requests are served."}, 503: {"description": "Not yet, or not now."}},
)
async def ready(request: Request) -> Response:
    """Ready for requests; each model's state."""
    hosting = service_of(request).hosting
    ready = hosting.ready
    answer = {"status": "ready" if ready else "not ready", "models": hosting.states}
    return json_response(answer, status=200 if ready else 503, headers={} if ready else {"retry-after": "1"})


@router.get("/metrics", responses={200: {"description": "Prometheus' text format.", "content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    return Response(service_of(request).telemetry.exposition(), headers={"content-type": CONTENT_TYPE_LATEST})
