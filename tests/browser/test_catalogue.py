"""Catalogue, model page and comparison in a real browser, with a mouse, with keys only, and without JavaScript."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser

BLOOM = "/models/izhx/udever-bloom-1b1"
PAGES = ("/", BLOOM, "/models/udever-nano", "/compare", "/compare?m=udever-nano", "/nowhere")
WIDTHS = (360, 900, 1400)


@pytest.fixture
def titles() -> Callable[[Page], list[str]]:
    """titles(page): what the list shows, in its order."""
    return lambda page: page.locator(".model-row h2").all_inner_texts()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_accessible_and_fits_every_width(
    path: str, scheme: str, open_page: Callable[..., Page], axe: Callable[[Page], None], fits: Callable[[Page], None],
    watch: object,
) -> None:  # fmt: skip
    watch.forgiven.append("404")  # type: ignore[attr-defined]
    page = open_page(path, color_scheme=scheme)
    axe(page)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        fits(page)


def test_filtering_swaps_the_list_and_keeps_the_address(page: Page, titles: Callable[[Page], list[str]]) -> None:
    assert titles(page)[0] == "Udever nano"
    assert len(titles(page)) == 6
    page.get_by_role("checkbox", name="coming soon").check()
    expect(page.locator(".found-head")).to_contain_text("5 of 6 models")
    assert "Udever nano" not in titles(page)
    page.get_by_label("Sort").select_option("Best MTEB average")
    expect(page.locator(".model-row h2").first).to_have_text("Udever BLOOM 7.1B")
    page.get_by_label("Search models").fill("1.1b")
    expect(page.locator(".model-row")).to_have_count(1)
    assert "q=1.1b" in page.url
    assert "status=soon" in page.url
    page.reload()
    assert titles(page) == ["Udever BLOOM 1.1B"]
    expect(page.get_by_role("checkbox", name="coming soon")).to_be_checked()
    page.get_by_role("link", name="Clear all").click()
    expect(page.locator(".model-row")).to_have_count(6)


def test_going_back_brings_the_list_before(page: Page) -> None:
    page.get_by_role("checkbox", name="Apache-2.0").check()
    expect(page.locator(".model-row")).to_have_count(2)
    page.go_back()
    expect(page.locator(".model-row")).to_have_count(6)


def test_nothing_fits_and_the_way_out(page: Page) -> None:
    page.get_by_label("Search models").fill("no model is called like this")
    expect(page.get_by_text("No model fits")).to_be_visible()
    # A hand holds the button for a moment: leaving the field must not put a new list under it, or the click is lost.
    page.get_by_role("link", name="Show all models").click(delay=300)
    expect(page.locator(".model-row")).to_have_count(6)


def test_what_is_typed_stays_text(page: Page) -> None:
    evil = "\"><img src=x onerror=document.title='broken'><script>document.title='broken'</script>"
    page.get_by_label("Search models").fill(evil)
    expect(page.get_by_text("No model fits")).to_be_visible()
    page.reload()
    expect(page.get_by_label("Search models")).to_have_value(evil)
    assert "broken" not in page.title()
    page.goto(f"/compare?m={evil}")
    assert "broken" not in page.title()


def test_from_the_catalogue_to_a_model_to_the_comparison(page: Page) -> None:
    page.get_by_role("link", name="Udever BLOOM 1.1B").click()
    expect(page).to_have_url(re.compile("/models/izhx/udever-bloom-1b1$"))
    expect(page.get_by_role("heading", level=1)).to_have_text("Udever BLOOM 1.1B")
    page.get_by_role("link", name="Compare all").click()
    expect(page.get_by_role("checkbox", name="Udever BLOOM 1.1B")).to_be_checked()
    page.get_by_role("checkbox", name="Udever BLOOM 560M").uncheck()
    expect(page.locator("#comparison thead").first).not_to_contain_text("Udever BLOOM 560M")
    assert "560m" not in page.url


def test_a_numbers_source_shows_on_hover_and_on_focus(open_page: Callable[..., Page]) -> None:
    page = open_page(f"{BLOOM}#benchmarks")
    number = page.get_by_role("button", name="58.28")
    note = number.locator("[role=tooltip]")
    expect(note).to_be_hidden()
    number.hover()
    expect(note).to_be_visible()
    expect(note).to_contain_text("Source: The authors' model cards")
    box = note.bounding_box()
    assert box is not None
    assert 0 <= box["x"] <= box["x"] + box["width"] <= 1280
    assert 0 <= box["y"] <= box["y"] + box["height"] <= 900
    page.mouse.move(0, 0)
    expect(note).to_be_hidden()
    number.focus()
    expect(note).to_be_visible()
    page.keyboard.press("Escape")
    expect(note).to_be_hidden()


@pytest.mark.parametrize("java_script", [True, False])
def test_the_tabs_of_the_example_work_by_keys_with_and_without_java_script(
    java_script: bool, open_page: Callable[..., Page]
) -> None:
    page = open_page("/models/udever-nano", java_script_enabled=java_script)
    page.locator("#call-1").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_text("from openai import OpenAI")).to_be_visible()
    expect(page.get_by_text('-H "Content-Type: application/json"')).to_be_hidden()
    page.locator("label[for=call-3]").click()
    expect(page.get_by_text("console.log(data[0].embedding)")).to_be_visible()


def test_the_example_is_copied_as_it_stands(open_page: Callable[..., Page], site: object) -> None:
    page = open_page("/models/udever-nano", permissions=["clipboard-read", "clipboard-write"])
    page.locator("#call [data-copy]:visible").click()
    expect(page.locator("#call [data-copy]:visible")).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.locator("#call code").first.inner_text()
    assert f"{site.url}/v1/embeddings" in copied  # type: ignore[attr-defined]


def test_everything_is_there_without_java_script(
    open_page: Callable[..., Page], titles: Callable[[Page], list[str]]
) -> None:
    page = open_page("/", java_script_enabled=False)
    assert page.locator("[data-theme-switch]").is_hidden()
    page.get_by_role("checkbox", name="Apache-2.0").check()
    page.get_by_role("button", name="Search").click()
    assert titles(page) == ["Udever nano", "Udever nano, for code"]
    assert "licence=Apache-2.0" in page.url
    page.goto(BLOOM)
    page.get_by_text("What is its architecture?").click()
    expect(page.get_by_text("of which only the biases differ")).to_be_visible()
    page.goto("/compare")
    page.get_by_role("checkbox", name="Udever nano", exact=True).uncheck()
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#comparison thead").first).not_to_contain_text("Udever nano")


def test_the_filters_are_open_on_a_desk_and_folded_on_a_phone(open_page: Callable[..., Page]) -> None:
    page = open_page("/", width=1280)
    expect(page.get_by_role("checkbox", name="Apache-2.0")).to_be_visible()
    page.set_viewport_size({"width": 360, "height": 800})
    expect(page.get_by_role("checkbox", name="Apache-2.0")).to_be_hidden()
    page.locator(".filters > summary").click()
    expect(page.get_by_role("checkbox", name="Apache-2.0")).to_be_visible()


def test_light_and_dark_follow_the_system_until_switched_and_stay_switched(open_page: Callable[..., Page]) -> None:
    page = open_page("/", color_scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    page.get_by_role("button", name="Switch between light and dark").click()
    light = page.evaluate(paper)
    assert dark != light
    page.goto("/compare")
    assert page.evaluate(paper) == light


def test_the_keyboard_reaches_the_content_first(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
