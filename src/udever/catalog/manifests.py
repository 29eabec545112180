"""One TOML file a model: all that pages, prices and comparisons need to know of it before it is loaded.

    catalog = load_catalog(Path("/etc/udever/models"))      # ours, and the operator's beside or instead of them
    catalog["izhx/udever-bloom-1b1"].dimensions             # (1536,)

Invariant: a manifest that was read is whole and sound; what is not known is absent and never guessed. An error names
the file and the field.
Does not know: which models are served (the server does), or published numbers beyond their names (published.py).
"""

import json
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from udever.catalog.fields import FIELDS, Month, check_table
from udever.errors import CatalogError

FOLDER = Path(__file__).parent / "models"


@dataclass(frozen=True, kw_only=True)
class Downloads:
    """How often a model was downloaded from the hub in a month."""

    per_month: int
    seen: Month
    """When the number was read."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One of the FAQ."""

    question: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Link:
    """Where to read on."""

    title: str
    url: str


@dataclass(frozen=True, kw_only=True)
class Published:
    """Where the model's published numbers stand in published.yaml."""

    row: str
    """Its name there."""
    benchmarks: tuple[str, ...] = ()
    """Those that its page draws, in this order."""
    references: tuple[str, ...] = ()
    """Models to set beside it."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """Scores that we, or the operator, measured."""

    protocol: str
    """What was measured, for a reader; only results of one protocol may stand side by side."""
    scores: tuple[tuple[str, float], ...]
    """(language, task, …; score), as it was measured."""


@dataclass(frozen=True, kw_only=True)
class ModelManifest:
    """A model as its page shows it."""

    id: str
    """What clients write."""
    title: str
    summary: str = ""
    """One sentence."""
    family: str = ""
    published: Month | None = None
    updated: Month | None = None
    licence: str = ""
    """SPDX's name, or the licence's own."""
    licence_url: str = ""
    task: str = "Text embedding"
    architecture: str = ""
    base: str = ""
    """The model it was made from."""
    method: str = ""
    """How it was made from it."""
    parameters: int | None = None
    dimensions: tuple[int, ...] = ()
    """Sizes a vector may have, the full one first."""
    max_tokens: int | None = None
    """Longest input, both markers included."""
    trained_tokens: int | None = None
    """Longest text in training, if that is shorter."""
    training_data: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    """ISO codes, see languages.py."""
    code_languages: tuple[str, ...] = ()
    best_for: tuple[str, ...] = ()
    about: tuple[str, ...] = ()
    """Paragraphs."""
    related: tuple[str, ...] = ()
    """Ids; by default the others of the family."""
    microcredits_per_token: int | None = None
    downloads: Downloads | None = None
    published_numbers: Published | None = None
    results: tuple[Results, ...] = ()
    faq: tuple[Question, ...] = ()
    links: tuple[Link, ...] = ()


def load_catalog(folder: Path | None = None) -> Mapping[str, ModelManifest]:
    """All manifests by id: the operator's first, then those of ours that they do not replace.

    Raises:
        CatalogError: no such folder, a file that is no manifest, or an id that two of them claim.
    """
    if folder is not None and not folder.is_dir():
        raise CatalogError(f"no folder {folder}", hint="catalog_dir names a folder with a TOML file for each model")
    own = _read_all(sorted(folder.glob("*.toml"))) if folder else {}
    shipped = _read_all(sorted(FOLDER.glob("*.toml")))
    catalog = own | {name: manifest for name, manifest in shipped.items() if name not in own}
    for manifest in catalog.values():
        _check_related(manifest, catalog)
    return MappingProxyType(catalog)


def read_manifest(path: Path) -> ModelManifest:
    """One manifest.

    Raises:
        CatalogError: it cannot be read, or a field is missing, unknown or impossible; names file and field.
    """
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CatalogError(f"{path}: {error}", hint="a manifest is a TOML file in UTF-8") from error
    values = check_table(raw, FIELDS, where=str(path))
    values |= {name: make(values[name]) for name, make in _PARTS.items() if name in values}
    results = (*values.pop("results", ()), *_scores_of(values.pop("scores_file", ""), path))
    return ModelManifest(**values, results=results)


def read_scores(raw: Mapping[str, Any]) -> tuple[Results, ...]:
    """The `scores` of a `udever.json`: protocol → name → number; what is no such table of numbers is left out."""
    tables = ((name, values) for name, values in raw.items() if isinstance(values, Mapping))
    found = (
        Results(protocol=name, scores=tuple((key, value) for key, value in values.items() if _is_number(value)))
        for name, values in tables
    )
    return tuple(results for results in found if results.scores)


_PARTS: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {
        "downloads": lambda raw: Downloads(**raw),
        "published_numbers": lambda raw: Published(**raw),
        "results": lambda raw: tuple(
            Results(protocol=entry["protocol"], scores=tuple(entry["scores"].items())) for entry in raw
        ),
        "faq": lambda raw: tuple(Question(**entry) for entry in raw),
        "links": lambda raw: tuple(Link(**entry) for entry in raw),
    }
)


def _read_all(paths: Iterable[Path]) -> dict[str, ModelManifest]:
    found: dict[str, tuple[Path, ModelManifest]] = {}
    for path in paths:
        manifest = read_manifest(path)
        if manifest.id in found:
            other = found[manifest.id][0]
            raise CatalogError(
                f"{path}: id {manifest.id!r} is also that of {other}", hint="give one of them another id"
            )
        found[manifest.id] = (path, manifest)
    return {name: manifest for name, (_, manifest) in found.items()}


def _scores_of(name: str, manifest: Path) -> tuple[Results, ...]:
    """The scores in a model's own `udever.json`, named from where the manifest stands."""
    if not name:
        return ()
    path = manifest.parent / name
    try:
        raw = json.loads(path.read_text("utf-8"))
        return read_scores(raw["scores"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{manifest}: scores_file {name!r} cannot be used: {error}"
        raise CatalogError(message, hint="it names a udever.json with scores, relative to the manifest") from error


def _check_related(manifest: ModelManifest, catalog: Mapping[str, ModelManifest]) -> None:
    for name in manifest.related:
        if name not in catalog:
            message = f"the manifest of {manifest.id}: related names {name!r}, which has no manifest"
            raise CatalogError(message, hint=f"there are {', '.join(catalog)}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
