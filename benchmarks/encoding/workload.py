"""What every peer is given: model shapes, one checkpoint folder for all, and texts of realistic lengths.

Invariant: text i is the same list of token ids for every peer; peers that take strings get a string that tokenises to
exactly these ids. Everything is drawn from fixed seeds, so a second run measures the same work.
"""

import json
import math
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from udever.model.config import BloomConfig
from udever.tokenizer import MARKERS

MEDIAN_TOKENS, SPREAD, MAX_TOKENS = 40, 1.1, 512
"""Lognormal lengths, both markers included: median 40, mean about 70, cut at 512."""
QUERY_TOKENS = 12
"""Length of the one short query whose latency is measured."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model's shape and how much work it is given."""

    name: str
    width: int
    layers: int
    heads: int
    vocab_size: int
    texts: int
    batch_size: int
    """Texts in a batch of the padded peers."""

    def config(self) -> BloomConfig:
        """The model's architecture."""
        return BloomConfig(
            width=self.width, layers=self.layers, heads=self.heads, vocab_size=self.vocab_size, max_tokens=MAX_TOKENS
        )


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(name="nano", width=256, layers=4, heads=4, vocab_size=81920, texts=1000, batch_size=32),
        Shape(name="560m", width=1024, layers=24, heads=16, vocab_size=4096, texts=40, batch_size=4),
        Shape(name="toy", width=64, layers=2, heads=4, vocab_size=512, texts=24, batch_size=4),
    )
}
CUDA_WORK = {"nano": (16384, 256), "560m": (2048, 64), "toy": (24, 4)}
"""Texts and batch size on a GPU, which would be done with the CPU's work before it is warm."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts as token ids, markers included, and as strings, markers included, that tokenise to these ids."""

    sequences: list[list[int]]
    strings: list[str]

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def tokens(self) -> int:
        """Tokens of all texts together, without padding."""
        return sum(map(len, self.sequences))

    def take(self, indices: Sequence[int]) -> "Texts":
        """The texts at these places."""
        return Texts(
            sequences=[self.sequences[i] for i in indices],
            strings=[self.strings[i] for i in indices],
        )

    def bodies(self) -> list[str]:
        """The strings without their markers: what `Embedder.embed` takes."""
        return [string.split(" ", 1)[1].rsplit(" ", 1)[0] for string in self.strings]


def draw_texts(shape: Shape, *, seed: int = 0) -> Texts:
    """Documents of lognormal length in random order."""
    chance = random.Random(seed)

    def length() -> int:
        return max(3, min(MAX_TOKENS, round(chance.lognormvariate(math.log(MEDIAN_TOKENS), SPREAD))))

    return _texts([_sequence(shape, length(), chance=chance) for _ in range(shape.texts)], shape)


def short_query(shape: Shape) -> Texts:
    """One text of `QUERY_TOKENS` tokens."""
    return _texts([_sequence(shape, QUERY_TOKENS, chance=random.Random(1))], shape)


def _sequence(shape: Shape, length: int, *, chance: random.Random) -> list[int]:
    opening, closing = (shape.vocab_size - 2, shape.vocab_size - 1)  # [BOD], [EOD]
    return [opening, *(chance.randrange(4, shape.vocab_size - 4) for _ in range(length - 2)), closing]


def _texts(sequences: list[list[int]], shape: Shape) -> Texts:
    words = vocabulary(shape)
    return Texts(sequences=sequences, strings=[" ".join(words[i] for i in sequence) for sequence in sequences])


def vocabulary(shape: Shape) -> list[str]:
    """The word of every token id; the four markers come last."""
    words = ["<unk>", "<s>", "</s>", "<pad>", *(f"w{i}" for i in range(4, shape.vocab_size - 4))]
    return [*words, *MARKERS["query"], *MARKERS["document"]]


def padded_batches(lengths: Sequence[int], *, batch_size: int, by_length: bool) -> list[list[int]]:
    """Indices of the texts of each batch: longest texts first, or in the given order."""
    order: Sequence[int] = range(len(lengths))
    if by_length:
        order = sorted(order, key=lambda i: -lengths[i])
    return batched_lists(order, batch_size)


def batched_lists(items: Sequence[int], size: int) -> list[list[int]]:
    """`items` cut into lists of at most `size`."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def padding_ratio(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Padded tokens divided by real tokens."""
    return sum(max(lengths[i] for i in batch) * len(batch) for batch in batches) / sum(lengths)


def minimal_flops(shape: Shape, lengths: Sequence[int]) -> int:
    """Floating point operations nobody can save: no padding, no masked score, only closing tokens in the last block.

    The numerator of every "% of the GEMM ceiling", the same for all peers, so that none is flattered by its own waste.
    """
    width, earlier = shape.width, shape.layers - 1
    linear = 2 * width**2
    whole_blocks = earlier * sum(12 * linear * n + 4 * width * (n * (n + 1) // 2) for n in lengths)
    last_block = sum(2 * linear * n + 10 * linear + 4 * width * n for n in lengths)
    return whole_blocks + last_block


def checkpoint_folder(shape: Shape, *, cache: Path) -> Path:
    """A checkpoint that every peer can load: config.json, model.safetensors (fp32), tokenizer.json; made once."""
    folder = cache / f"{shape.name}-{shape.width}x{shape.layers}x{shape.heads}-{shape.vocab_size}"
    if not (folder / "tokenizer_config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(hugging_face_config(shape.config())), "utf-8")
        save_file(lively_tensors(shape.config()), folder / "model.safetensors", metadata={"format": "pt"})
        _word_tokenizer(shape).save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG), "utf-8")  # last: all is complete
    return folder


def default_cache() -> Path:
    """Where checkpoints and exported graphs are kept between runs."""
    return Path(tempfile.gettempdir()) / "udever-benchmarks"


TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left", "model_max_length": 2048,
    "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>",
}  # fmt: skip


def hugging_face_config(config: BloomConfig, *, dtype: str = "float32") -> dict[str, object]:
    """The `config.json` of a model of this shape, as transformers writes it."""
    return {
        "architectures": ["BloomModel"], "model_type": "bloom", "torch_dtype": dtype,
        "hidden_size": config.width, "n_layer": config.layers, "n_head": config.heads, "vocab_size": config.vocab_size,
        "hidden_dropout": 0.0, "attention_dropout": 0.0, "layer_norm_epsilon": config.norm_epsilon,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "seq_length": config.max_tokens,
    }  # fmt: skip


def lively_tensors(config: BloomConfig, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random float32 weights under which attention is peaked and every bias matters, so that a wrong one shows.

    Their numbers are float16's: BLOOM was published so, and BitFit leaves its weights as they are.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            return noise * 0.1 + name.endswith(("layernorm.weight", "ln_f.weight"))
        gain = 1.5 if "query_key_value" in name else 0.7
        return (noise * (gain / shape[1] ** 0.5)).half().float()

    return {name: draw(name, shape) for name, shape in config.tensor_shapes().items()}


def _word_tokenizer(shape: Shape) -> Tokenizer:
    """One token a word, so that any list of ids can be written as a string."""
    words = vocabulary(shape)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words[:-4])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(words[:4] + words[-4:])
    return tokenizer
