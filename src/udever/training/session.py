"""A recipe, data and a base made into something that can be trained, verified and written.

    with open_session(recipe, data=..., ...) as session:  train(session.trainer, ...);  session.write(folder)

Invariant: everything that decides the result is checked here, before the first step.
Does not know: the command line.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from udever.engine.loading import resolve_device
from udever.errors import ExamplesError, RecipeError
from udever.model.precision import resolve_precision
from udever.training.base import TrainBase, load_base, write_checkpoint, write_delta
from udever.training.batches import Batches, StepBatch
from udever.training.card import RunFacts, card, hardware
from udever.training.contrastive import Pairing
from udever.training.data.examples import ExampleStore
from udever.training.data.sampler import Mixture
from udever.training.distill import Targets
from udever.training.distributed import World, world
from udever.training.free_memory import free_bytes
from udever.training.memory import STATE_BYTES, fitting_chunk
from udever.training.objective import contrastive, distill
from udever.training.recipe import Recipe
from udever.training.run import Identity, last_scores
from udever.training.sharding import own_part
from udever.training.step import CHUNK_TOKENS, Trainer, movable
from udever.training.verify import Case

MEMORY_SHARE = 0.5
"""Of the memory that is free beside gradients and the optimizer's state, for activations, where the user names no
budget."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """A run that is ready to go."""

    recipe: Recipe
    base: TrainBase
    stores: Sequence[ExampleStore]
    batches: Batches
    trainer: Trainer
    world: World
    identity: Identity

    @property
    def moved(self) -> int:
        """How many numbers training moves; where the whole table does, the markers' own rows replace some of its."""
        parameters = self.trainer.parameters
        replaced = parameters["own_rows.rows"].numel() if {"table", "own_rows.rows"} <= parameters.keys() else 0
        return sum(parameter.numel() for parameter in parameters.values()) - replaced

    def write(self, folder: Path, *, log: Sequence[Mapping[str, Any]] = ()) -> Path:
        """The model as it is now: a delta folder, or a whole checkpoint if more than biases moved.

        Args:
            log: of the run until now, for the model's card and scores; empty: without them.
        """
        writer = write_delta if self.recipe.tune == "bitfit" else write_checkpoint
        writer(
            folder,
            self.trainer.model,
            self.base,
            name=self.recipe.name,
            matryoshka=self.recipe.contrast.prefixes or (self.base.config.width,),
            recipe_digest=self.recipe.digest,
            scores=last_scores(log),
            card=self.describe(log) if log else "",
        )
        return folder

    def describe(self, log: Sequence[Mapping[str, Any]]) -> str:
        """The model card of the run with this log."""
        return card(
            RunFacts(
                recipe=self.recipe,
                license=self.base.manifest.license,
                base=self.base.name,
                weights=self.base.weights_digest,
                start=self.base.digest,
                stores=[store.about for store in self.stores],
                moved=self.moved,
                dimensions=self.base.config.width,
                max_tokens=self.base.manifest.max_tokens,
                hardware=hardware(self.trainer.device, processes=self.world.size),
                log=log,
            )
        )


@contextmanager
def open_session(
    recipe: Recipe,
    *,
    data: Path,
    precision: str = "auto",
    device: str = "auto",
    memory_bytes: int | None = None,
    chunk_tokens: int | None = None,
    threads: int | None = None,
) -> Iterator[Session]:
    """Load and check everything.

    Args:
        data: folder that the recipe's paths are relative to.
        memory_bytes: for activations; None: half of what is free.
        chunk_tokens: tokens the model sees at once, as a run began; None: what the device likes and the memory allows.
        threads: of this process, as a run began; None: as many as PyTorch takes.

    Raises:
        TrainingError, ModelError: what cannot be trained, each with its reason.
    """
    with world() as here, ExitStack() as settings:
        chosen = _device(device, here)
        if threads:
            settings.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(threads)
        exact = _precision(precision, recipe, chosen)
        computed = settings.enter_context(products(exact, chosen))
        moving = recipe.tune != "bitfit"
        base = load_base(recipe.base, precision=exact, device=chosen, markers=recipe.markers, masters=moving)
        _require_prefixes(recipe, base)
        stores = [_store(data / part.path, base, recipe) for part in recipe.data]
        mixture = Mixture(stores, [part.weight for part in recipe.data])
        targets = _targets(recipe, data, stores, base)
        batches = Batches(mixture, recipe, markers=base.tokenizer.markers, targets=targets)
        parameters = movable(base.model, recipe, world=here, device=chosen)
        budget = _budget(memory_bytes, parameters.values(), here=here, device=chosen)
        chunk_tokens = chunk_tokens or fitting_chunk(
            base.config, tune=recipe.tune, budget_bytes=budget, at_most=CHUNK_TOKENS[chosen.type]
        )
        trainer = Trainer(
            base.model,
            parameters=parameters,
            batches=batches,
            objective=contrastive(recipe.contrast) if targets is None else distill(recipe),
            recipe=recipe,
            world=here,
            device=chosen,
            memory_bytes=budget,
            chunk_tokens=chunk_tokens,
        )
        identity = Identity(
            recipe=recipe,
            data=(*(store.digest for store in stores), *([] if targets is None else [targets.digest])),
            base=base.digest,
            processes=here.size,
            precision=computed,
            chunk_tokens=chunk_tokens,
            threads=torch.get_num_threads(),
        )
        yield Session(
            recipe=recipe, base=base, stores=stores, batches=batches, trainer=trainer, world=here, identity=identity
        )


@contextmanager
def products(precision: str, device: torch.device) -> Iterator[str]:
    """While inside, fp32 products on CUDA are made in tf32, as the published models' were; gives what they are made in.

    The weights stay float32, and so do sums. It is PyTorch's own setting, and so holds for all that runs meanwhile.
    """
    if device.type != "cuda" or precision != "fp32":
        yield precision
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield "tf32"
    finally:
        torch.set_float32_matmul_precision(before)


def case(session: Session, *, examples: int, max_tokens: int) -> Case:
    """The first step's batch cut to a size that the naive step can do, on the base's weights."""
    batch = session.batches.of(0)
    return Case(
        config=session.base.config,
        tensors=session.base.tensors(),
        marker_ids=session.base.tokenizer.marker_ids,
        batch=_smaller(batch, examples=min(examples, batch.queries), max_tokens=max_tokens),
        contrast=session.recipe.contrast,
    )


def not_certified(session: Session) -> list[str]:
    """What the recipe and its run do that a certificate does not look at."""
    recipe, precision = session.recipe, session.identity.precision
    beside = recipe.distill and recipe.distill.contrast_weight
    return [
        what
        for applies, what in (
            (
                recipe.objective == "distill",
                f"the distillation loss: compared is the contrastive one {'beside it' if beside else 'instead'}",
            ),
            (
                recipe.tune != "bitfit",
                f"the gradients of matrices and norms' weights, which tune {recipe.tune!r} moves: compared are those of"
                " biases and markers",
            ),
            (precision != "fp32", f"products in {precision}: compared is a step in fp32 and fp64, on the CPU"),
        )
        if applies
    ]


def _smaller(batch: StepBatch, *, examples: int, max_tokens: int) -> StepBatch:
    """The first queries with their positives and the first hard negatives, bodies cut."""
    rows = [*range(examples), *(batch.queries + i for i in range(examples))]
    rows += range(2 * batch.queries, min(len(batch.sequences), 2 * batch.queries + examples))
    kept = {row - batch.queries: place for place, row in enumerate(rows[examples:])}
    excluded = [
        (int(query), kept[int(document)])
        for query, document in batch.pairing.excluded
        if query < examples and int(document) in kept
    ]
    cut = [batch.sequences[row] for row in rows]
    return StepBatch(
        sequences=[[*s[: max_tokens - 1], s[-1]] if len(s) > max_tokens else s for s in cut],
        texts=[batch.texts[row] for row in rows],
        queries=examples,
        pairing=Pairing.from_rows(list(range(examples)), excluded),
    )


def _store(folder: Path, base: TrainBase, recipe: Recipe) -> ExampleStore:
    store = ExampleStore.open(folder)
    if store.tokenizer_digest != base.tokenizer.digest:
        raise ExamplesError(
            f"{folder} was made with another tokenizer than {recipe.base} has",
            hint=f"import it again with udever data import … --model {recipe.base}",
        )
    if store.max_tokens < recipe.max_tokens:
        raise ExamplesError(
            f"{folder} keeps {store.max_tokens} tokens a text, the recipe wants {recipe.max_tokens}",
            hint=f"import it again with --max-tokens {recipe.max_tokens}",
        )
    return store


def _targets(recipe: Recipe, data: Path, stores: list[ExampleStore], base: TrainBase) -> Targets | None:
    if recipe.objective == "contrastive" or recipe.distill is None:
        return None
    texts = [store.text_count for store in stores]
    width = base.config.width if recipe.distill.match == "vectors" else None
    return Targets.open(data / recipe.distill.targets, texts=texts, width=width)


def _precision(precision: str, recipe: Recipe, device: torch.device) -> str:
    """What products are made in: where matrices move, in full unless something else is asked for."""
    full = precision == "auto" and recipe.tune != "bitfit"
    return "fp32" if full else resolve_precision(precision, device=device)


def _require_prefixes(recipe: Recipe, base: TrainBase) -> None:
    for size in recipe.contrast.prefixes:
        if size > base.config.width:
            raise RecipeError(f"contrast.prefixes has {size}, {recipe.base} is {base.config.width} wide")


def _device(device: str, here: World) -> torch.device:
    chosen = resolve_device(device)
    if chosen.type == "cuda":
        chosen = torch.device("cuda", here.local_rank if chosen.index is None else chosen.index)
        torch.cuda.set_device(chosen)  # what gathers and sums over processes uses the current one
    return chosen


def _budget(memory_bytes: int | None, parameters: Iterable[torch.Tensor], *, here: World, device: torch.device) -> int:
    """For activations; all ranks plan alike, each by what the poorest has."""
    if memory_bytes is None:
        state = STATE_BYTES * sum(own_part(parameter).numel() for parameter in parameters)
        sharing = 1 if device.type == "cuda" else here.local_size
        memory_bytes = max(0, round(MEMORY_SHARE * (free_bytes(device) / sharing - state)))
    return -here.most(-memory_bytes)
