"""One step: a batch's gradient, summed over all processes, moves the parameters.

    batch -> accumulate -> sum over processes -> clip -> AdamW at the schedule's rate

Invariant: a step depends on the parameters, the optimizer's state and the step's number alone.
Does not know: files, progress, or when to stop.
"""

import math
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from udever.errors import DivergedError
from udever.model.bloom import Bloom
from udever.training.ahead import Ahead
from udever.training.batches import Batches, StepBatch
from udever.training.bitfit import unfreeze
from udever.training.distributed import World
from udever.training.gradcache import accumulate
from udever.training.memory import MemoryPlan, plan_memory
from udever.training.objective import Objective, Watched
from udever.training.recipe import OptimizerPart, Recipe
from udever.training.sharding import full, shard, whole

CHUNK_TOKENS = {"cpu": 4096, "cuda": 65536}
"""Tokens the model sees at once in training; enough for the device's kernels."""
MOST_WORKERS = 8
"""Processes that make batches for one GPU, at most; on a CPU the step itself needs all cores."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What a step tells."""

    step: int
    """Steps done, this one included."""
    loss: float
    watched: Mapping[str, float]
    learning_rate: float
    gradient_norm: float
    tokens: int
    """Of the whole batch, markers included; there is no padding."""
    examples: int
    seconds: float


class Trainer:
    """What moves, and how a step moves it."""

    def __init__(
        self,
        model: Bloom,
        *,
        parameters: dict[str, nn.Parameter],
        batches: Batches,
        objective: Objective,
        recipe: Recipe,
        world: World,
        device: torch.device,
        memory_bytes: int,
        chunk_tokens: int,
    ) -> None:
        """Args:
        parameters: what moves, as `movable` gives it.
        memory_bytes: what activations may take.
        chunk_tokens: tokens the model sees at once.
        """
        self.model, self.parameters, self.batches, self.recipe = model, parameters, batches, recipe
        self._sharded = _is_sharded(recipe, world)
        self.optimizer = make_optimizer(self.parameters, recipe.optimizer)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self._objective, self._world, self.device = objective, world, device
        self._ahead = Ahead(batches, workers=_workers(device, world))
        self._memory_bytes, self._chunk_tokens = memory_bytes, chunk_tokens

    def plan(self, batch: StepBatch) -> MemoryPlan:
        """How the batch is computed."""
        return plan_memory(
            self.model.config,
            tune=self.recipe.tune,
            tokens=math.ceil(batch.tokens / self._world.size),
            budget_bytes=self._memory_bytes,
            chunk_tokens=self._chunk_tokens,
        )

    def step(self, number: int) -> StepReport:
        """Do step `number`, counted from 0.

        Raises:
            DivergedError: NaN or infinity in the loss or the gradient; nothing has moved.
        """
        began = time.monotonic()
        batch = self._ahead.of(number)
        loss, watched = self.gradient(batch)
        norm = _norm(self.parameters.values())
        if not self._world.agree(bool(torch.isfinite(loss) and math.isfinite(norm))):
            raise DivergedError(f"step {number + 1}: the loss is {loss.item()}, the gradient's norm {norm}",
                                hint="lower optimizer.learning_rate, or set optimizer.clip_norm")  # fmt: skip
        if 0 < self.recipe.optimizer.clip_norm < norm:
            for parameter in self.parameters.values():
                if parameter.grad is not None:
                    parameter.grad.mul_(self.recipe.optimizer.clip_norm / norm)
        factor = self._factor(number)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad()
        return StepReport(
            step=number + 1,
            loss=loss.item(),
            watched={name: value.item() for name, value in watched.items()},
            learning_rate=self.recipe.optimizer.learning_rate * factor,
            gradient_norm=norm,
            tokens=batch.tokens,
            examples=batch.queries,
            seconds=time.monotonic() - began,
        )

    def gradient(self, batch: StepBatch) -> tuple[Tensor, Watched]:
        """The loss, what to watch, and in the parameters' `.grad` the gradient over all processes."""

        def loss_of(embeddings: Tensor) -> tuple[Tensor, Watched]:
            return self._objective(embeddings, batch)

        loss, watched = accumulate(
            self.model, batch.sequences, loss_of, plan=self.plan(batch), world=self._world, device=self.device
        )
        if not self._sharded:  # whose backward pass has summed them already
            self._world.sum_gradients(self.parameters.values())
        return loss, watched

    def whole_model(self) -> AbstractContextManager[None]:
        """While inside, the main process may write the model; every process has to enter."""
        return whole(self.model, here=self._world.is_main)

    def _factor(self, number: int) -> float:
        warmup = round(self.recipe.optimizer.warmup_epochs * self.batches.steps_per_epoch)
        return schedule(self.recipe.optimizer.schedule, step=number, steps=self.batches.steps, warmup=warmup)


def movable(model: Bloom, recipe: Recipe, *, world: World, device: torch.device) -> dict[str, nn.Parameter]:
    """Make parameters of what the recipe moves: name → parameter; where everything moves, cut over the processes."""
    parameters = unfreeze(model, tune=recipe.tune, markers=recipe.markers)
    return shard(model, device=device) if _is_sharded(recipe, world) else parameters


def _is_sharded(recipe: Recipe, world: World) -> bool:
    return recipe.tune == "all" and world.size > 1


def make_optimizer(parameters: Mapping[str, nn.Parameter], part: OptimizerPart) -> torch.optim.AdamW:
    """AdamW; matrices decay, biases and norms do not; the token table may have a rate of its own."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        rate = part.table_learning_rate or part.learning_rate if name == "table" else part.learning_rate
        decay = part.weight_decay if parameter.dim() == 2 and name not in ("table", "own_rows.rows") else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()],
        betas=part.betas,
        fused=True,  # one pass over each tensor, with the same roundings whatever else is in the group
    )


def schedule(kind: str, *, step: int, steps: int, warmup: int) -> float:
    """The learning rate's factor at a step counted from 0: up to 1 in `warmup` steps, then constant or down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[kind]


def _workers(device: torch.device, world: World) -> int:
    """Processes that make batches; every rank makes the whole batch, so its share of the cores counts."""
    return min(MOST_WORKERS, (os.cpu_count() or 1) // 2 // world.local_size) if device.type == "cuda" else 0


def _norm(parameters: Iterable[nn.Parameter]) -> float:
    norms = [torch.linalg.vector_norm(p.grad, dtype=torch.float64) for p in parameters if p.grad is not None]
    return float(torch.linalg.vector_norm(torch.stack([full(norm) for norm in norms]))) if norms else 0.0
