"""A real browser before a real `udever serve`.

Every page that a test opens is watched: an error in its console, a script that fails, or a request to another host
fails the test. playwright's loop runs as long as the browser does, so the browser ends with each module.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.base import AXE_FILE_PATH
from playwright.sync_api import Browser, Page, sync_playwright

from udever.server.accounts import Accounts, open_accounts

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
NO_CHROMIUM = "chromium is not installed here (Debian: apt install chromium)"
WIDTHS = {"phone": 360, "tablet": 900, "desk": 1400}


@dataclass
class Watch:
    """What must not happen on a page."""

    host: str
    problems: list[str] = field(default_factory=list)
    forgiven: list[str] = field(default_factory=list)

    def on(self, page: Page) -> None:
        page.on("console", lambda message: message.type == "error" and self.problems.append(message.text))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self._request(request.url))

    def left(self) -> list[str]:
        return [text for text in self.problems if not any(re.search(pattern, text) for pattern in self.forgiven)]

    def _request(self, url: str) -> None:
        if not url.startswith((self.host, "data:", "blob:")):
            self.problems.append(f"a request to {url}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's chromium, without a window."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip(NO_CHROMIUM)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def site_database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('site') / 'udever.sqlite'}"


@pytest.fixture(scope="session")
def site_accounts(site_database: str) -> Iterator[Accounts]:
    """The accounts of the site, opened beside it."""
    with open_accounts(site_database) as accounts:
        yield accounts


@pytest.fixture(scope="session")
def site_catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The operator's own manifests."""
    return tmp_path_factory.mktemp("catalog")


@pytest.fixture(scope="session")
def site(start_server: Callable[..., Any], site_accounts: Accounts, site_database: str, site_catalog: Path) -> Any:
    """The service that all pages come from: udever-nano is live, sign-up gives credit, the playground is open."""
    return start_server(
        env={
            "UDEVER_DATABASE_URL": site_database,
            "UDEVER_SIGNUP_MICROCREDITS": "1000000",
            "UDEVER_PLAYGROUND_OPEN": "true",
            "UDEVER_CATALOG_DIR": str(site_catalog),
        }
    )


@pytest.fixture
def watch(site: Any) -> Iterator[Watch]:
    """watch.forgiven.append(pattern) lets a console message that is meant to come pass."""
    watching = Watch(site.url)
    yield watching
    assert watching.left() == []


@pytest.fixture
def open_page(browser: Browser, site: Any, watch: Watch) -> Iterator[Callable[..., Page]]:
    """open_page("/compare", width=360, color_scheme="dark", java_script_enabled=False) is a page of a fresh visitor."""
    contexts = []

    def open_(path: str = "/", *, width: int = 1280, height: int = 900, **options: Any) -> Page:
        context = browser.new_context(base_url=site.url, viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = context.new_page()
        watch.on(page)
        page.goto(path)
        return page

    yield open_
    for context in contexts:
        context.close()


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    """The first page of a fresh visitor, 1280 px wide."""
    return open_page()


@pytest.fixture
def axe(watch: Watch) -> Callable[[Page], None]:
    """axe(page) fails on serious or critical findings of the accessibility checker."""

    def check(page: Page) -> None:
        before = len(watch.problems)
        page.evaluate(AXE_FILE_PATH.read_text("utf-8"))
        options = {"resultTypes": ["violations"]}
        found = page.evaluate(f"axe.run({json.dumps(options)})")["violations"]
        del watch.problems[before:]  # the strict headers refuse axe's own styles
        grave = [
            f"{finding['id']}: {node['html'][:200]}"
            for finding in found
            if finding["impact"] in ("serious", "critical")
            for node in finding["nodes"]
        ]
        assert grave == []

    return check


@pytest.fixture
def fits() -> Callable[[Page], None]:
    """fits(page) fails if the page scrolls sideways."""

    def check(page: Page) -> None:
        wide = page.evaluate(
            """() => {
                const limit = document.documentElement.clientWidth;
                if (document.documentElement.scrollWidth <= limit) return [];
                return [...document.querySelectorAll("body *")]
                    .filter((part) => part.getBoundingClientRect().right > limit + 1)
                    .map((part) => part.tagName + "." + part.className);
            }"""
        )
        assert wide == []

    return check
