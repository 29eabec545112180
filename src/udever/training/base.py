"""A BLOOM made ready for training, and what was trained written as a model.

    base = load_base("bigscience/bloom-560m");  …train base.model…;  write_delta(folder, base.model, base, …)

Invariant: the base's files are only read; what is written holds all that differs from them, and loads with
`Embedder.load`. A base without markers gets them in the first spare rows of its token table, as the published models
have them.
Does not know: what is trained, or how.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from udever.engine import deltas
from udever.engine.deltas import BaseReference, Moved, table_rows
from udever.engine.loading import resolve_device
from udever.engine.locating import locate
from udever.engine.registry import Manifest, ModelSource, check_finite
from udever.errors import OptionError, TokenizerError
from udever.model.bloom import Bloom, OwnRows, checkpoint_tensors
from udever.model.config import TABLE, BloomConfig
from udever.model.precision import DTYPES, resolve_precision
from udever.model.weights import Checkpoint
from udever.tokenizer import UdeverTokenizer
from udever.training.deltas.full_model import ModelFiles, Storage, parts_of, write_full


@dataclass(frozen=True, kw_only=True)
class TrainBase:
    """What a run starts from."""

    model: Bloom
    """Trainable; its `own_rows` are the markers' rows, and those that a delta brought."""
    tokenizer: UdeverTokenizer
    """With the markers, whether or not the base's own has them."""
    own_tokenizer: bool
    """Whether it came with a delta, and is not that of the full checkpoint."""
    config: BloomConfig
    source: ModelSource
    """The full checkpoint underneath."""
    weights_digest: str
    """Of that checkpoint."""
    digest: str
    """Of the starting model: the checkpoint's, or of checkpoint and delta together."""
    manifest: Manifest
    """The starting model's; the published defaults for a raw BLOOM."""
    checkpoint: Checkpoint
    moved: Moved
    """What the starting model differs in from the checkpoint: nothing, unless it is a delta."""

    @property
    def name(self) -> str:
        """The checkpoint's name, as it was asked for."""
        return self.source.name

    def tensors(self) -> dict[str, Tensor]:
        """The starting model's weights by their names in a checkpoint, float32, the token table included: copies."""
        tensors = {name: tensor.to(torch.float32, copy=True) for name, tensor in self.checkpoint.tensors().items()}
        if self.moved.rows is not None:
            tensors[TABLE][list(self.moved.token_ids)] = self.moved.rows
        return tensors | dict(self.moved.biases)


def load_base(
    name: str,
    *,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    markers: bool = True,
    masters: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> TrainBase:
    """Load a model to train: a raw BLOOM, a Udever checkpoint or a delta (whose biases are then the starting point).

    Args:
        name: as `Embedder.load` takes it.
        precision: "fp32", "bf16" (the biases stay float32), "fp64" or "auto".
        markers: hold the markers' rows of the token table apart, so that they can move.
        masters: keep the matrices in float32 whatever the precision of their products, so that they can move.

    Raises:
        ModelError: as `Embedder.load`.
        TokenizerError: the token table has no room for the markers.
        OptionError: a precision that cannot be trained in.
    """
    chosen_device = device if isinstance(device, torch.device) else resolve_device(device)
    chosen = "fp64" if precision == "fp64" else resolve_precision(precision, device=chosen_device)
    if chosen == "int8":
        raise OptionError("precision int8 cannot be trained in", hint="choose auto, fp32 or bf16")
    located = locate(name, revision=revision, token=token, as_base=True)
    checkpoint = located.checkpoint()
    tokenizer = located.tokenizer(add_markers=True)
    _require_room(tokenizer, checkpoint.config, name=name)
    check_finite(checkpoint, located.base.folder)
    moved = located.moved(checkpoint)
    weights_digest = located.weights_digest(checkpoint)
    apart = {*moved.token_ids, *(tokenizer.marker_ids if markers else ())}
    rest = checkpoint.tensors(tensor for tensor in checkpoint.config.tensor_shapes() if tensor != TABLE)
    model = Bloom(
        checkpoint.config,
        rest | dict(moved.biases),
        table=checkpoint.tensors([TABLE])[TABLE],
        precision=chosen,
        device=chosen_device,
        trainable=True,
        masters=masters,
        own_rows=_own_rows(checkpoint, moved, sorted(apart), dtype=torch.promote_types(DTYPES[chosen], torch.float32)),
    )
    return TrainBase(
        model=model,
        tokenizer=tokenizer,
        own_tokenizer=located.own_tokenizer,
        config=checkpoint.config,
        source=located.base,
        weights_digest=weights_digest,
        digest=located.delta.combined_digest() if located.delta else weights_digest,
        manifest=located.manifest(checkpoint.config),
        checkpoint=checkpoint,
        moved=moved,
    )


def write_delta(
    folder: Path,
    model: Bloom,
    base: TrainBase,
    *,
    recipe_digest: str = "",
    name: str = "",
    max_tokens: int | None = None,
    matryoshka: Sequence[int] = (),
    license: str = "",
    scores: Mapping[str, Any] | None = None,
    card: str = "",
    kind: deltas.Kind = "absolute",
) -> None:
    """Write a trained model's biases and own rows, those that differ from the full checkpoint's, as a delta.

    A folder of that name is replaced.

    Args:
        max_tokens: None: the base's.
        matryoshka: prefix sizes it was trained for; the full width is added. Empty: the base's.
        license: empty: the base's.
        card: the model card; empty: none.

    Raises:
        NonFiniteWeightsError: the training diverged; nothing is written.
    """
    deltas.write(
        folder,
        changed(base, model),
        checkpoint=base.checkpoint,
        base=BaseReference.to(base.source, weights=base.weights_digest, folder=folder),
        manifest=_manifest(base, name, max_tokens, matryoshka, license, scores),
        tokenizer=base.tokenizer,
        own_tokenizer=base.own_tokenizer,
        kind=kind,
        recipe=recipe_digest,
        card=card,
        replace=True,
    )


def write_checkpoint(
    folder: Path,
    model: Bloom,
    base: TrainBase,
    *,
    recipe_digest: str = "",
    name: str = "",
    max_tokens: int | None = None,
    matryoshka: Sequence[int] = (),
    license: str = "",
    scores: Mapping[str, Any] | None = None,
    card: str = "",
    storage: Storage = "fp32",
) -> None:
    """Write a trained model whole, as transformers and udever load it; arguments as in `write_delta`."""
    tensors = checkpoint_tensors(model, kind="weight") | checkpoint_tensors(model, kind="bias") | {TABLE: model.table}
    files = ModelFiles(
        folder=base.source.folder,
        raw_config=base.checkpoint.raw_config,
        tokenizer=base.tokenizer,
        manifest=_manifest(base, name, max_tokens, matryoshka, license, scores),
        recipe=recipe_digest,
        storage=storage,
        card=card,
    )
    own = Moved(biases={}, token_ids=_token_ids(model.own_rows), rows=_row_values(model.own_rows))
    write_full(folder, parts_of(tensors, own, storage=storage), files=files, replace=True)


def changed(base: TrainBase, model: Bloom) -> Moved:
    """The biases and own rows of a model that differ from the full checkpoint's."""
    biases = {name: bias.float() for name, bias in checkpoint_tensors(model, kind="bias").items()}
    stored = base.checkpoint.tensors(biases)
    token_ids, rows = _token_ids(model.own_rows), _row_values(model.own_rows)
    if rows is not None:
        differs = (rows != table_rows(base.checkpoint, token_ids)).any(1)
        token_ids = tuple(index for index, moved in zip(token_ids, differs.tolist(), strict=True) if moved)
        rows = rows[differs] if token_ids else None
    return Moved(
        biases={name: bias for name, bias in biases.items() if not torch.equal(bias, stored[name].float())},
        token_ids=token_ids,
        rows=rows,
    )


def _manifest(
    base: TrainBase,
    name: str,
    max_tokens: int | None,
    matryoshka: Sequence[int],
    license_: str,
    scores: Mapping[str, Any] | None,
) -> Manifest:
    return replace(
        base.manifest,
        name=name,
        max_tokens=max_tokens or base.manifest.max_tokens,
        matryoshka=tuple(sorted({*matryoshka, base.config.width})) if matryoshka else base.manifest.matryoshka,
        license=license_ or base.manifest.license,
        scores=scores or {},
    )


def _require_room(tokenizer: UdeverTokenizer, config: BloomConfig, *, name: str) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise TokenizerError(
            f"{name} has no room for the markers: with them its tokenizer has {tokenizer.vocab_size:,} ids, and its"
            f" token table {config.vocab_size:,} rows",
            hint="train a BLOOM with spare rows (all published ones have 200), or enlarge the table by four rows",
        )


def _own_rows(checkpoint: Checkpoint, moved: Moved, token_ids: list[int], *, dtype: torch.dtype) -> OwnRows | None:
    if not token_ids:
        return None
    return OwnRows(torch.tensor(token_ids), moved.table_rows(checkpoint, token_ids).to(dtype))


def _token_ids(own_rows: OwnRows | None) -> tuple[int, ...]:
    return () if own_rows is None else tuple(own_rows.token_ids.tolist())


def _row_values(own_rows: OwnRows | None) -> Tensor | None:
    return None if own_rows is None else own_rows.rows.detach().cpu().float()
