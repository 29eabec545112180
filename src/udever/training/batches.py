"""From a step's examples to what the step computes: token ids of all its texts, and which belongs to which.

    Batches(mixture, recipe, tokenizer).of(step) -> StepBatch

Invariant: a pure function of recipe, data and step, the same in every process; so a run's whole data state is its step.
Does not know: models, losses or files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np

from udever.tokenizer import Role
from udever.training.contrastive import Pairing
from udever.training.data.examples import Example, ExampleStore
from udever.training.data.sampler import Mixture, Sampler, negatives_for
from udever.training.distill import Lesson, Targets
from udever.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """One step's work."""

    sequences: list[list[int]]
    """Token ids with markers: B queries, then their B positives, then hard negatives."""
    texts: list[tuple[int, int]]
    """(store, text id) of each sequence."""
    queries: int
    """B."""
    pairing: Pairing
    lesson: Lesson | None = None
    """A teacher's vectors, where there is a teacher."""

    @property
    def tokens(self) -> int:
        """Of all sequences."""
        return sum(map(len, self.sequences))

    def __getstate__(self) -> dict[str, Any]:
        """For the way between processes: arrays, as tens of thousands of Python's numbers take a GPU's time to read."""
        return self.__dict__ | {
            "sequences": np.fromiter(chain.from_iterable(self.sequences), np.int32, count=self.tokens),
            "lengths": list(map(len, self.sequences)),
            "texts": np.array(self.texts),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        flat, ends = state["sequences"].tolist(), list(accumulate(state.pop("lengths"), initial=0))
        state["sequences"] = [flat[first:end] for first, end in pairwise(ends)]
        state["texts"] = list(map(tuple, state["texts"].tolist()))
        self.__dict__.update(state)


class Batches:
    """All steps of a run."""

    def __init__(
        self,
        mixture: Mixture,
        recipe: Recipe,
        *,
        markers: dict[Role, tuple[int, int]],
        targets: Targets | None = None,
    ) -> None:
        """Args:
        markers: role → ids of its opening and closing marker.
        targets: a teacher's vectors, for the objective `distill`.
        """
        self._mixture, self._recipe, self._markers, self._targets = mixture, recipe, markers, targets
        batch = recipe.batch
        self._sampler = Sampler(mixture, batch_size=batch.size, seed=recipe.seed, mixing=batch.mixing)

    @property
    def steps_per_epoch(self) -> int:
        """Of the mixture."""
        return self._sampler.steps_per_epoch

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return max(1, round(self.steps_per_epoch * self._recipe.batch.epochs))

    @property
    def never_drawn(self) -> Mapping[str, int]:
        """Tasks that are too small for a batch of their own → how many examples they have."""
        return self._sampler.never_drawn

    def of(self, step: int) -> StepBatch:
        """The batch of a step, counted from 0."""
        drawn = self._sampler.batch(step)
        examples = [self._mixture.stores[s].example(index) for s, index, _ in drawn]
        turns = [(s, example, before) for (s, _, before), example in zip(drawn, examples, strict=True)]
        queries = [(s, example.query) for s, example, _ in turns]
        positives = [(s, example.positives[before % len(example.positives)]) for s, example, before in turns]
        negatives = [
            (s, text_id, example.symmetric)
            for s, example, before in turns
            for text_id in negatives_for(example, count=self._recipe.contrast.negatives, before=before)
        ]
        roles = [document_role(example) for example in examples]
        sequences = [self._sequence(s, text_id, "query") for s, text_id in queries]
        sequences += [self._sequence(s, text_id, role) for (s, text_id), role in zip(positives, roles, strict=True)]
        sequences += [
            self._sequence(s, text_id, "query" if symmetric else "document") for s, text_id, symmetric in negatives
        ]
        documents = [*positives, *((s, text_id) for s, text_id, _ in negatives)]
        texts = [*queries, *documents]
        return StepBatch(
            sequences=sequences,
            texts=texts,
            queries=len(queries),
            pairing=Pairing.of(
                list(range(len(queries))),
                [self._mixture.stores[s].key(text_id) for s, text_id in documents],
                _known([(self._mixture.stores[s], index) for s, index, _ in drawn], examples),
            ),
            lesson=self._lesson(texts, step),
        )

    def _lesson(self, texts: Sequence[tuple[int, int]], step: int) -> Lesson | None:
        part = self._recipe.distill
        if self._targets is None or part is None:
            return None
        size = part.bank if part.match == "vectors" else 0
        bank = self._targets.bank(size, seed=(self._recipe.seed, step))
        return Lesson(targets=self._targets.of(texts), bank=bank)

    def text(self, store: int, text_id: int) -> str:
        """A text by its place in `StepBatch.texts`."""
        return self._mixture.stores[store].text(text_id)

    def _sequence(self, store: int, text_id: int, role: Role) -> list[int]:
        opening, closing = self._markers[role]
        body = self._mixture.stores[store].token_ids(text_id)[: self._recipe.max_tokens - 2]
        return [opening, *body, closing]


def document_role(example: Example) -> Role:
    """Both sides of a symmetric example are queries."""
    return "query" if example.symmetric else "document"


def _known(drawn: Sequence[tuple[ExampleStore, int]], examples: Sequence[Example]) -> list[list[int]]:
    """For each query what answers it in any example of its store, and of another store that the batch has it from too;
    and the query itself, which symmetric tasks have among the documents."""
    answers: dict[int, dict[int, None]] = {}
    queries = [store.key(example.query) for (store, _), example in zip(drawn, examples, strict=True)]
    for (store, index), query in zip(drawn, queries, strict=True):
        answers.setdefault(query, {query: None}).update(dict.fromkeys(store.known_positives(index)))
    return [list(answers[query]) for query in queries]
