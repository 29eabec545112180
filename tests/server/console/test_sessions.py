"""Who is signed in, for how long, and which forms count."""

import re
from collections.abc import Callable
from http.cookies import SimpleCookie
from typing import Any

import httpx
import pytest
from itsdangerous import URLSafeSerializer

from udever.server.accounts import Accounts
from udever.server.console import PAGES
from udever.server.console.account.entrance import HOME, local
from udever.server.console.sessions import COOKIE, SECURE_COOKIE, Sessions
from udever.server.signin import FAILURES

HOUR = 3600.0


@pytest.fixture
def sessions(accounts: Accounts, clock: Any) -> Sessions:
    return Sessions(accounts.keys, lifetime_seconds=HOUR, clock=clock)


def test_a_cookie_says_who_it_was_given_to_on_every_replica(open_with: Callable[..., Accounts], clock: Any) -> None:
    here, there = (Sessions(open_with().keys, lifetime_seconds=HOUR, clock=clock) for _ in range(2))
    secret, key = open_with().keys.create(account="acme", admin=True)
    cookie = here.issue(key)
    viewer = there.open(cookie)
    assert viewer is not None
    assert (viewer.key, viewer.key_id, viewer.account, viewer.admin) == (key, key.id, "acme", True)
    assert viewer.csrf == there.token(cookie)
    assert secret[len(key.prefix) :] not in cookie + repr(viewer)
    assert here.issue(key) != cookie
    assert there.token(here.issue(key)) != viewer.csrf


def test_it_ends_with_its_time(accounts: Accounts, sessions: Sessions, clock: Any) -> None:
    _, key = accounts.keys.create(account="acme")
    cookie = sessions.issue(key)
    clock.pass_(HOUR - 1)
    assert sessions.open(cookie)
    clock.pass_(1)
    assert sessions.open(cookie) is None
    clock.pass_(-3 * HOUR)  # a clock that was wrong
    assert sessions.open(cookie) is None


def test_it_ends_with_its_secret(accounts: Accounts, sessions: Sessions, clock: Any) -> None:
    _, key = accounts.keys.create(account="acme")
    cookie = sessions.issue(key)
    _, rotated = accounts.keys.rotate(key.id, grace_seconds=60)
    newer = sessions.issue(rotated)
    assert sessions.open(cookie)
    clock.pass_(60)
    assert sessions.open(cookie) is None
    assert sessions.open(newer)
    accounts.keys.revoke(key.id)
    assert sessions.open(newer) is None


def test_it_shows_the_key_as_it_is_now(accounts: Accounts, sessions: Sessions) -> None:
    _, key = accounts.keys.create(account="acme")
    cookie = sessions.issue(key)
    accounts.keys.change(key.id, requests_per_minute=7)
    viewer = sessions.open(cookie)
    assert viewer is not None
    assert viewer.key.requests_per_minute == 7


def test_forgeries_are_nobodys(accounts: Accounts, sessions: Sessions, clock: Any) -> None:
    _, key = accounts.keys.create(account="acme")
    payload = [key.prefix, int(clock.now), "x"]
    cookie = sessions.issue(key)
    body, _, signature = cookie.rpartition(".")
    other = sessions.issue(accounts.keys.create(account="other", admin=True)[1])
    forged = [
        "", ".", "a.b", cookie[:-1], cookie + "A", body, body + ".", f"{other.rpartition('.')[0]}.{signature}",
        URLSafeSerializer(b"", salt="session").dumps(payload),
        URLSafeSerializer(accounts.keys.digest("pepper"), salt="session").dumps(payload),
        "x" * 10_000, "\ud800",
    ]  # fmt: skip
    for wrong in forged:
        assert sessions.open(wrong) is None, wrong
    signer = sessions._signer
    for odd in (None, [], [1, 2, 3], [key.prefix, "soon", "x"], [None, int(clock.now), "x"], {"a": 1}, [key.prefix]):
        assert sessions.open(signer.dumps(odd)) is None, odd


@pytest.mark.parametrize(
    ("asked", "goes_to"),
    [("/", "/"), ("/models/a/b?x=1#y", "/models/a/b?x=1#y"), ("", HOME), ("//evil.example", HOME),
     ("/\\evil.example", HOME), ("https://evil.example", HOME), ("/a b", HOME), ("/\tx", HOME), ("javascript:x", HOME),
     ("/x\r\nset-cookie: a=b", HOME), ("/" + "x" * 600, HOME), ("/\\/evil.example", HOME)],
)  # fmt: skip
def test_after_signing_in_one_stays_on_this_host(asked: str, goes_to: str) -> None:
    assert local(asked) == goes_to


def _cookie(response: httpx.Response, name: str) -> Any:
    return SimpleCookie(response.headers["set-cookie"])[name]


def test_signing_in_and_out(visitor: Callable[..., Any], new_account: Callable[..., Any], pages: Any) -> None:
    secret, key = new_account()
    someone = visitor()
    assert someone.get("/account").headers["location"] == "/signin?next=/account"
    answer = someone.post("/signin", key=f" {secret}\n", next="/compare")
    assert (answer.status_code, answer.headers["location"]) == (303, "/compare")
    cookie = _cookie(answer, COOKIE)
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "lax", "/")
    assert not cookie["secure"]
    assert 0 < int(cookie["max-age"]) <= 86_400
    assert secret[len(key.prefix) :] not in cookie.value
    page = someone.get("/account")
    assert page.status_code == 200
    assert key.account in page.text
    assert page.headers["cache-control"] == "no-store"
    assert someone.get("/signin").headers["location"] == HOME
    assert secret not in "".join(someone.seen) + pages.log
    out = someone.post("/signout")
    assert (out.status_code, out.headers["location"]) == (303, "/")
    assert someone.get("/account").status_code == 303


def test_over_https_the_cookie_is_this_hosts_only(visitor: Callable[..., Any], new_account: Callable[..., Any]) -> None:
    someone = visitor(headers={"x-forwarded-proto": "https"})
    answer = someone.post("/signin", key=new_account()[0])
    assert _cookie(answer, SECURE_COOKIE)["secure"]
    assert COOKIE not in SimpleCookie(answer.headers["set-cookie"])


def test_a_wrong_key_opens_nothing_and_too_many_must_wait(
    visitor: Callable[..., Any], new_account: Callable[..., Any], pages_accounts: Accounts
) -> None:
    secret, key = new_account()
    someone = visitor()
    for wrong in ("", "x", secret[:-1], "<script>alert(1)</script>", secret + "x"):
        answer = someone.post("/signin", key=wrong, next="/compare")
        assert (answer.status_code, answer.headers.get("set-cookie")) == (401, None)
        assert "not known here" in answer.text
        assert 'value="/compare"' in answer.text
        assert "<script>alert" not in answer.text
    pages_accounts.keys.revoke(key.id)
    answer = someone.post("/signin", key=secret)
    assert answer.status_code == 401
    assert "was revoked" in answer.text
    codes = [someone.post("/signin", key="x").status_code for _ in range(FAILURES)]
    assert codes[-1] == 429
    answer = someone.post("/signin", key=new_account()[0])
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 1
    assert visitor(new_account()[0])  # another address


def test_a_session_whose_key_is_revoked_is_over_at_once(
    visitor: Callable[..., Any], new_account: Callable[..., Any], pages_accounts: Accounts
) -> None:
    secret, key = new_account()
    someone = visitor(secret)
    pages_accounts.keys.revoke(key.id)
    assert someone.get("/account").headers["location"].startswith("/signin")
    assert someone.post("/account/keys", name="x", days="").headers["location"].startswith("/signin")
    assert [k.id for k in pages_accounts.keys.list(account=key.account)] == [key.id]


def test_a_forged_cookie_is_nobodys(visitor: Callable[..., Any], new_account: Callable[..., Any]) -> None:
    someone = visitor(new_account(admin=True)[0])
    cookie = someone.http.cookies[COOKIE]
    for wrong in (cookie[:-2] + "AA", "x", cookie.rpartition(".")[0], cookie.replace(".", "..")):
        thief = visitor()
        thief.http.cookies.set(COOKIE, wrong)
        assert thief.get("/account").status_code == 303
        assert thief.get("/admin").status_code == 404


POSTS = sorted(
    re.sub(r"\{[^}]*\}", "izhx/udever-bloom-7b1" if "/models/" in route.path else "key-x", route.path)
    for router in PAGES
    for route in router.routes
    if "POST" in route.methods
)


def test_the_list_of_forms_is_whole() -> None:
    assert {"/signin", "/signout", "/signup", "/account/keys", "/admin/topups"} < set(POSTS)
    assert len(POSTS) >= 10


@pytest.mark.parametrize("path", [path for path in POSTS if path != "/signin"])  # there one is only led on
def test_no_form_counts_without_its_sessions_token(
    visitor: Callable[..., Any], new_account: Callable[..., Any], path: str
) -> None:
    secret, key = new_account(admin=True)
    someone, other = visitor(secret), visitor(secret)
    for token in ("", "x", other.csrf, someone.csrf[:-1]):
        answer = someone.post(path, csrf=token, sure="yes", account=key.account, credits="1")
        assert answer.status_code == 403, (token, answer.text[:300])
        headers = {"x-csrf-token": token}
        assert someone.post(path, csrf="", headers=headers, sure="yes").status_code == 403
    assert someone.get("/account").status_code == 200


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "headers",
    [{"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"origin": "https://evil.example"},
     {"origin": "null"}, {"sec-fetch-site": "cross-site", "origin": "HERE"}],
)  # fmt: skip
def test_no_form_of_another_site_counts(
    visitor: Callable[..., Any], pages: Any, path: str, headers: dict[str, str]
) -> None:
    sent = {name: value.replace("HERE", pages.url) for name, value in headers.items()}
    expected = 404 if path.startswith("/admin") else 403
    assert visitor().post(path, headers=sent, key="x").status_code == expected


def test_our_own_forms_count(visitor: Callable[..., Any], new_account: Callable[..., Any], pages: Any) -> None:
    someone = visitor()
    own = {"origin": pages.url, "sec-fetch-site": "same-origin"}
    assert someone.post("/signin", key=new_account()[0], headers=own).status_code == 303
    someone.get("/account")
    assert someone.post("/signout", csrf="", headers=own | {"x-csrf-token": someone.csrf}).status_code == 303


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [(b"csrf=x", "application/json", 415), (b"a=" + b"x" * 70_000, "application/x-www-form-urlencoded", 413),
     (b"\xff=1", "application/x-www-form-urlencoded", 400), (b"key=%ff", "application/x-www-form-urlencoded", 400),
     (b"&".join(b"a=1" for _ in range(500)), "application/x-www-form-urlencoded", 400)],
)  # fmt: skip
def test_what_is_no_form_of_ours(visitor: Callable[..., Any], content: bytes, kind: str, status: int) -> None:
    answer = visitor().http.post("/signin", content=content, headers={"content-type": kind})
    assert answer.status_code == status
    assert "udever" in answer.text


@pytest.mark.parametrize("path", ["/signin", "/account", "/signup", "/admin", "/account/usage.csv", "/account/keys/x"])
def test_without_accounts_there_is_nothing_to_sign_in_to(open_pages: Any, path: str) -> None:
    answer = httpx.get(open_pages.url + path, headers={"accept": "text/html"})
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html")
