"""A benchmark with no download: the functions of installed Python packages, each to be found by its docstring.

    query = first paragraph of the docstring;  document = the function's source without the docstring

Which functions count follows CodeSearchNet: documented by at least three words, at least three lines of code, no test,
no double-underscore method, nothing twice. Comments stay; a docstring's first lines that repeat the signature go.

Invariant: the same files and seed give the same rounds; the score's settings name the packages, their versions and a
hash of all texts, because the standard library of another Python is another benchmark.
Does not know: how functions are parsed (python_functions.py) or ranked (code_search.py).
"""

import ast
import platform
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from itertools import chain
from typing import Any

from udever.errors import DatasetError
from udever.evaluation.encoder import Encoder
from udever.evaluation.packages import require_package
from udever.evaluation.protocols.code_search import CodePairs, in_rounds, thousands
from udever.evaluation.protocols.datafiles import digest_of_texts
from udever.evaluation.protocols.python_functions import (
    Definition,
    Module,
    first_paragraph,
    functions,
    package_modules,
    source_of,
    standard_library_modules,
)
from udever.evaluation.results import Score

STANDARD_LIBRARY = "python-stdlib"
"""Name of the task where no package is named."""
CANDIDATES = 1000
DOC_WORDS, CODE_LINES = 3, 3
"""Less is trivial."""
DOC_CHARACTERS, CODE_CHARACTERS = 1_000, 4_000
"""Longer texts are cut, whatever the model reads of them."""


@dataclass(frozen=True, kw_only=True)
class Function:
    """One function."""

    name: str
    query: str
    document: str


@dataclass(frozen=True, kw_only=True)
class CodeLocal:
    """The task: rounds of so many candidates over all functions found."""

    name: str
    """The packages, or `python-stdlib`."""
    versions: Mapping[str, str]
    """Of each package; of Python for its standard library."""
    functions: Sequence[Function]
    candidates: int
    seed: int
    max_rounds: int | None

    @property
    def protocol(self) -> str:
        """`code-local-1k`, or another number."""
        return f"code-local-{thousands(self.candidates)}"

    @cached_property
    def pairs(self) -> CodePairs:
        """The rounds, at most `max_rounds`."""
        rounds = in_rounds(len(self.functions), candidates=self.candidates, seed=self.seed)
        return CodePairs(
            subset="",
            queries=[function.query for function in self.functions],
            documents=[function.document for function in self.functions],
            rounds=rounds[: self.max_rounds],
        )

    @property
    def texts(self) -> int:
        """How many will be embedded."""
        return self.pairs.texts

    def settings(self) -> Mapping[str, Any]:
        """What the score depends on."""
        texts = (text for function in self.functions for text in (function.query, function.document))
        return {
            "packages": self.versions,
            "functions": len(self.functions),
            "rounds": len(self.pairs.rounds),
            "candidates": self.candidates,
            "seed": self.seed,
            "data": digest_of_texts(texts),
        }

    def run(self, encoder: Encoder) -> list[Score]:
        """MRR of the model, BM25 and chance."""
        return self.pairs.scores(encoder)


def code_local(
    packages: Sequence[str] = (),
    *,
    candidates: int = CANDIDATES,
    seed: int = 0,
    max_rounds: int | None = None,
) -> CodeLocal:
    """Read the packages.

    Args:
        packages: names as imported; none: the standard library of the running Python.
        candidates: functions a docstring's own is looked for among.
        seed: of the shuffle that makes the rounds.
        max_rounds: only so many of them, for a quick look.

    Raises:
        DatasetError: a package that is not installed, or too few functions for one round.
        EvaluationError: bm25s is not installed.
    """
    require_package("bm25s")
    packages = tuple(dict.fromkeys(packages))
    modules = chain.from_iterable(map(package_modules, packages)) if packages else standard_library_modules()
    task = CodeLocal(
        name="+".join(packages) or STANDARD_LIBRARY,
        functions=list(_distinct(_functions(modules))),
        versions={name: _version(name) for name in packages} or {"python": platform.python_version()},
        candidates=candidates,
        seed=seed,
        max_rounds=max_rounds,
    )
    try:
        task.pairs  # noqa: B018  too few functions show here, not when the model is loaded
    except DatasetError as error:
        raise DatasetError(f"{task.name}: {error.message}", hint="name more packages, or pass --candidates") from None
    return task


def _functions(modules: Iterable[Module]) -> Iterator[Function]:
    for module in modules:
        source = source_of(module)
        lines = source.encode("utf-8", "surrogatepass").split(b"\n")
        for found in functions(".".join(module.parts), source):
            doc = _documentation(found.node)
            code = _without_docstring(found.node, lines) if doc else ""
            if doc and len(code.splitlines()) >= CODE_LINES:
                yield Function(name=found.name, query=doc[:DOC_CHARACTERS], document=code[:CODE_CHARACTERS])


def _documentation(node: Definition) -> str:
    """The docstring's first paragraph; empty if the function does not count."""
    if (node.name.startswith("__") and node.name.endswith("__")) or node.name.lower().startswith("test"):
        return ""
    paragraph = first_paragraph(ast.get_docstring(node) or "", node.name)
    return paragraph if len(paragraph.split()) >= DOC_WORDS and len(node.body) > 1 else ""


def _without_docstring(node: Definition, lines: Sequence[bytes]) -> str:
    """Source from `def` to its end, as it stands in the file but for the docstring, blank lines and the indentation.

    `lines` are UTF-8, in which the parser counts columns.

    Empty if the docstring shares its last line with code: cutting there would not leave Python.
    """
    doc = node.body[0]
    first, last = doc.lineno - 1, (doc.end_lineno or doc.lineno) - 1
    before, after = lines[first][: doc.col_offset], lines[last][doc.end_col_offset :]
    if before.strip() or after.partition(b"#")[0].strip():
        return ""
    kept = [*lines[node.lineno - 1 : first], *lines[last + 1 : node.end_lineno]]
    text = b"\n".join(line for line in kept if line.strip()).decode("utf-8", "replace")
    return textwrap.dedent(text).rstrip()


def _distinct(functions: Iterable[Function]) -> Iterator[Function]:
    """Of functions with the same docstring or the same code, the first."""
    queries: set[str] = set()
    documents: set[str] = set()
    for function in functions:
        query, document = function.query.casefold(), " ".join(function.document.split())
        if query not in queries and document not in documents:
            queries.add(query)
            documents.add(document)
            yield function


def _version(package: str) -> str:
    """Of what pip installed under this name, or under another one with this package in it; empty if pip did not."""
    try:
        return version(package)
    except PackageNotFoundError:
        distributions = packages_distributions().get(package, ())
        return "+".join(sorted({version(name) for name in distributions}))
