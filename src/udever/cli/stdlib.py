"""The demo's documents: public functions of Python's standard library, read from its source files.

Invariant: nothing is imported or run, only parsed; the same Python gives the same documents in the same order.
Does not know: embeddings, or how the answers are shown.
"""

import ast
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SKIPPED = """
    antigravity asyncio bdb codecs ctypes curses dis doctest encodings ensurepip idlelib importlib inspect lib2to3
    mailbox multiprocessing ntpath nturl2path opcode pdb pickletools pydoc pydoc_data symtable test this tkinter trace
    turtle turtledemo typing unittest wsgiref xml xmlrpc zipimport

    aifc asynchat asyncore cgi cgitb chunk distutils imghdr imp mailcap msilib nntplib pipes smtpd sndhdr sunau
    telnetlib uu xdrlib
"""
SKIPPED_MODULES = frozenset(_SKIPPED.split())
"""Tests, tools, and machinery whose many functions repeat one another's docstrings: not what people ask about. In the
second block: what later Pythons removed."""

PUBLIC_NAMES = {"posixpath": "os.path", "genericpath": "os.path"}
"""Module that holds the source → module that people import."""

DOC_CHARACTERS = 240
"""The first paragraph of a docstring says what a function is for; the rest, and a long one's end, is detail."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Function:
    """One public function or method."""

    name: str
    """Dotted, as one writes it after `import`: `gzip.compress`, `pathlib.Path.glob`."""
    signature: str
    """With parameters: `gzip.compress(data, compresslevel=9, *, mtime=None)`."""
    summary: str
    """The docstring's first paragraph on one line."""

    @property
    def document(self) -> str:
        """The text to embed: Python that a person might have written."""
        return f'def {self.signature}:\n    """{self.summary}"""'


def standard_library() -> list[Function]:
    """Every public function and method with a docstring, by module and line; of two with one name the first."""
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, Function] = {}
    for module, path in _modules(root):
        for function in _functions(module, ast.parse(path.read_bytes())):
            found.setdefault(function.name, function)
    return list(found.values())


def _modules(root: Path) -> Iterator[tuple[str, Path]]:
    for name in sorted(sys.stdlib_module_names - SKIPPED_MODULES):
        package = root / name
        files = sorted(package.rglob("*.py")) if package.is_dir() else [root / f"{name}.py"]
        for path in files:
            parts = path.relative_to(root).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            if path.is_file() and not any(part.startswith("_") or part in ("test", "tests") for part in parts):
                yield PUBLIC_NAMES.get(name, ".".join(parts)), path


def _functions(module: str, tree: ast.Module) -> Iterator[Function]:
    for node in tree.body:
        if isinstance(node, Definition):
            yield from _described(module, node)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for member in node.body:
                if isinstance(member, Definition):
                    yield from _described(f"{module}.{node.name}", member)


def _described(owner: str, node: Definition) -> Iterator[Function]:
    doc = ast.get_docstring(node)
    if doc and not node.name.startswith("_"):
        name = f"{owner}.{node.name}"
        signature = f"{name}({_without_defaults(node.args)})"
        yield Function(name=name, signature=signature, summary=_summary(doc, node.name))


def _summary(doc: str, name: str) -> str:
    """Old docstrings repeat the signature in their first lines; what follows says what the function is for."""
    lines = doc.splitlines()
    while len(lines) > 1 and (not lines[0].strip() or lines[0].split("(")[0].endswith(name)):
        del lines[0]
    paragraph = "\n".join(lines).split("\n\n")[0]
    return " ".join(paragraph.split())[:DOC_CHARACTERS]


def _without_defaults(arguments: ast.arguments) -> str:
    """`a, b, *rest, c`: names say more than annotations and defaults, and take fewer tokens."""
    positional = (*arguments.posonlyargs, *arguments.args)
    names = [argument.arg for argument in positional if argument.arg not in ("self", "cls")]
    if arguments.vararg:
        names.append(f"*{arguments.vararg.arg}")
    names += [argument.arg for argument in arguments.kwonlyargs]
    if arguments.kwarg:
        names.append(f"**{arguments.kwarg.arg}")
    return ", ".join(names)
