"""The pages' own files: one stylesheet, two scripts, an icon; read once, named by their content.

    asset_url("style.css") -> /static/3f9a1c2b7d/style.css       # may be kept for a year: other content, other address

Invariant: only files in `static/` are served, and what was read at the start is what is served until the end.
Does not know: pages.
"""

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

MEDIA_TYPES = MappingProxyType(
    {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".LICENSE": "text/plain"}
)
FOREVER = "public, max-age=31536000, immutable"
DIGEST_DIGITS = 10
router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One file, ready to be sent."""

    content: bytes
    compressed: bytes
    media_type: str
    digest: str


@cache
def _assets() -> MappingProxyType[str, Asset]:
    folder = files(__package__) / "static"
    found = {file.name: file.read_bytes() for file in folder.iterdir() if _suffix(file.name) in MEDIA_TYPES}
    return MappingProxyType({name: _asset(name, content) for name, content in sorted(found.items())})


def asset_url(name: str) -> str:
    """The address of a file in `static/`. Raises KeyError if there is none of this name."""
    return f"/static/{_assets()[name].digest}/{name}"


@router.get("/static/{digest}/{name}")
async def static_file(request: Request, digest: str, name: str) -> Response:
    """One file. A page of another version asks by another digest and gets today's file, which it may not keep."""
    asset = _assets().get(name)
    if asset is None:
        raise HTTPException(404)
    headers = {
        "cache-control": FOREVER if digest == asset.digest else "no-cache",
        "vary": "accept-encoding",
        "x-content-type-options": "nosniff",
        "cross-origin-resource-policy": "same-origin",
    }
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(asset.compressed, headers=headers | {"content-encoding": "gzip"}, media_type=asset.media_type)
    return Response(asset.content, headers=headers, media_type=asset.media_type)


@router.get("/favicon.ico")
async def favicon() -> Response:
    """Where browsers look for an icon unasked."""
    return RedirectResponse(asset_url("icon.svg"), status_code=301)


def _asset(name: str, content: bytes) -> Asset:
    return Asset(
        content=content,
        compressed=gzip.compress(content, mtime=0),
        media_type=MEDIA_TYPES[_suffix(name)],
        digest=hashlib.sha256(content).hexdigest()[:DIGEST_DIGITS],
    )


def _suffix(name: str) -> str:
    return name[name.rfind(".") :]
