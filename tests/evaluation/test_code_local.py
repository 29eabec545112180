"""Functions are read, not run; docstrings never stand in the documents; the score is what it is defined as."""

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from udever import Embedder
from udever.errors import DatasetError
from udever.evaluation.baselines import bm25
from udever.evaluation.encoder import Encoder
from udever.evaluation.protocols.code_local import CodeLocal, code_local
from udever.evaluation.protocols.code_search import CodePairs, in_rounds, thousands
from udever.evaluation.protocols.python_functions import first_paragraph, package_modules
from udever.evaluation.runner import measure

SOURCE = '''
"""A module that must not be imported."""
raise SystemExit("it was imported")


def area(radius):
    """Compute the area of a circle.

    This paragraph is not part of the query.
    """
    # a comment stays
    square = radius * radius

    return 3.14159 * square


class Shelf:
    """Not a function."""

    def find_book(self, title: str) -> "str | None":
        """find_book(title) -> str or None

        Look for a book by its title.
        """
        for book in self.books:
            if book == title:
                return book
        return None

    def __len__(self):
        """Return the number of books there are."""
        count = len(self.books)
        return count

    async def _close(self):
        r"""Close the shelf for good, \\o/."""
        await self.lock()
        self.books.clear()


def same_words(radius):
    """COMPUTE the area of a circle."""
    a = radius
    return a


class Cupboard:
    def find_book(self, title: str) -> "str | None":
        """Something different is said here."""
        for book in self.books:
            if book == title:
                return book
        return None


def trivial():
    """Return nothing at all, ever."""


def only_documented(
    a: int, b: int
) -> int:
    """Return the larger of the two."""


def short(a):
    """Return just what was given."""
    return a


def two_words(a):
    """Too short."""
    b = a
    return b


def test_area():
    """Test that the area is right."""
    assert area(1)
    assert area(2)


def odd(a):
    """The docstring shares its line."""; b = a
    c = b
    return c


def undocumented(a):
    b = a
    return b


def ünïcode(größe):
    """Größe eines Kreises in € berechnen."""; # and a remark
    größe = größe + 1
    return größe
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package whose import would end the process."""
    folder = tmp_path / "parsed_only"
    (folder / "tests").mkdir(parents=True)
    (folder / "__init__.py").write_text(SOURCE, "utf-8")
    (folder / "tests" / "helpers.py").write_text(SOURCE.replace("area", "region"), "utf-8")
    (folder / "broken.py").write_text("def (:", "utf-8")
    latin = '# -*- coding: latin-1 -*-\ndef latin(a):\n    """Ein grüner Baum im Wald."""\n    b = "ü"\n    return b\n'
    (folder / "latin.py").write_bytes(latin.encode("latin-1"))
    monkeypatch.syspath_prepend(tmp_path)
    return "parsed_only"


def pairs_of(package: str) -> dict[str, tuple[str, str]]:
    return {pair.name: (pair.query, pair.document) for pair in code_local([package], candidates=2).functions}


def test_documented_functions_are_found_without_importing_them(package: str) -> None:
    pairs = pairs_of(package)
    assert package not in sys.modules
    assert set(pairs) == {
        "parsed_only.area",
        "parsed_only.Shelf.find_book",
        "parsed_only.Shelf._close",
        "parsed_only.latin.latin",
    }
    query, document = pairs["parsed_only.area"]
    assert query == "Compute the area of a circle."
    assert document == (
        "def area(radius):\n    # a comment stays\n    square = radius * radius\n    return 3.14159 * square"
    )
    assert pairs["parsed_only.Shelf.find_book"][0] == "Look for a book by its title.", (
        "the repeated signature is left out"
    )
    assert pairs["parsed_only.Shelf._close"][1].startswith("async def _close(self):\n    await self.lock()")
    assert pairs["parsed_only.latin.latin"] == ("Ein grüner Baum im Wald.", 'def latin(a):\n    b = "ü"\n    return b')


def test_of_installed_packages_every_document_is_the_function_without_its_docstring() -> None:
    task = code_local(["cyclopts"], candidates=100)
    docs = {}
    for module in package_modules("cyclopts"):
        for node in ast.walk(ast.parse(module.path.read_bytes())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
                docs.setdefault(first_paragraph(ast.get_docstring(node) or "", node.name), node)
    for pair in task.functions:
        parsed = ast.parse(pair.document).body if len(pair.document) < 4000 else []
        for node in parsed:
            assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            assert ast.get_docstring(node) is None
        assert pair.query not in pair.document
        assert pair.query in docs
    assert (
        len({pair.query for pair in task.functions})
        == len({pair.document for pair in task.functions})
        == len(task.functions)
    )


def test_the_standard_library_fills_rounds_of_a_thousand() -> None:
    task = code_local()
    assert (task.name, task.protocol) == ("python-stdlib", "code-local-1k")
    settings = task.settings()
    assert settings["packages"] == {"python": ".".join(map(str, sys.version_info[:3]))}
    assert settings["functions"] > 3000
    assert settings["rounds"] == settings["functions"] // 1000
    assert task.texts == 2000 * settings["rounds"]
    names = {pair.name for pair in task.functions}
    assert {"statistics.median", "gzip.compress", "textwrap.dedent"} <= names
    assert not any(name.startswith(("test.", "sklearn.")) or ".tests." in name for name in names)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_package", "no Python package 'no_such_package'.*the name that Python imports"),
        ("scikit-learn", "Python imports it as sklearn"),
        ("sys", "with source code"),
        ("os.path", "'os.path'"),
    ],
)
def test_a_package_that_is_not_installed_is_named(name: str, said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        code_local([name])


def test_too_few_functions_for_a_round_say_how_many_there_are(package: str) -> None:
    with pytest.raises(DatasetError, match=r"parsed_only: 4 functions are too few for a round of 1,000.*--candidates"):
        code_local([package])


def test_the_seed_decides_the_rounds_and_the_rest_is_left_out() -> None:
    first, again, other = (in_rounds(25, candidates=10, seed=seed) for seed in (0, 0, 1))
    assert [list(rows) for rows in first] == [list(rows) for rows in again]
    assert [list(rows) for rows in first] != [list(rows) for rows in other]
    assert [len(rows) for rows in first] == [10, 10]
    assert len(set(np.concatenate(first).tolist())) == 20
    assert in_rounds(10, candidates=10, seed=0)[0].tolist() == [2, 8, 4, 9, 1, 6, 7, 3, 0, 5], "as CodeBERT shuffles"


@pytest.mark.parametrize(("candidates", "name"), [(1000, "1k"), (2000, "2k"), (100, "100"), (1500, "1500")])
def test_only_whole_thousands_are_called_so(candidates: int, name: str) -> None:
    assert thousands(candidates) == name


@pytest.fixture(scope="module")
def small() -> CodeLocal:
    """Two rounds of 30."""
    return code_local(["cyclopts"], candidates=30, max_rounds=2)


def test_the_score_is_the_mean_reciprocal_rank_within_each_round(small: CodeLocal, nano: Embedder) -> None:
    result = measure(small, Encoder(embedder=nano, max_tokens=48), output=None).result
    reciprocal = []
    for rows in in_rounds(len(small.functions), candidates=30, seed=0)[:2]:
        queries = nano.embed([small.functions[row].query for row in rows], "query", max_tokens=48, truncate="end")
        documents = nano.embed(
            [small.functions[row].document for row in rows], "document", max_tokens=48, truncate="end"
        )
        cosines = queries @ documents.T
        reciprocal += [1 / (1 + np.sum(row > row[i])) for i, row in enumerate(cosines)]
    (model,), (bm25,), (random,) = (result.of(system) for system in ("model", "bm25", "random"))
    assert (result.protocol, model.metric, model.count) == ("code-local-30", "mrr", 60)
    assert model.value == pytest.approx(np.mean(reciprocal))
    assert model.value > 3 * random.value
    assert bm25.value > 3 * random.value
    assert random.value == pytest.approx(np.mean(1 / np.arange(1, 31)))
    assert random.metrics["recall@10"] == pytest.approx(10 / 30)


def test_docstrings_are_queries_and_functions_documents(small: CodeLocal, recording: Callable[..., Any]) -> None:
    model = recording()
    measure(small, Encoder(embedder=model, max_tokens=48), output=None)
    assert model.heard["query"] <= {function.query for function in small.functions}
    assert model.heard["document"] <= {function.document for function in small.functions}
    assert len(model.heard["query"]) == len(model.heard["document"]) == 60


def test_swapped_roles_change_the_score(small: CodeLocal, tiny_checkpoint: Path, recording: Callable[..., Any]) -> None:
    random_weights = Embedder.load(str(tiny_checkpoint))  # to it, a marker matters as much as the text
    right, swapped = (
        measure(small, Encoder(embedder=model, max_tokens=48), output=None).result.of()[0].value
        for model in (random_weights, recording(of=random_weights, swapped=True))
    )
    assert right != swapped


class Constant:
    """Gives every text the same vector."""

    name, dimensions, max_tokens, fingerprint = "constant", 4, 512, "udv1-constant"

    def embed_iter(self, texts: Any, role: str, **_options: Any) -> Any:
        yield np.full((len(list(texts)), 4), 0.5, np.float32)


def test_ties_count_against_the_model() -> None:
    pairs = CodePairs(subset="", queries=list("abcd"), documents=list("efgh"), rounds=[np.arange(4)])
    scores = pairs.scores(Encoder(embedder=Constant()))  # type: ignore[arg-type]
    assert {score.system: score.value for score in scores} == {
        "model": 1 / 4,
        "bm25": 1 / 4,
        "random": pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4),
    }


def bm25_mrr(corpus: list[str], queries: list[str]) -> float:
    scores = np.zeros((len(queries), len(corpus)))
    indices, found = bm25(corpus, queries, k=len(corpus))
    np.put_along_axis(scores, indices, found, axis=1)
    return float(np.mean([1 / np.sum(row >= row[own]) for own, row in enumerate(scores)]))


def test_bm25_looks_for_functions_with_docstrings(nano: Embedder) -> None:
    queries = ["lines open", "words words", "lines file"]
    documents = ["file lines open lines", "lines lines open", "file file file"]
    pairs = CodePairs(subset="", queries=queries, documents=documents, rounds=[np.arange(3)])
    (score,) = (score for score in pairs.scores(Encoder(embedder=nano)) if score.system == "bm25")
    assert score.value == pytest.approx(bm25_mrr(documents, queries))
    assert score.value != pytest.approx(bm25_mrr(queries, documents))


def test_changed_sources_are_another_measurement(package: str, tmp_path: Path) -> None:
    before = code_local([package], candidates=2).settings()
    path = tmp_path / package / "__init__.py"
    path.write_text(path.read_text("utf-8").replace("3.14159", "3.14"), "utf-8")
    after = code_local([package], candidates=2).settings()
    assert before["data"] != after["data"]
    assert {**before, "data": ""} == {**after, "data": ""}
