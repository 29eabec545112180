"""A template and what it needs become a page.

    return render(request, "catalogue.html", models=models)

Invariant: whatever stands in a variable is escaped; every page carries the same strict headers, and no script or style
stands inside it. A variable that a template names and nobody gave is an error, not an empty place.
Does not know: what a page is about.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from functools import cache
from types import MappingProxyType
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import Response

from udever import __version__
from udever.catalog.published import benchmarks
from udever.server.console import sessions
from udever.server.console.assets import asset_url
from udever.server.credits import format_credits
from udever.server.pipeline import service_of

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
HEADERS = MappingProxyType(
    {
        "content-security-policy": CONTENT_SECURITY_POLICY,
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "same-origin",
        "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "vary": "cookie",
    }
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A link in the page's head."""

    title: str
    path: str
    """Where it leads; it is the current one on every page below."""


NAVIGATION = (
    Entry(title="Models", path="/"),
    Entry(title="Compare", path="/compare"),
    Entry(title="Playground", path="/playground"),
    Entry(title="API", path="/docs"),
)
ALSO_CURRENT = MappingProxyType({"/models": "/"})
"""Pages that stand below another entry than their address says."""


def render(request: Request, template: str, /, *, status: int = 200, **context: Any) -> Response:
    """A page. `context` goes before what every template knows: see `common`."""
    page = _environment().get_template(template).render({**common(request), **context})
    signed_in = context.get("viewer", True) and sessions.viewer(request) is not None
    headers = {**HEADERS, "cache-control": "no-store" if signed_in else "private, no-cache"}
    return Response(page, status, headers=headers, media_type="text/html; charset=utf-8")


def common(request: Request) -> dict[str, Any]:
    """What every template may use."""
    viewer = sessions.viewer(request)
    path = request.url.path
    return {
        "path": path,
        "query": request.url.query,
        "base_url": str(request.base_url).rstrip("/"),
        "viewer": viewer,
        "csrf": getattr(request.state, "csrf", None) or (viewer.csrf if viewer else ""),
        "accounts_on": not service_of(request).access.is_open,
        "signup_microcredits": service_of(request).settings.signup_microcredits,
        "navigation": NAVIGATION,
        "current": _current(path),
    }


def fragment(template: str, /, **context: Any) -> str:
    """A template that needs no request, as text."""
    return _environment().get_template(template).render(context)


def prepare() -> None:
    """Compile every template and read the published numbers, so that no visitor waits for it."""
    environment = _environment()
    for name in environment.list_templates():
        environment.get_template(name)
    benchmarks()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("udever.server.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(asset=asset_url, version=__version__)
    environment.filters.update(FILTERS)
    return environment


def _current(path: str) -> str:
    first = "/" + path.split("/")[1]
    return ALSO_CURRENT.get(first, first)


def compact(value: float) -> str:
    """1,065,314,304 → 1.1 B; 14,700,000 → 14.7 M; three digits at most."""
    for limit, unit in ((1e9, " B"), (1e6, " M"), (1e3, " K")):
        if value >= limit:
            scaled = value / limit
            return f"{scaled:.1f}".removesuffix(".0") + unit if scaled < 100 else f"{scaled:.0f}{unit}"
    return f"{value:g}"


def thousands(value: float) -> str:
    """1,024."""
    return f"{value:,}"


def month(value: date) -> str:
    """Oct 2023."""
    return f"{value:%b %Y}"


def day(value: date | datetime) -> str:
    """12 Oct 2023."""
    return f"{value.day} {value:%b %Y}"


FILTERS: Mapping[str, Any] = MappingProxyType(
    {"compact": compact, "thousands": thousands, "credits": format_credits, "month": month, "day": day}
)
