"""Udever as mteb sees it: an encoder that gives every text its role, and a card that says which weights these are.

    mteb's prompt type   document → the role document; query, or none at all → the role query

So a symmetric task (STS, pair classification, bitext mining, clustering, classification, summarisation: mteb names no
prompt type there) embeds both sides as queries, as the authors do; retrieval and reranking have their two sides.

Invariant: mteb gets raw vectors. Its main scores are cosines (`similarity`, from `AbsEncoder`), which lengths do not
change; but its dot products and distances (pair classification, STS, summarisation), its k-means and its logistic
regression see the hidden states themselves, as in the authors' runs.
Does not know: where a task's data comes from, or where its scores go.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, get_args

import numpy as np
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_implementations import MODEL_REGISTRY
from mteb.models.model_meta import ScoringFunction
from mteb.types import EncodeKwargs, Licenses, PromptType

from udever.engine.embedder import Embedder, Vectors
from udever.evaluation.encoder import markers_alone
from udever.evaluation.results import slug

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata

    from udever.tokenizer import Role

ROLE_OF: "Mapping[PromptType | None, Role]" = {
    PromptType.query: "query",
    PromptType.document: "document",
    None: "query",
}
"""The role of each prompt type; no other exists."""

OWNER = "udever"
"""mteb wants names like owner/model: what has no owner gets this one."""

TRAINED_ON = {
    "udever-nano": {
        "FloresBitextMining",
        "JSTS",
        "KorSTS",
        "NTREXBitextMining",
        "STSBenchmark",
        "STSBenchmarkMultilingualSTS",
        "Tatoeba",
        "XNLI",
        "indonli",
    },
}
"""Model → mteb's names of tasks whose data (if without labels) its training saw: its scores there are not zero-shot."""
TEACHERS = {"udever-nano": "intfloat/multilingual-e5-small"}
"""Model → the model it was distilled from, as mteb names it; what the teacher was trained on counts too."""


class UdeverEncoder(AbsEncoder):
    """An `Embedder` behind mteb's `EncoderProtocol`.

    Texts over the token limit are cut at the end. A text without characters, which `Embedder` refuses and mteb's data
    holds, is its role's two markers alone: what the authors' code makes of it. A document is what mteb composes:
    its title, a space, its text.
    """

    mteb_model_meta: ModelMeta

    def __init__(
        self,
        embedder: Embedder,
        *,
        meta: ModelMeta | None = None,
        dimensions: int | None = None,
        max_tokens: int | None = None,
    ) -> None:
        """Options as in `Embedder.embed`; `meta` is by default `describe` of the same options.

        Raises:
            InputError: dimensions or max_tokens that this model has not.
        """
        self._embedder = embedder
        self._shape: dict[str, Any] = {"dimensions": dimensions, "max_tokens": max_tokens}
        self._dimensions = embedder.embed(["a"], **self._shape).shape[1]  # refuses bad options before any download
        self.mteb_model_meta = meta or describe(embedder, dimensions=dimensions, max_tokens=max_tokens)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: "TaskMetadata",  # noqa: ARG002  mteb's protocol; a Udever reads every task alike
        hf_split: str,  # noqa: ARG002
        hf_subset: str,  # noqa: ARG002
        prompt_type: PromptType | None = None,
        **kwargs: Unpack[EncodeKwargs],
    ) -> Vectors:
        """Raw vectors float32 [texts, dimensions] of the batches' texts, in order.

        Of `kwargs` only `show_progress_bar` has a meaning: the size of mteb's batches is not that of the model's.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        role = ROLE_OF[prompt_type]
        embedded = self._embedder.embed(
            [text for text in texts if text != ""],
            role=role,
            normalize=False,
            truncate="end",
            progress=kwargs.get("show_progress_bar", False),
            **self._shape,
        )
        if len(embedded) == len(texts):
            return embedded
        vectors = np.empty((len(texts), self._dimensions), np.float32)
        empty = np.array([text == "" for text in texts])
        vectors[empty], vectors[~empty] = self._markers_alone(role), embedded
        return vectors

    def _markers_alone(self, role: "Role") -> Vectors:
        raw = markers_alone(self._embedder, role)
        return self._embedder.finish(raw, normalize=False, dimensions=self._shape["dimensions"])


def describe(
    embedder: Embedder,
    *,
    name: str | None = None,
    revision: str | None = None,
    dimensions: int | None = None,
    max_tokens: int | None = None,
) -> ModelMeta:
    """What mteb writes beside the scores, and by which it finds them again.

    The revision is the commit of a hub model, else the fingerprint. What moves a score without being another model (a
    precision other than fp32, fewer dimensions, a lower token limit) is an experiment of mteb's, kept in a folder of
    its own. Facts on the published models come from mteb, but for its loader, which knows no markers.

    Args:
        name: what the model was asked for by: a hub id, a folder or a built-in name; default `embedder.name`.
        revision: branch, tag or commit that was asked for.
    """
    asked = name or embedder.name
    commit = _hub_commit(asked, revision=revision)
    known = MODEL_REGISTRY.get(asked) if commit else None
    facts: dict[str, Any] = {
        "loader": None,
        "loader_kwargs": {"fingerprint": embedder.fingerprint},
        "name": asked if commit else f"{OWNER}/{slug(Path(embedder.name).name)}",
        "revision": commit or embedder.fingerprint,
        "n_parameters": embedder.config.parameters,
        "n_embedding_parameters": embedder.config.vocab_size * embedder.config.width,
        "max_tokens": max_tokens or embedder.max_tokens,
        "embed_dim": dimensions or embedder.dimensions,
        "open_weights": True,
        "framework": ["PyTorch", "safetensors"],
        "similarity_fn_name": ScoringFunction.COSINE,
        "use_instructions": False,
        "experiment_kwargs": _experiment(embedder, dimensions=dimensions, max_tokens=max_tokens),
    }
    if known is None:
        facts |= {"license": _license(embedder.manifest.license), "training_datasets": _trained_on(embedder.name)}
    return (known or ModelMeta.create_empty()).model_copy(update=facts, deep=True)


def _hub_commit(name: str, *, revision: str | None) -> str | None:
    """The commit in the local cache that a hub id was loaded from; None for a folder or a built-in model."""
    if Path(name).expanduser().is_dir():
        return None
    try:
        config = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(config).parent.name if isinstance(config, str) else None


def _experiment(embedder: Embedder, *, dimensions: int | None, max_tokens: int | None) -> dict[str, Any] | None:
    """Every choice that is not the reference, by name; None if there is none."""
    choices = {
        "precision": (embedder.precision, "fp32"),
        "dimensions": (dimensions or embedder.dimensions, embedder.dimensions),
        "max_tokens": (max_tokens or embedder.max_tokens, embedder.max_tokens),
    }
    return {choice: value for choice, (value, reference) in choices.items() if value != reference} or None


def _license(spoken: str) -> str | None:
    """As mteb spells it; None where it does not know the licence."""
    return spoken.lower() if spoken.lower() in get_args(Licenses) else None


def _trained_on(name: str) -> set[str] | None:
    """Names of mteb's tasks; None (unknown) for a model of somebody's own."""
    if name not in TRAINED_ON:
        return None
    teacher = MODEL_REGISTRY.get(TEACHERS.get(name, ""))
    return TRAINED_ON[name] | (teacher.training_datasets or set() if teacher else set())
