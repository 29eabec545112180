"""Our packed BLOOM against transformers' BloomModel, run in fp32 the way the authors' card does."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BloomModel

from udever.model.batch import PackedBatch
from udever.model.bloom import Bloom, closing_states
from udever.model.config import PUBLISHED, TABLE, BloomConfig
from udever.model.weights import Checkpoint

MIXED_LENGTHS = (1, 2, 3, 3, 17, 40, 40, 127, 128, 129)
VOCABULARY = 512


def load_ours(folder: Path) -> Bloom:
    checkpoint = Checkpoint.open(folder)
    tensors = checkpoint.tensors()
    return Bloom(checkpoint.config, tensors, table=tensors.pop(TABLE))


def both_models(config: BloomConfig, random_tensors: Callable[..., dict[str, Tensor]]) -> tuple[BloomModel, Bloom]:
    """transformers' model and ours on the same weights, with no file between them: the large shapes are gigabytes.

    Their numbers are float16's, as those of the published models, and so do ours get them.
    """
    tensors = {name: tensor.half() for name, tensor in random_tensors(config).items()}
    theirs = transformers.BloomConfig(
        hidden_size=config.width,
        n_layer=config.layers,
        n_head=config.heads,
        vocab_size=config.vocab_size,
        apply_residual_connection_post_layernorm=config.post_layernorm_residual,
    )
    with torch.device("meta"):
        model = BloomModel(theirs)
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return model.eval(), Bloom(config, tensors, table=tensors.pop(TABLE))


def card_vectors(model: BloomModel, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Left padding, one batch, `last_hidden_state[:, -1]`: the code of the authors' model card."""
    longest = max(map(len, sequences))
    padding = [longest - len(sequence) for sequence in sequences]
    token_ids = torch.tensor([[3] * pad + list(s) for pad, s in zip(padding, sequences, strict=True)])
    mask = torch.tensor([[0] * pad + [1] * len(s) for pad, s in zip(padding, sequences, strict=True)])
    with torch.inference_mode():
        return model(input_ids=token_ids, attention_mask=mask).last_hidden_state[:, -1]


def random_sequences(lengths: Sequence[int], *, vocab_size: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, vocab_size, (length,), generator=generator).tolist() for length in lengths]


def assert_equal_vectors(ours: Tensor, theirs: Tensor) -> None:
    difference = (ours - theirs).abs().amax(1) / theirs.norm(dim=1)
    assert difference.max() <= 2e-5
    assert torch.cosine_similarity(ours.double(), theirs.double()).min() >= 0.999999


SHAPES = {name: (shape.width, shape.heads, False) for name, shape in PUBLISHED.items()} | {
    "560m, residual after the norm": (1024, 16, True),
    "6 heads": (96, 6, False),
    "5 heads, residual after the norm": (80, 5, True),
    "12 heads": (36, 12, False),
}


@pytest.mark.parametrize(("width", "heads", "post_layernorm_residual"), SHAPES.values(), ids=SHAPES.keys())
def test_equals_transformers(
    random_tensors: Callable[..., dict[str, Tensor]], width: int, heads: int, post_layernorm_residual: bool
) -> None:
    config = BloomConfig(
        width=width, heads=heads, layers=2, vocab_size=VOCABULARY, post_layernorm_residual=post_layernorm_residual
    )
    sequences = random_sequences(MIXED_LENGTHS if width < 2000 else MIXED_LENGTHS[2::3], vocab_size=VOCABULARY)
    theirs, ours = both_models(config, random_tensors)
    expected = card_vectors(theirs, sequences)

    def vectors() -> list[Tensor]:
        alone = torch.cat([closing_states(ours, PackedBatch.from_lists([s])) for s in sequences])  # by other kernels
        return [closing_states(ours, PackedBatch.from_lists(sequences)), alone]

    together, *others = vectors()
    ours.prepack()
    for found in (together, *others, *vectors()):
        assert_equal_vectors(found, expected)
        assert ((found - together).abs().amax(1) / together.norm(dim=1)).max() <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_equals_transformers_on_a_long_text_at_each_width(
    random_tensors: Callable[..., dict[str, Tensor]], name: str
) -> None:
    shape = PUBLISHED[name]
    config = BloomConfig(width=shape.width, heads=shape.heads, layers=2, vocab_size=VOCABULARY)
    sequences = random_sequences([2048], vocab_size=VOCABULARY)
    theirs, ours = both_models(config, random_tensors)
    assert_equal_vectors(closing_states(ours, PackedBatch.from_lists(sequences)), card_vectors(theirs, sequences))


@pytest.mark.parametrize("length", [1, 2, 127, 128, 129, 256, 511, 1000, 2047, 2048])
def test_equals_transformers_at_every_length(tiny_checkpoint: Path, length: int) -> None:
    sequences = random_sequences([length], vocab_size=600)
    theirs = card_vectors(BloomModel.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval(), sequences)
    assert_equal_vectors(closing_states(load_ours(tiny_checkpoint), PackedBatch.from_lists(sequences)), theirs)


def test_equals_transformers_on_a_table_of_whole_numbers(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "whole"))
    tensors = load_file(folder / "model.safetensors")
    loudest = tensors[TABLE].abs().amax(1, keepdim=True)
    tensors[TABLE] = (tensors[TABLE] / loudest * 127).round().to(torch.int8)
    save_file(tensors, folder / "model.safetensors")
    sequences = random_sequences(MIXED_LENGTHS, vocab_size=600)
    theirs = card_vectors(BloomModel.from_pretrained(folder, dtype=torch.float32).eval(), sequences)
    ours = closing_states(load_ours(folder), PackedBatch.from_lists(sequences))
    assert_equal_vectors(ours, theirs)
    before = closing_states(load_ours(tiny_checkpoint), PackedBatch.from_lists(sequences))
    assert torch.cosine_similarity(ours, before).min() >= 0.999


@pytest.mark.slow
def test_equals_transformers_in_full_560m_depth(random_tensors: Callable[..., dict[str, Tensor]]) -> None:
    shape = PUBLISHED["udever-bloom-560m"]
    config = BloomConfig(width=shape.width, heads=shape.heads, layers=shape.layers, vocab_size=VOCABULARY)
    sequences = random_sequences((5, 64, 300, 300, 1024), vocab_size=VOCABULARY)
    model, ours = both_models(config, random_tensors)
    theirs = torch.cat([card_vectors(model, sequences[:4]), card_vectors(model, sequences[4:])])
    assert_equal_vectors(closing_states(ours, PackedBatch.from_lists(sequences)), theirs)


@pytest.fixture(scope="module")
def tiny_bloom(tiny_checkpoint: Path) -> Bloom:
    return load_ours(tiny_checkpoint)


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 160), min_size=1, max_size=12),
    seed=st.integers(0, 2**16),
    order=st.randoms(use_true_random=False),
)
def test_a_vector_never_depends_on_its_neighbours(
    tiny_bloom: Bloom, lengths: list[int], seed: int, order: "object"
) -> None:
    sequences = random_sequences(lengths, vocab_size=600, seed=seed)
    alone = torch.cat([closing_states(tiny_bloom, PackedBatch.from_lists([s])) for s in sequences])
    shuffled = list(range(len(sequences)))
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    together = closing_states(tiny_bloom, PackedBatch.from_lists([sequences[i] for i in shuffled]))
    difference = (together - alone[shuffled]).abs().amax(1) / alone[shuffled].norm(dim=1)
    assert difference.max() <= 1e-6
