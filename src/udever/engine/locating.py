"""A model's name to where its parts lie: one folder for a full checkpoint, two for a delta.

Invariant: the base of a delta is a full checkpoint; where it lies does not matter, its weights' digest does.
This module knows nothing of texts, batches or devices.
"""

from dataclasses import dataclass
from pathlib import Path

from udever.engine import registry
from udever.engine.deltas import Delta, Moved
from udever.engine.hub import DELTA_FILE
from udever.engine.registry import MANIFEST, Manifest, ModelSource
from udever.errors import DeltaError, ModelNotFoundError, OptionError
from udever.model.config import BloomConfig
from udever.model.weights import Checkpoint
from udever.tokenizer import UdeverTokenizer


@dataclass(frozen=True, kw_only=True)
class Located:
    """Where a model's parts lie: a full checkpoint's in one folder, a delta's in its own and in its base's."""

    source: ModelSource
    """As it was asked for."""
    base: ModelSource
    """The full checkpoint: the same, unless it is a delta."""
    delta: Delta | None = None

    def checkpoint(self) -> Checkpoint:
        """The weights that are mapped. Raises the errors of `Checkpoint.open`."""
        return Checkpoint.open(self.base.folder)

    def weights_digest(self, checkpoint: Checkpoint) -> str:
        """`registry.weights_digest` of the full checkpoint, found to be the one that the delta belongs to.

        Raises:
            DeltaError: it is another.
        """
        digest = registry.weights_digest(checkpoint, self.base.folder)
        if self.delta:
            self.delta.require_base(digest, folder=self.base.folder)
        return digest

    def moved(self, checkpoint: Checkpoint) -> Moved:
        """What the delta changes in the checkpoint; nothing without a delta.

        Raises:
            DeltaError: the checkpoint is not its base.
            TensorNamesError, TensorShapeError: it does not fit.
        """
        if self.delta is None:
            return Moved(biases={})
        self.weights_digest(checkpoint)
        return self.delta.moved(checkpoint)

    def manifest(self, config: BloomConfig) -> Manifest:
        """`registry.load_manifest` of the model that was asked for."""
        return registry.load_manifest(self.source.folder, config=config)

    def tokenizer(self, *, add_markers: bool = False) -> UdeverTokenizer:
        """The delta's own tokenizer, else the base's, with markers if it has none and this is a delta.

        Args:
            add_markers: add them without a delta, too.

        Raises:
            TokenizerError, NotAnEmbedderError: as `UdeverTokenizer.from_folder`.
            DeltaError: the base's is not the one that the delta was made with.
        """
        if self.delta is None:
            return UdeverTokenizer.from_folder(self.base.folder, add_markers=add_markers)
        folder = self.tokenizer_folder
        tokenizer = UdeverTokenizer.from_folder(folder, add_markers=True)
        if self.delta.tokenizer and tokenizer.digest != self.delta.tokenizer:
            raise DeltaError(
                f"the delta {self.delta.folder} was made with the tokenizer {self.delta.tokenizer}, but the one in"
                f" {folder} is {tokenizer.digest}",
                hint="get the base's own tokenizer.json, or copy the right one into the delta's folder",
            )
        return tokenizer

    @property
    def own_tokenizer(self) -> bool:
        """Whether this is a delta that brings its own tokenizer."""
        return self.delta is not None and (self.delta.folder / "tokenizer.json").is_file()

    @property
    def tokenizer_folder(self) -> Path:
        """The folder whose tokenizer.json is read."""
        return self.source.folder if self.own_tokenizer else self.base.folder


def locate(name: str, *, revision: str | None = None, token: str | None = None, as_base: bool = False) -> Located:
    """Find a model, and its base if it is a delta; arguments as `registry.resolve`.

    Raises:
        The errors of `registry.resolve` and `Delta.open`.
        ModelNotFoundError: the base is missing; says which delta needs it.
        DeltaError: the base is a delta itself.
        OptionError: a revision of what is no hub model.
    """
    source = registry.resolve(name, revision=revision, token=token, as_base=as_base)
    if revision is not None and source.kind != "hub":
        what = "is built in" if source.kind == "built-in" else f"is the folder {source.folder}"
        raise OptionError(f"{name!r} {what}, which has no revision {revision!r}", hint="only hub models have revisions")
    if not (source.folder / DELTA_FILE).is_file():
        return Located(source=source, base=source)
    delta = Delta.open(source.folder)
    return Located(source=source, base=_find_base(delta, token=token), delta=delta)


def _find_base(delta: Delta, *, token: str | None) -> ModelSource:
    name = delta.base.name
    beside = delta.folder / name  # an absolute path stays what it is
    try:
        if name not in registry.builtin_models() and beside.is_dir():
            source = ModelSource(name=name, folder=beside, kind="folder")
        else:
            source = registry.resolve(name, revision=delta.base.revision, token=token, as_base=True)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"the delta {delta.folder} needs its base {name!r}: {error.message}",
            hint=f"a delta is biases only; get the base, and write where it lies as base.name into"
            f" {delta.folder / MANIFEST}. {error.hint}",
        ) from error
    if (source.folder / DELTA_FILE).is_file():
        raise DeltaError(
            f"the base of the delta {delta.folder} is a delta itself: {source.folder}",
            hint="name the full checkpoint under both: `udever delta merge` makes one",
        )
    return source
