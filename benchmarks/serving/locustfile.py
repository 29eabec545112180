"""What one client does: ask for embeddings, again and again, each time of other texts. Run by locust, not imported.

Settings come in variables, because locust owns the command line: BENCH_TEXTS (a JSON file with a list of strings),
BENCH_ITEMS (texts a request), BENCH_MODEL, BENCH_KEY.
"""

import json
import os
import random
from pathlib import Path

from locust import FastHttpUser, constant, task

TEXTS = json.loads(Path(os.environ["BENCH_TEXTS"]).read_text("utf-8"))
ITEMS = int(os.environ["BENCH_ITEMS"])
HEADERS = {"Authorization": f"Bearer {os.environ['BENCH_KEY']}"}


class Client(FastHttpUser):
    """An application without pauses."""

    wait_time = constant(0)
    network_timeout = 120
    connection_timeout = 120

    @task
    def embed(self) -> None:
        """One request."""
        first = random.randrange(len(TEXTS) - ITEMS)
        body = {"model": os.environ["BENCH_MODEL"], "input": TEXTS[first : first + ITEMS], "encoding_format": "base64"}
        with self.client.post("/v1/embeddings", json=body, headers=HEADERS, catch_response=True) as response:
            if response.status_code != 200 or len(response.json()["data"]) != ITEMS:
                response.failure(f"{response.status_code}: {response.text[:200]}")
