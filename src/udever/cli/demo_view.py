"""How the demo looks: text for any terminal of 80 columns or more, and for a pipe.

Invariant: right-to-left and wide scripts stand at the end of their line, so that nothing to their right can shift;
what colours say, numbers say too.
Does not know: models or documents.
"""

import io
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

if TYPE_CHECKING:
    from udever.cli.demo import Answer, Demo

MAX_WIDTH = 100
LABEL_WIDTH = 14
CELL_WIDTH = 6

COLD, WARM = (24, 32, 72), (250, 176, 60)
"""Background of the smallest and of the largest similarity, RGB."""

NEXT = (
    ("udever embed notes.txt --output notes.npy", "a vector a line"),
    ("udever embed src/ --truncate end -o src.parquet", "a vector a file"),
    ('udever similarity "good morning" "buenos días"', "one number"),
    ("udever models", "larger models"),
    ("udever serve", "OpenAI's API of it"),
    ("udever evaluate code-local", "its score on code"),
)
"""(command, what it gives): only commands that exist."""


def console() -> Console:
    """stdout, at most `MAX_WIDTH` wide; characters its encoding lacks become `?` instead of an error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    screen = Console(highlight=False)
    screen.width = min(screen.width, MAX_WIDTH)
    return screen


def status(message: str) -> AbstractContextManager[object]:
    """A spinner on stderr while something takes long; nothing where stderr is no terminal."""
    return Console(stderr=True).status(message)


def show(demo: "Demo", screen: Console) -> None:
    """Print everything."""
    _show_speed(demo, screen)
    _heading("Ask them in any language", screen)
    for answer in demo.answers:
        _show_answer(answer, screen)
    _heading("One sentence in eight languages, and two others: cosine similarity", screen)
    _show_sentences(demo.sentences, screen)
    _show_heat_map(demo, screen)
    _heading("What to type next", screen)
    typed = [(command.replace("udever", _program(), 1), gives) for command, gives in NEXT]
    width = max(len(command) for command, _ in typed) + 2
    for command, gives in typed:
        _line(screen, (f"  {command:<{width}}", "bold"), (gives, "dim"))
    screen.print()


def _program() -> str:
    """What to type for this program: its name where the shell finds it, else where it lies."""
    if shutil.which("udever"):
        return "udever"
    return os.path.relpath(sys.argv[0]) if Path(sys.argv[0]).name == "udever" else "python -m udever"


def _show_speed(demo: "Demo", screen: Console) -> None:
    _heading(f"{demo.model}: {demo.dimensions} numbers for a text, in {demo.precision} on {demo.device}", screen)
    texts, tokens = demo.functions / demo.seconds, demo.tokens / demo.seconds
    _line(
        screen,
        (f"  {demo.functions:,} functions of Python {demo.python}'s standard library embedded in ", ""),
        (f"{demo.seconds:.1f} s", "bold"),
    )
    _line(screen, (f"  {texts:,.0f} texts/s", "bold green"), (f"  {tokens:,.0f} tokens/s", "green"))


def _show_answer(answer: "Answer", screen: Console) -> None:
    _line(screen, (f"  {answer.language:<9}", "cyan"), (answer.question, "bold"))
    for hit in answer.hits:
        _line(screen, (f"    {hit.similarity:.2f}  ", "green"), (f"{hit.name}  ", "yellow"), (hit.summary, "dim"))


def _show_sentences(sentences: Sequence[tuple[str, str]], screen: Console) -> None:
    for number, (label, sentence) in enumerate(sentences, start=1):
        _line(screen, (f"  {number:>2}  {label:<{LABEL_WIDTH}} ", "cyan"), (sentence, ""))
    screen.print()


def _show_heat_map(demo: "Demo", screen: Console) -> None:
    count = len(demo.sentences)
    heads = "".join(f"{number:>{CELL_WIDTH}}" for number in range(1, count + 1))
    _line(screen, (" " * (LABEL_WIDTH + 6) + heads, "cyan"))
    coldest = min(min(row) for row in demo.similarities)
    for number, ((label, _), row) in enumerate(zip(demo.sentences, demo.similarities, strict=True), start=1):
        line = Text(f"  {number:>2}  {label:<{LABEL_WIDTH}}", style="cyan")
        for value in row:
            line.append(f"{value:>{CELL_WIDTH}.2f}", style=_heat((value - coldest) / max(1 - coldest, 1e-6)))
        _line(screen, line)


def _heat(warmth: float) -> Style:
    """warmth 0 … 1 → background between `COLD` and `WARM`, with a readable foreground."""
    part = min(max(warmth, 0.0), 1.0)
    red, green, blue = (round(cold + part * (warm - cold)) for cold, warm in zip(COLD, WARM, strict=True))
    foreground = "#000000" if part > 0.5 else "#ffffff"
    return Style(color=foreground, bgcolor=Color.from_rgb(red, green, blue).name)


def _heading(text: str, screen: Console) -> None:
    screen.print()
    _line(screen, (text, "bold underline"))
    screen.print()


def _line(screen: Console, *parts: Text | tuple[str, str]) -> None:
    """One line that never wraps; what does not fit is cut with an ellipsis."""
    screen.print(Text.assemble(*parts), no_wrap=True, overflow="ellipsis", soft_wrap=False)
