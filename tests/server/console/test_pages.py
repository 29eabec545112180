"""Catalogue, model page and comparison as a real application renders them."""

import re
import threading
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from udever.catalog.published import benchmarks
from udever.errors import CatalogError
from udever.server.app import create_app
from udever.server.console.rendering import CONTENT_SECURITY_POLICY
from udever.server.hosting import Hosted, Loaded
from udever.server.settings import Settings

HTML = {"accept": "text/html"}
BLOOM = "izhx/udever-bloom-1b1"
EVIL = '<script>alert("x")</script>'
MANIFEST = """
id = "acme/law"
title = '<script>alert("title")</script>'
summary = '<img src=x onerror=alert(1)>'
licence = "AGPL-3.0"
languages = ["el"]
parameters = 2_000_000_000
published = "2025-05"
microcredits_per_token = 7
about = ['"><svg onload=alert(2)>']
faq = [{question = "<b>q</b>", answer = "<i>a</i>"}]
"""


class Page(HTMLParser):
    """What a page's tags say."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def models(self) -> list[str]:
        """Ids in the catalogue's list, in their order."""
        links = [link["href"] or "" for link in self.all("a")]
        return list(dict.fromkeys(link.removeprefix("/models/") for link in links if link.startswith("/models/")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("catalog")
    (path / "law.toml").write_text(MANIFEST)
    return path


def settings(**values: object) -> Settings:
    return Settings(**{"auth": False, "load": "lazy", "log_level": "error", **values})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    with TestClient(create_app(settings(catalog_dir=folder))) as client:
        client.headers.update(HTML)
        yield client


@pytest.fixture(scope="module")
def get(client: TestClient) -> Callable[..., Page]:
    def read(path: str, *, status: int = 200) -> Page:
        answer = client.get(path)
        assert answer.status_code == status, answer.text
        return Page(answer.text)

    return read


PAGES = ("/", "/?q=nothing-like-this", "/models/udever-nano", f"/models/{BLOOM}", "/models/acme/law", "/compare")


@pytest.mark.parametrize("path", [*PAGES, "/nowhere", "/models/no/such"])
def test_every_page_has_the_strict_headers_and_nothing_inline(path: str, client: TestClient) -> None:
    answer = client.get(path)
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert len(answer.content) < 100_000
    for tag, attributes in Page(answer.text).tags:
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith(("on", "hx-on"))], tag
        assert tag != "style"
        assert tag != "script" or (attributes["src"] or "").startswith("/static/")


@pytest.mark.parametrize("path", PAGES)
def test_every_local_link_and_file_of_a_page_is_there(path: str, client: TestClient, get: Callable[..., Page]) -> None:
    page = get(path)
    links = {link.get("href") or "" for tag in ("a", "link") for link in page.all(tag)}
    files = {script["src"] or "" for script in page.all("script")}
    for link in {link for link in links | files if link.startswith("/")} - {"/signin", "/signup", "/account"}:
        assert client.get(link).status_code == 200, link


@pytest.mark.parametrize("path", PAGES)
def test_ids_are_unique_and_every_field_has_a_label(path: str, get: Callable[..., Page]) -> None:
    page = get(path)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert sorted(ids, key=str) == sorted(set(ids), key=str)
    labels = {label.get("for") for label in page.all("label")}
    fields = [field for tag in ("input", "select") for field in page.all(tag)]
    for field in fields:
        assert field.get("type") in ("hidden", "checkbox") or field["id"] in labels, field


@pytest.mark.parametrize("path", PAGES)
def test_head_says_what_get_would(path: str, client: TestClient) -> None:
    asked, got = client.head(path), client.get(path)
    assert asked.status_code == got.status_code == 200
    assert asked.headers["content-type"] == got.headers["content-type"]


def test_a_file_may_be_kept_for_ever_only_at_the_address_of_its_content(client: TestClient) -> None:
    sheet = next(link["href"] for link in Page(client.get("/").text).all("link") if link["rel"] == "stylesheet")
    assert sheet is not None
    kept = client.get(sheet)
    assert "immutable" in kept.headers["cache-control"]
    assert kept.headers["content-encoding"] == "gzip"
    plain = client.get(sheet, headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.text == kept.text
    other = client.get("/static/0000000000/style.css")
    assert other.text == kept.text
    assert other.headers["cache-control"] == "no-cache"
    assert client.get("/static/0000000000/../rendering.py").status_code == 404
    assert client.get("/static/0000000000/nothing.css").status_code == 404


def test_what_stands_in_a_manifest_or_an_address_is_escaped(client: TestClient) -> None:
    for path in ("/", "/models/acme/law", "/compare?m=acme/law", f"/?q={EVIL}", f"/compare?m={EVIL}",
                 f"/models/{EVIL}", f"/?language={EVIL}&sort={EVIL}&status={EVIL}"):  # fmt: skip
        page = Page(client.get(path).text)
        assert all((script["src"] or "").startswith("/static/") for script in page.all("script")), path
        assert not page.all("img")
        assert not [attributes for _, attributes in page.tags if "onload" in attributes]
    assert 'alert("title")' in Page(client.get("/models/acme/law").text).text
    assert EVIL in Page(client.get(f"/compare?m={EVIL}").text).text


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", ["udever-nano", "udever-nano-code", *(f"izhx/udever-bloom-{size}" for size in ("560m", "1b1")), "acme/law",
              *(f"izhx/udever-bloom-{size}" for size in ("3b", "7b1"))]),
        ("q=1.1b", [BLOOM]),
        ("q=greek", ["acme/law"]),
        ("q=BLOOM+rail+560M", ["izhx/udever-bloom-560m"]),
        ("status=live", ["udever-nano"]),
        ("status=soon&size=medium", [BLOOM, "acme/law", "izhx/udever-bloom-3b"]),
        ("size=tiny&size=large", ["udever-nano", "udever-nano-code", "izhx/udever-bloom-7b1"]),
        ("licence=AGPL-3.0&licence=Apache-2.0", ["udever-nano", "udever-nano-code", "acme/law"]),
        ("language=de", ["udever-nano"]),
        ("language=el", ["acme/law"]),
        ("language=Go&size=small", ["izhx/udever-bloom-560m"]),
        ("status=live&language=el", []),
        ("status=nonsense", []),
        ("sort=large&q=bloom+rail", ["izhx/udever-bloom-7b1", "izhx/udever-bloom-3b", BLOOM, "izhx/udever-bloom-560m"]),
        ("sort=mteb&size=medium", ["izhx/udever-bloom-3b", BLOOM, "acme/law"]),
        ("sort=price&size=medium", [BLOOM, "acme/law", "izhx/udever-bloom-3b"]),
        ("sort=new&size=medium", ["acme/law", BLOOM, "izhx/udever-bloom-3b"]),
        ("sort=new&size=medium&size=large", ["acme/law", BLOOM, "izhx/udever-bloom-3b", "izhx/udever-bloom-7b1"]),
        ("sort=nonsense&status=live", ["udever-nano"]),
    ],
)  # fmt: skip
def test_the_list_is_searched_filtered_and_sorted(query: str, found: list[str], get: Callable[..., Page]) -> None:
    page = get(f"/?{query}")
    assert page.models == found
    assert ("No model fits" in page.text) == (not found)


def test_the_form_shows_what_was_asked_for(get: Callable[..., Page]) -> None:
    page = get("/?q=udever&status=live&licence=Apache-2.0&language=de&sort=name")
    chosen = {(box["name"], box["value"]) for box in page.all("input") if "checked" in box}
    assert chosen == {("status", "live"), ("licence", "Apache-2.0")}
    assert {option["value"] for option in page.all("option") if "selected" in option} == {"de", "name"}
    assert next(field["value"] for field in page.all("input") if field.get("name") == "q") == "udever"


def test_the_model_page_has_every_fact(get: Callable[..., Page]) -> None:
    text = get(f"/models/{BLOOM}").text
    for fact in (
        "Udever BLOOM 1.1B", BLOOM, "published Oct 2023", "updated Nov 2023", "coming soon", "321", "as of Nov 2026",
        "bigscience-bloom-rail-1.0", "Text embedding", "Decoder-only transformer (BLOOM)", "1,065,314,304",
        "MS MARCO Passage Ranking; SNLI; MultiNLI", "BitFit", "ACL 2025", "58.28", "60.99", "80.90", "0.244", "0.183",
        "0.208", "0.241", "OpenAI ada-002", "Best for", "Related models", "Compare all", "46 natural languages",
        "4 credits for a million tokens", "Swahili", "Not yet live",
    ):  # fmt: skip
        assert fact in text, fact


def test_every_number_of_the_benchmark_table_is_published_and_names_its_source(get: Callable[..., Page]) -> None:
    page = get(f"/models/{BLOOM}")
    rows = [benchmarks()[name].rows for name in ("mteb-eng-v1", "codesearchnet", "multi-cpr")]
    names = ("udever-bloom-1b1", "text-embedding-ada-002")
    published = [value for row in rows for name in names if name in row for value in row[name].values.values()]
    tips = [button for button in page.all("button") if button.get("class") == "tip"]
    notes = {span["id"] for span in page.all("span") if span.get("role") == "tooltip"}
    assert len(tips) == len(published)
    assert {tip["aria-describedby"] for tip in tips} == notes
    assert page.text.count("Source: The authors' model cards") == len(published)
    assert "not published" in page.text  # ada-002 on CodeSearchNet


def test_the_examples_name_this_server_this_model_and_both_roles(get: Callable[..., Page]) -> None:
    page = get("/models/udever-nano")
    assert "curl 'http://testserver/v1/embeddings'" in page.text
    assert 'base_url="http://testserver/v1"' in page.text
    assert '"input_type": "query"' in page.text
    assert "udever-nano:document" in page.text


def test_diagrams_say_in_words_what_they_show(get: Callable[..., Page]) -> None:
    for path in ("/models/udever-nano", f"/models/{BLOOM}", "/compare"):
        drawn = [svg for svg in get(path).all("svg") if svg.get("role") == "img"]
        assert len(drawn) >= 3
        assert all(svg["aria-label"] for svg in drawn)
    assert "Udever BLOOM 1.1B, Retrieval: 45.27" in get(f"/models/{BLOOM}").text


def test_the_comparison_shows_whom_it_was_asked_for(get: Callable[..., Page]) -> None:
    page = get(f"/compare?m={BLOOM}&m=udever-nano&m={BLOOM}&m=no/such")
    assert page.models == [BLOOM, "udever-nano"]
    assert "Not in this catalogue: no/such" in page.text
    assert "No published results of Udever nano" in page.text
    assert {box["value"] for box in page.all("input") if "checked" in box} == {BLOOM, "udever-nano"}
    everything = get("/compare")
    assert len(everything.models) == 5
    assert "At most 5 models" in everything.text
    alone = get("/compare?m=udever-nano")
    assert "No published results" in alone.text


def test_errors_are_pages_for_people_and_json_for_programs(client: TestClient, get: Callable[..., Page]) -> None:
    assert "There is no such address here." in get("/nowhere", status=404).text
    assert "no/such" in get("/models/no/such", status=404).text
    for path in ("/nowhere", "/models/no/such"):
        assert client.get(path, headers={"accept": "*/*"}).json()["error"]["code"]
    assert client.get("/v1/nowhere").json()["error"]["code"] == "unknown_url"
    swapped = client.get("/models/no/such", headers={"hx-request": "true"})
    assert swapped.headers["hx-retarget"] == "#notices"
    assert "<html" not in swapped.text


def test_a_fault_nobody_foresaw_is_a_page_that_says_nothing_of_its_cause(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise ValueError("the secret cause")

    monkeypatch.setattr("udever.server.console.models.catalogue.listings", fail)
    answer = client.get("/")
    assert answer.status_code == 500
    assert "Something went wrong" in answer.text
    assert "secret cause" not in answer.text


def test_a_status_is_that_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, make = threading.Event(), Hosted._make

    def slow(self: Hosted) -> Loaded:
        go_on.wait(30)
        return make(self)

    monkeypatch.setattr(Hosted, "_make", slow)
    with TestClient(create_app(settings(load="start"))) as client:
        client.headers.update(HTML)
        assert "status-loading" in client.get("/models/udever-nano").text
        assert Page(client.get("/?status=loading").text).models == ["udever-nano"]
        go_on.set()
        while client.get("/health/ready").status_code != 200:
            pass
        page = client.get("/models/udever-nano").text
        assert "status-live" in page
        assert re.search(r"API providers</dt>\s*<dd>1<", page)
        assert "udv1-" in page


def test_a_served_model_without_a_manifest_has_a_page_from_what_the_engine_knows(tiny_checkpoint: Path) -> None:
    app = create_app(settings(load="start", models=(f"house={tiny_checkpoint}", "mine=udever-nano")))
    with TestClient(app) as client:
        client.headers.update(HTML)
        while client.get("/health/ready").status_code != 200:
            pass
        page = Page(client.get("/models/house").text)
        assert "2 layers, 64 wide" in page.text
        assert app.state.service.hosting.models["house"].loaded.fingerprint in page.text
        assert str(tiny_checkpoint) not in page.text
        assert "Udever nano" in Page(client.get("/models/mine").text).text  # the manifest of what it is loaded from
        listed = {row["id"]: row for row in client.get("/v1/models").json()["data"]}
        assert listed["mine"]["title"] == "Udever nano"
        assert listed["house"]["title"] == "house"


def test_the_catalogue_feeds_prices_and_the_list_of_models(folder: Path) -> None:
    models = ("acme/law", "udever-nano", BLOOM)
    app = create_app(settings(models=models, catalog_dir=folder, prices={"udever-nano": 3}))
    with TestClient(app) as client:
        listed = {row["id"]: row for row in client.get("/v1/models").json()["data"]}
    assert [listed[name]["microcredits_per_token"] for name in models] == [7, 3, 4]
    assert listed[BLOOM]["dimensions"] == 1536
    assert listed[BLOOM]["license"] == "bigscience-bloom-rail-1.0"
    assert listed[BLOOM]["created"] == 1_696_118_400  # October 2023


def test_the_pages_can_be_switched_off_and_a_bad_manifest_stops_the_start(tmp_path: Path) -> None:
    with TestClient(create_app(settings(console=False))) as client:
        answer = client.get("/", headers=HTML)
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "unknown_url"
    (tmp_path / "bad.toml").write_text('id = "x"\n')
    with pytest.raises(CatalogError, match=r"bad\.toml: title is missing"):
        create_app(settings(catalog_dir=tmp_path))
