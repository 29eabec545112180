"""Batches are a pure function of seed and step, and an epoch sees what its weights say."""

import time
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udever.errors import ExamplesError
from udever.training.data.examples import Example
from udever.training.data.sampler import Mixture, Sampler, negatives_for, shuffled


class Store:
    """As much of an ExampleStore as the sampler sees."""

    def __init__(self, **task_sizes: int) -> None:
        ends = np.cumsum([0, *task_sizes.values()])
        interleaved = np.random.default_rng(0).permutation(ends[-1])
        self.tasks = {
            task: np.sort(interleaved[begin:end])
            for task, begin, end in zip(task_sizes, ends[:-1], ends[1:], strict=True)
        }
        self.task_of = {int(index): task for task, indices in self.tasks.items() for index in indices}

    def __len__(self) -> int:
        return len(self.task_of)


def sampler(stores: list[Store], weights: list[float] | None = None, **options: Any) -> Sampler:
    return Sampler(Mixture(stores, weights), **{"batch_size": 4, "seed": 1} | options)  # type: ignore[arg-type]


def epoch(of: Sampler, number: int) -> list[list[tuple[int, int]]]:
    steps = of.steps_per_epoch
    return [
        [(store, index) for store, index, _ in of.batch(step)] for step in range(number * steps, (number + 1) * steps)
    ]


SIZES = st.lists(
    st.dictionaries(st.sampled_from("abc"), st.integers(1, 40), min_size=1, max_size=3), min_size=1, max_size=3
)
MIXINGS = st.sampled_from(["mixed", "one_task"])


@settings(max_examples=80, deadline=None)
@given(sizes=SIZES, batch_size=st.integers(1, 9), seed=st.integers(-5, 2**63), mixing=MIXINGS, copies=st.integers(1, 3))
def test_an_epoch_draws_each_example_as_often_as_its_weight_says(
    sizes: list[dict[str, int]], batch_size: int, seed: int, mixing: str, copies: int
) -> None:
    stores = [Store(**tasks) for tasks in sizes]
    weights = [float(copies)] * len(stores)
    try:
        drawing = sampler(stores, weights, batch_size=batch_size, seed=seed, mixing=mixing)
    except ExamplesError:
        largest = max(sum(tasks.values()) for tasks in sizes)
        assert mixing == "one_task" or copies * largest < batch_size
        return
    batches = epoch(drawing, 0)
    assert all(len(batch) == batch_size for batch in batches)
    drawn = Counter(place for batch in batches for place in batch)
    assert max(drawn.values()) <= copies
    missing = copies * sum(map(len, stores)) - sum(drawn.values())
    assert missing == sum(drawing.dropped.values()) == drawing.draws_per_epoch - batch_size * drawing.steps_per_epoch
    if mixing == "mixed":
        assert missing < batch_size
    else:
        for batch in batches:
            assert len({stores[store].task_of[index] for store, index in batch}) == 1
        assert all(rest < batch_size for rest in drawing.dropped.values())


@settings(max_examples=40, deadline=None)
@given(size=st.integers(2, 60), tenths=st.integers(1, 29), mixing=MIXINGS)
def test_a_fractional_weight_draws_a_part_that_rotates(size: int, tenths: int, mixing: str) -> None:
    drawing = sampler([Store(a=size)], [tenths / 10], batch_size=1, mixing=mixing)
    whole = tenths // 10
    assert drawing.steps_per_epoch == pytest.approx(tenths / 10 * size, abs=1)
    assert drawing.steps_per_epoch > 0
    total: Counter[tuple[int, int]] = Counter()
    for number in range(10):
        counts = Counter(place for batch in epoch(drawing, number) for place in batch)
        assert set(counts.values()) <= {whole, whole + 1}
        total += counts
    assert max(total.values()) - min(total[0, index] for index in range(size)) <= 1, "rotation leaves nobody behind"


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 30), tenths=st.integers(1, 29), mixing=MIXINGS)
def test_each_draw_knows_how_often_its_example_was_drawn_before(size: int, tenths: int, mixing: str) -> None:
    drawing = sampler([Store(a=size), Store(a=3)], [tenths / 10, 1.0], batch_size=1, mixing=mixing)
    before: dict[tuple[int, int], list[int]] = {}
    for step in range(7 * drawing.steps_per_epoch):
        ((store, index, times),) = drawing.batch(step)
        before.setdefault((store, index), []).append(times)
    assert all(sorted(times) == list(range(len(times))) for times in before.values())
    if tenths < 10:
        assert all(times == sorted(times) for times in before.values())


def test_a_step_gives_the_same_batch_in_any_order_and_process() -> None:
    stores = [Store(a=50, b=13), Store(a=7)]
    for mixing in ("mixed", "one_task"):
        drawing = sampler(stores, [1.5, 2.0], mixing=mixing)
        forwards = [drawing.batch(step) for step in range(40)]
        other = sampler([Store(a=50, b=13), Store(a=7)], [1.5, 2.0], mixing=mixing)
        assert [other.batch(step) for step in reversed(range(40))][::-1] == forwards
        assert [drawing.epoch_of(step) for step in (0, drawing.steps_per_epoch - 1, drawing.steps_per_epoch)] == [
            0,
            0,
            1,
        ]


def test_epochs_seeds_and_groups_are_shuffled_apart() -> None:
    drawing = sampler([Store(a=400)])
    orders = [epoch(drawing, 0), epoch(drawing, 1), epoch(sampler([Store(a=400)], seed=2), 0)]
    flat = [[index for batch in order for _, index in batch] for order in orders]
    assert all(sorted(order) == list(range(400)) for order in flat)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert sum(a == b for a, b in zip(flat[one], flat[other], strict=True)) < 20
    assert abs(np.corrcoef(flat[0], range(400))[0, 1]) < 0.2
    together = [{frozenset(batch) for batch in order} for order in orders]
    assert not together[0] & together[1], "other examples meet in a batch each epoch"


def test_the_shuffle_is_the_same_with_every_numpy() -> None:
    assert shuffled(10, (42, 0)).tolist() == GOLDEN
    assert shuffled(0, (42, 0)).tolist() == []


GOLDEN = [4, 8, 1, 9, 3, 6, 0, 7, 2, 5]


def test_tasks_of_one_name_are_one_task_across_stores() -> None:
    drawing = sampler([Store(a=3), Store(a=3)], batch_size=6, mixing="one_task")
    assert sorted(drawing.batch(0)) == [(store, index, 0) for store in (0, 1) for index in range(3)]


def test_tasks_come_interleaved() -> None:
    drawing = sampler([Store(a=200, b=200)], mixing="one_task")
    store = Store(a=200, b=200)
    order = "".join(store.task_of[batch[0][1]] for batch in epoch(drawing, 0))
    assert len(order) == 100
    assert 30 < sum(x != y for x, y in pairwise(order)) < 70


def test_a_task_smaller_than_a_batch_is_never_drawn_and_that_is_said() -> None:
    drawing = sampler([Store(a=9, b=3)], mixing="one_task")
    assert drawing.never_drawn == {"b": 3}
    assert drawing.dropped == {"a": 1, "b": 3}
    assert {Store(a=9, b=3).task_of[index] for batch in epoch(drawing, 0) for _, index in batch} == {"a"}


@pytest.mark.parametrize(
    ("stores", "weights", "options", "said"),
    [
        ([], [], {}, "0 stores"),
        ([Store(a=9)], [1.0, 1.0], {}, "2 weights"),
        ([Store(a=9)], [0.0], {}, "above 0"),
        ([Store(a=9)], [float("nan")], {}, "above 0"),
        ([Store(a=9)], None, {"batch_size": 10}, "only 9"),
        ([Store(a=5, b=6)], None, {"batch_size": 10, "mixing": "one_task"}, "only 6"),
    ],
)
def test_refusals(stores: list[Store], weights: list[float] | None, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ExamplesError) as caught:
        sampler(stores, weights, **options)
    assert said in str(caught.value)


def test_a_batch_of_a_large_mixture_costs_little() -> None:
    """An epoch is shuffled once; its batches are slices."""
    large = type("Large", (), {"__len__": lambda _: 2_000_000})()
    drawing = sampler([large], [1.0], batch_size=1024)
    drawing.batch(0)
    began = time.perf_counter()
    assert all(len(drawing.batch(step)) == 1024 for step in range(1, 101))
    assert time.perf_counter() - began < 2, "20 ms a batch would be far too much; it takes under one"


@given(negatives=st.lists(st.integers(), max_size=7, unique=True), count=st.integers(0, 4), first=st.integers(0, 9))
def test_negatives_rotate_through_the_list(negatives: list[int], count: int, first: int) -> None:
    example = Example(query=0, positives=(1,), negatives=tuple(negatives), task="a")
    drawn = [negatives_for(example, count=count, before=number) for number in range(first, first + len(negatives))]
    assert all(len(each) == len(set(each)) == min(count, len(negatives)) for each in drawn)
    if count and negatives:
        uses = Counter(text for each in drawn for text in each)
        assert set(uses) == set(negatives)
        assert set(uses.values()) == {min(count, len(negatives))}, "each is drawn as often as any other"
        soon = drawn[: -(-len(negatives) // count)]
        assert {text for each in soon for text in each} == set(negatives), (
            "all have had their turn before one comes again"
        )
