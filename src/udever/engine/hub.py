"""A hub id to a local folder with the files an embedder reads, through huggingface_hub and its cache.

Invariant: config, tokenizer and manifest come first and are checked before the weights, which are gigabytes; of several
weight layouts one is fetched. Whatever goes wrong is a `ModelNotFoundError` that names the id, what was tried and the
way out. This module knows nothing of built-in models or local folders.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HFValidationError,
    HTTPError,  # base of all errors of whichever HTTP library this huggingface_hub uses
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

from udever.errors import CorruptFileError, ModelNotFoundError
from udever.model.config import BloomConfig
from udever.model.weight_files import choose_weight_files, weight_files
from udever.model.weights import read_raw_config
from udever.tokenizer import UdeverTokenizer

DELTA_FILE = "delta.safetensors"
"""What makes a folder a delta: the biases that differ from its base's; see deltas.py."""
SMALL_FILES = ("config.json", "tokenizer.json", "udever.json", DELTA_FILE)
"""What is fetched before the weights."""


def fetch(hub_id: str, *, revision: str | None, token: str | None, as_base: bool = False) -> Path:
    """The folder of a hub model's files in the local cache, downloaded as far as it lacks them.

    Offline, what the cache has is used. A delta is whole without weights: they are its base's.

    Args:
        as_base: a BLOOM without markers will do.

    Raises:
        ModelNotFoundError: missing, private, gated, without weights, or out of reach and not cached.
        NotBloomError, ConfigError, TokenizerError, NotAnEmbedderError: no Udever checkpoint; nothing large was fetched.
    """
    try:
        folder = Path(
            snapshot_download(
                hub_id, revision=revision, token=token, allow_patterns=list(SMALL_FILES), tqdm_class=_NoProgress
            )
        )
        if not (folder / DELTA_FILE).exists() and not _has_weights(folder):
            _require_udever(folder, as_base=as_base)
            listed = HfApi(token=token).model_info(hub_id, revision=folder.name).siblings or []
            wanted = list(choose_weight_files(file.rfilename for file in listed))
            if not wanted:
                raise ModelNotFoundError(
                    f"hub model {hub_id!r} has no weights udever can read",
                    hint="it needs model.safetensors or pytorch_model.bin, whole or sharded",
                )
            snapshot_download(hub_id, revision=folder.name, token=token, allow_patterns=wanted)
    except (HTTPError, HFValidationError, OSError) as error:
        raise _not_found(hub_id, revision=revision, error=error) from error
    return folder


class _NoProgress(tqdm):
    """No bar for files that take a moment."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options | {"disable": True})  # type: ignore[no-untyped-call]


def _has_weights(folder: Path) -> bool:
    try:
        return bool(weight_files(folder))
    except (ModelNotFoundError, CorruptFileError):
        return False


def _require_udever(folder: Path, *, as_base: bool) -> None:
    BloomConfig.from_hugging_face(read_raw_config(folder))
    UdeverTokenizer.from_folder(folder, add_markers=as_base)


_ELSEWHERE = (
    "or run `hf download {hub_id}` on a connected machine, copy the folder that it prints to this one and pass its path"
)
_REASONS: tuple[tuple[type[Exception], str, str], ...] = (
    (
        OfflineModeIsEnabled,
        "it is not, or not wholly, in the local cache, and HF_HUB_OFFLINE forbids to download it",
        f"unset HF_HUB_OFFLINE; {_ELSEWHERE}",
    ),
    (
        GatedRepoError,
        "its owner gives access on request and this token has none",
        "accept the terms on the model's hub page, then pass token=… or run `hf auth login`",
    ),
    (
        RepositoryNotFoundError,
        "the hub has no such model, or it is private",
        "check the spelling; for a private model pass token=… or run `hf auth login`",
    ),
    (RevisionNotFoundError, "it has no such revision", "pass a branch, tag or commit that the hub page lists"),
    (HFValidationError, "that is no valid hub id", "a hub id is owner/model"),
)
"""Errors of huggingface_hub, the narrower class first; what they mean; the way out."""


def _not_found(hub_id: str, *, revision: str | None, error: Exception) -> ModelNotFoundError:
    model = f"hub model {hub_id!r}" + (f" at revision {revision!r}" if revision else "")
    tried = "tried: built-in models, a local folder of that name, the local hub cache, the hub"
    causes = (error, error.__cause__)  # huggingface_hub wraps being offline in "not in the cache"
    for kind, meaning, way_out in _REASONS:
        if any(isinstance(cause, kind) for cause in causes):
            return ModelNotFoundError(f"{model}: {meaning} ({tried})", hint=way_out.format(hub_id=hub_id))
    reason = (str(error).strip() or "no details").splitlines()[0].removeprefix("Got: ")
    return ModelNotFoundError(
        f"{model}: it is not, or not wholly, in the local cache, and the hub did not deliver it: {reason} ({tried})",
        hint=f"check connection, proxy and disk space; {_ELSEWHERE.format(hub_id=hub_id)}",
    )
