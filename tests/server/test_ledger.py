"""The ledger: limits, debits, refunds; whatever happens, it sums up and no balance is negative."""

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from udever.errors import OptionError
from udever.server.account_errors import (
    DuplicateRequestError,
    InsufficientCreditError,
    InvalidKeyError,
    RateLimitedError,
    UnknownAccountError,
)
from udever.server.accounts import Accounts, open_accounts
from udever.server.auth import Key
from udever.server.books import UsageRow
from udever.server.ledger import Admission

SPENDER = Path(__file__).parent / "spender.py"
PEPPER = "a pepper for tests only"


def _admit(accounts: Accounts, key: Key, request_id: str = "", **work: Any) -> Admission:
    defaults: dict[str, Any] = {"model": "udever-nano", "role": "query", "tokens": 10, "texts": 1, "microcredits": 5}
    return accounts.ledger.admit(key, request_id=request_id or str(uuid4()), **defaults | work)


def _key(accounts: Accounts, *, credit: int = 1000, **fields: Any) -> Key:
    _, key = accounts.keys.create(account="acme", **fields)
    if credit:
        accounts.ledger.topup("acme", microcredits=credit)
    return key


def _kinds(accounts: Accounts) -> list[str]:
    return [entry.kind for entry in reversed(accounts.ledger.entries(account="acme"))]


def test_a_request_is_debited_first_and_settled_after(accounts: Accounts) -> None:
    key = _key(accounts)
    admission = _admit(accounts, key, "r1", microcredits=300)
    assert (admission.request_id, admission.balance_microcredits) == ("r1", 700)
    assert (admission.requests, admission.tokens) == (None, None)
    assert accounts.ledger.balance("acme") == 700
    assert accounts.ledger.audit().open_requests == 1
    assert accounts.ledger.settle("r1")
    assert accounts.ledger.balance("acme") == 700
    assert accounts.ledger.audit().open_requests == 0
    assert _kinds(accounts) == ["topup", "debit", "settlement"]
    debit = accounts.ledger.entries(account="acme")[1]
    assert (debit.microcredits, debit.request_id, debit.key_id, debit.model) == (-300, "r1", key.id, "udever-nano")
    assert (debit.role, debit.tokens, debit.texts) == ("query", 10, 1)


def test_a_failed_request_is_refunded(accounts: Accounts) -> None:
    key = _key(accounts)
    _admit(accounts, key, "r1", microcredits=300)
    assert accounts.ledger.refund("r1", reason="the model failed")
    assert accounts.ledger.balance("acme") == 1000
    assert _kinds(accounts) == ["topup", "debit", "refund"]
    assert accounts.ledger.entries(account="acme")[0].note == "the model failed"
    assert accounts.ledger.audit().sound


def test_a_request_is_closed_once(accounts: Accounts) -> None:
    key = _key(accounts)
    _admit(accounts, key, "r1")
    _admit(accounts, key, "r2")
    ledger = accounts.ledger
    assert [ledger.settle("r1"), ledger.settle("r1"), ledger.refund("r1", reason="")] == [{"r1"}, set(), False]
    assert [ledger.refund("r2", reason=""), ledger.refund("r2", reason=""), ledger.settle("r2")] == [True, False, set()]
    assert not ledger.settle("never admitted")
    assert ledger.balance("acme") == 995
    assert ledger.audit().sound


def test_a_request_id_is_admitted_once_and_the_second_costs_nothing(accounts: Accounts) -> None:
    key = _key(accounts, requests_per_minute=10)
    _admit(accounts, key, "r1")
    for _ in range(2):
        with pytest.raises(DuplicateRequestError):
            _admit(accounts, key, "r1")
        accounts.ledger.settle("r1")
    assert accounts.ledger.balance("acme") == 995
    assert _admit(accounts, key).requests.remaining == 8  # type: ignore[union-attr]


def test_without_credit_only_what_is_free_may_run(accounts: Accounts) -> None:
    key = _key(accounts, credit=0)
    with pytest.raises(InsufficientCreditError) as caught:
        _admit(accounts, key, microcredits=1)
    assert (caught.value.balance_microcredits, caught.value.needed_microcredits) == (0, 1)
    _admit(accounts, key, microcredits=0)
    accounts.ledger.topup("acme", microcredits=3, note="paid")
    with pytest.raises(InsufficientCreditError):
        _admit(accounts, key, microcredits=4)
    assert _admit(accounts, key, microcredits=3).balance_microcredits == 0
    assert [(row.requests, row.microcredits) for row in accounts.ledger.usage()] == [(2, 3)]


def test_topups_add_up_correct_and_never_go_below_zero(accounts: Accounts) -> None:
    _key(accounts, credit=0)
    assert accounts.ledger.topup("acme", microcredits=100) == 100
    assert accounts.ledger.topup("acme", microcredits=-30, note="typo") == 70
    with pytest.raises(InsufficientCreditError):
        accounts.ledger.topup("acme", microcredits=-71)
    assert accounts.ledger.balances() == {"acme": 70}
    assert accounts.ledger.topup("acme", microcredits=10**15) == 10**15 + 70
    for too_much in (2**53, 10**30):
        with pytest.raises(OptionError, match="at most"):
            accounts.ledger.topup("acme", microcredits=too_much)
    for call in (accounts.ledger.balance, lambda name: accounts.ledger.topup(name, microcredits=1)):
        with pytest.raises(UnknownAccountError, match="nobody"):
            call("nobody")


def test_a_key_revoked_or_expired_since_it_was_authenticated_is_not_admitted(accounts: Accounts, clock: Any) -> None:
    revoked = _key(accounts)
    accounts.keys.revoke(revoked.id)
    expiring = _key(accounts, expires_at=datetime.fromtimestamp(clock.now + 10, tz=UTC))
    clock.pass_(10)
    for key, reason in ((revoked, "revoked"), (expiring, "expired")):
        with pytest.raises(InvalidKeyError) as caught:
            _admit(accounts, key)
        assert caught.value.reason == reason
    assert accounts.ledger.balance("acme") == 2000


def test_requests_per_minute(accounts: Accounts, clock: Any) -> None:
    key = _key(accounts, requests_per_minute=2)
    window = _admit(accounts, key).requests
    assert window is not None
    assert (window.limit, window.remaining, window.reset_seconds) == (2, 1, 30.0)
    _admit(accounts, key)
    with pytest.raises(RateLimitedError) as caught:
        _admit(accounts, key)
    error = caught.value
    assert (error.what, error.limit, error.remaining, error.reset_seconds) == ("requests", 2, 0, 60.0)
    assert (error.retry_after_seconds, error.retryable) == (30.0, True)
    assert error.requests is not None
    assert error.tokens is None
    clock.pass_(29.9)
    with pytest.raises(RateLimitedError):
        _admit(accounts, key)
    clock.pass_(0.1)
    _admit(accounts, key)
    assert accounts.ledger.balance("acme") == 985  # refused requests cost nothing


def test_tokens_per_minute(accounts: Accounts, clock: Any) -> None:
    key = _key(accounts, tokens_per_minute=100, requests_per_minute=100)
    admission = _admit(accounts, key, tokens=80)
    assert admission.tokens is not None
    assert (admission.tokens.remaining, admission.tokens.reset_seconds) == (20, 48.0)
    with pytest.raises(RateLimitedError) as caught:
        _admit(accounts, key, tokens=30)
    assert (caught.value.what, caught.value.remaining, caught.value.retryable) == ("tokens", 20, True)
    assert caught.value.retry_after_seconds == pytest.approx(6.0)
    assert caught.value.requests.remaining == 99  # type: ignore[union-attr]  # a refused request takes none
    _admit(accounts, key, tokens=20)
    clock.pass_(60)
    _admit(accounts, key, tokens=100)
    with pytest.raises(RateLimitedError) as never:
        _admit(accounts, key, tokens=101)
    assert not never.value.retryable


def test_windows_are_shared_by_replicas_and_by_a_keys_secrets_but_not_by_keys(
    open_with: Callable[..., Accounts],
) -> None:
    here, there = open_with(), open_with()
    key = _key(here, requests_per_minute=1)
    secret, _ = here.keys.rotate(key.id)
    _admit(here, key)
    with pytest.raises(RateLimitedError):
        _admit(there, there.keys.authenticate(secret))
    _admit(there, _key(there, requests_per_minute=1))
    with pytest.raises(RateLimitedError):
        _admit(there, key)


def test_a_key_without_limits_has_no_windows(accounts: Accounts) -> None:
    admission = _admit(accounts, _key(accounts))
    assert (admission.requests, admission.tokens) == (None, None)


def test_concurrent_requests(accounts: Accounts, clock: Any) -> None:
    key = _key(accounts, max_concurrent=2)
    for request_id in ("r1", "r2"):
        _admit(accounts, key, request_id)
    with pytest.raises(RateLimitedError) as caught:
        _admit(accounts, key)
    assert (caught.value.what, caught.value.limit, caught.value.remaining) == ("concurrent", 2, 0)
    accounts.ledger.settle("r1")
    _admit(accounts, key, "r3")
    accounts.ledger.refund("r2", reason="")
    _admit(accounts, key, "r4")
    with pytest.raises(RateLimitedError):
        _admit(accounts, key)
    clock.pass_(61)  # their process died: they no longer count, recovered or not
    _admit(accounts, key)


def test_fifty_threads_keep_within_the_concurrency_limit(accounts: Accounts) -> None:
    key = _key(accounts, max_concurrent=7)
    together = threading.Barrier(50)

    def ask(number: int) -> bool:
        together.wait()
        try:
            _admit(accounts, key, f"r{number}")
        except RateLimitedError:
            return False
        return True

    with ThreadPoolExecutor(50) as pool:
        assert sum(pool.map(ask, range(50))) == 7


def test_fifty_threads_cannot_overdraw(open_with: Callable[..., Accounts]) -> None:
    replicas = [open_with(), open_with()]
    key = _key(replicas[0], credit=700)
    together = threading.Barrier(50)

    def spend(number: int) -> int:
        accounts = replicas[number % 2]
        together.wait()
        try:
            for turn in range(1, 5):
                _admit(accounts, key, f"r{number}-{turn}", microcredits=7)
                if turn % 2:
                    accounts.ledger.settle(f"r{number}-{turn}")
        except InsufficientCreditError:
            return turn - 1
        return turn

    with ThreadPoolExecutor(50) as pool:
        assert sum(pool.map(spend, range(50))) == 100
    assert replicas[0].ledger.balance("acme") == 0
    assert replicas[0].ledger.audit().sound


Spender = subprocess.Popen[str]


@pytest.fixture
def start_spender(database_url: str) -> Iterator[Callable[..., Spender]]:
    """A function that starts spender.py; what is still running at the end of the test is killed."""
    started: list[Spender] = []

    def start(key: Key, **orders: Any) -> Spender:
        process = subprocess.Popen([sys.executable, SPENDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdin is not None
        work = {"url": database_url, "pepper": PEPPER, "key": key.id, "threads": 4, "refund": False}
        json.dump(work | orders, process.stdin)
        process.stdin.close()
        process.stdin = None
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_several_processes_cannot_overdraw(database_url: str, start_spender: Callable[..., Spender]) -> None:
    with open_accounts(database_url, pepper=PEPPER) as accounts:
        key = _key(accounts, credit=1001)
        spenders = [start_spender(key, microcredits=10) for _ in range(3)]
        admitted = [int(spender.communicate(timeout=120)[0].split()[-1]) for spender in spenders]
        assert sum(admitted) == 100
        assert accounts.ledger.balance("acme") == 1
        audit = accounts.ledger.audit()
        assert audit.sound
        assert audit.open_requests > 0  # every third was left open
        assert sum(row.requests for row in accounts.ledger.usage()) == 100


def test_kill_9_in_the_middle_loses_nothing(database_url: str, start_spender: Callable[..., Spender]) -> None:
    credit = 10**9
    with open_accounts(database_url, pepper=PEPPER) as accounts:
        key = _key(accounts, credit=credit)
        for seed in range(3):
            spender = start_spender(key, microcredits=10, refund=True)
            before = accounts.ledger.balance("acme")
            while accounts.ledger.balance("acme") == before:
                assert spender.poll() is None
                time.sleep(0.01)
            time.sleep(random.Random(seed).uniform(0.02, 0.2))
            spender.kill()
            spender.wait()
            assert accounts.ledger.audit().sound
        assert accounts.ledger.recover() == 0  # the leases still hold
    later = lambda: time.time() + 61  # noqa: E731
    with open_accounts(database_url, pepper=PEPPER, clock=later) as accounts:
        left_open = accounts.ledger.audit().open_requests
        assert accounts.ledger.recover() == left_open
        audit = accounts.ledger.audit()
        assert audit.sound
        assert audit.open_requests == 0
        (row,) = accounts.ledger.usage(group_by=())
        assert row.requests > 0
        assert accounts.ledger.balance("acme") == credit - 10 * row.requests == credit - row.microcredits


def test_only_expired_leases_are_recovered_and_renewing_keeps_ones_own(
    open_with: Callable[..., Accounts], clock: Any
) -> None:
    alive, dead = open_with(), open_with()
    key = _key(alive)
    _admit(alive, key, "mine")
    _admit(dead, key, "lost", microcredits=100)
    clock.pass_(40)
    assert alive.ledger.renew() == 1
    assert alive.ledger.recover() == 0
    clock.pass_(40)
    assert alive.ledger.recover() == 1
    assert alive.ledger.balance("acme") == 995
    assert not dead.ledger.settle("lost")  # too late: it was refunded
    assert alive.ledger.settle("mine")
    assert alive.ledger.renew() == 0
    assert alive.ledger.audit().sound


def test_a_request_whose_end_was_missed_is_refunded_if_only_running_ones_are_renewed(
    accounts: Accounts, clock: Any
) -> None:
    key = _key(accounts)
    for request_id in ("running", "forgotten", "done"):
        _admit(accounts, key, request_id)
    accounts.ledger.settle("done")
    clock.pass_(40)
    assert accounts.ledger.renew([]) == 0
    assert accounts.ledger.renew({"running", "done", "never admitted"}) == 1
    clock.pass_(40)
    assert accounts.ledger.recover() == 1
    assert accounts.ledger.settle("running")
    assert not accounts.ledger.settle("forgotten")
    assert accounts.ledger.balance("acme") == 990


def test_a_lease_renewed_while_others_recover_is_left_alone(database_url: str) -> None:
    now = time.time()
    moments = iter([now + 61])  # the search for expired leases sees this time, everything after it the present again
    with (
        open_accounts(database_url, pepper=PEPPER, clock=lambda: now) as accounts,
        open_accounts(database_url, pepper=PEPPER, clock=lambda: next(moments, now)) as other,
    ):
        _admit(accounts, _key(accounts), "r1")
        assert other.ledger.recover() == 0
        assert accounts.ledger.settle("r1")


def test_an_expired_lease_that_nobody_recovered_may_still_be_settled(accounts: Accounts, clock: Any) -> None:
    key = _key(accounts)
    _admit(accounts, key, "slow")
    clock.pass_(1000)
    assert accounts.ledger.settle("slow")
    assert accounts.ledger.recover() == 0
    assert accounts.ledger.balance("acme") == 995


def test_replicas_that_recover_at_once_refund_once(open_with: Callable[..., Accounts], clock: Any) -> None:
    replicas = [open_with() for _ in range(3)]
    key = _key(replicas[0])
    for number in range(20):
        _admit(replicas[0], key, f"r{number}")
    clock.pass_(61)
    with ThreadPoolExecutor(3) as pool:
        assert sum(pool.map(lambda accounts: accounts.ledger.recover(), replicas)) == 20
    assert replicas[0].ledger.balance("acme") == 1000
    assert replicas[0].ledger.audit().sound


def test_usage_by_day_model_and_key_net_of_refunds(accounts: Accounts, clock: Any) -> None:
    clock.now = datetime(2030, 1, 31, 23, 59, 59, tzinfo=UTC).timestamp()
    first, second = _key(accounts), _key(accounts)
    _admit(accounts, first, model="a", tokens=10, texts=2, microcredits=5)
    _admit(accounts, first, model="a", tokens=1, texts=1, microcredits=1)
    _admit(accounts, first, "failed", model="b", role="document", tokens=100, texts=50, microcredits=50)
    accounts.ledger.refund("failed", reason="")
    clock.pass_(1)
    _admit(accounts, second, model="a", role="document", tokens=7, texts=1, microcredits=3)
    january, february = date(2030, 1, 31), date(2030, 2, 1)
    rows = [
        UsageRow(day=january, model="a", key=first.id, requests=2, texts=3, tokens=11, microcredits=6),
        UsageRow(day=february, model="a", key=second.id, requests=1, texts=1, tokens=7, microcredits=3),
    ]
    usage = accounts.ledger.usage
    assert usage() == rows
    assert usage(since=february) == rows[1:]
    assert usage(until=january) == rows[:1]
    assert usage(since=january, until=february) == rows
    assert usage(since=february + timedelta(days=1)) == []
    assert usage(group_by=["role"]) == [
        UsageRow(role="document", requests=1, texts=1, tokens=7, microcredits=3),
        UsageRow(role="query", requests=2, texts=3, tokens=11, microcredits=6),
    ]
    assert usage(group_by=["account"], account="acme") == [
        UsageRow(account="acme", requests=3, texts=4, tokens=18, microcredits=9)
    ]
    assert usage(group_by=(), account="nobody") == []
    assert rows[0].describe() == {
        "day": "2030-01-31", "model": "a", "key": first.id, "requests": 2, "texts": 3, "tokens": 11, "microcredits": 6,
    }  # fmt: skip
    with pytest.raises(OptionError, match="week"):
        usage(group_by=["week"])  # type: ignore[list-item]


def test_an_audit_finds_what_is_wrong(accounts: Accounts) -> None:
    key = _key(accounts)
    _admit(accounts, key, "r1")
    with accounts.store.write() as connection:
        connection.exec_driver_sql("UPDATE accounts SET balance_microcredits = 1")
        connection.exec_driver_sql("DELETE FROM leases")
    audit = accounts.ledger.audit()
    assert not audit.sound
    assert (audit.unbalanced, audit.unanswered) == (("acme",), ("r1",))


def test_a_topup_that_is_asked_for_again_books_nothing_and_answers(open_with: Callable[..., Accounts]) -> None:
    replicas = [open_with(), open_with()]
    for account in ("acme", "b acme"):
        replicas[0].keys.create(account=account)

    def topup(number: int) -> int:
        return replicas[number % 2].ledger.topup_once("acme", microcredits=5, once="invoice-1")

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(topup, range(8))) == {5}
    ledger = replicas[0].ledger
    assert ledger.topup_once("acme", microcredits=5, once="invoice-2") == 10
    assert ledger.topup_once("b acme", microcredits=7, once="invoice-1") == 7  # each account has its own names
    for _ in range(2):  # the second time the balance would not allow it
        assert ledger.topup_once("acme", microcredits=-10, once="correction") == 0
    with pytest.raises(OptionError, match="another amount"):
        ledger.topup_once("acme", microcredits=6, once="invoice-1")
    for name in ("", "two words", "x" * 101, "a\x00"):
        with pytest.raises(OptionError, match="without spaces"):
            ledger.topup_once("acme", microcredits=6, once=name)
    with pytest.raises(UnknownAccountError):
        ledger.topup_once("nobody", microcredits=5, once="invoice-1")
    assert ledger.balances() == {"acme": 0, "b acme": 7}
    assert ledger.audit().sound


def test_a_name_of_a_topup_is_no_request_id(accounts: Accounts) -> None:
    _, key = accounts.keys.create(account="acme")
    accounts.ledger.topup_once("acme", microcredits=100, once="r1")
    _admit(accounts, key, "r1")
    assert accounts.ledger.refund("r1", reason="test")
    assert [entry.request_id for entry in accounts.ledger.entries(account="acme")].count("r1") == 2
    assert accounts.ledger.audit().sound


def test_a_topup_with_a_name_is_booked_once(open_with: Callable[..., Accounts]) -> None:
    replicas = [open_with(), open_with()]
    for account in ("acme", "other"):
        replicas[0].keys.create(account=account)

    def topup(number: int) -> bool:
        try:
            replicas[number % 2].ledger.topup("acme", microcredits=5, once="form 1")
        except DuplicateRequestError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(topup, range(8))) == 1
    with pytest.raises(DuplicateRequestError):
        replicas[0].ledger.topup("other", microcredits=5, once="form 1")
    for _ in range(2):
        replicas[0].ledger.topup("acme", microcredits=5)
    assert replicas[0].ledger.balances() == {"acme": 15, "other": 0}
    assert replicas[1].ledger.audit().sound


def test_the_operators_list_of_accounts(accounts: Accounts, clock: Any) -> None:
    for name in ("b%_1", "B 2", "a"):
        accounts.keys.create(account=name)
    accounts.keys.revoke(accounts.keys.create(account="a")[1].id)
    clock.pass_(60)
    accounts.ledger.topup("a", microcredits=7)
    holders = {holder.account: holder for holder in accounts.ledger.holders()}
    a, *others = (holders[name] for name in ("a", "b%_1", "B 2"))
    assert (a.account, a.balance_microcredits, a.keys) == ("a", 7, 1)
    assert a.last_at is not None
    assert (a.last_at - a.created_at).total_seconds() == 60
    assert {holder.last_at for holder in others} == {None}
    assert {holder.account for holder in accounts.ledger.holders(search="b")} == {"b%_1", "B 2"}
    assert [holder.account for holder in accounts.ledger.holders(search="%_")] == ["b%_1"]
    names = list(holders)
    assert [h.account for h in accounts.ledger.holders(after=names[0], limit=1)] == names[1:2]


def test_entries_of_some_kinds(accounts: Accounts) -> None:
    accounts.keys.create(account="acme")
    accounts.ledger.topup("acme", microcredits=1)
    assert len(accounts.ledger.entries(account="acme", kinds=("topup", "debit"))) == 1
    assert accounts.ledger.entries(account="acme", kinds=("debit",)) == []
