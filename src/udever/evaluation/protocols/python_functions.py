"""Functions of installed Python packages, read from their source files.

Invariant: nothing is imported or run, only parsed; the same files give the same functions in the same order.
Does not know: embeddings, or what the functions are wanted for.
"""

import ast
import importlib.util
import sys
import sysconfig
import warnings
from collections.abc import Collection, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

from udever.errors import DatasetError

Definition = ast.FunctionDef | ast.AsyncFunctionDef

TEST_FOLDERS = frozenset(["test", "tests"])


class Module(NamedTuple):
    """One source file."""

    parts: tuple[str, ...]
    """Of its dotted name: `("os", "path")`."""
    path: Path


class Found(NamedTuple):
    """One function or method."""

    owner: str
    """Dotted name of its module, and of its class if it is a method."""
    node: Definition

    @property
    def name(self) -> str:
        """Dotted, as one writes it after `import`."""
        return f"{self.owner}.{self.node.name}"


def standard_library_modules(*, skipped: Collection[str] = ()) -> Iterator[Module]:
    """The running Python's own modules, sorted; without those of the skipped top-level names and without tests."""
    root = Path(sysconfig.get_path("stdlib"))
    for name in sorted(sys.stdlib_module_names.difference(skipped)):
        package = root / name
        yield from _modules(root, sorted(package.rglob("*.py")) if package.is_dir() else [root / f"{name}.py"])


def package_modules(name: str) -> Iterator[Module]:
    """The modules of an installed package by the name one imports, sorted, without tests.

    Raises:
        DatasetError: nothing of that name is installed.
    """
    places = _places(name)
    for place in places:
        files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
        yield from _modules(place.parent, files)


def source_of(module: Module) -> str:
    """Its text; empty if the file cannot be decoded."""
    try:
        return importlib.util.decode_source(module.path.read_bytes())
    except (SyntaxError, UnicodeDecodeError):
        return ""


def functions(module: str, source: str) -> Iterator[Found]:
    """Its functions and the methods of its classes, by line; none if this Python cannot parse it."""
    try:
        with warnings.catch_warnings(action="ignore"):  # old code has odd escapes; that is not our user's business
            tree = ast.parse(source)
    except (SyntaxError, ValueError):  # templates, other Pythons; ValueError: a null byte
        return
    for node in tree.body:
        if isinstance(node, Definition):
            yield Found(module, node)
        elif isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, Definition):
                    yield Found(f"{module}.{node.name}", member)


def first_paragraph(doc: str, name: str) -> str:
    """What a docstring says a function is for, on one line.

    Old docstrings repeat the signature in their first lines, which are left out.
    """
    lines = doc.splitlines()
    while len(lines) > 1 and (not lines[0].strip() or lines[0].split("(")[0].endswith(name)):
        del lines[0]
    return " ".join("\n".join(lines).split("\n\n")[0].split())


def _modules(root: Path, files: Collection[Path]) -> Iterator[Module]:
    for path in files:
        parts = path.relative_to(root).with_suffix("").parts
        if path.is_file() and not any(part in TEST_FOLDERS or part.startswith("test_") for part in parts):
            yield Module(parts[:-1] if parts[-1] == "__init__" else parts, path)


def _places(name: str) -> list[Path]:
    spec = importlib.util.find_spec(name) if name.isidentifier() else None  # a dotted name would import its parent
    if spec and spec.submodule_search_locations:
        return [Path(place) for place in spec.submodule_search_locations]
    if spec and spec.origin and spec.origin.endswith(".py"):
        return [Path(spec.origin)]
    raise DatasetError(f"no Python package {name!r} with source code is installed here", hint=_import_name_of(name))


def _import_name_of(distribution: str) -> str:
    """pip installs scikit-learn, Python imports sklearn."""
    known = packages_distributions()
    names = sorted(name for name, of in known.items() if distribution in of and not name.startswith("_"))
    return f"Python imports it as {' or '.join(names)}" if names else "pass the name that Python imports"
