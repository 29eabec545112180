"""Tell us you want it."""

from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import pytest

from udever.server.accounts import Accounts

SOON = "izhx/udever-bloom-7b1"
LIVE = "udever-nano"


@pytest.fixture
def count(pages_accounts: Accounts) -> Callable[[], int]:
    return lambda: pages_accounts.votes.count(SOON)


def test_a_vote_is_counted_once_and_shown(visitor: Callable[..., Any], count: Callable[[], int]) -> None:
    someone, before = visitor(), count()
    assert "Tell us you want it" in someone.get(f"/models/{SOON}").text
    answer = someone.post(f"/models/{SOON}/want")
    assert (answer.status_code, unquote(answer.headers["location"])) == (303, f"/models/{SOON}#want")
    someone.post(f"/models/{SOON}/want")
    assert count() == before + 1
    page = someone.get(f"/models/{SOON}").text
    assert "Noted, thank you" in page
    assert f"/models/{SOON}/want" not in page
    assert "Tell us you want it" in visitor().get(f"/models/{SOON}").text  # somebody else may still


def test_an_account_votes_once_from_wherever_it_comes(
    visitor: Callable[..., Any], new_account: Callable[..., Any], count: Callable[[], int]
) -> None:
    secret, _ = new_account()
    before = count()
    for _ in range(2):
        visitor(secret).post(f"/models/{SOON}/want")
    assert count() == before + 1


def test_htmx_gets_the_part_and_no_page(visitor: Callable[..., Any]) -> None:
    answer = visitor().post(f"/models/{SOON}/want", headers={"hx-request": "true"})
    assert answer.status_code == 200
    assert answer.text.strip().startswith('<div id="want"')
    assert "Noted" in answer.text


def test_a_live_model_thanks_and_counts_nothing(visitor: Callable[..., Any], pages_accounts: Accounts) -> None:
    answer = visitor().post(f"/models/{LIVE}/want", headers={"hx-request": "true"})
    assert "thank you" in answer.text
    assert visitor().post(f"/models/{LIVE}/want").status_code == 303
    assert pages_accounts.votes.count(LIVE) == 0


@pytest.mark.parametrize(
    "model", ["nobody/nothing", "a%00b", "<script>alert(1)</script>", "x" * 3000, "..%2f..", "%20"]
)
def test_no_model_no_vote(visitor: Callable[..., Any], pages_accounts: Accounts, model: str) -> None:
    before = pages_accounts.votes.wanted()
    answer = visitor().post(f"/models/{model}/want")
    assert answer.status_code == 404
    assert "<script>alert" not in answer.text
    assert pages_accounts.votes.wanted() == before


def test_without_accounts_nothing_is_counted_or_offered(visitor: Callable[..., Any], open_pages: Any) -> None:
    someone = visitor(url=open_pages.url)
    assert "Tell us you want it</button>" not in someone.get(f"/models/{SOON}").text
    assert someone.post(f"/models/{SOON}/want").status_code == 404
