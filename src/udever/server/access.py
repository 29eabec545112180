"""Who asks and who pays: the accounts behind an asynchronous door.

    async with access.paid(key, …) as admission: the work       # debited before; settled after, or refunded

Invariant: every debit that was taken is closed exactly once, also if the client leaves, the work fails or the server is
stopped; a database that is away for a while delays that and does not prevent it. What is missed all the same, or dies
with the process, is refunded when its lease has run out.
Does not know: HTTP, models or prices.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from udever.server.account_errors import StoreUnavailableError
from udever.server.accounts import Accounts, open_accounts
from udever.server.auth import Key
from udever.server.errors import RequestError
from udever.server.ledger import Admission
from udever.server.schemas import Role
from udever.server.settings import Settings
from udever.server.telemetry import Telemetry

THREADS = 8
LEASE_SECONDS = 60.0
RETRY_SECONDS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Pauses between attempts to close a debit, shorter in all than what is left of its lease."""
SETTLE_PAUSE_SECONDS = 0.1
"""Requests that are answered within this time are settled in one transaction."""
SETTLE_WAIT_SECONDS = 1.0
T = TypeVar("T")

log = logging.getLogger(__name__)


class Access:
    """The accounts for an event loop; without accounts (`--no-auth`) everyone may do everything for nothing."""

    def __init__(self, settings: Settings, *, telemetry: Telemetry, lease_seconds: float = LEASE_SECONDS) -> None:
        """Args:
        lease_seconds: what a process that dies leaves open is refunded after so long.
        """
        self._settings = settings
        self._lease_seconds = lease_seconds
        self._telemetry = telemetry
        self._accounts: Accounts | None = None
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="udever-accounts")
        self._closing: set[asyncio.Task[None]] = set()
        self._running: set[str] = set()
        """Requests whose leases are kept up."""
        self._answered: dict[str, int] = {}
        """Request → its microcredits, waiting to be settled."""
        self._settling: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether the service asks for no keys."""
        return not self._settings.auth

    @property
    def accounts(self) -> Accounts:
        """Raises RequestError: the service runs without accounts."""
        if self._accounts is None:
            raise RequestError("This server runs without accounts.", code="no_accounts", status=404)
        return self._accounts

    async def open(self) -> None:
        """Open the database and begin to keep the leases; the errors of `open_accounts`."""
        if self.is_open:
            return
        settings = self._settings
        self._accounts = await self.call(
            partial(open_accounts, settings.database_url, pepper=settings.pepper, lease_seconds=self._lease_seconds)
        )
        await self._keep_leases()
        self._keeper = asyncio.create_task(self._keep())
        if not await self.call(self._accounts.keys.list):
            log.warning("there is no API key yet: create one with udever keys create --account NAME")

    async def close(self) -> None:
        """Wait for the debits that are being closed, then leave the database."""
        if self._keeper:
            self._keeper.cancel()
        self._hurry.set()
        if self._closing:
            await asyncio.wait(self._closing, timeout=sum(RETRY_SECONDS))
        if self._accounts:
            await self.call(self._accounts.close)
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def call(self, function: Callable[[], T]) -> T:
        """Run a call into the accounts in one of their threads."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)

    async def authenticate(self, authorization: str | None) -> Key | None:
        """The key in an `Authorization` header; None if the service asks for none.

        Raises:
            RequestError: no key was given.
            InvalidKeyError: unknown, revoked or expired.
        """
        if self.is_open:
            return None
        scheme, _, secret = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            message = "You didn't provide an API key. Send it as: Authorization: Bearer YOUR_KEY."
            raise RequestError(message, code="invalid_api_key", status=401)
        return await self.call(partial(self.accounts.keys.authenticate, secret.strip()))

    @asynccontextmanager
    async def paid(
        self, key: Key | None, *, request_id: str, model: str, role: Role, tokens: int, texts: int, microcredits: int
    ) -> AsyncIterator[Admission | None]:
        """Debit, let the body work, then settle; or refund if the body raises or is cancelled."""
        if key is None:
            yield None
            return
        ledger = self.accounts.ledger
        admit = partial(
            ledger.admit, key, request_id=request_id, model=model, role=role,
            tokens=tokens, texts=texts, microcredits=microcredits,
        )  # fmt: skip
        taken = True  # for all that is known: if this task is cancelled, the thread goes on
        self._running.add(request_id)
        try:
            try:
                admission = await self.call(admit)
            except Exception:  # nothing was; or the answer to the commit was lost, and the lease will run out
                taken = False
                raise
            self._telemetry.credits("debited", microcredits)
            yield admission
        except BaseException as error:
            reason = type(error).__name__
            if taken:
                self._background(
                    self._close(lambda: microcredits * ledger.refund(request_id, reason=reason), outcome="refunded")
                )
            raise
        finally:
            self._running.discard(request_id)
        self._answered[request_id] = microcredits
        if self._settling is None:
            self._settling = self._background(self._settle())
        if key.max_concurrent is not None:  # or the client's next request may find this one still running
            self._hurry.set()
            await asyncio.wait([self._settling], timeout=SETTLE_WAIT_SECONDS)

    async def _settle(self) -> None:
        """Close the debits of all that is answered in a while: one transaction disturbs the model less than many."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), SETTLE_PAUSE_SECONDS)
        answered, self._answered, self._settling = self._answered, {}, None
        self._hurry.clear()
        settle = self.accounts.ledger.settle
        await self._close(lambda: sum(answered[one] for one in settle(*answered)), outcome="settled")

    async def _close(self, close: Callable[[], int], *, outcome: str) -> None:
        """Settle or refund, also if the database is away for a while; what is missed here expires and is refunded.

        Args:
            close: returns the microcredits of what was not closed before.
        """
        for pause in (*RETRY_SECONDS, None):
            try:
                self._telemetry.credits(outcome, await self.call(close))
            except StoreUnavailableError as error:
                if pause is None:
                    log.error("debits could not be %s: %s", outcome, error)  # noqa: TRY400
                    return
                await asyncio.sleep(pause)
            except Exception:
                log.exception("debits could not be %s", outcome)
                return
            else:
                return

    def _background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """The client need not wait for it, and a cancelled request cannot."""
        task = asyncio.create_task(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._lease_seconds / 4)
            await self._keep_leases()

    async def _keep_leases(self) -> None:
        """Keep up what is open here; refund what a process that died left open."""
        try:
            await self.call(partial(self.accounts.ledger.renew, tuple(self._running)))
            recovered = await self.call(self.accounts.ledger.recover)
        except StoreUnavailableError as error:
            log.warning("the leases were not kept: %s", error)
        except Exception:  # whatever it was: without a keeper the next one would find what runs here expired
            log.exception("the leases were not kept")
        else:
            if recovered:
                log.warning("%d requests that were left open were refunded", recovered)
