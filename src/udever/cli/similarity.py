"""`udever similarity`: the cosine of two texts given on the command line.

Invariant: the plain output is one number on one line.
Does not know: files; many texts are `udever embed`'s business.
"""

import json
from typing import Annotated

from cyclopts import Parameter

from udever.cli.options import CLI_HINTS, JsonFlag, ModelChoice, Role, Runtime, Shaping, load
from udever.errors import InputError


def similarity(
    a: Annotated[str, Parameter(help="The first text.")],
    b: Annotated[str, Parameter(help="The second text.")],
    /,
    *,
    role_a: Annotated[Role, Parameter(help="Role of the first text.")] = "query",
    role_b: Annotated[Role, Parameter(help="Role of the second text; document: how well does B answer A?")] = "query",
    choice: ModelChoice = ModelChoice(),  # noqa: B008  frozen
    shaping: Shaping = Shaping(),  # noqa: B008
    runtime: Runtime = Runtime(),  # noqa: B008
    as_json: JsonFlag = False,
) -> None:
    """Print the cosine similarity of two texts.

    1 is the same meaning, 0 is nothing in common. With both roles alike (the default) the order does not matter.
    """
    model = load(choice.model, runtime)
    vectors = []
    for name, text, role in (("A", a, role_a), ("B", b, role_b)):
        try:
            vectors.append(model.embed([text], role=role, **shaping.keywords())[0])
        except InputError as error:
            if getattr(error, "index", None) is None:
                raise
            message = error.message.replace("text 0", f"text {name}", 1)
            hint = "give it some characters" if error.code == "empty_text" else CLI_HINTS.get(error.code, error.hint)
            raise InputError(message, hint=hint) from error
    cosine = float(vectors[0] @ vectors[1])
    if as_json:
        result = {"similarity": cosine, "role_a": role_a, "role_b": role_b}
        print(json.dumps({**result, "model": model.name, "fingerprint": model.fingerprint}))
    else:
        print(f"{cosine:.4f}")
