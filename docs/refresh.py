"""Make the examples true again after the model changed: runs every `$ command` in docs/cli.md and draws the demo.

    python docs/refresh.py            # both
    python docs/refresh.py examples   # docs/cli.md only
    python docs/refresh.py demo       # docs/img/demo.svg only

Invariant: only what follows a `$` line in a ```console block is rewritten. Commands run in a folder with `FILES` in it.
"""

import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from udever import Embedder
from udever.cli import demo, demo_view

HERE = Path(__file__).parent
WIDTH = 96

FILES = {
    "notes.txt": "The museum opens at nine.\nEl museo abre a las nueve.\n博物馆九点开门。\n",
    "gaps.txt": "The museum opens at nine.\n\nIt is closed on Mondays.\n",
    "reviews.jsonl": '{"id": 1, "body": "Great coffee."}\n{"id": 2, "body": "Too loud for me."}\n',
    "questions.jsonl": (
        '{"query": "When does the museum open?", "pos": ["The museum opens at nine."], "neg": ["Lunch is at noon."]}\n'
        '{"query": "¿Cuándo cierra el museo?", "pos": ["The museum is closed on Mondays.", "It closes at six."]}\n'
        '{"query": "area of a circle", "pos": ["def area(radius):\\n    return 3.14159 * radius**2\\n"]}\n'
    ),
    "museum.jsonl": (
        '{"query": "When does the museum open?", "pos": ["The museum opens at nine."]}\n'
        '{"query": "¿Cuándo cierra el museo?", "pos": ["The museum is closed on Mondays.", "It closes at six."]}\n'
        '{"query": "Wo kann ich meine Tasche lassen?", '
        '"pos": ["Bags can be left in the lockers beside the entrance."]}\n'
        '{"query": "Combien coûte un billet ?", "pos": ["A ticket is twelve euros, and free under eighteen."]}\n'
        '{"query": "可以拍照吗？", "pos": ["Photographs are welcome, without a flash."]}\n'
        '{"query": "Is there somewhere to eat?", "pos": ["The café on the roof serves lunch until three."]}\n'
    ),
    "museum.toml": (
        'name = "museum"\nbase = "udever-nano"\n[batch]\nsize = 6\nepochs = 20\n[contrast]\nnegatives = 2\n'
        '[optimizer]\nlearning_rate = 1e-3\n[[data]]\npath = "museum-hard"\n'
    ),
    "src/area.py": "def area(radius):\n    return 3.14159 * radius**2\n",
    "src/hello.rs": 'fn main() { println!("hello"); }\n',
    "src/empty.py": "",
}


def main() -> None:
    """Refresh what the arguments name; without any, everything."""
    wanted = sys.argv[1:] or ["examples", "demo"]
    if "examples" in wanted:
        page = HERE / "cli.md"
        page.write_text(refreshed(page.read_text(encoding="utf-8")), encoding="utf-8")
    if "demo" in wanted:
        (HERE / "img").mkdir(exist_ok=True)
        (HERE / "img" / "demo.svg").write_text(picture(), encoding="utf-8")


def refreshed(page: str) -> str:
    """The page with every console block run again, in one folder and in order."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in FILES.items():
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_text(content, encoding="utf-8")
        return re.sub(r"(?<=```console\n).*?(?=```)", lambda block: _rerun(block[0], folder), page, flags=re.DOTALL)


def _rerun(block: str, folder: str) -> str:
    commands = [line for line in block.splitlines() if line.startswith("$ ")]
    return "".join(f"{command}\n{_output(command[2:], folder)}" for command in commands)


def _output(command: str, folder: str) -> str:
    scripts = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "COLUMNS": str(WIDTH)}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
    )
    installed = str(Path(demo.__file__).parents[1])
    lines = done.stdout.replace(installed, "…/udever").splitlines()
    return "".join(f"{line.rstrip()}\n" for line in lines)


def picture() -> str:
    """`udever demo` with the built-in model as it looks in a terminal, as SVG."""
    screen = Console(
        record=True, width=WIDTH, force_terminal=True, color_system="truecolor", file=io.StringIO(), highlight=False
    )
    demo_view.show(demo.run(Embedder.load("udever-nano")), screen)
    return tidied(screen.export_svg(title="udever demo"))


def tidied(svg: str) -> str:
    """Rich's SVG without its web fonts, and without forced widths where a character is not one cell wide."""
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    return re.sub(r' textLength="[^"]*"(?=[^>]*>[^<]*[\u0590-\u0dff\u2e80-\u9fff\uff00-\uffef])', "", svg)


if __name__ == "__main__":
    main()
