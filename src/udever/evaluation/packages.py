"""Packages of the extra `eval`: what needs one asks for it before any work begins, not hours into it.

Does not know: tasks, or what a package is used for.
"""

from importlib.util import find_spec

from udever.errors import EvaluationError

NEEDS = {"bm25s": "the BM25 baseline needs bm25s", "sklearn": "classification needs scikit-learn"}
"""Package as it is imported → who needs it, by the name that pip knows."""


def require_package(name: str) -> None:
    """Find, not import: that takes seconds.

    Raises:
        EvaluationError: it is not installed.
    """
    if find_spec(name) is None:
        raise EvaluationError(f"{NEEDS[name]}, which is not installed", hint="pip install 'udever[eval]'")
