"""Training examples on disk: a folder that `udever data import` makes and training reads, in flat memory.

    store = ExampleStore.open(folder)
    example = store.example(0);  store.token_ids(example.query)

    STORE/texts.arrow     each distinct text once: key, token ids of its body, the text; the row is its id
          examples.arrow  query, positives, negatives, scores, task, symmetric, in text ids
          known.arrow     for each text id, the keys of what answers it in any example
          store.json      what it was made of and with

Invariant: no text is empty or there twice; a positive is neither its query nor a negative beside it.
Does not know: roles and markers, batches, or where the texts came from.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udever.errors import ExamplesError
from udever.training.data.columns import Blocks

FORMAT = 1
"""Of the folder; another number cannot be read."""
STORE = "store.json"
TEXTS, EXAMPLES, KNOWN = "texts.arrow", "examples.arrow", "known.arrow"


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One query with its answers; texts are ids."""

    query: int
    positives: tuple[int, ...]
    """At least one."""
    negatives: tuple[int, ...] = ()
    """Hard ones, the hardest first; often none."""
    scores: tuple[float, ...] | None = None
    """A teacher's, of the positives and then the negatives."""
    task: str
    symmetric: bool = False
    """Whether both sides are of one kind, so that both are read as queries."""


class ExampleStore:
    """An opened folder. Make one with `ExampleStore.open`; threads may share it."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder = folder
        """Where it lies."""
        self.about = about
        """What `store.json` says: sources, options, counts."""
        texts, examples, known = (Blocks(folder / name) for name in (TEXTS, EXAMPLES, KNOWN))
        self._texts, self._count = texts.rows, examples.rows
        self._keys, self._token_ids, self._strings = (
            texts.numbers("key"),
            texts.ragged("token_ids"),
            texts.strings("text"),
        )
        self._query, self._task, self._symmetric = map(examples.numbers, ("query", "task", "symmetric"))
        self._positives, self._negatives, self._scores = map(examples.ragged, ("positives", "negatives", "scores"))
        self._known = known.ragged("keys")
        self._task_names = examples.entries("task")

    @classmethod
    def open(cls, folder: Path) -> "ExampleStore":
        """Open the examples in `folder`.

        Raises:
            ExamplesError: there are none, another udever made them, or a file is damaged.
        """
        about = _read_about(folder)
        for name, size in about["files"].items():
            path = folder / name
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                wrong = "is missing" if found is None else f"has {found:,} bytes instead of {size:,}"
                raise ExamplesError(f"{path} {wrong}", hint="copy the folder again, or import the examples again")
        return cls(folder, about)

    def __len__(self) -> int:
        """Examples."""
        return self._count

    @property
    def text_count(self) -> int:
        """Distinct texts; their ids run from 0."""
        return self._texts

    @property
    def digest(self) -> str:
        """Sha256 (hex) of all that training sees: texts, token ids and examples in their order."""
        return str(self.about["digest"])

    @property
    def tokenizer_digest(self) -> str:
        """`UdeverTokenizer.digest` of the tokenizer whose ids these are."""
        return str(self.about["tokenizer"])

    @property
    def max_tokens(self) -> int:
        """The length texts were cut to, both markers included."""
        return int(self.about["max_tokens"])

    @cached_property
    def tasks(self) -> dict[str, NDArray[np.int64]]:
        """Task → its examples, ascending; tasks in the order of their first example."""
        codes = np.concatenate([np.empty(0, np.int32), *self._task])
        return {name: np.flatnonzero(codes == code) for code, name in enumerate(self._task_names)}

    def example(self, index: int) -> Example:
        """The example at `index` of `len(self)`."""
        if not 0 <= index < self._count:
            raise IndexError(f"example {index} of {self._count}")
        return Example(
            query=self._query[index],
            positives=tuple(self._positives[index].tolist()),
            negatives=tuple(self._negatives[index].tolist()),
            scores=tuple(self._scores[index].tolist()) or None,
            task=self._task_names[self._task[index]],
            symmetric=bool(self._symmetric[index]),
        )

    def known_positives(self, index: int) -> list[int]:
        """Keys of all texts that answer this example's query in any example of the store.

        In a symmetric example each side answers the other.
        """
        keys: list[int] = self._known[self._query[index]].tolist()
        return keys

    def token_ids(self, text_id: int) -> list[int]:
        """The text's body, at most `max_tokens` - 2 ids; markers are the reader's business."""
        ids: list[int] = self._token_ids[text_id].tolist()
        return ids

    def key(self, text_id: int) -> int:
        """A number of 64 bits, the same for the same text in every store."""
        return self._keys[text_id]

    def text(self, text_id: int) -> str:
        """The text itself, whole."""
        return self._strings[text_id]


def _read_about(folder: Path) -> dict[str, Any]:
    path = folder / STORE
    try:
        about = json.loads(path.read_text("utf-8"))
        found = about["format"]
    except FileNotFoundError:
        what = "holds no examples" if folder.is_dir() else "does not exist"
        raise ExamplesError(f"{folder} {what}", hint="make them: udever data import … --output STORE") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ExamplesError(f"cannot read {path}: {error}", hint="import the examples again") from None
    if found != FORMAT:
        raise ExamplesError(
            f"{folder} has format {found}; this udever reads {FORMAT}", hint="import the examples again"
        )
    return dict(about)
