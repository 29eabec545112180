"""What stands in the playground's form: rows of texts, a model, a size.

Invariant: rows keep their numbers; an empty row is shown and not sent.
Does not know: models, or what a run gives.
"""

from dataclasses import dataclass, replace

from udever.server.console.playground.presets import Preset
from udever.server.schemas import Role

LETTERS: dict[Role, str] = {"query": "Q", "document": "D"}
FIELDS: dict[Role, str] = {"query": "queries", "document": "documents"}
"""What the sides are called in a request."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """The form as it was sent, or as a preset fills it."""

    model: str
    queries: tuple[str, ...]
    documents: tuple[str, ...]
    size: int | None = None
    """Index into the model's sizes; None: the full one."""
    preset: str = ""
    """The name of the preset that it began with."""

    @classmethod
    def of_preset(cls, preset: Preset, *, model: str) -> "Draft":
        """A preset's texts."""
        return cls(model=model, queries=preset.queries, documents=preset.documents, preset=preset.name)

    def rows(self, role: Role) -> tuple[str, ...]:
        """One side, empty rows too."""
        return self.queries if role == "query" else self.documents

    def written(self, role: Role) -> tuple[int, ...]:
        """The indices of the rows that are sent."""
        return tuple(index for index, text in enumerate(self.rows(role)) if text.strip())

    def texts(self, role: Role) -> list[str]:
        """The texts that are sent."""
        return [self.rows(role)[index] for index in self.written(role)]

    def labels(self, role: Role) -> tuple[str, ...]:
        """`Q1`, `Q3`, … of the rows that are sent."""
        return tuple(f"{LETTERS[role]}{index + 1}" for index in self.written(role))

    def with_row(self, role: Role) -> "Draft":
        """One more row on this side."""
        return self._with(role, (*self.rows(role), ""))

    def without_row(self, role: Role, index: int) -> "Draft":
        """One row less; a side keeps one."""
        rows = self.rows(role)
        return self._with(role, rows[:index] + rows[index + 1 :] or ("",))

    def _with(self, role: Role, rows: tuple[str, ...]) -> "Draft":
        return replace(self, queries=rows) if role == "query" else replace(self, documents=rows)


def read_row(text: str) -> str:
    """A browser sends CRLF for a line break in a text."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_number(text: str) -> int | None:
    """A whole number that a form field holds, None if it holds something else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
