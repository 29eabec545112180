"""`/signin`, `/signout`, `/signup`: ways in and out.

Invariant: nobody is sent to another host from here; a new key's secret stands in one answer that nothing may keep.
Does not know: how keys are checked, credit is given or cookies are signed.
"""

import re
from functools import partial
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from udever.errors import OptionError
from udever.server.account_errors import InvalidKeyError, RateLimitedError
from udever.server.console import sessions
from udever.server.console.rendering import render
from udever.server.errors import RequestError, fault_of
from udever.server.pipeline import address_of, record_of, service_of

LOCAL = re.compile(r"/(?!/)[!-\[\]-~]{0,500}")
"""An address on this host: no second slash or backslash that browsers read as another host's name, no control signs."""
HOME = "/account"
router = APIRouter(include_in_schema=False)


@router.get("/signin")
async def sign_in_page(request: Request, next: str = HOME) -> Response:
    """Where a key is shown once."""
    _require_accounts(request)
    where = local(next)
    return see(where) if sessions.viewer(request) else render(request, "signin.html", next=where, error="")


@router.post("/signin")
async def sign_in(request: Request) -> Response:
    """A session for whoever holds the key."""
    if sessions.viewer(request):
        return see(HOME)
    form = await sessions.read_form(request)
    where, access = local(form.get("next")), service_of(request).access
    try:
        check = partial(access.accounts.signins.sign_in, form.get("key"), address=address_of(request))
        key = await access.call(check)
    except (InvalidKeyError, RateLimitedError) as error:
        return refused(request, "signin.html", error, next=where)
    answer = see(where)
    sessions.send_cookie(request, answer, cookie=sessions.begin(request, key=key))
    return answer


@router.post("/signout")
async def sign_out(request: Request) -> Response:
    """The end of a session in this browser."""
    await sessions.read_form(request)
    answer = see("/")
    sessions.sign_out(request, answer)
    return answer


@router.get("/signup")
async def sign_up_page(request: Request) -> Response:
    """What a new account is and gets."""
    return render(request, "signup.html", microcredits=_free_credit(request), error="", name="", secret="", key=None)


@router.post("/signup")
async def sign_up(request: Request) -> Response:
    """A new account, its key and its credit; whoever made it is signed in."""
    microcredits = _free_credit(request)
    form = await sessions.read_form(request)
    access, name = service_of(request).access, form.get("name")
    make = partial(
        access.accounts.signups.sign_up, address=address_of(request), microcredits=microcredits, name=name or "first"
    )
    try:
        secret, key = await access.call(make)
    except (OptionError, RateLimitedError) as error:
        known = {"microcredits": microcredits, "name": name, "secret": "", "key": None}
        return refused(request, "signup.html", error, **known)
    cookie = sessions.begin(request, key=key)
    page = render(
        request, "signup.html", status=201, microcredits=microcredits, error="", name="", secret=secret, key=key
    )
    sessions.send_cookie(request, page, cookie=cookie)
    return page


def see(where: str) -> Response:
    """Send the browser to another page of ours, with GET."""
    return RedirectResponse(where, status_code=303, headers={"cache-control": "no-store"})


def to_sign_in(request: Request) -> Response:
    """For whoever must be signed in; they come back after it."""
    _require_accounts(request)
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    back = here if request.method == "GET" else HOME
    return see(f"/signin?next={quote(back, safe='/')}")


def refused(request: Request, template: str, error: Exception, **context: Any) -> Response:
    """The page of a form again, with what was wrong with it."""
    fault = fault_of(error)
    record_of(request).code = fault.code or ""
    message = str(getattr(error, "message", "") or fault.message)
    hint = str(getattr(error, "hint", ""))
    spoken = f"{message[:1].upper()}{message[1:]}." + (f" {hint[:1].upper()}{hint[1:]}." if hint else "")
    page = render(request, template, status=fault.status, error=spoken, **context)
    if "retry-after" in fault.headers:
        page.headers["retry-after"] = fault.headers["retry-after"]
    return page


def local(path: str) -> str:
    """The address if it is one of ours, else the account's page."""
    return path if LOCAL.fullmatch(path) else HOME


def _require_accounts(request: Request) -> None:
    """Raises `RequestError`: the service runs without accounts."""
    _ = service_of(request).access.accounts


def _free_credit(request: Request) -> int:
    """What a new account gets. Raises `RequestError`: no sign-up here, or no accounts at all."""
    _require_accounts(request)
    microcredits = service_of(request).settings.signup_microcredits
    if not microcredits:
        raise RequestError("Sign-up is switched off here.", code="signup_disabled", status=404)
    return microcredits
