"""A refusal, for whoever asked: a page for a person, OpenAI's JSON for a program.

Invariant: the API's answers are JSON whatever a client says it accepts; a page that cannot be made becomes JSON.
Does not know: which errors there are (errors.py).
"""

import logging
from contextlib import suppress
from types import MappingProxyType

from starlette.requests import Request
from starlette.responses import Response

from udever.errors import UdeverError
from udever.server.console import sessions
from udever.server.console.rendering import render
from udever.server.errors import Fault

API = ("/v1/", "/health/", "/metrics", "/openapi.json", "/static/")
TITLES = MappingProxyType(
    {
        400: "That did not work",
        401: "Please sign in",
        402: "Not enough credit",
        403: "Not allowed",
        404: "Nothing here",
        405: "Not that way",
        413: "Too much at once",
        429: "A little slower, please",
        503: "Not just now",
    }
)
log = logging.getLogger(__name__)


async def answer(request: Request, fault: Fault) -> Response:
    """The answer that fits who asked."""
    htmx = request.headers.get("hx-request") == "true"
    if request.url.path.startswith(API) or not (htmx or "text/html" in request.headers.get("accept", "")):
        return fault.response()
    with suppress(UdeverError):  # the page's head says who is signed in, if the accounts can be asked
        await sessions.identify(request)
    try:
        return _notice(request, fault) if htmx else _page(request, fault)
    except Exception:
        log.exception("the error page cannot be made")
        return fault.response()


def _page(request: Request, fault: Fault) -> Response:
    title = TITLES.get(fault.status, "Something went wrong")
    page = render(request, "error.html", status=fault.status, title=title, fault=fault)
    page.headers.update(fault.headers)
    return page


def _notice(request: Request, fault: Fault) -> Response:
    """htmx puts it at the top of the page that is open, whatever it was about to replace."""
    notice = render(request, "notice.html", status=fault.status, fault=fault)
    notice.headers.update(
        {
            **fault.headers,
            "hx-retarget": "#notices",
            "hx-reswap": "innerHTML",
            "hx-reselect": "unset",  # else htmx looks in the notice for the part that the page had asked for
            "hx-push-url": "false",
        }
    )
    return notice
