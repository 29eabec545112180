"""The built-in model, and one that remembers what it was asked."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from udever import Embedder


class Recording:
    """An embedder that notes each text and its role; `swapped` takes queries for documents and the reverse."""

    def __init__(self, embedder: Embedder, *, swapped: bool = False) -> None:
        self._embedder = embedder
        self._role = {"query": "document", "document": "query"} if swapped else {}
        self.heard: dict[str, set[str]] = {"query": set(), "document": set()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._embedder, name)

    def embed_iter(self, texts: Iterable[str], role: str, **options: Any) -> Iterator[Any]:
        texts = list(texts)
        self.heard[role].update(texts)
        return self._embedder.embed_iter(texts, role=self._role.get(role, role), **options)


@pytest.fixture(scope="session")
def nano() -> Embedder:
    """udever-nano."""
    return Embedder.load("udever-nano")


@pytest.fixture
def recording(nano: Embedder) -> Callable[..., Recording]:
    """A function that gives a fresh `Recording`, of udever-nano or another embedder."""
    return lambda *, of=nano, **options: Recording(of, **options)
