"""Options that several commands share, and how a model is loaded from them.

Invariant: importing this module imports no torch; `load` does.
Does not know: what the model is used for.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from udever.errors import OptionError, UdeverError

if TYPE_CHECKING:
    from udever import Embedder

Role = Literal["query", "document"]
Precision = Literal["auto", "fp32", "bf16", "int8"]
Truncate = Literal["error", "end", "start"]

DEFAULT_MODEL = "udever-nano"

CLI_HINTS = {
    "empty_text": "pass --skip-empty to leave such texts out",
    "too_many_tokens": "shorten it, or pass --truncate end or --truncate start to cut it",
}
"""Error code → the way out in the words of the command line."""

JsonFlag = Annotated[
    bool, Parameter(name="--json", negative=(), show_default=False, help="Print the result as JSON on stdout.")
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Runtime:
    """How to run a model; `info` takes only this."""

    precision: Annotated[Precision, Parameter(help="Number format of the weights; auto: bf16 where it is fast.")] = (
        "auto"
    )
    """auto: bf16 where the CPU or GPU has it, else fp32."""
    device: Annotated[str, Parameter(help="auto, cpu, cuda or cuda:N.")] = "auto"
    """A torch device name, or auto."""
    revision: Annotated[str | None, Parameter(help="Branch, tag or commit of a model on the Hugging Face hub.")] = None
    """None: the default branch."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Which model."""

    model: Annotated[str, Parameter(name=("--model", "-m"), help="Built-in name, local folder or hub id.")] = (
        DEFAULT_MODEL
    )
    """What `Embedder.load` takes."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Shaping:
    """How texts are cut and vectors shaped."""

    dimensions: Annotated[int | None, Parameter(help="Keep this many leading numbers; must be trained for.")] = None
    """None: all of them."""
    max_tokens: Annotated[int | None, Parameter(help="Longest text in tokens, two markers included.")] = None
    """None: the model's limit."""
    truncate: Annotated[Truncate, Parameter(help="What to do with a longer text: refuse it, or cut it there.")] = (
        "error"
    )
    """error | end | start."""

    def keywords(self) -> dict[str, Any]:
        """As keyword arguments of `Embedder.embed` and `embed_iter`."""
        return {"dimensions": self.dimensions, "max_tokens": self.max_tokens, "truncate": self.truncate}


def load(name: str, runtime: Runtime) -> "Embedder":
    """Load the model; the errors of `Embedder.load` pass through."""
    from udever import Embedder

    # A path typed in a shell may begin with ~ even where the shell did not expand it (--model=~/x).
    name = os.path.expanduser(name)  # noqa: PTH111  Path's raises where there is no such user
    return Embedder.load(name, precision=runtime.precision, device=runtime.device, revision=runtime.revision)


def refuse_unknown_options(names: Sequence[str], *, command: str) -> None:
    """Of a command that takes any number of files: one that begins like an option is a misspelt option.

    Raises:
        OptionError: names it, and how to write a file of that name.
    """
    for name in names:
        if name.startswith("-") and name != "-":
            raise OptionError(
                f"unknown option {name}", hint=f"see udever {command} --help; a file of that name is ./{name}"
            )


@contextmanager
def needing(extra: str, *, what: str) -> Iterator[None]:
    """Import packages of an extra inside; one that is not installed becomes an error that says how to install it.

    Args:
        what: needs the package: "the service", "training".
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise UdeverError(
            f"{what} needs the package {error.name}, which is not installed", hint=f"pip install 'udever[{extra}]'"
        ) from error
