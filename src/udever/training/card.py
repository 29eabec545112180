"""The model card of a run: Markdown with the hub's metadata, from what the run itself knows.

Invariant: nothing in it is typed by hand: recipe, data with digests, hardware and time come from the run, scores from
the run or from result files. Scores stand between two markers, so that measuring again replaces them and nothing else.
Does not know: how scores are measured or laid out.
"""

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from udever.engine.registry import Manifest
from udever.errors import OptionError
from udever.training.recipe import Recipe
from udever.training.run import last_scores

BEGIN, END = "<!-- scores: begin -->", "<!-- scores: end -->"
TASKS_NAMED = 12
"""Of a store; it may have hundreds."""
NO_SCORES = "None yet: `udever evaluate … --output RESULTS`, then `udever card FOLDER --results RESULTS`."


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a run knows of itself."""

    recipe: Recipe
    license: str
    base: str
    """The full checkpoint's name."""
    weights: str
    """Its digest."""
    start: str
    """The starting model's: the same, unless that is a delta on the checkpoint."""
    stores: Sequence[Mapping[str, Any]]
    """The contents of each `store.json`, in the recipe's order."""
    moved: int
    """Numbers that were trained."""
    dimensions: int
    max_tokens: int
    hardware: str
    log: Sequence[Mapping[str, Any]]
    """The entries of `log.jsonl`."""


def hardware(device: torch.device, *, processes: int) -> str:
    """What a run was computed on: `2 x NVIDIA H200`, `AMD EPYC, 2 threads`."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        name = f"{_processor()}, {threads} thread{'s' * (threads > 1)}"
    return name if processes == 1 else f"{processes} × {name}"


def card(facts: RunFacts) -> str:
    """The whole page; of scores only what the run itself measured, at its last step."""
    head = _metadata(facts.license, base=facts.base, tags=[facts.recipe.tune.partition(":")[0]])
    use = _use(facts.recipe.name, base=facts.base, dimensions=facts.dimensions, max_tokens=facts.max_tokens)
    return _page(head, use, _digests(facts), _data(facts), _training(facts), _scores(last_scores(facts.log)))


def mean_card(manifest: Manifest, *, base: str, dimensions: int, parts: Sequence[tuple[str, float]]) -> str:
    """Of the mean of several deltas.

    Args:
        parts: each delta's name and share.
    """
    rows = [f"| {name} | {share:.3g} |" for name, share in parts]
    made = ["## Made of", "", "| delta | share |", "|---|---:|", *rows, ""]
    head = _metadata(manifest.license, base=base, tags=["bitfit"])
    use = _use(manifest.name or "mean", base=base, dimensions=dimensions, max_tokens=manifest.max_tokens)
    return _page(head, use, made, _scores({}))


def _page(*sections: list[str]) -> str:
    return "\n".join(line for section in sections for line in section) + "\n"


def with_scores(text: str, tables: str) -> str:
    """The same card with these tables (Markdown) for scores.

    Raises:
        OptionError: the card has no place for them.
    """
    place = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if len(place.findall(text)) != 1:
        raise OptionError("this card has no place for scores", hint=f"put the lines {BEGIN} and {END} into it")
    return place.sub(lambda _: f"{BEGIN}\n{tables.strip()}\n{END}", text)


def _metadata(license_: str, *, base: str, tags: Sequence[str]) -> list[str]:
    lines = ["---", "pipeline_tag: sentence-similarity", "library_name: udever"]
    lines += [f"license: {license_.lower()}"] if license_ else []
    lines += [f"base_model: {base}"] if "/" in base and not base.startswith(("/", ".")) else []
    return [*lines, f"tags: [{', '.join(['udever', 'bloom', *tags, 'feature-extraction'])}]", "---"]


def _use(name: str, *, base: str, dimensions: int, max_tokens: int) -> list[str]:
    return [
        f"# {name}",
        "",
        f"A Udever embedder on `{base}`: {dimensions} dimensions, at most {max_tokens} tokens."
        " Queries are read as `[BOQ] … [EOQ]`, documents as `[BOD] … [EOD]`; the vector is the"
        " closing marker's last hidden state.",
        "",
        "```python",
        "from udever import Embedder",
        "",
        f'model = Embedder.load("{name}")  # this folder',
        'queries = model.embed(["how tall is K2?"], role="query")',
        'documents = model.embed(["K2 is 8,611 metres high."], role="document")',
        "print(queries @ documents.T)",
        "```",
        "",
    ]


def _digests(facts: RunFacts) -> list[str]:
    digest = f"The base's weights have the digest `{facts.weights}`."
    on = f" Training went on from the delta `{facts.recipe.base}` on it; both together have the digest `{facts.start}`."
    return [digest + (on if facts.start != facts.weights else ""), ""]


def _data(facts: RunFacts) -> list[str]:
    lines = ["## Data", "", "| store | weight | examples | texts | tokens | tasks | sources |", f"|{'---|' * 7}"]
    for part, about in zip(facts.recipe.data, facts.stores, strict=True):
        sources = ", ".join(f"{source['file']} (`{source['sha256'][:12]}`)" for source in _sources(about))
        numbers = " | ".join(f"{about[key]:,}" for key in ("examples", "texts", "tokens"))
        lines.append(f"| {part.path} | {part.weight:g} | {numbers} | {_named(list(about['tasks']))} | {sources} |")
    return [*lines, ""]


def _named(tasks: Sequence[str]) -> str:
    named, more = tasks[:TASKS_NAMED], len(tasks) - TASKS_NAMED
    return ", ".join(named) + (f" and {more:,} more" if more > 0 else "")


def _sources(about: Mapping[str, Any]) -> Sequence[Mapping[str, str]]:
    """The files that people wrote; of a mined store, those of the store that it was made from."""
    before = about.get("made_from", {})
    found: Sequence[Mapping[str, str]] = _sources(before) if "sources" in before else about.get("sources", ())
    return found


def _training(facts: RunFacts) -> list[str]:
    recipe = facts.recipe
    steps = [entry for entry in facts.log if "loss" in entry]
    seconds, tokens = (sum(entry[key] for entry in steps) for key in ("seconds", "tokens"))
    rows = {
        "objective": _objective(recipe),
        "trained": f"{recipe.tune}: {facts.moved:,} numbers",
        "batch": f"{recipe.batch.size:,} examples, {recipe.batch.mixing.replace('_', ' ')}",
        "optimizer": f"AdamW, {recipe.optimizer.learning_rate:g}, {recipe.optimizer.schedule}",
        "length": f"at most {recipe.max_tokens} tokens",
        "prefixes": ", ".join(map(str, recipe.contrast.prefixes)) or "none",
        "steps": f"{len(steps):,} ({recipe.batch.epochs:g} epochs), {tokens:,} tokens",
        "hardware": facts.hardware,
        "time": f"{seconds / 3600:.2f} h of steps",
        "recipe": f"`{recipe.digest}`",
    }
    if steps:
        rows["loss"] = f"{steps[0]['loss']:.4f} at first, {steps[-1]['loss']:.4f} at last"
    return ["## Training", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items()), ""]


def _objective(recipe: Recipe) -> str:
    contrast, distill = recipe.contrast, recipe.distill
    said = f"temperature {contrast.temperature:g}, {contrast.negatives} hard negatives a query and step"
    if distill is None:
        return f"contrastive, {said}"
    beside = f", and {distill.contrast_weight:g} × contrastive ({said})" if distill.contrast_weight else ""
    return f"distill, temperature {distill.temperature:g}{beside}"


def _scores(measured: Mapping[str, Any]) -> list[str]:
    rows = [f"| {protocol} | {name} | {value:g} |" for protocol, of in measured.items() for name, value in of.items()]
    table = ["| measured in the run | | |", "|---|---|---:|", *rows] if rows else [NO_SCORES]
    return ["## Scores", "", BEGIN, *table, END]


def _processor() -> str:
    try:
        listed = Path("/proc/cpuinfo").read_text("utf-8")  # platform.processor() is empty on Linux
        named = re.search(r"^model name\s*:\s*(.+)$", listed, re.MULTILINE)
    except OSError:
        named = None
    return named[1].strip() if named else platform.processor() or platform.machine()
