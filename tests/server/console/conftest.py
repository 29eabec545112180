"""One real service for the account pages' tests, and visitors with a cookie jar each."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import httpx
import pytest

from udever.server.accounts import Accounts, open_accounts

FREE = 500


@dataclass
class Visitor:
    """A browser without a screen: keeps its cookie, sends forms from the page it is on."""

    http: httpx.Client
    csrf: str = ""
    seen: list[str] = field(default_factory=list)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self._see(self.http.get(path, **options))

    def post(self, path: str, *, csrf: str | None = None, headers: dict[str, str] | None = None, **fields: Any) -> Any:
        """Send a form; `csrf` instead of the page's own token."""
        form = {"csrf": self.csrf if csrf is None else csrf, **fields}
        return self._see(self.http.post(path, data=form, headers=headers))

    def sign_in(self, secret: str) -> "Visitor":
        assert self.post("/signin", key=secret).status_code == 303
        assert self.get("/account").status_code == 200
        return self

    def _see(self, response: httpx.Response) -> httpx.Response:
        token = re.search(r'<meta name="csrf" content="([^"]*)">', response.text)
        self.csrf = token[1] if token else self.csrf
        self.seen.append(response.text)
        return response


@pytest.fixture(scope="session")
def pages_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('pages') / 'udever.sqlite'}"


@pytest.fixture(scope="session")
def pages_accounts(pages_url: str) -> Iterator[Accounts]:
    """The accounts of the service, opened beside it."""
    with open_accounts(pages_url) as accounts:
        yield accounts


@pytest.fixture(scope="session")
def pages(start_server: Callable[..., Any], pages_accounts: Accounts, pages_url: str) -> Any:
    """The service; no model is loaded before somebody asks for it, and none of these tests does."""
    env = {"UDEVER_DATABASE_URL": pages_url, "UDEVER_SIGNUP_MICROCREDITS": str(FREE)}
    return start_server("--load", "lazy", env=env)


@pytest.fixture(scope="session")
def open_pages(start_server: Callable[..., Any]) -> Any:
    """A service without accounts."""
    return start_server("--load", "lazy", "--no-auth")


@pytest.fixture(scope="session")
def visitor(pages: Any) -> Iterator[Callable[..., Visitor]]:
    """visitor(secret) is somebody new, signed in with that key; each comes from an address of its own."""
    numbers = count(1)
    with ExitStack() as opened:

        def come(secret: str | None = None, *, headers: dict[str, str] | None = None, url: str = "") -> Visitor:
            number = next(numbers)
            address = {"x-forwarded-for": f"198.51.{number // 250}.{number % 250}", "accept": "text/html"}
            client = httpx.Client(base_url=url or pages.url, headers=address | (headers or {}), timeout=30)
            someone = Visitor(opened.enter_context(client))
            return someone.sign_in(secret) if secret else someone

        yield come


@pytest.fixture(scope="session")
def new_account(pages_accounts: Accounts) -> Callable[..., tuple[str, Any]]:
    """new_account() → (secret, key) of an account that nobody else uses."""
    numbers = count(1)

    def make(*, microcredits: int = 1_000_000, **fields: Any) -> tuple[str, Any]:
        account = fields.pop("account", f"account-{next(numbers)}")
        secret, key = pages_accounts.keys.create(account=account, **fields)
        if microcredits:
            pages_accounts.ledger.topup(account, microcredits=microcredits, note="first credit")
        return secret, key

    return make
