"""One call's options, checked before anything is computed; and whether what was given is texts at all.

Invariant: an `Options` that exists is one the model can serve. A whole number may be of any type (NumPy's too), a
string or a fraction is none.
"""

import operator
from dataclasses import dataclass
from typing import Any, Protocol

from udever.errors import DimensionsError, InputError, OptionError
from udever.tokenizer import MIN_TOKENS, ROLES, TRUNCATIONS, Role, Truncate


@dataclass(frozen=True, kw_only=True)
class Options:
    """How texts become vectors; what each means stands at `Embedder.embed`."""

    role: Role
    normalize: bool
    dimensions: int
    max_tokens: int
    truncate: Truncate
    batch_tokens: int


class Limits(Protocol):
    """What a model can do; an Embedder."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def dimensions(self) -> int:
        """Of a full embedding."""

    @property
    def matryoshka(self) -> tuple[int, ...]:
        """Smaller sizes that it was trained for."""

    @property
    def max_tokens(self) -> int:
        """Of a text, both markers included."""

    @property
    def batch_tokens(self) -> int:
        """Of a batch unless a call says otherwise."""


def check_options(
    model: Limits,
    *,
    role: str = "query",
    normalize: bool = True,
    dimensions: int | None = None,
    max_tokens: int | None = None,
    truncate: str = "error",
    batch_tokens: int | None = None,
) -> Options:
    """Fill in the model's own numbers for None.

    Raises:
        DimensionsError: the model was not trained for so many.
        OptionError: another option that cannot be; the message names it.
    """
    size = model.dimensions if dimensions is None else whole("dimensions", dimensions)
    if size not in (*model.matryoshka, model.dimensions):
        trained = ", ".join(map(str, model.matryoshka)) or f"only its full {model.dimensions}"
        raise DimensionsError(
            f"{model.name} has no embedding of {size} dimensions", hint=f"it was trained for {trained}"
        )
    longest = model.max_tokens if max_tokens is None else whole("max_tokens", max_tokens)
    if not MIN_TOKENS <= longest <= model.max_tokens:
        raise OptionError(
            f"max_tokens is {longest}; {model.name} takes {MIN_TOKENS} to {model.max_tokens}, both markers included"
        )
    return Options(
        role=one_of("role", role, ROLES),
        normalize=normalize,
        dimensions=size,
        max_tokens=longest,
        truncate=one_of("truncate", truncate, TRUNCATIONS),
        batch_tokens=model.batch_tokens if batch_tokens is None else at_least_one("batch_tokens", batch_tokens),
    )


def one_of(option: str, value: Any, choices: tuple[Any, ...]) -> Any:
    """The value, if it is one of the choices."""
    if value not in choices:
        raise OptionError(f"{option} is {value!r}", hint=f"choose one of {', '.join(map(repr, choices))}")
    return value


def whole(option: str, value: Any) -> int:
    """The value as an int, if it is a whole number by its type."""
    try:
        return operator.index(value)
    except TypeError:
        raise OptionError(f"{option} is {value!r}; a whole number is needed") from None


def at_least_one(option: str, value: Any) -> int:
    """The value as an int, if it is a whole number above 0."""
    number = whole(option, value)
    if number < 1:
        raise OptionError(f"{option} is {number}; it must be at least 1")
    return number


def require_many(texts: object) -> None:
    """Raises InputError: not something to iterate over, or one string, which would be taken for its letters."""
    if isinstance(texts, str | bytes):
        raise InputError(f"a list of texts is needed, not one string ({texts[:40]!r})", hint="pass [text]")
    try:
        iter(texts)  # type: ignore[call-overload]
    except TypeError:
        raise InputError(f"a list of texts is needed, not {type(texts).__name__}", hint="pass [text]") from None
