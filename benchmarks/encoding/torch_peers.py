"""Peers that run in PyTorch: transformers the card's way, sentence-transformers, and udever itself.

The card's way: left padding, attention mask, `last_hidden_state[:, -1]`.
"""

from collections.abc import Callable

import torch
from safetensors.torch import load_file
from torch import Tensor

from encoding.peers import Peer, Setting, Unavailable
from encoding.workload import Texts, padded_batches, padding_ratio
from udever import Embedder
from udever.engine.compute import closing_vectors
from udever.engine.embedder import BATCH_TOKENS
from udever.model.bloom import Bloom
from udever.model.linear import native_bf16
from udever.model.precision import Precision

UNSORTED_BATCHES = 4
"""Batches of an unsorted peer that are timed: the order is random, so the first ones are like the others."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def left_padded(sequences: list[list[int]], *, pad: int = 3) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, int64 [texts, longest]."""
    longest = max(map(len, sequences))
    ids = torch.tensor([[pad] * (longest - len(s)) + s for s in sequences])
    mask = torch.tensor([[0] * (longest - len(s)) + [1] * len(s) for s in sequences])
    return ids, mask


def in_padded_batches(
    forward: Callable[[Tensor, Tensor], Tensor], *, setting: Setting, by_length: bool
) -> Callable[[Texts], Tensor]:
    """A peer's `run` from a function of (ids, mask) to vectors."""

    def run(texts: Texts) -> Tensor:
        out = torch.empty(len(texts), setting.shape.width)
        lengths = [len(s) for s in texts.sequences]
        waiting = []
        for batch in padded_batches(lengths, batch_size=setting.shape.batch_size, by_length=by_length):
            ids, mask = left_padded([texts.sequences[i] for i in batch])
            waiting.append((batch, forward(ids, mask)))
        for batch, vectors in waiting:  # only now: a copy to the host would make a GPU wait after every batch
            out[batch] = vectors.float().cpu()
        return out

    return run


def padded_peer(
    forward: Callable[[Tensor, Tensor], Tensor], *, setting: Setting, precision: Precision, by_length: bool = True
) -> Peer:
    """A peer that pads; unsorted ones embed the first batches only."""
    count = len(setting.texts) if by_length else min(len(setting.texts), UNSORTED_BATCHES * setting.shape.batch_size)
    lengths = [len(s) for s in setting.texts.sequences[:count]]
    batches = padded_batches(lengths, batch_size=setting.shape.batch_size, by_length=by_length)
    return Peer(
        run=in_padded_batches(forward, setting=setting, by_length=by_length),
        precision=precision,
        padding=padding_ratio(lengths, batches),
        texts=None if count == len(setting.texts) else count,
    )


def transformers_peer(precision: Precision, *, by_length: bool) -> Callable[[Setting], Peer]:
    """`transformers.BloomModel`, as the model card runs it."""

    def build(setting: Setting) -> Peer:
        from transformers import BloomModel, logging

        if precision == "bf16" and setting.device.type == "cpu" and not native_bf16():
            raise Unavailable("this machine has no bf16 in hardware, and PyTorch's own emulation of it takes minutes")
        logging.disable_progress_bar()
        model = BloomModel.from_pretrained(setting.folder, dtype=DTYPES[precision]).eval().to(setting.device)

        def forward(ids: Tensor, mask: Tensor) -> Tensor:
            with torch.inference_mode():
                ids, mask = ids.to(setting.device), mask.to(setting.device)
                states: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            return states[:, -1]

        return padded_peer(forward, setting=setting, precision=precision, by_length=by_length)

    return build


def sentence_transformers_peer(precision: Precision) -> Callable[[Setting], Peer]:
    """sentence-transformers with last-token pooling; takes strings, sorts them itself, tokenises in the timed pass."""

    def build(setting: Setting) -> Peer:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.models import Pooling, Transformer

        words = Transformer(
            str(setting.folder), model_kwargs={"dtype": DTYPES[precision]}, processor_kwargs={"padding_side": "left"}
        )
        pooling = Pooling(setting.shape.width, pooling_mode="lasttoken")
        model = SentenceTransformer(modules=[words, pooling], device=str(setting.device)).eval()

        def run(texts: Texts) -> Tensor:
            vectors: Tensor = model.encode(
                texts.strings, batch_size=setting.shape.batch_size, convert_to_tensor=True, show_progress_bar=False
            )
            return vectors.float().cpu()

        lengths = [len(s) for s in setting.texts.sequences]
        batches = padded_batches(lengths, batch_size=setting.shape.batch_size, by_length=True)
        return Peer(run=run, precision=precision, padding=padding_ratio(lengths, batches))

    return build


def udever_peer(precision: Precision) -> Callable[[Setting], Peer]:
    """Our model on token ids, as every other peer gets them."""

    def build(setting: Setting) -> Peer:
        tensors = load_file(setting.folder / "model.safetensors")
        table = tensors.pop("word_embeddings.weight")
        model = Bloom(setting.shape.config(), tensors, table=table, precision=precision, device=setting.device)
        model.prepack()
        batch_tokens = BATCH_TOKENS[setting.device.type]

        def run(texts: Texts) -> Tensor:
            return closing_vectors(model, texts.sequences, batch_tokens=batch_tokens, device=setting.device)

        return Peer(run=run, precision=precision)

    return build


def embedder_peer(setting: Setting) -> Peer:
    """`Embedder.embed` on strings: what a user calls, tokenising included."""
    embedder = Embedder.load(str(setting.folder), device=str(setting.device))
    embedder.warm_up()
    [sample] = embedder.count_tokens([setting.texts.bodies()[0]], role="document")
    if sample != len(setting.texts.sequences[0]):
        raise Unavailable(f"its tokenizer counts {sample} tokens where the workload has another number")

    def run(texts: Texts) -> Tensor:
        vectors = embedder.embed(texts.bodies(), role="document", normalize=False)
        return torch.from_numpy(vectors)

    return Peer(run=run, precision=embedder.precision)
