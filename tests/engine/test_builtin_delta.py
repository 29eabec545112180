"""The delta in the wheel: small, on the base in the wheel, and better than it at what it was trained for."""

import numpy as np

from udever import Embedder
from udever.engine import registry

PAIRS = {
    "The number of seconds between two dates.": "def seconds(start, end):\n    return (end - start).total_seconds()",
    "Read a JSON file and return its content.": "def load(path):\n    with open(path) as f: return json.load(f)",
    "Split a list into chunks of equal size.": "def chunks(xs, n): return [xs[i:i+n] for i in range(0, len(xs), n)]",
    "Count the words of a text.": "func CountWords(s string) int { return len(strings.Fields(s)) }",
    "Whether a string is a valid e-mail address.": "def email?(s)\n  s.match?(URI::MailTo::EMAIL_REGEXP)\nend",
}


def test_it_is_a_delta_on_the_built_in_base_and_finds_functions() -> None:
    folder = registry.BUILTIN_FOLDER / "udever-nano-code"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 100_000
    model, base = Embedder.load("udever-nano-code"), Embedder.load("udever-nano")
    assert (model.name, model.dimensions, model.matryoshka) == ("udever-nano-code", base.dimensions, base.matryoshka)
    assert model.fingerprint != base.fingerprint
    queries = model.embed(list(PAIRS), role="query")
    documents = model.embed(list(PAIRS.values()), role="document")
    assert (np.argmax(queries @ documents.T, axis=1) == np.arange(len(PAIRS))).all()
