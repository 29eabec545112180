"""What is known of a shard that is done; its receipt appears behind its files, so it is done if its receipt is there.

Its file holds the shard's bad rows too; in memory a receipt only counts them, so that a run of many takes no more.
Invariant: a receipt says nothing of when, where or how fast: whoever does a shard writes the same one.
Does not know: models, or what is in the files.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Literal

from udever.bulk.parsing import BadRow
from udever.bulk.plan import Shard
from udever.bulk.storage import WORK, digest

StageName = Literal["embed", "distinct", "join"]
"""What is done with shards: embed them; or, under dedupe, embed the texts that appear there first, then join."""

DONE = f"{WORK}/done"
DISTINCT = f"{WORK}/distinct"
"""Vectors of distinct texts, until they are joined."""


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """A file as it was written."""

    bytes: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """A shard that is done."""

    stage: StageName
    index: int
    """The shard's place in the plan."""
    rows: int
    """Rows of the input it covers, blank lines included."""
    vectors: int
    """Rows that have a vector."""
    texts: int
    """Texts that were embedded for it."""
    tokens: int
    """Theirs, markers included."""
    reasons: dict[str, int]
    """Code → how many rows have no vector for it."""
    files: dict[str, FileFacts] = field(default_factory=dict)
    """Name below the output → its content."""
    fragment: str = ""
    """Lance: what a commit must know of the file."""

    @property
    def bad_rows(self) -> int:
        """Rows that have none."""
        return sum(self.reasons.values())

    def to_json(self, bad: Iterable[BadRow]) -> bytes:
        """What `from_json` and `bad_rows_of` read.

        Args:
            bad: the rows that `reasons` counts.
        """
        raw = asdict(self) | {"bad": list(bad)}
        del raw["reasons"]
        return json.dumps(raw, ensure_ascii=False, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Receipt":
        """Read `to_json`, and count the bad rows."""
        raw = json.loads(data)
        raw["reasons"] = reasons_of(BadRow(*row) for row in raw.pop("bad"))
        raw["files"] = {name: FileFacts(**facts) for name, facts in raw["files"].items()}
        return cls(**raw)


def reasons_of(bad: Iterable[BadRow]) -> dict[str, int]:
    """Code → how many, in the order in which they appear."""
    return dict(Counter(row.code for row in bad))


def bad_rows_of(data: bytes) -> list[BadRow]:
    """The bad rows in a receipt's file."""
    return [BadRow(*row) for row in json.loads(data)["bad"]]


def shard_name(shard: Shard, job_digest: str) -> str:
    """The name of a shard's files, without ending: its place and what stands for its content and the job's options."""
    return f"part-{shard.index:06d}-{digest(f'{job_digest} {shard.digest}'.encode())[:12]}"


def receipt_name(name: str) -> str:
    """The receipt's name for a shard's name."""
    return f"{DONE}/{name}.json"


def distinct_name(name: str) -> str:
    """The same for the vectors of texts that appear first in a shard; and, without `.json`, their files' name."""
    return f"{DISTINCT}/{name}.json"
