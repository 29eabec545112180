"""Gradients of everything in a small model: `python all_gradients.py FILE`, alone or under torchrun.

Writes `PLAN/NAME` for the gradients, `value/NAME` for the weights, and `held`: how many numbers each process keeps.
"""

import os
import sys

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from udever.model.bloom import Bloom, OwnRows
from udever.model.config import BloomConfig
from udever.training.bitfit import unfreeze
from udever.training.distributed import World, world
from udever.training.gradcache import accumulate
from udever.training.memory import MemoryPlan
from udever.training.sharding import full, shard, whole

CONFIG = BloomConfig(width=48, layers=3, heads=4, vocab_size=44)
MARKERS = (40, 41, 42, 43)
LENGTHS = (300, 60, 3, 60, 60, 60)
"""In chunks of 64 tokens one of two processes has more of them than the other."""
PLANS = {
    "kept": MemoryPlan(chunk_tokens=64, cached=False, recompute=False),
    "cached": MemoryPlan(chunk_tokens=64, cached=True, recompute=False),
    "recomputed": MemoryPlan(chunk_tokens=64, cached=True, recompute=True),
}


def small_model() -> Bloom:
    generator = torch.Generator().manual_seed(0)
    shapes = CONFIG.tensor_shapes()
    tensors = {name: torch.randn(shape, generator=generator).double() * 0.2 for name, shape in shapes.items()}
    table = tensors["word_embeddings.weight"]
    rows = OwnRows(torch.tensor(MARKERS), table[list(MARKERS)])
    return Bloom(CONFIG, tensors, table=table, precision="fp64", trainable=True, own_rows=rows)


def gradient(model: Bloom, plan: MemoryPlan, here: World) -> None:
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randint(0, 44, (length,), generator=generator).tolist() for length in LENGTHS]
    weights = torch.rand(len(LENGTHS), CONFIG.width, generator=generator, dtype=torch.float64)

    def loss_of(embeddings: Tensor) -> tuple[Tensor, None]:
        return (embeddings.square() * weights).sum(), None

    accumulate(model, sequences, loss_of, plan=plan, world=here, device=torch.device("cpu"))


def main(here: World) -> None:
    model = small_model()
    parameters = unfreeze(model, tune="all")
    if here.size > 1:
        parameters = shard(model, device=torch.device("cpu"))
    found: dict[str, Tensor] = {}
    held = torch.zeros(here.size, dtype=torch.int64)
    held[here.rank] = sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in parameters.values())
    if here.size > 1:
        dist.all_reduce(held)
    for name, plan in PLANS.items():
        gradient(model, plan, here)
        found |= {f"{name}/{key}": full(parameter.grad) for key, parameter in parameters.items()}
        model.zero_grad()
        with whole(model, here=here.is_main):  # as a run does between two steps
            if here.is_main:
                found |= {f"value/{key}": value.detach().clone() for key, value in model.named_parameters()}
    if here.is_main:
        save_file({**found, "held": held}, sys.argv[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    with world() as here:
        main(here)
    os._exit(0)  # as `udever` under torchrun: gloo's threads may outlive the interpreter, which would abort then
