"""The values of a row as what they must be: a text, a list of texts, a number.

Invariant: nothing is converted but numbers; a string where a list belongs, a number where a text belongs, a missing
value is an `ExamplesError` that names file and line.
Does not know: what the values are for.
"""

from typing import Any

from udever.errors import ExamplesError
from udever.training.data.rows import Row


def text_at(row: Row, name: str) -> str:
    """The text under a name.

    Raises:
        ExamplesError: it is missing or no text.
    """
    if name not in row.values:
        raise complaint(row, f"there is no {name!r}", hint=f"it has {', '.join(row.values)}")
    return _text(row, row.values[name], name)


def texts_at(row: Row, name: str, *, optional: bool = False) -> tuple[str, ...]:
    """The list of texts under a name; optional and missing or null: none.

    Raises:
        ExamplesError: it is no list, or holds something else than texts.
    """
    value = row.values.get(name)
    if value is None and (optional or name in row.values):
        return ()
    if name not in row.values:
        raise complaint(row, f"there is no {name!r}", hint=f"it has {', '.join(row.values)}")
    if not isinstance(value, list):
        raise complaint(row, f"{name!r} holds {kind_of_value(value)} where a list of texts belongs", hint='write ["…"]')
    return tuple(_text(row, item, name) for item in value)


def as_number(value: Any) -> float | None:
    """The value as a number, if it is or spells one."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _text(row: Row, value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise complaint(
            row, f"{name!r} holds {kind_of_value(value)} where a text belongs", hint="only strings are texts"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        wrong = f"a lone surrogate U+{ord(value[error.start]):04X} at character {error.start}"
        raise complaint(row, f"{name!r} has {wrong}", hint="it is no valid Unicode") from None
    return value


def kind_of_value(value: Any) -> str:
    """What a value is, in words."""
    names = {str: "a string", list: "a list", dict: "an object", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


def complaint(row: Row, wrong: str, *, hint: str) -> ExamplesError:
    """An error that names the row's place."""
    return ExamplesError(f"{row.place}: {wrong}", hint=hint)
