"""Deltas made into checkpoints, checkpoints into deltas, several deltas into one.

Invariant: what is written embeds as what it was made from; nothing that moved is left out silently.
Does not know: how the results are shown.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from udever.engine import deltas
from udever.engine.deltas import BaseReference, Delta, Moved
from udever.engine.registry import CARD, Manifest
from udever.errors import DeltaError, OptionError
from udever.model.config import TABLE
from udever.model.weight_files import first_of
from udever.training.card import mean_card
from udever.training.deltas.comparing import Difference, Weights, compare
from udever.training.deltas.full_model import ModelFiles, Storage, parts_of, write_full

MERGED = "\nMerged with its base into one checkpoint by `udever delta merge`.\n"
"""Said at the end of a merged model's card."""


def merge(name: str, folder: Path, *, storage: Storage = "exact") -> None:
    """Write a delta and its base as one full checkpoint, which transformers and udever load.

    Raises:
        DeltaError: `name` is no delta.
        OptionError: an unknown storage, or `folder` is there already.
    """
    model = Weights(name)
    delta = _require_delta(model)
    files = ModelFiles(
        folder=model.located.base.folder,
        raw_config=model.checkpoint.raw_config,
        tokenizer=model.tokenizer,
        manifest=model.manifest(),
        recipe=delta.recipe,
        storage=storage,
        card=_merged_card(delta.folder),
    )
    write_full(folder, parts_of(model.checkpoint.tensors(), model.moved, storage=storage), files=files)


def extract(full: str, folder: Path, *, base: str, kind: deltas.Kind = "absolute") -> Difference:
    """Write what a model differs in from a base checkpoint as a delta.

    Raises:
        DeltaError: more than biases and the markers' rows moved (the tensors are named), or `base` is a delta.
    """
    tuned, ground = Weights(full), Weights(base)
    if ground.located.delta:
        raise DeltaError(
            f"{base} is a delta", hint="the base must be a full checkpoint; `udever delta merge` makes one"
        )
    found = compare(ground, tuned)
    if found.others:
        listed = first_of("; ".join(found.others[:5]), shown=5, total=len(found.others))
        raise DeltaError(
            f"{full} differs from {base} in more than biases and markers: {listed}",
            hint="such a model has no delta: use it whole, or name the base that it was trained on",
        )
    names = [change.tensor for change in found.changes if change.tensor != TABLE]
    moved = Moved(
        biases={name: torch.cat(list(tuned.pieces(name))).float() for name in names},
        token_ids=found.token_ids,
        rows=tuned.moved.table_rows(tuned.checkpoint, found.token_ids) if found.token_ids else None,
    )
    _write(folder, moved, ground, like=tuned, manifest=tuned.manifest(), kind=kind, recipe=tuned.recipe)
    return found


def average(names: Sequence[str], folder: Path, *, weights: Sequence[float] = (), name: str = "") -> None:
    """Write the mean of deltas of one base: a model between them.

    Args:
        weights: one a delta, in any scale; empty: all the same.
        name: the new delta's.

    Raises:
        DeltaError: something is no delta, or stands on another base, or has another tokenizer.
        OptionError: fewer than two deltas, another number of weights, or weights without a positive sum.
    """
    shares = _shares(names, weights)
    models = [Weights(name) for name in names]
    for model in models:
        _require_delta(model)
    first = models[0]
    for model in models[1:]:
        for what, differs in (
            ("base", model.base_digest != first.base_digest),
            ("tokenizer", model.tokenizer.digest != first.tokenizer.digest),
        ):
            if differs:
                raise DeltaError(
                    f"{model.name} has another {what} than {first.name}",
                    hint="only deltas of one base can be averaged",
                )
    manifests = [model.manifest() for model in models]
    trained = set(manifests[0].matryoshka).intersection(*(manifest.matryoshka for manifest in manifests))
    manifest = replace(
        manifests[0],
        name=name,
        max_tokens=min(manifest.max_tokens for manifest in manifests),
        matryoshka=tuple(sorted(trained)),
        scores={},
    )
    parts = [(made.name or name, share) for made, name, share in zip(manifests, names, shares, strict=True)]
    card = mean_card(manifest, base=first.located.base.name, dimensions=first.config.width, parts=parts)
    _write(folder, _mean(models, shares), first, like=first, manifest=manifest, card=card)


def _merged_card(folder: Path) -> str:
    """The delta's own, if it has one: both embed alike."""
    path = folder / CARD
    return path.read_text("utf-8") + MERGED if path.is_file() else ""


def _mean(models: Sequence[Weights], shares: Sequence[float]) -> Moved:
    names = dict.fromkeys(name for model in models for name in model.moved.biases)
    token_ids = tuple(sorted({index for model in models for index in model.moved.token_ids}))

    def mean(values: Iterator[Tensor]) -> Tensor:
        total = sum(share * value.double() for share, value in zip(shares, values, strict=True))
        return torch.as_tensor(total).float()

    return Moved(
        biases={name: mean(torch.cat(list(model.pieces(name))) for model in models) for name in names},
        token_ids=token_ids,
        rows=mean(model.moved.table_rows(model.checkpoint, token_ids) for model in models) if token_ids else None,
    )


def _shares(names: Sequence[str], weights: Sequence[float]) -> list[float]:
    if len(names) < 2:
        raise OptionError("an average needs two deltas at least", hint="name all of them")
    if weights and len(weights) != len(names):
        raise OptionError(f"{len(weights)} weights for {len(names)} deltas", hint="give one a delta, in their order")
    total = sum(weights) if weights else len(names)
    if not total > 0:
        raise OptionError(f"the weights' sum is {total}", hint="it must be above 0")
    return [weight / total for weight in weights] if weights else [1 / total] * len(names)


def _write(
    folder: Path,
    moved: Moved,
    base: Weights,
    *,
    like: Weights,
    manifest: Manifest,
    kind: deltas.Kind = "absolute",
    recipe: str = "",
    card: str = "",
) -> None:
    """`like` has the tokenizer."""
    own_tokenizer = base.located.own_tokenizer or like.tokenizer.digest != base.tokenizer.digest
    deltas.write(
        folder,
        moved,
        checkpoint=base.checkpoint,
        base=BaseReference.to(base.located.base, weights=base.base_digest, folder=folder),
        manifest=manifest,
        tokenizer=like.tokenizer,
        own_tokenizer=own_tokenizer,
        kind=kind,
        recipe=recipe,
        card=card,
    )


def _require_delta(model: Weights) -> Delta:
    if model.located.delta is None:
        raise DeltaError(f"{model.name} is no delta: it has weights of its own", hint="name a folder with a delta")
    return model.located.delta
