"""A model's name to its folder, its manifest and its fingerprint.

Names are tried in this order: a built-in model, a local folder, a hub id ("owner/model").
Invariant: the same content has the same fingerprint on every machine and in every file layout; from the hub only the
files that an embedder reads are fetched, and nothing large before the small files have shown a Udever checkpoint.
This module knows nothing of texts, batches or devices.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Literal

from huggingface_hub import cached_assets_path, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from udever.engine.hub import fetch
from udever.errors import ConfigError, CorruptFileError, ModelNotFoundError, TokenizerError
from udever.model.config import PUBLISHED, BloomConfig
from udever.model.weight_files import weight_files
from udever.model.weights import Checkpoint
from udever.tokenizer import MARKERS, MIN_TOKENS, UdeverTokenizer

Kind = Literal["built-in", "folder", "hub"]
BUILTIN_FOLDER = Path(__file__).parent.parent / "builtin"
"""One folder for each model in the wheel."""
MANIFEST = "udever.json"
CARD = "README.md"
POOLING = "closing_marker"
"""The one pooling there is: the hidden state of the closing marker after the final norm."""


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a model was found."""

    name: str
    """The name it was asked for by."""
    folder: Path
    """The local folder with config.json, tokenizer.json and the weights."""
    kind: Kind
    revision: str | None = None
    """The commit of a hub model; None for other kinds."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `udever.json` says of a model; the published checkpoints have none, so every field has a default."""

    name: str = ""
    """The model's own name; empty where it has none, so use the name it was asked for by."""
    max_tokens: int
    """Longest input, both markers included."""
    matryoshka: tuple[int, ...] = ()
    """Prefix sizes the model was trained for, ascending; empty if it was not."""
    pooling: str = POOLING
    license: str = ""
    """Licence of the weights; empty if unknown."""
    scores: Mapping[str, Any] = field(default_factory=dict)
    """Evaluation results, as the training wrote them."""
    microcredits_per_token: int = 1
    """What the service asks for a token, unless its settings name another price."""


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """One of the authors' checkpoints on the hub."""

    hub_id: str
    config: BloomConfig
    license: str = "bigscience-bloom-rail-1.0"


def published_models() -> tuple[PublishedModel, ...]:
    """The authors' four checkpoints, smallest first."""
    return tuple(PublishedModel(hub_id=f"izhx/{name}", config=config) for name, config in PUBLISHED.items())


def builtin_models() -> tuple[str, ...]:
    """Names of the models that ship with udever."""
    return tuple(sorted(path.parent.name for path in BUILTIN_FOLDER.glob(f"*/{MANIFEST}")))


def is_cached(hub_id: str, *, revision: str | None = None) -> bool:
    """Whether a hub model's config, tokenizer and all its weights are in the local cache; asks no network."""
    try:
        small = [try_to_load_from_cache(hub_id, name, revision=revision) for name in ("config.json", "tokenizer.json")]
        return all(isinstance(path, str) for path in small) and bool(weight_files(Path(str(small[0])).parent))
    except (HFValidationError, ModelNotFoundError, CorruptFileError):
        return False


def resolve(name: str, *, revision: str | None = None, token: str | None = None, as_base: bool = False) -> ModelSource:
    """Find a model: built-in name, local folder or hub id; a hub model that is not cached is downloaded.

    Args:
        as_base: it is wanted as the base of a delta, so a BLOOM without markers will do.

    Raises:
        ModelNotFoundError: there is none of this name, or it cannot be reached; says what was tried.
        NotBloomError, ConfigError, TokenizerError, NotAnEmbedderError: a hub model that cannot be a Udever, found out
            before its weights are downloaded.
    """
    if name in builtin_models():
        return ModelSource(name=name, folder=BUILTIN_FOLDER / name, kind="built-in")
    path, kind = _in_file_system(name)
    if name and kind == "folder":
        return ModelSource(name=name, folder=path, kind="folder")
    if kind == "file":
        raise ModelNotFoundError(f"{name} is a file", hint=f"pass the model's folder: {path.parent}")
    if not _is_hub_id(name):
        raise ModelNotFoundError(
            f"no model {name!r}: it is no built-in model ({', '.join(builtin_models()) or 'none here'}) and no folder",
            hint=_suggestion(name),
        )
    folder = fetch(name, revision=revision, token=token, as_base=as_base)
    return ModelSource(name=name, folder=folder, kind="hub", revision=folder.name)


def load_manifest(folder: Path, *, config: BloomConfig) -> Manifest:
    """Read `udever.json`; without one, the defaults of the published checkpoints. Unknown keys are left alone.

    Raises:
        ConfigError: the file is unreadable, or a value is impossible; names the key.
    """
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return Manifest(max_tokens=config.max_tokens)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}", hint="copy the model's udever.json again") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds no JSON object", hint="copy the model's udever.json again")
    raw.setdefault("max_tokens", config.max_tokens)
    for key, (valid, meaning) in _manifest_rules(config).items():
        if key in raw and not valid(raw[key]):
            raise ConfigError(f"{path}: {key} is {raw[key]!r}; it must be {meaning}", hint=f"correct {key}")
    plain = ("name", "max_tokens", "pooling", "license", "scores", "microcredits_per_token")
    known = {key: raw[key] for key in plain if key in raw}
    return Manifest(matryoshka=tuple(raw.get("matryoshka", ())), **known)


def manifest_json(manifest: Manifest) -> dict[str, Any]:
    """The contents of a `udever.json` that `load_manifest` reads as this manifest."""
    facts = asdict(manifest) | {"matryoshka": list(manifest.matryoshka), "scores": dict(manifest.scores)}
    return facts | {"markers": {role: list(pair) for role, pair in MARKERS.items()}}


def _manifest_rules(config: BloomConfig) -> dict[str, tuple[Callable[[Any], bool], str]]:
    """For each key: whether a value is possible, and what it must be."""

    def is_count(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    def are_prefixes(value: Any) -> bool:
        if not isinstance(value, list) or not all(is_count(size) and 1 <= size <= config.width for size in value):
            return False
        return all(smaller < larger for smaller, larger in pairwise(value))

    def is_text(value: Any) -> bool:
        return isinstance(value, str)

    markers = {role: list(pair) for role, pair in MARKERS.items()}
    return {
        "name": (is_text, "a string"),
        "max_tokens": (lambda value: is_count(value) and value >= MIN_TOKENS, f"a whole number from {MIN_TOKENS}"),
        "matryoshka": (are_prefixes, f"a list of ascending whole numbers from 1 to {config.width}"),
        "markers": (lambda value: value == markers, f"{json.dumps(markers)}"),
        "pooling": (lambda value: value == POOLING, f"{POOLING!r}"),
        "license": (is_text, "a string"),
        "scores": (lambda value: isinstance(value, dict), "an object"),
        "microcredits_per_token": (lambda value: is_count(value) and value >= 0, "a whole number from 0"),
    }


def check_vocabulary(tokenizer: UdeverTokenizer, config: BloomConfig) -> None:
    """Refuse a tokenizer with ids beyond the token table; a larger table is fine.

    Raises:
        TokenizerError: says both sizes.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise TokenizerError(
            f"the tokenizer has ids up to {tokenizer.vocab_size - 1:,}, the token table {config.vocab_size:,} rows",
            hint="tokenizer.json and weights must come from the same model",
        )


def check_finite(checkpoint: Checkpoint, folder: Path) -> None:
    """`Checkpoint.check_finite`, once for each state of the files on this machine.

    Raises:
        NonFiniteWeightsError: NaN or infinity among the weights.
    """
    facts = _Facts(folder)
    if facts.read().get("finite") is not True:
        checkpoint.check_finite()
        facts.add(finite=True)


def weights_digest(checkpoint: Checkpoint, folder: Path) -> str:
    """`Checkpoint.digest`, computed once for each state of the files on this machine."""
    facts = _Facts(folder)
    known = facts.read().get("weights_digest")
    if isinstance(known, str):
        return known
    digest = checkpoint.digest()
    facts.add(weights_digest=digest)
    return digest


def fingerprint(*, weights: str, tokenizer: str, manifest: Manifest, precision: str) -> str:
    """`udv1-` and 16 hex digits over all that decides a vector: equal content is equal on every machine.

    Args:
        weights: `weights_digest`, which covers the architecture.
        tokenizer: `UdeverTokenizer.digest`.
    """
    parts = {
        "weights": weights,
        "tokenizer": tokenizer,
        "markers": dict(MARKERS),
        "pooling": manifest.pooling,
        "max_tokens": manifest.max_tokens,
        "precision": precision,
    }
    return "udv1-" + _sha256(parts)[:16]


class _Facts:
    """What is known of a folder's weights, kept on disk for the state its files are in; losing it costs time only."""

    def __init__(self, folder: Path) -> None:
        files = [(folder / "config.json").resolve(), *(file.resolve() for file in weight_files(folder))]
        # The change time too: what copies a file over another can keep size and modification time, not that.
        states = [(str(f), s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for f in files for s in [f.stat()]]
        self._name = f"{_sha256(states)}.json"

    def read(self) -> dict[str, Any]:
        """Nothing if there is no file, or no sound one."""
        try:
            facts = json.loads((self._folder() / self._name).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        sound = isinstance(facts, dict) and facts.pop("check", None) == _sha256(facts)
        return facts if sound else {}

    def add(self, **facts: bool | str) -> None:
        """Write all at once; a cache that cannot be written is done without."""
        known = self.read() | facts
        content = json.dumps(known | {"check": _sha256(known)})
        with (
            suppress(OSError, ValueError),
            NamedTemporaryFile("w", dir=self._folder(), suffix=".tmp", delete=False) as stream,
        ):
            unfinished = Path(stream.name)
            try:
                stream.write(content)
                stream.close()
                unfinished.replace(self._folder() / self._name)
            finally:
                unfinished.unlink(missing_ok=True)

    @staticmethod
    def _folder() -> Path:
        return Path(cached_assets_path("udever", namespace="weights"))


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _in_file_system(name: str) -> tuple[Path, str]:
    """The path that a name is, and whether there is a "folder" or a "file"; else ""."""
    path = Path(name)
    try:
        path = path.expanduser()
        return path, "folder" if path.is_dir() else "file" if path.is_file() else ""
    except (RuntimeError, OSError, ValueError):  # ~nobody, a name that is too long, a NUL
        return path, ""


def _is_hub_id(name: str) -> bool:
    owner, slash, model = name.partition("/")
    allowed = set("-_.")
    plain = all(part and all(c.isascii() and (c.isalnum() or c in allowed) for c in part) for part in (owner, model))
    return bool(slash) and plain and owner.strip(".") != ""


def _suggestion(name: str) -> str:
    hub_ids = {model.hub_id.rpartition("/")[2]: model.hub_id for model in published_models()}
    close = get_close_matches(name.rstrip("/").rpartition("/")[2], [*builtin_models(), *hub_ids], n=1)
    meant = f"did you mean {hub_ids.get(close[0], close[0])!r}? " if close else ""
    return f"{meant}Pass a built-in name, an existing folder, or a hub id like 'izhx/udever-bloom-560m'"
