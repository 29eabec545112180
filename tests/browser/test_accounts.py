"""Accounts in a browser: in, spend, see, limit, rotate, revoke, out; by mouse, by keyboard and without a script."""

import csv
import io
import re
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import openai
import pytest
from playwright.sync_api import Page, expect

from udever.server.accounts import Accounts

pytestmark = pytest.mark.browser
MODEL = "udever-nano"
SOON = "izhx/udever-bloom-3b"
PWN = "document.title='pwned'"
HOSTILE = [f'<script>{PWN}</script>\'"><img src=x onerror="{PWN}">', f'javascript:{PWN}//\'><svg onload="{PWN}">']
numbers = count(1)


@pytest.fixture
def visit(open_page: Callable[..., Page]) -> Callable[..., Page]:
    """visit("/signup") is a page of somebody from a new address: sign-ups and votes are counted by address."""

    def come(path: str = "/", **options: Any) -> Page:
        number = next(numbers)
        address = {"x-forwarded-for": f"198.18.{number // 250}.{number % 250}"}
        return open_page(path, extra_http_headers=address, **options)

    return come


@pytest.fixture
def signed_in(visit: Callable[..., Page], site_accounts: Accounts) -> Callable[..., Page]:
    """signed_in(secret, path="/account") typed that key."""

    def come(secret: str, path: str = "/account", **options: Any) -> Page:
        page = visit(f"/signin?next={path}", **options)
        page.get_by_label("API key").fill(secret)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(f"**{path}")
        return page

    return come


@pytest.fixture
def new_account(site_accounts: Accounts) -> Callable[..., tuple[str, Any]]:
    """new_account() → (secret, key) of an account with credit."""

    def make(**fields: Any) -> tuple[str, Any]:
        account = fields.pop("account", f"browser-{next(numbers)}")
        secret, key = site_accounts.keys.create(account=account, **fields)
        site_accounts.ledger.topup(account, microcredits=1_000_000, note="first credit")
        return secret, key

    return make


def client(site: Any, secret: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{site.url}/v1", api_key=secret, max_retries=0)


def test_from_a_stranger_to_a_bill(visit: Callable[..., Page], site: Any, axe: Callable[[Page], None]) -> None:
    page = visit("/")
    page.get_by_role("link", name="Sign in").click()
    page.get_by_role("link", name="Make an account").click()
    page.get_by_role("textbox", name="Name of the key").fill("my laptop")
    axe(page)
    page.get_by_role("button", name="Make my account").click()
    expect(page.get_by_role("heading", name="Welcome")).to_be_visible()
    secret = page.get_by_role("textbox", name="Your API key").input_value()
    assert re.fullmatch(r"udk-[A-Za-z0-9]{40}", secret)
    axe(page)
    answer = client(site, secret).embeddings.create(model=MODEL, input=["Bonjour le monde", "你好，世界"])
    spent = answer.usage.total_tokens
    page.get_by_role("link", name="Go to your account").click()
    assert secret not in page.content()
    expect(page.get_by_text("free credit · sign-up")).to_be_visible()
    tokens = page.locator(".stat", has_text="Tokens").locator("dd")
    expect(tokens).to_contain_text(str(spent))
    expect(tokens).to_contain_text("2 texts")
    expect(page.locator(".stat", has_text="Balance").locator("dd")).to_contain_text(f"{(1_000_000 - spent) / 1e6}")
    expect(page.locator("figure.chart svg title", has_text=f"{MODEL}: {spent} tokens")).to_have_count(1)
    expect(page.get_by_role("row", name=MODEL).first).to_contain_text(str(spent))
    axe(page)


def test_the_file_is_the_bill(signed_in: Callable[..., Page], new_account: Callable[..., Any], site: Any) -> None:
    secret, key = new_account(name="=1+1")
    used = client(site, secret).embeddings.create(model=MODEL, input="a text").usage.total_tokens
    page = signed_in(secret)
    with page.expect_download() as waiting:
        page.get_by_role("link", name="Download CSV").click()
    text = Path(waiting.value.path()).read_bytes().decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [(row["model"], row["key"], row["key_name"], row["tokens"]) for row in rows] == [
        (MODEL, key.id, "'=1+1", str(used))
    ]


def test_a_keys_whole_life(
    signed_in: Callable[..., Page], new_account: Callable[..., Any], site: Any, axe: Callable[[Page], None]
) -> None:
    page = signed_in(new_account(name="owner")[0])
    page.locator("summary", has_text="New key").click()
    page.get_by_role("textbox", name="Name").fill("backend")
    page.get_by_label("Requests a minute").fill("2")
    page.get_by_label("query").check()
    axe(page)
    page.get_by_role("button", name="Make key").click()
    first = page.get_by_role("textbox", name="The secret of backend").input_value()
    assert client(site, first).embeddings.create(model=f"{MODEL}:query", input="a").data
    with pytest.raises(openai.PermissionDeniedError):
        client(site, first).embeddings.create(model=f"{MODEL}:document", input="a")

    page.get_by_role("link", name="Manage backend").click()
    page.get_by_label("Requests a minute").fill("")
    page.get_by_label("document").check()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Saved.")).to_be_visible()
    axe(page)
    for _ in range(3):
        assert client(site, first).embeddings.create(model=MODEL, input="a").data

    page.get_by_label("The old secret works for").select_option("24 hours")
    page.get_by_role("button", name="Rotate").click()
    second = page.get_by_role("textbox", name="The new secret").input_value()
    assert second != first
    for secret in (first, second):
        assert client(site, secret).embeddings.create(model=MODEL, input="a").data
    page.get_by_label("The old secret works for").select_option("no longer")
    page.get_by_role("button", name="Rotate").click()
    third = page.get_by_role("textbox", name="The new secret").input_value()
    for secret in (first, second):
        with pytest.raises(openai.AuthenticationError):
            client(site, secret).embeddings.create(model=MODEL, input="a")

    page.get_by_role("button", name="Revoke").click()  # the browser wants the tick
    assert client(site, third).embeddings.create(model=MODEL, input="a").data
    page.get_by_label("Yes, revoke backend").check()
    page.get_by_role("button", name="Revoke").click()
    page.wait_for_url("**/account*")
    with pytest.raises(openai.AuthenticationError, match="revoked"):
        client(site, third).embeddings.create(model=MODEL, input="a")
    expect(page.get_by_text("1 key has ended")).to_be_visible()


def test_a_revoked_key_signs_nobody_in_and_ends_its_sessions(
    signed_in: Callable[..., Page], new_account: Callable[..., Any], site_accounts: Accounts, watch: Any
) -> None:
    secret, key = new_account()
    page = signed_in(secret)
    site_accounts.keys.revoke(key.id)
    page.reload()
    page.wait_for_url(re.compile("/signin"))
    watch.forgiven.append("401")
    page.get_by_label("API key").fill(secret)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("was revoked")


def test_out_is_out(signed_in: Callable[..., Page], new_account: Callable[..., Any]) -> None:
    page = signed_in(new_account()[0])
    cookie = next(cookie for cookie in page.context.cookies() if "session" in cookie["name"])
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Lax")
    assert page.evaluate("document.cookie") == ""
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/")
    assert not [cookie for cookie in page.context.cookies() if "session" in cookie["name"]]
    page.goto("/account")
    page.wait_for_url(re.compile("/signin"))
    page.go_back()
    assert "Sign out" not in page.content()


def test_a_second_click_makes_no_second_secret(
    signed_in: Callable[..., Page], new_account: Callable[..., Any], site: Any, site_accounts: Accounts
) -> None:
    secret, key = new_account()
    page = signed_in(secret)
    page.goto(f"/account/keys/{key.id}")
    page.get_by_role("button", name="Rotate").dblclick()
    shown = page.get_by_role("textbox", name="The new secret").input_value()
    assert client(site, shown).embeddings.create(model=MODEL, input="a").data
    page.goto("/account")
    page.locator("summary", has_text="New key").click()
    page.get_by_role("textbox", name="Name").fill("twice")
    page.get_by_role("button", name="Make key").dblclick()
    expect(page.get_by_role("textbox", name="The secret of twice")).to_be_visible()
    assert [made.name for made in site_accounts.keys.list(account=key.account)].count("twice") == 1


def test_a_link_from_elsewhere_finds_the_session(
    signed_in: Callable[..., Page], new_account: Callable[..., Any], site: Any
) -> None:
    page = signed_in(new_account()[0])
    page.goto("about:blank")
    page.set_content(f'<a href="{site.url}/account">udever</a>')
    page.get_by_role("link").click()
    expect(page).to_have_url(f"{site.url}/account")  # and not the sign-in form


@pytest.mark.parametrize("scripted", [True, False])
def test_one_vote_a_visitor(visit: Callable[..., Page], site_accounts: Accounts, scripted: bool) -> None:
    before = site_accounts.votes.count(SOON)
    page = visit(f"/models/{SOON}", java_script_enabled=scripted)
    page.get_by_role("button", name="Tell us you want it").click()
    expect(page.locator("#want")).to_contain_text("Noted, thank you")
    expect(page.locator("#want")).to_contain_text(str(before + 1))
    page.reload()
    expect(page.locator("#want")).to_contain_text("Noted, thank you")
    expect(page.get_by_role("button", name="Tell us you want it")).to_have_count(0)
    assert site_accounts.votes.count(SOON) == before + 1


def test_the_operators_page(
    signed_in: Callable[..., Page], new_account: Callable[..., Any], site: Any, site_accounts: Accounts,
    axe: Callable[[Page], None],
) -> None:  # fmt: skip
    customer, key = new_account(account="customer & co")
    page = signed_in(new_account(admin=True)[0], "/admin")
    queue = page.locator("#queue")
    batches = queue.get_by_role("row", name=MODEL).get_by_role("cell").nth(4)
    before = int(batches.inner_text().replace(",", ""))
    client(site, customer).embeddings.create(model=MODEL, input="a text")
    expect(batches).not_to_have_text(str(before), timeout=8000)  # without a reload
    axe(page)
    table = queue.get_by_role("region")
    table.focus()
    with page.expect_response("**/admin/queue"), page.expect_response("**/admin/queue"):
        pass
    page.wait_for_timeout(100)
    expect(table).to_be_focused()  # the rows are new, what one holds on to is not
    page.get_by_label("Find an account").fill("CUSTOMER &")
    page.get_by_role("button", name="Find").click()
    page.get_by_role("link", name="customer & co").click()
    expect(page.get_by_label("Account", exact=True)).to_have_value("customer & co")
    had = site_accounts.ledger.balance(key.account)
    page.get_by_label("Credits").fill("2.5")
    page.get_by_label("Note").fill("invoice <7>")
    page.get_by_role("button", name="Book").click()
    expect(page.get_by_role("status").filter(has_text="Booked")).to_contain_text("2.5 credits for customer & co")
    assert site_accounts.ledger.balance(key.account) == had + 2_500_000
    customers = signed_in(customer)
    expect(customers.get_by_text("top-up · invoice <7>")).to_be_visible()
    expect(customers.get_by_role("link", name="Admin")).to_have_count(0)


def test_the_operators_page_is_nobody_elses(
    signed_in: Callable[..., Page], new_account: Callable[..., Any], watch: Any
) -> None:
    page = signed_in(new_account()[0])
    watch.forgiven.append("404")
    response = page.goto("/admin")
    assert response is not None
    assert response.status == 404
    expect(page.get_by_role("heading", name="Nothing here")).to_be_visible()
    expect(page.get_by_role("link", name=re.compile("browser-"))).to_be_visible()  # still signed in


@pytest.mark.parametrize("text", HOSTILE)
def test_scripts_in_every_field_stay_texts(
    visit: Callable[..., Page], signed_in: Callable[..., Page], new_account: Callable[..., Any],
    site_accounts: Accounts, watch: Any, text: str,
) -> None:  # fmt: skip
    watch.forgiven += ["400", "401", "404"]
    secret, key = new_account(name=text, models=[text, MODEL], account=f"{text} {next(numbers)}", admin=True)
    site_accounts.ledger.topup(key.account, microcredits=1, note=text)
    request_id = f"req {next(numbers)}"
    site_accounts.ledger.admit(key, request_id=request_id, model=text, role="query", tokens=9, texts=1, microcredits=9)
    site_accounts.ledger.settle(request_id)

    def harmless(page: Page) -> None:
        page.wait_for_load_state()
        assert page.title() != "pwned"
        assert page.evaluate("document.querySelector('img, main script, [onerror], [onload]')") is None

    page = signed_in(secret)
    expect(page.get_by_text(text).first).to_be_visible()
    harmless(page)
    page.locator("summary", has_text="New key").click()
    page.get_by_role("textbox", name="Name").fill(text)
    page.get_by_role("button", name="Make key").click()
    harmless(page)
    page.goto(f"/account/keys/{key.id}")
    harmless(page)
    page.get_by_role("textbox", name="Name").fill(text + "!")
    page.get_by_role("button", name="Save").click()
    harmless(page)
    page.goto("/admin")
    for label in ("Account", "Credits", "Note"):
        page.get_by_label(label, exact=True).fill(text)
    page.get_by_role("button", name="Book").click()
    harmless(page)
    page.get_by_label("Find an account").fill(text)
    page.get_by_role("button", name="Find").click()
    harmless(page)
    page = visit("/signin")
    page.get_by_label("API key").fill(text)
    page.get_by_role("button", name="Sign in").click()
    harmless(page)
    page.goto("/signup")
    page.get_by_role("textbox", name="Name of the key").fill(text)
    page.get_by_role("button", name="Make my account").click()
    harmless(page)
    for path in ("/signup?name=", "/account?days=", "/account/keys/", "/signin?next=", "/models/"):
        page.goto(path + quote(text, safe=""))
        harmless(page)


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_every_page_fits_a_phone_and_passes_axe(
    visit: Callable[..., Page], signed_in: Callable[..., Page], new_account: Callable[..., Any],
    site: Any, site_accounts: Accounts, axe: Callable[[Page], None], fits: Callable[[Page], None], color_scheme: str,
) -> None:  # fmt: skip
    secret, key = new_account(name="a name that is long and does not end for quite some while, as names do", admin=True)
    site_accounts.keys.create(
        account=key.account, name="x" * 100, models=["owner/" + "model" * 12], requests_per_minute=1_000_000
    )
    client(site, secret).embeddings.create(model=MODEL, input="a text")
    for path in ("/signin", "/signup"):
        page = visit(path, width=360, color_scheme=color_scheme)
        fits(page)
        axe(page)
    page = signed_in(secret, width=360, color_scheme=color_scheme)
    page.locator("summary", has_text="New key").click()
    fits(page)
    axe(page)
    for path in (f"/account/keys/{key.id}", "/admin"):
        page.goto(path)
        fits(page)
        axe(page)
    page.goto(f"/account/keys/{key.id}")
    page.get_by_role("button", name="Rotate").click()
    expect(page.get_by_role("textbox", name="The new secret")).to_be_visible()  # not the page that is left
    fits(page)
    axe(page)


def test_by_keyboard_alone(visit: Callable[..., Page], new_account: Callable[..., Any]) -> None:
    secret, _ = new_account()
    page = visit("/signin")
    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.insert_text(secret)
    page.keyboard.press("Enter")
    page.wait_for_url("**/account")
    page.locator("summary", has_text="New key").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.insert_text("typed")
    page.keyboard.press("Enter")
    expect(page.get_by_role("textbox", name="The secret of typed")).to_be_visible()


def test_without_a_script(signed_in: Callable[..., Page], new_account: Callable[..., Any]) -> None:
    page = signed_in(new_account(admin=True)[0], java_script_enabled=False)
    page.locator("summary", has_text="New key").click()
    page.get_by_role("textbox", name="Name").fill("plain")
    page.get_by_role("button", name="Make key").click()
    expect(page.get_by_role("textbox", name="The secret of plain")).to_have_value(re.compile("^udk-"))
    page.get_by_role("link", name="90 days").click()
    expect(page.get_by_text("Nothing used in 90 days")).to_be_visible()
    page.goto("/admin")
    expect(page.locator("#queue")).to_contain_text(MODEL)
