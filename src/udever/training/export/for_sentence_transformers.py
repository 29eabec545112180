"""A model as a folder that sentence-transformers 6 loads and that gives its vectors there, in both roles.

    encode_query(texts), encode_document(texts), encode(texts, prompt_name="document"); encode(texts) is a query

How: a chat template writes the role's markers around a text; sentence-transformers hands it the task and the prompt,
and restores what a template ends with where truncation cut it off. The markers have names that no text holds, so that
`[EOQ]` in a text stays five characters. transformers' own tokenizer reads every text as a query.
Invariant: the folder is checked against the model before it takes its name, where sentence-transformers 6 is installed.
Does not know: the command line, or ONNX (export/for_onnx.py).
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udever.engine.embedder import Embedder
from udever.engine.folders import whole_folder
from udever.errors import UdeverError
from udever.tokenizer import MARKERS, ROLES, Role
from udever.training.deltas.comparing import Weights
from udever.training.deltas.full_model import (
    ModelFiles,
    Storage,
    parts_of,
    side_files,
    tokenizer_config,
    write_safetensors,
)
from udever.training.export.role_tokenizer import GUARD, pad_token, private, private_name

Vectors = NDArray[np.float32]
DEFAULT_ROLE: Role = "query"
"""Of a text whose role nobody names: what `Embedder.embed` takes by default, and right for symmetric tasks."""
MIN_COSINE = 0.99999
SHORT_TOKENS = 12
"""A limit that cuts most of the sample texts."""
SAMPLES = (
    "How tall is the mountain that one sees from the old harbour?",
    "¿Qué altura tiene la montaña?",
    "Quelle est la hauteur de la montagne, s'il vous plaît ?",
    "这座山有多高？我不知道。",
    "山の高さはどれくらいですか。",
    "ما هو ارتفاع الجبل؟",
    "पहाड़ कितना ऊँचा है?",
    "পাহাড়টি কত উঁচু?",
    "Ngọn núi cao bao nhiêu?",
    "Mlima una urefu gani?",
    "Какой высоты гора?",
    "def height(metres: float = 8611.0) -> float:\n    return max(metres, 0.0)\n",
    " [BOD] a text may speak of [EOQ] and <s>tags</s>, and end in white space \n",
    "🏔️",
)
"""Texts for the check."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """How near an exported model's vectors are to the model's own."""

    texts: int
    """Compared, over both roles, whole and truncated."""
    min_cosine: float


def export_sentence_transformers(
    name: str, folder: Path, *, storage: Storage = "exact", check: bool = True
) -> Checked | None:
    """Write the folder; a delta is merged into it.

    Args:
        name: as `Embedder.load` takes it.
        check: compare with the model, if sentence-transformers 6 is installed.

    Returns:
        the result of the check; None if there was none.

    Raises:
        ModelError: what `Embedder.load` would raise.
        OptionError: `folder` is there already, or an unknown storage.
        UdeverError: the check failed, and no half precision was asked for; nothing is written.
    """
    weights = Weights(name)
    tokenizer = weights.located.tokenizer()
    manifest = weights.manifest()
    files = ModelFiles(
        folder=weights.located.base.folder,
        raw_config=weights.checkpoint.raw_config,
        tokenizer=tokenizer,
        manifest=manifest,
        storage=storage,
    )
    texts = {name: content for name, content in side_files(files).items() if name == "config.json"}
    texts["tokenizer.json"] = private(tokenizer, role=DEFAULT_ROLE)
    texts["tokenizer_config.json"] = _json(_tokenizer_config(files))
    texts |= {name: _json(content) for name, content in _module_files(weights.config.width).items()}
    texts["README.md"] = _readme(manifest.name or name, manifest.license, recipe=weights.recipe)
    with whole_folder(folder) as unfinished:
        with (unfinished / "model.safetensors").open("wb") as stream:
            write_safetensors(stream, parts_of(weights.checkpoint.tensors(), weights.moved, storage=storage))
        for file, content in texts.items():
            (unfinished / file).parent.mkdir(exist_ok=True)
            (unfinished / file).write_text(content, "utf-8")
        if not check or not _can_load():
            return None
        exact = storage in ("exact", "fp32")  # half precision was asked for: how near it comes is told
        return check_against(name, _sentence_transformers(unfinished), least=MIN_COSINE if exact else None)


Encode = Callable[[list[str], Role, int], Vectors]
"""Texts, their role and the longest in tokens → unit vectors."""


def check_against(name: str, make: Callable[[], Encode], *, least: float | None) -> Checked:
    """Compare an exported model with the model on `SAMPLES`, in both roles, whole and truncated.

    Args:
        make: loads the exported one, when the other is gone.
        least: None: whatever it is.

    Raises:
        UdeverError: a cosine below `least`.
    """
    embedder = Embedder.load(name, precision="fp32", device="cpu")
    limits = (embedder.max_tokens, min(SHORT_TOKENS, embedder.max_tokens))
    cases = [(role, limit) for role in ROLES for limit in limits]
    ours = [embedder.embed(SAMPLES, role, max_tokens=limit, truncate="end") for role, limit in cases]
    del embedder
    encode = make()
    cosines = [
        (vectors * encode(list(SAMPLES), role, limit)).sum(1)
        for (role, limit), vectors in zip(cases, ours, strict=True)
    ]
    worst = float(np.concatenate(cosines).min())
    if least is not None and not worst >= least:
        raise UdeverError(
            f"the exported model's vectors are not the model's: a cosine is {worst:.7f}",
            hint="nothing was written; report this with the versions of transformers, tokenizers and the target",
        )
    return Checked(texts=len(SAMPLES) * len(cases), min_cosine=worst)


def _can_load() -> bool:
    """Whether a sentence-transformers is installed that knows chat templates."""
    try:
        return int(version("sentence-transformers").partition(".")[0]) >= 6
    except (PackageNotFoundError, ValueError):
        return False


def _sentence_transformers(folder: Path) -> Callable[[], Encode]:
    def make() -> Encode:
        with _quiet_transformers():
            from sentence_transformers import SentenceTransformer

            model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)

        def encode(texts: list[str], role: Role, max_tokens: int) -> Vectors:
            model.max_seq_length = max_tokens
            by_role = {"query": model.encode_query, "document": model.encode_document}[role]
            return np.asarray(by_role(texts, show_progress_bar=False), np.float32)

        return encode

    return make


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def chat_template() -> str:
    """Jinja: the role by prompt, else by task, else the default; a foreign prompt stands before the text."""
    names = {role: [private_name(marker) for marker in MARKERS[role]] for role in ROLES}
    quoted = json.dumps(names)  # with escapes: a literal noncharacter would vanish from many an editor
    guard, roles = json.dumps(GUARD), json.dumps(list(ROLES))
    # The guard before "[" would be a forged marker: a space parts them. Nothing but such a forgery holds the two.
    return (
        "{%- set names = " + quoted + " -%}"
        "{%- set state = namespace(role='" + DEFAULT_ROLE + "', text='') -%}"
        "{%- if task is defined and task in " + roles + " -%}{%- set state.role = task -%}{%- endif -%}"
        "{%- for message in messages -%}"
        "{%- if message.role == 'system' and message.content in " + roles + " -%}"
        "{%- set state.role = message.content -%}"
        "{%- else -%}{%- set state.text = state.text + message.content -%}{%- endif -%}"
        "{%- endfor -%}"
        "{{- names[state.role][0] + state.text | replace(" + guard + " + '[', " + guard + " + ' [')"
        " + names[state.role][1] -}}"
    )


def _tokenizer_config(files: ModelFiles) -> dict[str, Any]:
    markers = [private_name(marker) for pair in MARKERS.values() for marker in pair]
    return tokenizer_config(files) | {
        "pad_token": pad_token(files.tokenizer, files.raw_config)[1],
        "additional_special_tokens": markers,
        "chat_template": chat_template(),
    }


def _module_files(width: int) -> dict[str, Any]:
    """What sentence-transformers 6 reads; earlier releases know none of these modules and say so."""
    base, dense = "sentence_transformers.base.modules", "sentence_transformers.sentence_transformer.modules"
    modules = (
        ("", f"{base}.transformer.Transformer"),
        ("1_Pooling", f"{dense}.pooling.Pooling"),
        ("2_Normalize", f"{base}.normalize.Normalize"),
    )
    forward = {"method": "forward", "method_output_name": "last_hidden_state"}
    return {
        "modules.json": [
            {"idx": index, "name": str(index), "path": path, "type": kind} for index, (path, kind) in enumerate(modules)
        ],
        "config_sentence_transformers.json": {
            "__version__": {"sentence_transformers": "6.0.0"},
            "model_type": "SentenceTransformer",
            "prompts": {role: role for role in ROLES},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": forward, "message": forward | {"format": "flat"}},
            "module_output_name": "token_embeddings",
        },
        "1_Pooling/config.json": {"embedding_dimension": width, "pooling_mode": "lasttoken", "include_prompt": True},
        "2_Normalize/config.json": {},
    }


def _readme(name: str, license_: str, *, recipe: str) -> str:
    head = f"---\nlibrary_name: sentence-transformers\npipeline_tag: sentence-similarity\n{_license(license_)}---\n"
    return f"""{head}
# {name}, for sentence-transformers 6

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("this folder")
queries = model.encode_query(["how tall is the mountain?"])      # or encode(…, prompt_name="query"), or encode(…)
documents = model.encode_document(["The mountain is 8,611 m."])  # or encode(…, prompt_name="document")
model.similarity(queries, documents)
```

The vectors are those of the udever model this folder was exported from: markers, last-token pooling and unit length
are taken care of. Written by `udever export`.{made_by(recipe)}
"""


def made_by(recipe: str) -> str:
    """A sentence for an exported model's page: which recipe's digest its weights go back to."""
    return f" The model was trained by the recipe `{recipe}`." if recipe else ""


def _license(name: str) -> str:
    return f"license: {name.lower()}\n" if name else ""


def _json(value: object) -> str:
    return json.dumps(value, indent=1) + "\n"
