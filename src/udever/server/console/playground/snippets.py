"""The playground's run as requests to the API: for a shell, for Python, for JavaScript.

Invariant: what is copied runs as it stands (with a key in its place) and gives the grid's vectors, whatever the texts
hold: they stand only inside JSON strings, which are strings of Python and JavaScript too.
Does not know: pages.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

KEY = "$UDEVER_KEY"
SIZE = "\0"
"""Stands for the number of dimensions; no JSON string holds this character raw."""


@dataclass(frozen=True, kw_only=True)
class Snippet:
    """A piece of program text; `parts` have the number of dimensions between them."""

    title: str
    parts: tuple[str, ...]

    def text(self, dimensions: int) -> str:
        """All of it."""
        return str(dimensions).join(self.parts)


def snippets(
    queries: Sequence[str], documents: Sequence[str], *, base_url: str, model: str, key: bool
) -> tuple[Snippet, ...]:
    """Requests for these texts; `key`: whether the server asks for one."""
    makers = {"curl": _curl, "Python": _python, "JavaScript": _javascript}
    return tuple(
        Snippet(title=title, parts=tuple(make(queries, documents, base_url, model, key).split(SIZE)))
        for title, make in makers.items()
    )


def _curl(queries: Sequence[str], documents: Sequence[str], base_url: str, model: str, key: bool) -> str:
    authorization = f' \\\n  -H "Authorization: Bearer {KEY}"' if key else ""

    def request(role: str, texts: Sequence[str]) -> str:
        return (
            f"curl -s {_shell(base_url + '/v1/embeddings')}{authorization} \\\n"
            "  -H 'Content-Type: application/json' --data-binary @- <<'JSON'\n"
            f'{{"model": {_json(f"{model}:{role}")}, "dimensions": {SIZE}, "input": {_list(texts)}}}\nJSON\n'
        )

    return request("query", queries) + request("document", documents)


def _python(queries: Sequence[str], documents: Sequence[str], base_url: str, model: str, key: bool) -> str:
    secret = 'os.environ["UDEVER_KEY"]' if key else '"none"'
    return f"""{"import os" + chr(10) * 2 if key else ""}import numpy as np
from openai import OpenAI

client = OpenAI(base_url={_json(base_url + "/v1")}, api_key={secret})

def embed(role, texts):
    answer = client.embeddings.create(model={_json(model + ":")} + role, input=texts, dimensions={SIZE})
    return np.array([row.embedding for row in answer.data])

queries = embed("query", {_list(queries)})
documents = embed("document", {_list(documents)})
print(queries @ documents.T)  # cosines: the vectors have unit length
"""


def _javascript(queries: Sequence[str], documents: Sequence[str], base_url: str, model: str, key: bool) -> str:
    authorization = "Authorization: `Bearer ${process.env.UDEVER_KEY}`, " if key else ""
    return f"""const embed = async (role, input) => {{
  const response = await fetch({_json(base_url + "/v1/embeddings")}, {{
    method: "POST",
    headers: {{ {authorization}"Content-Type": "application/json" }},
    body: JSON.stringify({{ model: {_json(model + ":")} + role, dimensions: {SIZE}, input }}),
  }});
  return (await response.json()).data.map((row) => row.embedding);
}};

const queries = await embed("query", {_list(queries)});
const documents = await embed("document", {_list(documents)});
const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
console.log(queries.map((q) => documents.map((d) => dot(q, d)))); // cosines: the vectors have unit length
"""


def _json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _list(texts: Sequence[str]) -> str:
    return "[\n" + ",\n".join(f"  {_json(text)}" for text in texts) + "\n]"


def _shell(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"
