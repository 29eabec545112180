"""A real `udever serve` process over the built-in model and a SQLite file, and what clients need to talk to it."""

import hashlib
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import numpy as np
import pytest

from udever import Embedder
from udever.server.accounts import Accounts, open_accounts

MODEL = "udever-nano"
CREDIT = 10**12


@dataclass(frozen=True)
class Client:
    """HTTP with a key (or none), on one connection."""

    http: httpx.Client

    def post(self, path: str, body: object = None, **options: object) -> httpx.Response:
        return self.http.post(path, json=body, **options) if body is not None else self.http.post(path, **options)

    def embed(self, text: object, **fields: object) -> httpx.Response:
        return self.post("/v1/embeddings", {"model": MODEL, "input": text, **fields})


@pytest.fixture(scope="session")
def service_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('accounts') / 'udever.sqlite'}"


@pytest.fixture(scope="session")
def service_accounts(service_url: str) -> Iterator[Accounts]:
    """The accounts of the running service, opened beside it."""
    with open_accounts(service_url) as accounts:
        yield accounts


@pytest.fixture(scope="session")
def server(start_server: Callable[..., Any], service_accounts: Accounts, service_url: str) -> Any:
    """The service that most tests talk to."""
    return start_server("--log-level", "debug", env={"UDEVER_DATABASE_URL": service_url})


@pytest.fixture(scope="session")
def make_key(service_accounts: Accounts) -> Callable[..., str]:
    """make_key(models=[…]) is the secret of a new key of an account with credit."""

    def make(*, account: str = "tests", expired: bool = False, revoked: bool = False, **fields: object) -> str:
        expires_at = datetime.now(UTC) + timedelta(seconds=0.5) if expired else None
        secret, key = service_accounts.keys.create(account=account, expires_at=expires_at, **fields)
        if account == "tests" and service_accounts.ledger.balance(account) < CREDIT:
            service_accounts.ledger.topup(account, microcredits=CREDIT)
        if revoked:
            service_accounts.keys.revoke(key.id)
        if expired:
            time.sleep(0.6)
        return secret

    return make


@pytest.fixture(scope="session")
def api_key(make_key: Callable[..., str]) -> str:
    """A key that may do everything but administer."""
    return make_key(name="all")


@pytest.fixture(scope="session")
def client_for(server: Any) -> Iterator[Callable[[str | None], Client]]:
    """client_for(secret) talks to the server with that key."""
    with ExitStack() as opened:

        def make(secret: str | None, *, url: str | None = None) -> Client:
            headers = {"authorization": f"Bearer {secret}"} if secret else {}
            client = httpx.Client(base_url=url or server.url, headers=headers, timeout=60)
            return Client(opened.enter_context(client))

        yield make


@pytest.fixture(scope="session")
def client(client_for: Callable[..., Client], api_key: str) -> Client:
    return client_for(api_key)


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    """What every client's vectors must equal."""
    return Embedder.load(MODEL)


@pytest.fixture(scope="session")
def same(embedder: Embedder) -> Callable[..., None]:
    """same(vectors, texts, role) fails unless the vectors are what the library gives."""

    def check(vectors: object, texts: list[str], role: str, **options: object) -> None:
        expected = embedder.embed(texts, role=role, **options)
        np.testing.assert_allclose(np.asarray(vectors, np.float32), expected, atol=1e-5)

    return check


@pytest.fixture(scope="session")
def tiktoken_offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """tiktoken's cache, filled from our own table: it checks OpenAI's hash of it, and needs no network."""
    from udever.server import cl100k

    table = cl100k.table()
    lines = [b64encode(table[i]) + b" %d\n" % i for i in range(cl100k.ENTRIES)]
    folder = tmp_path_factory.mktemp("tiktoken")
    address = b"https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
    (folder / hashlib.sha1(address).hexdigest()).write_bytes(b"".join(lines))  # tiktoken's name
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        yield


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """wait_until(condition) fails if the condition does not come true in time."""

    def wait(condition: Callable[[], bool], *, seconds: float = 15.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.05)

    return wait


@pytest.fixture(scope="session")
def admin_key(make_key: Callable[..., str]) -> str:
    """A key that may do everything."""
    return make_key(name="boss", admin=True)
