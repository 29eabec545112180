"""The clients of Node: OpenAI's package and Vercel's AI SDK, unchanged but for the address."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).parents[1] / "node"
TEXTS = ["How tall is K2?", "素早い茶色の狐 🦊", "def height(self): return 8611"]


@pytest.fixture(scope="module")
def node_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of tests/server/node with its packages."""
    if not (shutil.which("npm") and shutil.which("node")):
        pytest.skip("Node with npm is not installed here (Debian: apt install nodejs npm)")
    folder = tmp_path_factory.mktemp("node") / "project"
    shutil.copytree(PACKAGE, folder)
    install = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--silent"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("role", ["query", "document"])
def test_node_clients(node_project: Path, server: Any, api_key: str, same: Callable[..., None], role: str) -> None:
    variables = {
        "BASE_URL": f"{server.url}/v1",
        "API_KEY": api_key,
        "MODEL": f"udever-nano:{role}",
        "TEXTS": json.dumps(TEXTS),
    }
    done = subprocess.run(
        ["node", "clients.mjs"],
        cwd=node_project, env=os.environ | variables, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert len(said["result"]) == 5
    for vectors in said["result"].values():
        same(vectors, TEXTS, role)
    assert said["refusal"] == {"name": "AuthenticationError", "status": 401, "code": "invalid_api_key"}
