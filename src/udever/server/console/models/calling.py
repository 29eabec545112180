"""How to call a model, ready to be copied: this server's own address, the model's id, both roles.

Invariant: what is copied runs as it stands once UDEVER_KEY holds a key; it sends the role with every text.
Does not know: pages.
"""

import json

QUERY = "¿A qué hora abre el museo?"
DOCUMENT = "The museum opens at nine."


def examples(model: str, *, base_url: str, key: bool) -> list[tuple[str, str]]:
    """(tab, program text). `key`: whether the server asks for one."""
    return [
        ("curl", _curl(model, base_url, key)),
        ("Python", _python(model, base_url, key)),
        ("JavaScript", _javascript(model, base_url, key)),
    ]


def _curl(model: str, base_url: str, key: bool) -> str:
    authorization = ' \\\n  -H "Authorization: Bearer $UDEVER_KEY"' if key else ""
    body = json.dumps({"model": model, "input_type": "query", "input": QUERY}, ensure_ascii=False, indent=2)
    return f"""curl {_shell(base_url + "/v1/embeddings")}{authorization} \\
  -H "Content-Type: application/json" \\
  -d {_shell(body)}"""


def _python(model: str, base_url: str, key: bool) -> str:
    opening, secret = ("import os\n\n", 'os.environ["UDEVER_KEY"]') if key else ("", '"none"')
    return f"""{opening}import numpy as np
from openai import OpenAI

client = OpenAI(base_url={json.dumps(base_url + "/v1")}, api_key={secret})

def embed(texts, role):
    answer = client.embeddings.create(
        model={json.dumps(model)}, input=texts, extra_body={{"input_type": role}}
    )
    return np.array([row.embedding for row in answer.data])

documents = embed([{json.dumps(DOCUMENT)}], "document")
queries = embed([{json.dumps(QUERY, ensure_ascii=False)}], "query")
print(queries @ documents.T)  # cosine: vectors have length 1"""


def _javascript(model: str, base_url: str, key: bool) -> str:
    authorization = "\n    Authorization: `Bearer ${process.env.UDEVER_KEY}`," if key else ""
    return f"""const answer = await fetch({json.dumps(base_url + "/v1/embeddings")}, {{
  method: "POST",
  headers: {{{authorization}
    "Content-Type": "application/json",
  }},
  body: JSON.stringify({{
    model: {json.dumps(model)},
    input_type: "query",
    input: {json.dumps(QUERY, ensure_ascii=False)},
  }}),
}});
const {{ data }} = await answer.json();
console.log(data[0].embedding);"""


def _shell(word: str) -> str:
    """In single quotes, as every shell of POSIX reads it."""
    return "'" + word.replace("'", "'\\''") + "'"
