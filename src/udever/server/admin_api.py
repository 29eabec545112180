"""Keys, credit and usage over HTTP, for a key that is an admin's; and sign-up, if the operator wants it.

Invariant: a secret is answered once, when it is made; nobody but an admin reads or changes anything here, and a secret
that was rotated away changes nothing.
Does not know: how keys are stored or money is booked (auth.py, ledger.py).
"""

from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from udever.server.errors import RequestError
from udever.server.openai_api import json_response
from udever.server.openapi import BEARER, answers, takes
from udever.server.pipeline import address_of, admin, read_body, service_of
from udever.server.schemas import ChangeKeyRequest, CreateKeyRequest, RotateKeyRequest, TopupRequest

GroupBy = Literal["day", "account", "key", "model", "role"]
router = APIRouter(tags=["Admin"], dependencies=[BEARER])


@router.post("/v1/signup", responses=answers(status=201), status_code=201)
async def sign_up(request: Request) -> Response:
    """A new account with the operator's free credit; a few a day from one address."""
    service = service_of(request)
    microcredits = service.settings.signup_microcredits
    if not microcredits:
        raise RequestError("Sign-up is switched off here.", code="signup_disabled", status=404)
    sign_up = partial(service.access.accounts.signups.sign_up, address=address_of(request), microcredits=microcredits)
    secret, key = await service.access.call(sign_up)
    return json_response({"secret": secret, "key": key.describe(), "microcredits": microcredits}, status=201)


@router.post("/v1/admin/keys", responses=answers(status=201), status_code=201, openapi_extra=takes(CreateKeyRequest))
async def create_key(request: Request) -> Response:
    """A new key; its secret is shown in this answer and never again."""
    boss = await admin(request, changing=True)
    access, body = service_of(request).access, await read_body(request, CreateKeyRequest)
    create = partial(access.accounts.keys.create, **_fields(body), made_by=boss.id)
    secret, key = await access.call(create)
    return json_response({"secret": secret, "key": key.describe()}, status=201)


@router.get("/v1/admin/keys", responses=answers())
async def list_keys(request: Request, account: str | None = None) -> Response:
    """All keys, or those of one account; no secrets."""
    await admin(request)
    access = service_of(request).access
    keys = await access.call(partial(access.accounts.keys.list, account=account))
    return json_response({"object": "list", "data": [key.describe() for key in keys]})


@router.patch("/v1/admin/keys/{key_id}", responses=answers(), openapi_extra=takes(ChangeKeyRequest))
async def change_key(request: Request, key_id: str) -> Response:
    """Change a key's name, scopes or limits, from its next request on."""
    await admin(request, changing=True)
    access, body = service_of(request).access, await read_body(request, ChangeKeyRequest)
    change = partial(access.accounts.keys.change, key_id, **_fields(body, exclude_unset=True))
    return json_response((await access.call(change)).describe())


@router.delete("/v1/admin/keys/{key_id}", responses=answers())
async def revoke_key(request: Request, key_id: str) -> Response:
    """Revoke a key, by its id or visible prefix, at once."""
    await admin(request, changing=True)
    access = service_of(request).access
    return json_response((await access.call(partial(access.accounts.keys.revoke, key_id))).describe())


@router.post("/v1/admin/keys/{key_id}/rotate", responses=answers(), openapi_extra=takes(RotateKeyRequest))
async def rotate_key(request: Request, key_id: str) -> Response:
    """A new secret for a key; the old one works for a while yet."""
    await admin(request, changing=True)
    access, body = service_of(request).access, await read_body(request, RotateKeyRequest)
    rotate = partial(access.accounts.keys.rotate, key_id, grace_seconds=body.grace_seconds)
    secret, key = await access.call(rotate)
    return json_response({"secret": secret, "key": key.describe()})


@router.post("/v1/admin/accounts/{account:path}/topups", responses=answers(status=201), status_code=201,
             openapi_extra=takes(TopupRequest))  # fmt: skip
async def topup(request: Request, account: str) -> Response:
    """Add credit to an account; with a name in `once` a repeated request books nothing and answers the balance."""
    await admin(request, changing=True)
    access, body = service_of(request).access, await read_body(request, TopupRequest)
    ledger = access.accounts.ledger
    add = partial(ledger.topup, account) if body.once is None else partial(ledger.topup_once, account, once=body.once)
    add = partial(add, microcredits=body.microcredits, note=body.note)
    return json_response({"account": account, "balance_microcredits": await access.call(add)}, status=201)


@router.get("/v1/admin/accounts", responses=answers())
async def balances(request: Request) -> Response:
    """Every account's balance."""
    await admin(request)
    access = service_of(request).access
    rows = await access.call(access.accounts.ledger.balances)
    data = [{"account": account, "balance_microcredits": balance} for account, balance in rows.items()]
    return json_response({"object": "list", "data": data})


@router.get("/v1/admin/usage", responses=answers())
async def usage(
    request: Request,
    since: date | None = None,
    until: date | None = None,
    account: str | None = None,
    group_by: Annotated[list[GroupBy] | None, Query()] = None,
) -> Response:
    """What was used, by day, model and key unless `group_by` says otherwise; days are UTC and inclusive."""
    await admin(request)
    ledger = service_of(request).access.accounts.ledger
    by = tuple(dict.fromkeys(group_by or ("day", "model", "key")))  # a column twice is a column
    rows = await service_of(request).access.call(
        partial(ledger.usage, since=since, until=until, group_by=by, account=account)
    )
    return json_response({"object": "list", "data": [row.describe() for row in rows]})


def _fields(body: CreateKeyRequest | ChangeKeyRequest, *, exclude_unset: bool = False) -> dict[str, Any]:
    """What `Keys` takes: a time to live becomes an end."""
    fields = body.model_dump(exclude_unset=exclude_unset)
    if "expires_in_seconds" in fields:
        lasting = fields.pop("expires_in_seconds")
        fields["expires_at"] = None if lasting is None else datetime.now(UTC) + timedelta(seconds=lasting)
    return fields
