"""`udever models` and `udever info`: which models there are, and what one of them is.

Invariant: `models` loads no weights and asks no network; what it says of a published model is known beforehand.
Does not know: how a name becomes a folder (engine/registry.py) or how weights are read.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from udever.cli.options import DEFAULT_MODEL, JsonFlag, Runtime, load

if TYPE_CHECKING:
    from udever.model.config import BloomConfig

UNKNOWN = "unknown"
COLUMNS = ("model", "params", "dims", "tokens", "where", "licence")


def models(*, as_json: JsonFlag = False) -> None:
    """List the models udever knows by name.

    Any local folder or hub id with a Udever checkpoint works too: pass it where a name is asked for.
    """
    from rich.console import Console
    from rich.table import Table

    rows = [*_builtin(), *_published()]
    if as_json:
        print(json.dumps(rows))
        return
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")  # 78 columns
    for heading in COLUMNS:
        numeric = heading in ("params", "dims", "tokens")
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        size = f"{row['parameters'] / 1e6:,.0f} M"
        table.add_row(row["name"], size, str(row["dimensions"]), str(row["max_tokens"]), row["where"], row["license"])
    Console(highlight=False).print(table)


def info(
    model: Annotated[str, Parameter(help="Built-in name, local folder or hub id.")] = DEFAULT_MODEL,
    /,
    *,
    runtime: Runtime = Runtime(),  # noqa: B008  frozen
    as_json: JsonFlag = False,
) -> None:
    """Describe one model.

    The model is loaded, so its files are checked, and precision and device are those chosen on this machine.
    """
    facts = describe(model, runtime)
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    scores = facts.pop("scores")
    for key, value in facts.items():
        grid.add_row(key.replace("_", " "), _shown(value))
    console = Console(highlight=False, markup=False)
    console.print(grid)
    for protocol, values in scores.items():
        console.print(f"\n{protocol}", style="cyan")
        console.print(Padding(", ".join(f"{name} {score}" for name, score in values.items()), (0, 0, 0, 2)))


def describe(name: str, runtime: Runtime) -> dict[str, Any]:
    """What `info` shows. Raises the errors of `Embedder.load`."""
    from udever.engine import registry
    from udever.engine.locating import locate
    from udever.model import native

    model = load(name, runtime)
    located = locate(name, revision=runtime.revision)
    config, manifest = model.config, model.manifest
    published = {known.hub_id: known.license for known in registry.published_models()}
    return {
        "name": model.name,
        "folder": str(located.source.folder),
        **({"base": str(located.base.folder), "recipe": located.delta.recipe or UNKNOWN} if located.delta else {}),
        "architecture": f"BLOOM, {config.layers} layers, {config.width} wide, {config.heads} heads",
        "parameters": config.parameters,
        "dimensions": model.dimensions,
        "matryoshka": list(model.matryoshka),
        "max_tokens": model.max_tokens,
        "tokenizer_entries": _tokenizer_entries(located.tokenizer_folder),
        "precision": model.precision,
        "device": model.device,
        **({"kernels": native.in_use()} if model.device == "cpu" else {}),
        "fingerprint": model.fingerprint,
        "license": manifest.license or published.get(name, UNKNOWN),
        "scores": _scores(manifest.scores),
    }


def _scores(raw: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Protocol → name → score; a score without a protocol stands under "scores"."""
    loose = {name: value for name, value in raw.items() if not isinstance(value, dict)}
    return {name: value for name, value in raw.items() if isinstance(value, dict)} | (
        {"scores": loose} if loose else {}
    )


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "no"
    return f"{value:,}" if isinstance(value, int) and value > 9999 else str(value)


def _builtin() -> list[dict[str, Any]]:
    from udever.engine import registry
    from udever.engine.locating import locate
    from udever.model.config import BloomConfig

    rows = []
    for name in registry.builtin_models():
        located = locate(name)
        raw = json.loads((located.base.folder / "config.json").read_text(encoding="utf-8"))
        config = BloomConfig.from_hugging_face(raw)
        manifest = located.manifest(config)
        rows.append(
            _row(name, config, max_tokens=manifest.max_tokens, where="built in", license_=manifest.license or UNKNOWN)
        )
    return rows


def _published() -> list[dict[str, Any]]:
    from udever.engine import registry

    return [
        _row(
            model.hub_id,
            model.config,
            max_tokens=model.config.max_tokens,
            where="cached" if registry.is_cached(model.hub_id) else "on hub",
            license_=model.license,
        )
        for model in registry.published_models()
    ]


def _row(name: str, config: "BloomConfig", *, max_tokens: int, where: str, license_: str) -> dict[str, Any]:
    return {
        "name": name,
        "parameters": config.parameters,
        "dimensions": config.width,
        "max_tokens": max_tokens,
        "where": where,
        "license": license_,
    }


def _tokenizer_entries(folder: Path) -> int:
    """Vocabulary and added tokens, the four markers among them."""
    from udever.tokenizer import MARKERS

    raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    markers = {marker for pair in MARKERS.values() for marker in pair}
    return len({*raw["model"]["vocab"], *(token["content"] for token in raw.get("added_tokens", []))} | markers)
