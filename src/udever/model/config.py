"""The shape of a BLOOM model, read from a Hugging Face `config.json` of any age.

Invariant: a `BloomConfig` that exists is one the model can run; impossible numbers raise `ConfigError`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, prod
from typing import Any

from udever.errors import ConfigError, NotBloomError

DEFAULT_MAX_TOKENS = 2048
"""Tokens the published models were trained to see; ALiBi has no table that would end there."""
TABLE = "word_embeddings.weight"
"""The tensor of the token table, [V, H]; a layer norm follows it, so the scale of a row is of no consequence."""


@dataclass(frozen=True, kw_only=True)
class BloomConfig:
    """Architecture of a BLOOM decoder. Source: `BloomConfig` of transformers, paper arXiv 2211.05100."""

    width: int
    """Size of the hidden states, and of the embedding."""
    layers: int
    """Number of transformer blocks."""
    heads: int
    """Attention heads; need not be a power of two."""
    vocab_size: int
    """Rows of the token table."""
    norm_epsilon: float = 1e-5
    """Added to the variance in every layer norm."""
    post_layernorm_residual: bool = False
    """`apply_residual_connection_post_layernorm`: the residual starts after the layer norm."""
    max_tokens: int = DEFAULT_MAX_TOKENS
    """Longest sequence to embed, markers included."""

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "vocab_size", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1", hint="check config.json")
        if self.width % self.heads:
            raise ConfigError(
                f"hidden_size {self.width} is not a multiple of n_head {self.heads}", hint="check config.json"
            )

    @property
    def head_width(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    @classmethod
    def from_hugging_face(cls, raw: Mapping[str, Any]) -> "BloomConfig":
        """Read the contents of a `config.json` written by transformers 4 or 5, or by the first BLOOM releases.

        Raises:
            NotBloomError: another `model_type`.
            ConfigError: a number is missing or impossible.
        """
        if raw.get("model_type") != "bloom":
            raise NotBloomError(
                f"config.json says model_type {raw.get('model_type')!r}, not 'bloom'",
                hint="udever runs the BLOOM architecture only: izhx/udever-bloom-560m, -1b1, -3b, -7b1",
            )
        return cls(
            width=_integer(raw, "hidden_size", "n_embed"),
            layers=_integer(raw, "n_layer", "num_hidden_layers"),
            heads=_integer(raw, "n_head", "num_attention_heads"),
            vocab_size=_integer(raw, "vocab_size"),
            norm_epsilon=_positive(raw, "layer_norm_epsilon", default=1e-5),
            post_layernorm_residual=_flag(raw, "apply_residual_connection_post_layernorm"),
            max_tokens=_integer(raw, "seq_length") if raw.get("seq_length") else DEFAULT_MAX_TOKENS,
        )

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the model, by its name without the `transformer.` prefix."""
        w = self.width
        shapes: dict[str, tuple[int, ...]] = {TABLE: (self.vocab_size, w)}
        norms = ["word_embeddings_layernorm", "ln_f"]
        for i in range(self.layers):
            block = f"h.{i}."
            norms += [f"{block}input_layernorm", f"{block}post_attention_layernorm"]
            for name, rows, columns in (
                ("self_attention.query_key_value", 3 * w, w),
                ("self_attention.dense", w, w),
                ("mlp.dense_h_to_4h", 4 * w, w),
                ("mlp.dense_4h_to_h", w, 4 * w),
            ):
                shapes[f"{block}{name}.weight"] = (rows, columns)
                shapes[f"{block}{name}.bias"] = (rows,)
        for norm in norms:
            shapes[f"{norm}.weight"] = shapes[f"{norm}.bias"] = (w,)
        return shapes

    @property
    def flops_per_token(self) -> int:
        """In the linear layers, which are nearly all: two a weight."""
        return 24 * self.layers * self.width**2

    @property
    def parameters(self) -> int:
        """How many numbers the model has, the token table's included."""
        return sum(prod(shape) for shape in self.tensor_shapes().values())


def _integer(raw: Mapping[str, Any], *names: str) -> int:
    for name in names:
        value = raw.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if value is not None:
            raise ConfigError(
                f"config.json says {name} = {value!r}; a whole number is needed", hint="check config.json"
            )
    raise ConfigError(f"config.json lacks {' / '.join(names)}", hint="copy the model's original config.json")


def _positive(raw: Mapping[str, Any], name: str, *, default: float) -> float:
    value = raw.get(name, default)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < inf:
        return float(value)
    raise ConfigError(f"config.json says {name} = {value!r}; a number above 0 is needed", hint="check config.json")


def _flag(raw: Mapping[str, Any], name: str) -> bool:
    value = raw.get(name, False)
    if isinstance(value, bool):
        return value
    raise ConfigError(f"config.json says {name} = {value!r}; true or false is needed", hint="check config.json")


PUBLISHED = {
    "udever-bloom-560m": BloomConfig(width=1024, layers=24, heads=16, vocab_size=250880),
    "udever-bloom-1b1": BloomConfig(width=1536, layers=24, heads=16, vocab_size=250880),
    "udever-bloom-3b": BloomConfig(width=2560, layers=30, heads=32, vocab_size=250880),
    "udever-bloom-7b1": BloomConfig(width=4096, layers=30, heads=32, vocab_size=250880),
}
"""The four published sizes (izhx/udever-bloom-*)."""
