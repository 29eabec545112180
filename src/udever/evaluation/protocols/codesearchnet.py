"""CodeSearchNet by its published protocol, from the data set's own layout.

    DATA/<language>/final/jsonl/test/<language>_test_0.jsonl.gz

A docstring (`docstring_tokens`, its first paragraph) looks for its function (`code_tokens`: no docstring, no comments)
among 1,000 candidates, its own and 999 others; the score is MRR, by language. Tokens are joined by blanks, rounds are
made and ties are counted as CodeBERT's published evaluation does: rows shuffled by numpy's generator with seed 0, cut
in rounds of 1,000, the rest left out.

Invariant: only rounds of 1,000 are called codesearchnet-1k. mteb's tasks of that name ask other queries of another
corpus; they carry mteb's protocol, never this one.
Does not know: how a round is ranked (code_search.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udever.errors import DatasetError, OptionError
from udever.evaluation.encoder import Encoder
from udever.evaluation.packages import require_package
from udever.evaluation.protocols.code_search import CodePairs, in_rounds, thousands
from udever.evaluation.protocols.datafiles import Row, digest, listed, locate, read_table, require_unicode
from udever.evaluation.results import Score

LANGUAGES = ("go", "ruby", "python", "java", "javascript", "php")
"""In the order of the published tables."""
CANDIDATES = 1000
SEED = 0
LAYOUT = "{0}/final/jsonl/test/{0}_test_0.jsonl.gz"


@dataclass(frozen=True, kw_only=True)
class CodeSearchNet:
    """One language."""

    language: str
    pairs: CodePairs
    candidates: int
    functions: int
    """In the file, also those that fill no round."""
    data: str
    """Hash of the file's content."""

    @property
    def name(self) -> str:
        """The language."""
        return self.language

    @property
    def protocol(self) -> str:
        """`codesearchnet-1k`, or another number."""
        return f"codesearchnet-{thousands(self.candidates)}"

    @property
    def texts(self) -> int:
        """How many will be embedded."""
        return self.pairs.texts

    def settings(self) -> Mapping[str, Any]:
        """What the score depends on."""
        return {
            "split": "test",
            "functions": self.functions,
            "rounds": len(self.pairs.rounds),
            "candidates": self.candidates,
            "seed": SEED,
            "data": self.data,
        }

    def run(self, encoder: Encoder) -> list[Score]:
        """MRR of the model, BM25 and chance."""
        return self.pairs.scores(encoder)


def codesearchnet(data: Path, *, languages: Sequence[str] = (), candidates: int = CANDIDATES) -> list[CodeSearchNet]:
    """Read the test split of each language.

    Args:
        data: the folder of the language folders.
        languages: default: all six.
        candidates: another number than 1,000 is another protocol.

    Raises:
        OptionError: a language that CodeSearchNet does not have.
        DatasetError: a file that is missing or has another shape, or too few functions for one round.
        EvaluationError: bm25s is not installed.
    """
    for language in languages:
        if language not in LANGUAGES:
            raise OptionError(f"CodeSearchNet has no language {language!r}", hint=f"it has {listed(LANGUAGES)}")
    require_package("bm25s")
    return [_read(data, language, candidates) for language in dict.fromkeys(languages or LANGUAGES)]


def _read(data: Path, language: str, candidates: int) -> CodeSearchNet:
    try:
        path = locate(data, LAYOUT.format(language))
    except DatasetError as error:
        raise DatasetError(
            error.message, hint="--data is the folder that holds go/final/jsonl/test/go_test_0.jsonl.gz and its like"
        ) from None
    table = read_table(path)
    try:
        rounds = in_rounds(len(table.rows), candidates=candidates, seed=SEED)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error.message}", hint=error.hint) from None
    pairs = CodePairs(
        subset=language,
        queries=[_joined(path, row, "docstring_tokens") for row in table.rows],
        documents=[_joined(path, row, "code_tokens") for row in table.rows],
        rounds=rounds,
    )
    return CodeSearchNet(
        language=language, pairs=pairs, candidates=candidates, functions=len(table.rows), data=digest(path)
    )


def _joined(path: Path, row: Row, column: str) -> str:
    """The tokens with blanks between them; a line break within one (a string) becomes a blank too."""
    tokens = row.cells.get(column)
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise DatasetError(
            f"{path}:{row.line}: {column!r} is no list of tokens; the row has {listed(row.cells)}",
            hint="is this a test file of CodeSearchNet?",
        )
    joined = " ".join(tokens).replace("\r\n", " ").replace("\r", " ").replace("\n", " ")
    return require_unicode(path, row, column, joined)
