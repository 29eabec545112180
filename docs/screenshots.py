"""Draw the pages for the README again: a real `udever serve`, a real browser, an account with a month of example usage.

    python docs/screenshots.py        # docs/img/{catalogue,model,playground,account}.png

Needs chromium, the test packages (make setup-dev) and fonts for the languages of the texts (Debian: fonts-noto-core and
fonts-noto-cjk).
"""

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from udever.server.accounts import open_accounts

IMAGES = Path(__file__).parent / "img"
WIDTH, HEIGHT = 1280, 960
DAYS = 30
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def main() -> None:
    """All four pictures."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        raise SystemExit("chromium is not installed")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        url = f"sqlite:///{folder}/udever.sqlite"
        secret = seed(url)
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        with serving(url) as site:
            for name, draw in {"catalogue": catalogue, "model": model, "playground": playground}.items():
                page = browser.new_page(
                    base_url=site,
                    viewport={"width": WIDTH, "height": HEIGHT},
                    color_scheme="dark" if name == "playground" else "light",
                )
                draw(page)
                shoot(page, name)
            page = browser.new_page(base_url=site, viewport={"width": WIDTH, "height": HEIGHT})
            account(page, secret)
            shoot(page, "account")
        browser.close()


def seed(url: str) -> str:
    """An account with usage on each of the last days; returns its key."""
    random.seed(0)
    now = time.time()
    with open_accounts(url, clock=lambda: now - DAYS * 86_400) as accounts:
        secret, key = accounts.keys.create(account="example", name="search")
        accounts.ledger.topup("example", microcredits=25_000_000)
    for day in range(DAYS):
        with open_accounts(url, clock=lambda day=day: now - (DAYS - 1 - day) * 86_400) as accounts:
            for number, name in enumerate(("udever-nano", "izhx/udever-bloom-1b1")):
                tokens = random.randrange(2_000, 90_000) // (number + 1)
                request = f"example-{day}-{number}"
                accounts.ledger.admit(
                    key, request_id=request, model=name, role="document",
                    tokens=tokens, texts=tokens // 40, microcredits=tokens,
                )  # fmt: skip
                accounts.ledger.settle(request)
    return secret


@contextmanager
def serving(url: str) -> Iterator[str]:
    """A server with sign-up and an open playground, ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    site = f"http://127.0.0.1:{port}"
    settings = {
        "UDEVER_DATABASE_URL": url,
        "UDEVER_SIGNUP_MICROCREDITS": "1000000",
        "UDEVER_PLAYGROUND_OPEN": "true",
    }
    command = [sys.executable, "-m", "udever", "serve", "--port", str(port), "--log-level", "error"]
    with subprocess.Popen(command, env=os.environ | settings) as process:
        try:
            while True:
                try:
                    urllib.request.urlopen(f"{site}/health/ready", timeout=5)
                    break
                except OSError:
                    time.sleep(0.2)
            yield site
        finally:
            process.terminate()


def catalogue(page: Page) -> None:
    """The models."""
    page.goto("/")


def model(page: Page) -> None:
    """The page of the model that the paper is mostly about, where its diagrams are."""
    page.goto("/models/izhx/udever-bloom-1b1")
    page.get_by_role("heading", name="Across tasks and languages").evaluate("e => e.scrollIntoView({block: 'start'})")


def playground(page: Page) -> None:
    """A run, its grid in the middle."""
    page.goto("/playground")
    page.get_by_role("button", name="Run").click()
    heading = page.get_by_role("heading", name="Similarity")
    heading.wait_for()
    heading.evaluate("e => e.scrollIntoView({block: 'start'})")


def account(page: Page, secret: str) -> None:
    """Balance, usage, keys."""
    page.goto("/signin")
    page.get_by_label("key").fill(secret)
    page.locator("main").get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/account")


def shoot(page: Page, name: str) -> None:
    """What is to be seen of it now."""
    page.screenshot(path=IMAGES / f"{name}.png")
    page.close()


if __name__ == "__main__":
    main()
