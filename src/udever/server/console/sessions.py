"""Who looks at a page: a signed cookie after a key was shown once, and whether a form comes from our own page.

    cookie = signed [visible start of the secret, time of sign-in, a random number]

Invariant: the cookie holds no secret and the process no state, so that every replica knows every visitor; each request
asks the store, and a session ends with its secret: revoked, expired or rotated away. No form changes anything unless it
comes from a page of this origin and, for somebody signed in, carries that session's token.
Does not know: what a page shows, or what a key may do. Signing out forgets the cookie in the browser; a copy of it that
was made before works until its time is up or its key is rotated.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from urllib.parse import parse_qs, urlsplit

from itsdangerous import BadData, URLSafeSerializer
from starlette.requests import Request
from starlette.responses import Response

from udever.server.account_errors import InvalidKeyError
from udever.server.auth import Key, Keys
from udever.server.errors import RequestError
from udever.server.pipeline import record_of, service_of

COOKIE = "udever_session"
SECURE_COOKIE = f"__Host-{COOKIE}"
"""Over https: browsers take a cookie of such a name from this very host only, not from a neighbour in its domain."""
LONGEST_COOKIE = 512
LARGEST_FORM_BYTES = 64 * 2**10
MOST_FIELDS = 200


@dataclass(frozen=True, kw_only=True)
class Viewer:
    """Somebody who is signed in. Holds no secret."""

    key: Key
    """As it stands now; its prefix is that of the secret that was typed."""
    csrf: str
    """What forms of this session must carry."""

    @property
    def key_id(self) -> str:
        """Of the key that was typed."""
        return self.key.id

    @property
    def account(self) -> str:
        """Whose pages these are."""
        return self.key.account

    @property
    def admin(self) -> bool:
        """Whether the admin's pages exist for them."""
        return self.key.admin


class Sessions:
    """Cookies of one database's keys. Thread-safe."""

    def __init__(self, keys: Keys, *, lifetime_seconds: float, clock: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._lifetime_seconds = lifetime_seconds
        self._clock = clock
        self._csrf_key = keys.digest("the pages' form tokens")
        self._signer = URLSafeSerializer(
            keys.digest("the pages' sessions"),
            salt="session",
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
        )

    def issue(self, key: Key) -> str:
        """The cookie of somebody whose secret was just checked, or just made."""
        return str(self._signer.dumps([key.prefix, int(self._clock()), secrets.token_urlsafe(12)]))

    def open(self, cookie: str) -> Viewer | None:
        """Whose cookie this is; None if it is forged, too old, or its secret no longer works."""
        try:
            prefix, issued, _ = self._signer.loads(cookie[: LONGEST_COOKIE + 1])
            if not 0 <= self._clock() - issued + 60 < self._lifetime_seconds + 60:  # replicas' clocks differ a little
                return None
            return Viewer(key=self._keys.recall(prefix), csrf=self.token(cookie))
        except (BadData, InvalidKeyError, TypeError, ValueError):  # the latter: signed by us, in another version
            return None

    def token(self, cookie: str) -> str:
        """What the forms of this session carry."""
        return hmac.digest(self._csrf_key, cookie.encode(), "sha256").hex()


@dataclass(frozen=True, kw_only=True)
class Form:
    """The fields of a form."""

    fields: Mapping[str, list[str]]

    def get(self, name: str) -> str:
        """The field without the spaces around it; empty if it was not sent."""
        return self.fields.get(name, [""])[0].strip()

    def all(self, name: str) -> list[str]:
        """Every value of a field that may stand more than once."""
        return self.fields.get(name, [])


async def identify(request: Request) -> Viewer | None:
    """Find out who asks, once a request, before a page is rendered. Raises `StoreUnavailableError`."""
    if not hasattr(request.state, "viewer"):
        request.state.viewer = None
        cookie = request.cookies.get(_name(request))
        access = service_of(request).access
        if cookie and not access.is_open:
            found = await access.call(partial(sessions_of(request).open, cookie))
            request.state.viewer = found
            record_of(request).key = found.key_id if found else ""
    return viewer(request)


def viewer(request: Request) -> Viewer | None:
    """Who asks, as `identify` found out; None: nobody is signed in."""
    found: Viewer | None = getattr(request.state, "viewer", None)
    return found


def sessions_of(request: Request) -> Sessions:
    """Raises `RequestError`: the service runs without accounts."""
    service = service_of(request)
    return Sessions(service.access.accounts.keys, lifetime_seconds=service.settings.session_seconds)


def begin(request: Request, *, key: Key) -> str:
    """The cookie of a new session; what is rendered from now on belongs to it. `send_cookie` it with the answer."""
    sessions = sessions_of(request)
    cookie = sessions.issue(key)
    request.state.viewer = Viewer(key=key, csrf=sessions.token(cookie))
    return cookie


def send_cookie(request: Request, response: Response, *, cookie: str) -> None:
    """Give the browser its session."""
    response.set_cookie(
        _name(request),
        cookie,
        max_age=int(service_of(request).settings.session_seconds),
        path="/",
        secure=_is_https(request),
        httponly=True,
        samesite="lax",  # strict: who comes by a link from elsewhere would see a page of nobody, with forms that fail
    )


def sign_out(request: Request, response: Response) -> None:
    """Make the browser forget its cookie."""
    response.delete_cookie(_name(request), path="/", secure=_is_https(request), httponly=True, samesite="lax")


async def read_form(request: Request, *, largest_bytes: int = LARGEST_FORM_BYTES) -> Form:
    """The fields of a form of ours.

    Raises:
        RequestError: it is not from our own page (403), too large, or no form.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        raise RequestError("This address takes a form.", code="unsupported_content_type", status=415)
    body = await request.body()
    if len(body) > largest_bytes:
        raise RequestError("The form is too large.", code="request_too_large", status=413)
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict")
    except ValueError as error:
        raise RequestError("The form cannot be read.", code="invalid_form") from error
    form = Form(fields=fields)
    check_post(request, token=form.get("csrf"))
    return form


def check_post(request: Request, *, token: str = "") -> None:
    """Raises `RequestError` (403) unless this comes from a page of ours, and of this session if there is one.

    Args:
        token: of the form; without one the header `X-CSRF-Token` counts.
    """
    known = viewer(request)
    given = token or request.headers.get("x-csrf-token", "")
    if not _same_origin(request) or (known and not hmac.compare_digest(given.encode(), known.csrf.encode())):
        message = "This form is not from a page that is open now. Reload the page and send it again."
        raise RequestError(message, code="csrf_failed", status=403)


def _same_origin(request: Request) -> bool:
    """What the browser says of the page behind a request; a client that says nothing is none, and has no cookies."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        return site in ("same-origin", "none")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")


def _name(request: Request) -> str:
    return SECURE_COOKIE if _is_https(request) else COOKIE


def _is_https(request: Request) -> bool:
    return request.url.scheme == "https"
