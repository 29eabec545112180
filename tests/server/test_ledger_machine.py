"""The ledger against a model of it: any order of requests, answers, failures, deaths and recoveries."""

import shutil
import tempfile
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from udever.server.account_errors import InsufficientCreditError, RateLimitedError
from udever.server.accounts import Accounts, open_accounts

LEASE_SECONDS = 60
MAX_CONCURRENT = 4


class LedgerMachine(RuleBasedStateMachine):
    """Two replicas on one SQLite file; the model keeps a balance and the open requests with their leases' ends."""

    requests = Bundle("requests")

    @initialize(credit=st.integers(0, 100))
    def open(self, credit: int) -> None:
        self.folder = tempfile.mkdtemp(prefix="udever-ledger-")
        self.now = 1_800_000_000
        self.replicas = [self._open(), self._open()]
        _, self.key = self.replicas[0].keys.create(account="acme", max_concurrent=MAX_CONCURRENT)
        self.replicas[0].ledger.topup("acme", microcredits=credit)
        self.balance, self.number = credit, 0
        self.running: dict[str, dict[str, Any]] = {}

    def _open(self) -> Accounts:
        url = f"sqlite:///{self.folder}/accounts.sqlite"
        return open_accounts(url, clock=lambda: self.now, lease_seconds=LEASE_SECONDS)

    @rule(target=requests, microcredits=st.integers(0, 40), tokens=st.integers(1, 9), replica=st.integers(0, 1))
    def admit(self, microcredits: int, tokens: int, replica: int) -> str:
        self.number += 1
        request_id = f"r{self.number}"
        live = sum(request["ends"] > self.now for request in self.running.values())
        try:
            admission = self.replicas[replica].ledger.admit(
                self.key, request_id=request_id, model="m", role="query", tokens=tokens, texts=1,
                microcredits=microcredits,
            )  # fmt: skip
        except RateLimitedError:
            assert live >= MAX_CONCURRENT
        except InsufficientCreditError:
            assert microcredits > self.balance
        else:
            assert live < MAX_CONCURRENT
            self.balance -= microcredits
            assert admission.balance_microcredits == self.balance
            ends = self.now + LEASE_SECONDS
            self.running[request_id] = {"cost": microcredits, "ends": ends, "replica": replica}
        return request_id

    @rule(request_id=requests, replica=st.integers(0, 1))
    def settle(self, request_id: str, replica: int) -> None:
        closed = {request_id} if self.running.pop(request_id, None) is not None else set()
        assert self.replicas[replica].ledger.settle(request_id) == closed

    @rule(request_id=requests, replica=st.integers(0, 1))
    def refund(self, request_id: str, replica: int) -> None:
        request = self.running.pop(request_id, None)
        assert self.replicas[replica].ledger.refund(request_id, reason="") == (request is not None)
        self.balance += request["cost"] if request else 0

    @rule(seconds=st.integers(1, 45))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule(replica=st.integers(0, 1))
    def renew(self, replica: int) -> None:
        mine = [request for request in self.running.values() if request["replica"] == replica]
        assert self.replicas[replica].ledger.renew() == len(mine)
        for request in mine:
            request["ends"] = self.now + LEASE_SECONDS

    @rule(replica=st.integers(0, 1))
    def die_and_start_again(self, replica: int) -> None:
        self.replicas[replica].close()
        self.replicas[replica] = self._open()
        for request in self.running.values():
            if request["replica"] == replica:
                request["replica"] = None

    @rule(replica=st.integers(0, 1))
    def recover(self, replica: int) -> None:
        expired = [name for name, request in self.running.items() if request["ends"] <= self.now]
        assert self.replicas[replica].ledger.recover() == len(expired)
        self.balance += sum(self.running.pop(name)["cost"] for name in expired)

    @rule(microcredits=st.integers(-50, 50))
    def topup(self, microcredits: int) -> None:
        try:
            self.balance = self.replicas[0].ledger.topup("acme", microcredits=microcredits)
        except InsufficientCreditError:
            assert self.balance + microcredits < 0

    @invariant()
    def the_books_balance(self) -> None:
        if not hasattr(self, "replicas"):
            return
        ledger = self.replicas[0].ledger
        audit = ledger.audit()
        assert audit.sound
        assert audit.open_requests == len(self.running)
        assert ledger.balance("acme") == self.balance >= 0
        assert sum(entry.microcredits for entry in ledger.entries(account="acme", limit=10_000)) == self.balance

    def teardown(self) -> None:
        if hasattr(self, "replicas"):
            for replica in self.replicas:
                replica.close()
            shutil.rmtree(self.folder)


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
