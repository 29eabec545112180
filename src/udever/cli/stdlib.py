"""The demo's documents: public functions of Python's standard library, read from its source files.

Invariant: nothing is imported or run, only parsed; the same Python gives the same documents in the same order.
Does not know: how sources are found and parsed (evaluation/protocols/python_functions.py), or how answers are shown.
"""

import ast
from dataclasses import dataclass

from udever.evaluation.protocols.python_functions import (
    Found,
    first_paragraph,
    functions,
    source_of,
    standard_library_modules,
)

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
    described: dict[str, Function] = {}
    for module in standard_library_modules(skipped=SKIPPED_MODULES):
        if any(part.startswith("_") for part in module.parts):
            continue
        owner = PUBLIC_NAMES.get(module.parts[0], ".".join(module.parts))
        for found in functions(owner, source_of(module)):
            doc = ast.get_docstring(found.node)
            if doc and not _is_private(found, owner):
                described.setdefault(found.name, _described(found, doc))
    return list(described.values())


def _is_private(found: Found, module: str) -> bool:
    return any(part.startswith("_") for part in found.name.removeprefix(module + ".").split("."))


def _described(found: Found, doc: str) -> Function:
    signature = f"{found.name}({_without_defaults(found.node.args)})"
    summary = first_paragraph(doc, found.node.name)[:DOC_CHARACTERS]
    return Function(name=found.name, signature=signature, summary=summary)


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
