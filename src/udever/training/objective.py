"""What a run learns: a scalar of a batch's embeddings, and numbers to watch.

    contrastive:  the positive among all documents of the batch (contrastive.py)
    distill:      a teacher's vectors, or what is near what among them (distill.py); with the contrastive term or not

Invariant: a function of all embeddings of the batch in their order and of the batch alone.
Does not know: how the embeddings were computed.
"""

from functools import partial
from typing import Protocol

from torch import Tensor

from udever.errors import RecipeError
from udever.training.batches import StepBatch
from udever.training.contrastive import Contrast, contrastive_loss
from udever.training.distill import distill_loss, similarity_loss
from udever.training.recipe import ContrastPart, Recipe

Watched = dict[str, Tensor]
"""Scalars, on the device still: reading one there would wait for all that goes before it."""


class Objective(Protocol):
    """Embeddings [n, H] of a batch → (loss, numbers to watch)."""

    def __call__(self, embeddings: Tensor, batch: StepBatch) -> tuple[Tensor, Watched]:
        """The loss of a step."""


def contrastive(part: ContrastPart) -> Objective:
    """InfoNCE with a recipe's temperature and prefixes, one way or both."""
    contrast = Contrast(temperature=part.temperature, prefixes=part.prefixes, both_ways=part.both_ways)

    def objective(embeddings: Tensor, batch: StepBatch) -> tuple[Tensor, Watched]:
        queries, documents = embeddings[: batch.queries], embeddings[batch.queries :]
        loss, accuracy = contrastive_loss(queries, documents, pairing=batch.pairing, contrast=contrast)
        return loss, {"accuracy": accuracy}

    return objective


def distill(recipe: Recipe) -> Objective:
    """What the teacher knows; with `contrast_weight`, the contrastive loss beside it."""
    part = recipe.distill
    if part is None:  # Recipe refuses that
        raise RecipeError("objective distill needs a [distill] table")
    contrast, learned = contrastive(recipe.contrast), partial(distill_loss, temperature=part.temperature)
    if part.match == "similarities":
        sharpness = part.teacher_temperature or part.temperature
        learned = partial(similarity_loss, temperature=part.temperature, teacher_temperature=sharpness)

    def objective(embeddings: Tensor, batch: StepBatch) -> tuple[Tensor, Watched]:
        if batch.lesson is None:
            raise ValueError("the batches have no teacher's vectors: make them with targets")
        loss, watched = learned(embeddings, batch.lesson, prefixes=recipe.contrast.prefixes)
        if part.contrast_weight and all(recipe.data[store].paired for store, _ in batch.texts):
            contrast_loss, more = contrast(embeddings, batch)
            loss, watched = loss + part.contrast_weight * contrast_loss, watched | more
        return loss, watched

    return objective
