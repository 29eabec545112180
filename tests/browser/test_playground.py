"""The playground in a browser: with a script and without one, by mouse and by keyboard."""

import json
import re
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import Page, expect

import udever
from udever.server.accounts import Accounts

pytestmark = pytest.mark.browser
MODEL, OTHER = "udever-nano", "nano-two"
OTHER_SIZES, OTHER_PRICE = [128, 256], 3
visitors = count(1)


@pytest.fixture(scope="module")
def site(
    start_server: Callable[..., Any],
    site_accounts: Accounts,
    site_database: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """A service with two models, where guests may play."""
    folder = tmp_path_factory.mktemp("models") / OTHER
    shutil.copytree(Path(udever.__file__).parent / "builtin" / MODEL, folder)
    manifest = json.loads((folder / "udever.json").read_text())
    manifest |= {"name": OTHER, "matryoshka": OTHER_SIZES, "microcredits_per_token": OTHER_PRICE}
    (folder / "udever.json").write_text(json.dumps(manifest))
    return start_server(
        "--model", MODEL, "--model", f"{OTHER}={folder}",
        env={"UDEVER_DATABASE_URL": site_database, "UDEVER_PLAYGROUND_OPEN": "true"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def key(site_accounts: Accounts) -> str:
    secret, _ = site_accounts.keys.create(account="browser")
    site_accounts.ledger.topup("browser", microcredits=10**9)
    return secret


@pytest.fixture
def visit(open_page: Callable[..., Page]) -> Callable[..., Page]:
    """visit("/playground?preset=code") is the page of a guest from an address of their own."""

    def open_(path: str = "/playground", **options: Any) -> Page:
        address = {"x-forwarded-for": f"10.7.0.{next(visitors)}"}
        return open_page(path, extra_http_headers=address, **options)

    return open_


@pytest.fixture
def api(site: Any, key: str) -> Callable[..., np.ndarray]:
    """api(["a"], "query", dimensions=64) are the API's vectors."""

    def embed(texts: list[str], role: str, *, model: str = MODEL, **fields: Any) -> np.ndarray:
        body = {"model": f"{model}:{role}", "input": texts, **fields}
        answer = httpx.post(f"{site.url}/v1/embeddings", json=body, headers={"authorization": f"Bearer {key}"})
        return np.array([row["embedding"] for row in answer.json()["data"]])

    return embed


def run(page: Page) -> None:
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator("table.grid")).to_be_visible()


def texts(page: Page, role: str) -> list[str]:
    return page.locator(f"form textarea[name={role}]").evaluate_all("areas => areas.map((area) => area.value)")


def shown(page: Page) -> np.ndarray:
    """The cosines that can be read in the grid."""
    rows = page.locator("table.grid tbody tr").all()
    return np.array([[float(t.replace("−", "-")) for t in row.locator("td b").all_inner_texts()] for row in rows])


def ranks(page: Page) -> list[list[int]]:
    rows = page.locator("table.grid tbody tr").all()
    return [[int(re.search(r"\d+", text)[0]) for text in row.locator("td small").all_inner_texts()] for row in rows]


def chosen(page: Page) -> list[int]:
    """The column that is framed in each row."""
    return page.locator("table.grid tbody tr").evaluate_all(
        "rows => rows.map((row) => [...row.querySelectorAll('td')].findIndex((cell) => cell.matches('.best')))"
    )


def expected(page: Page, api: Any, **fields: Any) -> np.ndarray:
    return api(texts(page, "query"), "query", **fields) @ api(texts(page, "document"), "document", **fields).T


@pytest.mark.parametrize("preset", ["Across languages", "Code search", "FAQ"])
def test_a_preset_runs_and_the_grid_is_the_apis(visit: Any, api: Any, preset: str) -> None:
    page = visit("/playground?preset=blank")
    page.get_by_role("link", name=preset).click()
    expect(page.get_by_role("link", name=preset)).to_have_attribute("aria-current", "true")
    run(page)
    cosines = expected(page, api)
    assert np.abs(shown(page) - cosines).max() < 0.00501
    assert ranks(page) == (np.argsort(np.argsort(-cosines, axis=1), axis=1) + 1).tolist()
    assert chosen(page) == cosines.argmax(axis=1).tolist()
    assert page.locator(".map-query").count() - 1 == len(cosines)  # and one in the legend
    assert page.locator(".map-document").count() - 1 == cosines.shape[1]


def test_markers_stand_around_each_text(visit: Any) -> None:
    page = visit()
    for role, pair in (("query", ["[BOQ]", "[EOQ]"]), ("document", ["[BOD]", "[EOD]"])):
        row = page.locator(f"[data-side={role}] .text-row").first
        assert row.locator(".marker").all_inner_texts() == pair


def test_by_keyboard_alone(visit: Any, api: Any) -> None:
    page = visit("/playground?preset=blank")
    page.get_by_role("textbox", name="Query Q1").focus()
    page.keyboard.type("Where is the library?")
    page.keyboard.press("Tab")  # its remove button
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Add a query")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("textbox", name="Query Q2")).to_be_focused()
    page.keyboard.type("¿Dónde está la biblioteca?")
    page.get_by_role("textbox", name="Document D1").focus()
    page.keyboard.type("Die Bücherei ist am Markt.")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("status").filter(has_text="Compared 2 queries with 1 document ")).to_be_attached()
    assert texts(page, "document") == ["Die Bücherei ist am Markt.", ""]
    cosines = api(texts(page, "query"), "query") @ api(["Die Bücherei ist am Markt."], "document").T
    assert np.abs(shown(page) - cosines).max() < 0.00501


def test_rows_are_renumbered_and_one_stays(visit: Any) -> None:
    page = visit("/playground?preset=faq")
    before = texts(page, "query")
    page.get_by_role("button", name="Remove query 2", exact=True).click()
    assert texts(page, "query") == [before[0], *before[2:]]
    expect(page.get_by_role("textbox", name="Query Q2")).to_be_focused()
    for _ in range(len(before)):
        page.get_by_role("button", name="Remove query 1", exact=True).click()
    assert texts(page, "query") == [""]
    for _ in range(15):
        page.get_by_role("button", name="Add a query").click()
    expect(page.get_by_role("button", name="Add a query")).to_be_disabled()
    assert len(texts(page, "query")) == 16


def test_tokens_and_price_follow_what_is_written(visit: Any, site: Any, key: str, open_page: Any) -> None:
    page = visit("/playground?preset=blank")
    tokens = page.locator("[data-side=query] [data-tokens]").first
    page.get_by_role("textbox", name="Query Q1").fill("a text to count")
    body = {"model": f"{MODEL}:query", "input": "a text to count"}
    headers = {"authorization": f"Bearer {key}"}
    counted = httpx.post(f"{site.url}/v1/tokenize", json=body, headers=headers).json()["total_tokens"]
    expect(tokens).to_have_text(str(counted))
    expect(page.locator("[data-price]")).to_contain_text(f"{counted} tokens")
    page.get_by_role("textbox", name="Query Q1").fill("word " * 700)
    expect(page.locator("[data-over]")).to_contain_text("Q1: more than the model’s 512 tokens")
    expect(page.get_by_role("textbox", name="Query Q1")).to_have_attribute("aria-invalid", "true")
    page.get_by_role("textbox", name="Query Q1").fill("")
    expect(tokens).to_have_text("")
    expect(page.locator("[data-over]")).to_have_text("")


def test_the_slider_shows_every_size(visit: Any, api: Any) -> None:
    page = visit("/playground?preset=code")
    run(page)
    slider = page.get_by_role("slider", name="Dimensions")
    full = chosen(page)
    for dimensions, press in ((128, "ArrowLeft"), (64, "ArrowLeft"), (256, "End")):
        slider.press(press)
        expect(slider).to_have_attribute("aria-valuetext", f"{dimensions} dimensions")
        cosines = expected(page, api, dimensions=dimensions)
        assert np.abs(shown(page) - cosines).max() < 0.00501
        assert chosen(page) == cosines.argmax(axis=1).tolist()
        kept = sum(a == b for a, b in zip(chosen(page), full, strict=True))
        cost = page.locator("#size-cost").inner_text()
        assert (f"{kept} of {len(full)}" in cost) == (dimensions != 256)
        assert page.locator("tr.own th").inner_text() == str(dimensions)
        assert f'"dimensions": {dimensions}' in page.locator(".code code").first.inner_text()
    slider.press("Home")
    with page.expect_response("**/playground") as answered:
        page.get_by_role("button", name="Run", exact=True).click()
    assert answered.value.ok
    expect(page.get_by_role("slider")).to_have_value("0")  # the size stays with the next run


def test_another_model_has_its_own_sizes_and_price(visit: Any, open_page: Any, key: str, site: Any) -> None:
    page = open_page("/signin")
    page.get_by_label("key", exact=False).first.fill(key)
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(re.compile("/account$"))
    page.goto("/playground?preset=faq")
    options = page.get_by_label("Model")
    disabled = options.locator("option:disabled").all_inner_texts()
    assert any("udever-bloom-1b1" in text and "coming soon" in text for text in disabled)
    price = page.locator("[data-price]")
    tokens = int(re.search(r"(\d+) tokens", price.inner_text())[1])
    expect(price).to_contain_text(f"{tokens / 1e6:.6f}".rstrip("0"))
    run(page)
    options.select_option(OTHER)
    expect(price).to_contain_text(f"{tokens * OTHER_PRICE / 1e6:.6f}".rstrip("0"))
    expect(page.get_by_text("changed since this run")).to_be_visible()
    with page.expect_response("**/playground"):
        page.keyboard.press("Control+Enter")
    expect(page.locator(".result-facts dd").first).to_have_text(OTHER)
    assert page.get_by_role("slider").get_attribute("data-sizes") == ",".join(map(str, OTHER_SIZES))
    expect(page.locator(".result-facts")).to_contain_text("Balance")
    assert page.get_by_text("changed since this run").count() == 1
    expect(page.get_by_text("changed since this run")).to_be_hidden()


def test_the_raw_request_is_copied_as_it_stands(visit: Any, site: Any) -> None:
    page = visit("/playground?preset=faq", permissions=["clipboard-read", "clipboard-write"])
    run(page)
    page.locator("#result .tabs label", has_text="Python").click()
    panel = page.locator(".tab-panel:visible")
    panel.get_by_role("button", name="Copy").click()
    expect(panel.get_by_role("button", name="Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    compile(copied, "copied", "exec")
    assert f'base_url="{site.url}/v1"' in copied
    assert '"I forgot my password"' in copied


def test_without_a_script_the_form_does_it_all(visit: Any, api: Any) -> None:
    page = visit("/playground?preset=code", java_script_enabled=False)
    page.get_by_role("button", name="Add a query").click()
    page.get_by_role("textbox", name="Query Q6").fill("who lives in Oslo?")
    page.get_by_role("button", name="Remove document 1", exact=True).click()
    run(page)
    cosines = expected(page, api)
    assert cosines.shape == (6, 5)
    assert np.abs(shown(page) - cosines).max() < 0.00501
    page.get_by_role("slider").press("Home")
    with page.expect_navigation():
        run(page)
    assert np.abs(shown(page) - expected(page, api, dimensions=64)).max() < 0.00501


def test_typed_markup_is_shown_and_not_run(visit: Any, watch: Any) -> None:
    nasty = "</textarea><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    page = visit("/playground?preset=blank")
    page.get_by_role("textbox", name="Query Q1").fill(nasty)
    page.get_by_role("textbox", name="Document D1").fill(nasty)
    page.get_by_role("textbox", name="Document D2").fill("{{ 7 * 7 }} ${alert(1)}")
    run(page)
    assert "owned" not in page.title()
    assert page.locator("#result img, #result script").count() == 0
    assert page.locator("table.grid tbody th .grid-text").inner_text() == nasty
    assert "onerror" in page.locator(".code code").first.inner_text()


def test_a_refusal_stands_where_the_result_would(visit: Any, watch: Any) -> None:
    watch.forgiven.append("status of 400")
    page = visit("/playground?preset=faq")
    page.get_by_role("textbox", name="Document D2").fill("word " * 700)
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("D2 has")
    assert texts(page, "query")[0] == "my parcel has not arrived"
    page.get_by_role("textbox", name="Document D2").fill("short")
    run(page)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_server_that_is_gone_is_said_so(visit: Any, watch: Any) -> None:
    watch.forgiven += ["ERR_INTERNET_DISCONNECTED", "htmx:(sendError|afterRequest)"]
    page = visit("/playground?preset=faq")
    page.context.set_offline(True)
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator("#result")).to_contain_text("The server cannot be reached")
    page.context.set_offline(False)
    run(page)


def test_what_cannot_be_asked_is_said_on_the_page(visit: Any, watch: Any) -> None:
    watch.forgiven += ["413", "htmx:responseError"]
    page = visit("/playground?preset=faq")
    page.get_by_role("textbox", name="Query Q1").evaluate("area => { area.value = '字'.repeat(200_000) }")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator("#notices")).to_contain_text("too large")
    expect(page.locator("#notices .alert")).to_be_in_viewport()


def test_an_example_keeps_the_model(visit: Any) -> None:
    page = visit("/playground?preset=blank")
    page.get_by_label("Model").select_option(OTHER)
    page.get_by_role("link", name="FAQ").click()
    expect(page.get_by_role("link", name="FAQ")).to_have_attribute("aria-current", "true")
    expect(page.get_by_label("Model")).to_have_value(OTHER)


def test_an_edit_during_a_run_is_marked(visit: Any) -> None:
    page = visit("/playground?preset=faq")
    held: list[Any] = []
    page.route("**/playground", lambda route: held.append(route))
    with page.expect_request("**/playground"):
        page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("textbox", name="Query Q1").fill("something else")
    held[0].continue_()
    expect(page.locator("table.grid")).to_be_visible()
    expect(page.get_by_text("changed since this run")).to_be_visible()
    page.unroute("**/playground")
    with page.expect_response("**/playground"):
        page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_text("changed since this run")).to_be_hidden()


def test_no_count_is_better_than_an_old_one(visit: Any, watch: Any) -> None:
    watch.forgiven.append("503")
    page = visit("/playground?preset=blank")
    page.get_by_role("textbox", name="Query Q1").fill("word " * 700)
    expect(page.locator("[data-over]")).not_to_have_text("")
    page.route("**/playground/count", lambda route: route.fulfill(status=503))
    page.get_by_role("textbox", name="Query Q1").fill("word " * 701)
    expect(page.locator("[data-over]")).to_have_text("")
    expect(page.locator("[data-price]")).not_to_contain_text("tokens")
    expect(page.get_by_role("textbox", name="Query Q1")).not_to_have_attribute("aria-invalid", "true")


def test_what_was_typed_before_signing_in_is_there_after_it(
    start_server: Callable[..., Any], site_database: str, key: str, open_page: Any, watch: Any
) -> None:
    closed = start_server(env={"UDEVER_DATABASE_URL": site_database})
    watch.host = closed.url
    page = open_page(f"{closed.url}/playground?preset=faq")
    page.get_by_role("textbox", name="Query Q1").fill("¿Dónde está la biblioteca?")
    page.get_by_role("button", name="Add a document").click()
    page.keyboard.type("Die Bücherei ist am Markt.")
    before = texts(page, "query"), texts(page, "document")
    page.get_by_role("link", name="Sign in to run").click()
    page.get_by_label("key", exact=False).first.fill(key)
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(re.compile("/playground$"))
    assert (texts(page, "query"), texts(page, "document")) == before
    run(page)
    page.reload()
    assert texts(page, "query") != before[0], "once"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_everyone_can_use_it(visit: Any, axe: Any, fits: Any, scheme: str) -> None:
    page = visit("/playground?preset=languages", width=360, color_scheme=scheme, reduced_motion="reduce")
    fits(page)
    run(page)
    fits(page)
    axe(page)
    page.get_by_role("slider").press("Home")
    page.get_by_role("textbox", name="Query Q1").fill("changed")
    expect(page.get_by_text("changed since this run")).to_be_visible()
    axe(page)
    page.set_viewport_size({"width": 1280, "height": 900})
    fits(page)
    axe(page)
