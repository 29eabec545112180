"""`POST /models/{id}/want`: tell us you want it.

Invariant: only models of the catalogue can be voted for, so that nobody fills the database; a model that is live is
thanked for, not counted.
Does not know: how votes are stored, or which models there are (status.py).
"""

from dataclasses import dataclass
from functools import partial
from urllib.parse import quote

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from udever.server.console import sessions
from udever.server.console.account.entrance import see
from udever.server.console.models.status import find
from udever.server.console.rendering import render
from udever.server.errors import RequestError
from udever.server.pipeline import address_of, service_of
from udever.server.votes import Voter, Votes

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How wanted a model is, as one visitor sees it."""

    count: int
    voted: bool
    """Whether this visitor is among them."""


@router.post("/models/{model:path}/want")
async def want(request: Request, model: str) -> Response:
    """Count this visitor once."""
    await sessions.read_form(request)
    service = service_of(request)
    listing = find(service, model)
    if listing is None:
        raise RequestError("There is no such model in the catalogue.", code="model_not_found", status=404)
    live = listing.status == "live"
    if not live:
        votes = service.access.accounts.votes
        await service.access.call(partial(votes.cast, listing.id, voter=_voter(request)))
    if request.headers.get("hx-request") == "true":
        vote = await standing(request, listing.id)
        return render(request, "want.html", model_id=listing.id, vote=vote, live=live)
    return see(f"/models/{quote(listing.id)}#want")


async def standing(request: Request, model: str) -> Standing | None:
    """How wanted a model is; None: the service runs without accounts, so nothing is counted."""
    access = service_of(request).access
    if access.is_open:
        return None
    return await access.call(partial(_look, access.accounts.votes, model=model, voter=_voter(request)))


async def counts(request: Request) -> dict[str, int]:
    """Model → votes, of those that have any."""
    access = service_of(request).access
    if access.is_open:
        return {}
    return {wanted.model: wanted.votes for wanted in await access.call(access.accounts.votes.wanted)}


def _look(votes: Votes, *, model: str, voter: Voter) -> Standing:
    return Standing(count=votes.count(model), voted=votes.has_voted(model, voter=voter))


def _voter(request: Request) -> Voter:
    who = sessions.viewer(request)
    return Voter(address=address_of(request), account=who.account if who else None)
