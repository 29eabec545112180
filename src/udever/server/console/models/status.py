"""What this server can say of each model now: from its manifest, else from the loaded model itself.

Invariant: a status is computed from what is loaded, never written down; a model that is served has a page also if it
has no manifest.
Does not know: HTML.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from udever.catalog.manifests import ModelManifest, read_scores
from udever.server.hosting import Hosted
from udever.server.pipeline import Service, trained_sizes

Status = Literal["live", "loading", "soon", "failed"]
STATUS_OF: Mapping[str, Status] = MappingProxyType(
    {"ready": "live", "waiting": "live", "starting": "loading", "loading": "loading", "failed": "failed"}
)
"""State of a served model → status. `waiting`: the first request loads it, so it is answered."""
STATUS_NAMES = MappingProxyType(
    {"live": "live", "loading": "loading", "soon": "coming soon", "failed": "not available"}
)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A model in the catalogue of this server."""

    manifest: ModelManifest
    status: Status
    providers: int
    """Live replicas that this server knows of: itself, or none."""
    microcredits_per_token: int | None
    """None: it is not served, and its manifest names no price."""
    fingerprint: str = ""
    """Empty while it is not loaded."""
    precision: str = ""

    @property
    def id(self) -> str:
        """What clients write."""
        return self.manifest.id


def listings(service: Service) -> Mapping[str, Listing]:
    """Every model by id: what is served first, then what has a manifest only; small before large."""
    served = {hosted.name: _served(hosted) for hosted in service.hosting.models.values()}
    rest = {name: _known(manifest) for name, manifest in service.catalog.items() if name not in served}
    return {listing.id: listing for listing in (*_by_size(served), *_by_size(rest))}


def find(service: Service, model: str) -> Listing | None:
    """One model by its id."""
    return listings(service).get(model)


def _by_size(group: Mapping[str, Listing]) -> Sequence[Listing]:
    return sorted(group.values(), key=lambda listing: (listing.manifest.parameters or float("inf"), listing.id))


def _known(manifest: ModelManifest) -> Listing:
    return Listing(
        manifest=manifest, status="soon", providers=0, microcredits_per_token=manifest.microcredits_per_token
    )


def _served(hosted: Hosted) -> Listing:
    loaded = hosted.loaded
    return Listing(
        manifest=_manifest(hosted),
        status=STATUS_OF[hosted.state],
        providers=1 if hosted.state == "ready" else 0,
        microcredits_per_token=hosted.microcredits_per_token,
        fingerprint=loaded.fingerprint if loaded else "",
        precision=loaded.embedder.precision if loaded else "",
    )


def _manifest(hosted: Hosted) -> ModelManifest:
    """By the model's id, else by what it is loaded from; else what the engine knows of it."""
    written = hosted.manifest
    return _from_engine(
        replace(written, id=hosted.name) if written else ModelManifest(id=hosted.name, title=hosted.name), hosted
    )


def _from_engine(known: ModelManifest, hosted: Hosted) -> ModelManifest:
    """Fill in what the manifest does not say and the loaded model does."""
    if hosted.loaded is None:
        return known
    embedder = hosted.loaded.embedder
    config, own = embedder.config, embedder.manifest
    facts: dict[str, Any] = {
        "architecture": f"Decoder-only transformer (BLOOM), {config.layers} layers, {config.width} wide",
        "parameters": config.parameters,
        "dimensions": tuple(reversed(trained_sizes(embedder))),
        "max_tokens": embedder.max_tokens,
        "licence": own.license,
        "results": read_scores(own.scores),
        "base": hosted.loaded.base,
        "method": "A delta: only the biases differ from the base model" if hosted.loaded.base else "",
    }
    return replace(known, **{name: value for name, value in facts.items() if not getattr(known, name)})
