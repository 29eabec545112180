"""The pages: catalogue, models, comparison, playground, account.

Invariant: every page works without JavaScript (the playground's live parts aside) and asks no other host for anything.
Does not know: how a request is embedded or paid for; the pages use the same doors as the API.
"""

from fastapi import APIRouter, Depends
from fastapi.routing import APIRoute

from udever.server.console import assets, sessions
from udever.server.console.account import admin, entrance
from udever.server.console.account import keys as account_keys
from udever.server.console.account import page as account
from udever.server.console.error_pages import answer
from udever.server.console.models import catalogue, compare, model_page, votes
from udever.server.console.playground import page as playground
from udever.server.console.rendering import prepare

PAGES = (
    catalogue.router,
    compare.router,
    playground.router,
    entrance.router,
    account.router,
    account_keys.router,
    admin.router,
    votes.router,
    model_page.router,
)
"""Every part's routes, in the order in which addresses are tried."""


def _router() -> APIRouter:
    """All of them. Who asks is found out before a page is made; the pages' own files are everybody's."""
    together = APIRouter()
    together.include_router(assets.router)
    for router in PAGES:
        together.include_router(router, dependencies=[Depends(sessions.identify)])
    for route in (route for router in (assets.router, *PAGES) for route in router.routes):
        if isinstance(route, APIRoute) and route.methods and "GET" in route.methods:
            route.methods.add("HEAD")  # what link checkers and load balancers ask; uvicorn leaves the body out
    return together


ROUTER = _router()

__all__ = ["ROUTER", "answer", "prepare"]
