"""The examples of a model's page, copied from it and run as they stand."""

import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from udever import Embedder
from udever.server.accounts import open_accounts
from udever.server.console.models.calling import DOCUMENT, QUERY, examples


@pytest.fixture(scope="module")
def shown(start_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[str]]]:
    """ "key" → the examples of a service that asks for keys, "open" → of one that asks for none."""
    url = f"sqlite:///{tmp_path_factory.mktemp('calling') / 'udever.sqlite'}"
    with open_accounts(url) as accounts:
        secret, _ = accounts.keys.create(account="reader")
        accounts.ledger.topup("reader", microcredits=10_000)
    services = {"key": start_server(env={"UDEVER_DATABASE_URL": url}), "open": start_server("--no-auth")}
    pages = {name: httpx.get(f"{service.url}/models/udever-nano").text for name, service in services.items()}
    codes = {
        name: re.findall(r'<pre[^>]*><code data-lang="[^"]+">(.*?)</code>', page, re.S) for name, page in pages.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UDEVER_KEY", secret)
        yield {name: [html.unescape(code) for code in found] for name, found in codes.items()}


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.load("udever-nano")


def run(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed here")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("service", ["key", "open"])
def test_curl(service: str, shown: dict[str, list[str]], embedder: Embedder) -> None:
    answer = json.loads(run("sh", "-c", shown[service][0].replace("curl ", "curl --silent ", 1)))
    np.testing.assert_allclose(answer["data"][0]["embedding"], embedder.embed([QUERY], role="query")[0], atol=1e-5)


@pytest.mark.parametrize("service", ["key", "open"])
def test_python(service: str, shown: dict[str, list[str]], embedder: Embedder) -> None:
    printed = run(sys.executable, "-c", shown[service][1])
    expected = embedder.embed([QUERY], role="query") @ embedder.embed([DOCUMENT], role="document").T
    assert float(printed.strip(" []\n")) == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("service", ["key", "open"])
def test_javascript(service: str, shown: dict[str, list[str]], embedder: Embedder) -> None:
    program = shown[service][2].replace(
        "console.log(data[0].embedding)", "console.log(JSON.stringify(data[0].embedding))"
    )
    printed = json.loads(run("node", "--input-type=module", "-e", program))
    np.testing.assert_allclose(printed, embedder.embed([QUERY], role="query")[0], atol=1e-5)


def test_a_name_with_quotes_stays_a_name() -> None:
    name = "a'b\"; touch /nowhere/x #"
    curl, python, javascript = (text for _, text in examples(name, base_url="http://x", key=False))
    body = subprocess.run(
        ["sh", "-c", curl.replace("curl ", "printf '%s\\n' ", 1)], capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(body[body.index("{") :])["model"] == name
    compile(python, "example", "exec")
    assert json.dumps(name) in javascript
