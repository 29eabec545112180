"""`/account/keys`: make, limit, rotate and revoke the account's keys.

Invariant: a key of another account does not exist here; a secret stands in the one answer that made it.
Does not know: who may do what (delegation.py decides, in the transaction that does it).
"""

from datetime import UTC, datetime
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from udever.errors import OptionError
from udever.server.account_errors import EndedKeyError, HandOnError, UnknownKeyError
from udever.server.auth import Key
from udever.server.console import sessions
from udever.server.console.account import page as account
from udever.server.console.account.entrance import refused, see, to_sign_in
from udever.server.console.account.forms import GRACES, UNITS, model_choices, read_changes, read_end, read_grace, shown
from udever.server.console.rendering import render
from udever.server.console.sessions import Form, Viewer
from udever.server.delegation import may_manage
from udever.server.errors import fault_of
from udever.server.pipeline import record_of, service_of

REFUSALS = (OptionError, HandOnError, EndedKeyError)
router = APIRouter(include_in_schema=False)


@router.post("/account/keys")
async def create_key(request: Request) -> Response:
    """A new key; its secret is shown in this answer and never again."""
    form, who = await sessions.read_form(request), sessions.viewer(request)
    if who is None:
        return to_sign_in(request)
    access = service_of(request).access
    try:
        fields = read_changes(form, manager=who.key)
        fields["expires_at"] = read_end(form, manager=who.key)
        secret, made = await access.call(partial(access.accounts.own_keys.create, who.key, **fields))
    except REFUSALS as error:
        fault = fault_of(error)
        record_of(request).code = fault.code or ""
        return await account.show(request, who, status=fault.status, error=str(error), form=form)
    return await account.show(request, who, status=201, secret=secret, made=made)


@router.get("/account/keys/{key_id}")
async def key_page(request: Request, key_id: str) -> Response:
    """One key and what can be done with it."""
    who = sessions.viewer(request)
    return to_sign_in(request) if who is None else _show(request, who, await _own(request, who, key_id))


@router.post("/account/keys/{key_id}")
async def change_key(request: Request, key_id: str) -> Response:
    """Name, scopes and limits as in the form."""
    form, who = await sessions.read_form(request), sessions.viewer(request)
    if who is None:
        return to_sign_in(request)
    access, key = service_of(request).access, await _own(request, who, key_id)
    try:
        changes = read_changes(form, manager=who.key)
        await access.call(partial(access.accounts.own_keys.change, who.key, key.id, **changes))
    except REFUSALS as error:
        return _refuse(request, who, key, error=error, form=form)
    return see(f"/account/keys/{key.id}?saved=1")


@router.post("/account/keys/{key_id}/rotate")
async def rotate_key(request: Request, key_id: str) -> Response:
    """A new secret, shown once; whoever rotates the key of their own session stays signed in with it."""
    form, who = await sessions.read_form(request), sessions.viewer(request)
    if who is None:
        return to_sign_in(request)
    access, key = service_of(request).access, await _own(request, who, key_id)
    try:
        rotate = partial(access.accounts.own_keys.rotate, who.key, key.id, grace_seconds=read_grace(form))
        secret, rotated = await access.call(rotate)
    except REFUSALS as error:
        return _refuse(request, who, key, error=error)
    if rotated.id != who.key_id:
        return _show(request, who, rotated, secret=secret)
    cookie = sessions.begin(request, key=rotated)
    page = _show(request, who, rotated, secret=secret)
    sessions.send_cookie(request, page, cookie=cookie)
    return page


@router.post("/account/keys/{key_id}/revoke")
async def revoke_key(request: Request, key_id: str) -> Response:
    """The end of a key, if that is what is meant."""
    form, who = await sessions.read_form(request), sessions.viewer(request)
    if who is None:
        return to_sign_in(request)
    access, key = service_of(request).access, await _own(request, who, key_id)
    try:
        if form.get("sure") != "yes":
            raise OptionError("tick the box to revoke the key", hint="it cannot be undone")
        await access.call(partial(access.accounts.own_keys.revoke, who.key, key.id))
    except REFUSALS as error:
        return _refuse(request, who, key, error=error)
    return see("/signin" if key.id == who.key_id else "/account?revoked=1#keys")


async def _own(request: Request, who: Viewer, key_id: str) -> Key:
    """The account's key of this id. Raises `UnknownKeyError`, also for one of another account."""
    access = service_of(request).access
    key = await access.call(partial(access.accounts.keys.get, key_id))
    if key.account != who.account or key.id != key_id:
        raise UnknownKeyError(key_id)
    return key


def _refuse(request: Request, who: Viewer, key: Key, *, error: Exception, form: Form | None = None) -> Response:
    return refused(request, "key.html", error, **_context(request, who, key), fields=shown(key, form), secret="")


def _show(request: Request, who: Viewer, key: Key, *, secret: str = "") -> Response:
    context = _context(request, who, key)
    return render(request, "key.html", error="", fields=shown(key), secret=secret, **context)


def _context(request: Request, who: Viewer, key: Key) -> dict[str, Any]:
    now = datetime.now(UTC)
    return {
        "key": key,
        "state": key.status(now),
        "own": key.id == who.key_id,
        "may_manage": may_manage(who.key, key) and key.status(now) == "active",
        "models": model_choices(service_of(request).hosting.models, manager=who.key, key=key),
        "units": UNITS,
        "graces": GRACES,
        "saved": request.query_params.get("saved") == "1",
    }
