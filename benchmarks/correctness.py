"""What generic loading makes of a Udever: the same weights through sentence-transformers, beside udever.

    python benchmarks/correctness.py                          # docstring -> function over the standard library
    python benchmarks/correctness.py --suite recipes/nano/dev.toml --data FOLDER --tasks stsb-dev code

Writes docs/correctness.json, the tables of docs/correctness.md and docs/img/correctness.svg. One thing is changed at a
time: how the folder is loaded by default, then the markers, then the pooling.
"""

import argparse
import json
import statistics
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from encoding.report import replace_sections, table
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from udever import Embedder
from udever.engine import registry
from udever.evaluation.encoder import Encoder
from udever.evaluation.protocols.code_local import code_local
from udever.evaluation.protocols.suite import read_suite
from udever.evaluation.reports import figures, tables
from udever.tokenizer import MARKERS

DOCS = Path(__file__).parent.parent / "docs"
BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Generic(Encoder):
    """The model as a tool without knowledge of Udever runs it."""

    model: SentenceTransformer
    markers: bool
    """Whether texts are put between the role's markers first."""

    def queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As an `Encoder` does it."""
        return self._vectors(texts, "query")

    def documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As an `Encoder` does it."""
        return self._vectors(texts, "document")

    def _vectors(self, texts: Sequence[str], role: Any) -> NDArray[np.float32]:
        opening, closing = MARKERS[role] if self.markers else ("", "")
        marked = [f"{opening}{text}{closing}" for text in texts]
        vectors: NDArray[np.float32] = self.model.encode(
            marked, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False
        )
        self.advance(len(texts))
        return vectors


def main() -> None:
    options = _options()
    embedder = Embedder.load(options.model, precision="fp32")
    tasks = [code_local((), candidates=1000, seed=0, max_rounds=options.rounds)]
    if options.suite:
        tasks += read_suite(options.suite, data=options.data, names=options.tasks)
    scores: dict[str, dict[str, float]] = {}
    for label, encoder in _ways(options.model, embedder).items():
        print(label, file=sys.stderr, flush=True)
        scores[label] = {name: value for task in tasks for name, value in _measured(task, encoder).items()}
    _write(options.model, scores)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="udever-nano")
    parser.add_argument("--rounds", type=int, default=2, help="of code-local")
    parser.add_argument("--suite", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tasks", nargs="*", default=())
    return parser.parse_args()


def _ways(name: str, embedder: Embedder) -> dict[str, Encoder]:
    folder = str(registry.resolve(name).folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no pooling is configured is what this is about
        # The dtype alone is not left at its default: float16 takes ten times as long on a CPU and changes no score.
        default = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": "float32"})
    words = Transformer(folder, model_kwargs={"dtype": "float32"}, processor_kwargs={"padding_side": "left"})
    last = SentenceTransformer(modules=[words, Pooling(embedder.dimensions, pooling_mode="lasttoken")], device="cpu")
    default.max_seq_length = last.max_seq_length = embedder.max_tokens
    return {
        "generic loading: no markers, mean of the tokens": Generic(embedder=embedder, model=default, markers=False),
        "markers, but the mean of the tokens": Generic(embedder=embedder, model=default, markers=True),
        "the last token, but no markers": Generic(embedder=embedder, model=last, markers=False),
        "udever: markers, the closing marker's state": Encoder(embedder=embedder),
    }


def _measured(task: Any, encoder: Encoder) -> dict[str, float]:
    """The task's mean over its parts, with `en` apart where there is one."""
    found = {score.subset: score.value for score in task.run(encoder) if score.system == "model"}
    if "en" in found and len(found) > 1:
        others = [value for subset, value in found.items() if subset != "en"]
        return {f"{task.name}, en": found["en"], f"{task.name}, {len(others)} others": statistics.mean(others)}
    return {task.name: statistics.mean(found.values())}


def _write(model: str, scores: dict[str, dict[str, float]]) -> None:
    names = list(next(iter(scores.values())))
    cells = [[label, *(f"{100 * row[name]:.1f}" for name in names)] for label, row in scores.items()]
    body = "\n".join(table(("", *names), cells))
    print(body)
    (DOCS / "correctness.json").write_text(json.dumps({"model": model, "scores": scores}, indent=1) + "\n", "utf-8")
    replace_sections(DOCS / "correctness.md", [("correctness", body)], title="Correctness")
    kinds = {label: "measured" if label.startswith("udever") else "baseline" for label in scores}
    drawn = tables.Table(
        id="correctness",
        title=f"{model}: the same weights, loaded in four ways",
        protocol="correctness",
        about="Spearman of cosines for STS, mean reciprocal rank for code, times 100",
        metric="mixed",
        scale=100,
        decimals=1,
        columns=tuple(names),
        rows=tuple(
            tables.Row(name=label, kind=kinds[label], cells=tuple(tables.Cell(value=100 * row[n]) for n in names))
            for label, row in scores.items()
        ),
    )
    (DOCS / "img" / "correctness.svg").write_bytes(figures.draw(drawn, "svg"))


if __name__ == "__main__":
    main()
