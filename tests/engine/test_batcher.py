"""The queue before the model: right vectors for everyone, whatever happens to the others."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotInTime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udever import Embedder
from udever.engine import batcher as batcher_module
from udever.engine.batcher import Batcher, BatchStats
from udever.errors import OverloadedError, QueueClosedError, SequenceFailedError

TEXTS = ["one", "two words", "a longer text of a few more words", "x" * 40, "def f(): pass", "…", "seven seven"]
PATIENCE_SECONDS = 30


class Watched:
    """A real model whose forward pass, but for warming up, can be watched, held up and broken."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._warm_up = embedder.tokenize([f"warm up {i}" for i in range(batcher_module.WARM_UP_TEXTS)])
        self.batches: list[list[list[int]]] = []
        self.hold = threading.Event()
        self.hold.set()
        self.breaks: Callable[[Sequence[list[int]]], BaseException | None] = lambda sequences: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._embedder, name)

    def forward(self, sequences: list[list[int]], **options: Any) -> Any:
        if sequences != self._warm_up:
            self.batches.append(sequences)
            assert self.hold.wait(PATIENCE_SECONDS)
            if error := self.breaks(sequences):
                raise error
        return self._embedder.forward(sequences, **options)


@pytest.fixture(scope="module")
def embedder(tiny_checkpoint: Path) -> Embedder:
    return Embedder.load(str(tiny_checkpoint), precision="fp32", device="cpu")


@pytest.fixture
def watched(embedder: Embedder) -> Watched:
    return Watched(embedder)


def running(model: Any, **options: Any) -> Batcher:
    batcher = Batcher(model, **options)
    batcher.start()
    until(lambda: batcher.ready)
    return batcher


def slow(model: Watched, **options: Any) -> Batcher:
    """A batcher that knows by experience that a batch takes 0.1 s."""
    batcher = running(model, batch_tokens=512, **options)
    model.breaks = lambda sequences: time.sleep(0.0002 * sum(map(len, sequences)))
    for _ in range(12):
        batcher.submit([[5] * 64] * 8).result(PATIENCE_SECONDS)
    return batcher


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.002)


@pytest.fixture
def batcher(watched: Watched) -> Iterator[Batcher]:
    batcher = running(watched, batch_tokens=64)
    yield batcher
    watched.hold.set()
    batcher.close()


def vectors_of(batcher: Batcher, texts: list[str]) -> Any:
    raw = batcher.submit(batcher.embedder.tokenize(texts)).result(PATIENCE_SECONDS)
    return batcher.embedder.finish(raw)


@settings(max_examples=25, deadline=None)
@given(requests=st.lists(st.lists(st.sampled_from(TEXTS), max_size=12), max_size=12), batch_tokens=st.integers(1, 200))
def test_everyone_gets_the_vectors_of_embed(embedder: Embedder, requests: list[list[str]], batch_tokens: int) -> None:
    batcher = running(embedder, batch_tokens=batch_tokens)
    try:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda texts: vectors_of(batcher, texts), requests))
    finally:
        batcher.close()
    for texts, vectors in zip(requests, answers, strict=True):
        np.testing.assert_allclose(vectors, embedder.embed(texts), atol=1e-6)


def test_texts_that_wait_share_batches_of_like_length_under_the_budget(batcher: Batcher, watched: Watched) -> None:
    watched.hold.clear()
    first = batcher.submit([[5] * 10])
    until(lambda: len(watched.batches) == 1)
    waiting = [batcher.submit([[5 + i] * (30 if i % 2 else 4)]) for i in range(8)]
    watched.hold.set()
    for future in [first, *waiting]:
        future.result(PATIENCE_SECONDS)
    sizes = [sorted(map(len, sequences)) for sequences in watched.batches[1:]]
    assert sizes == [[4, 4, 4, 4, 30], [30, 30], [30]]


def test_a_text_longer_than_the_budget_is_a_batch_of_its_own(batcher: Batcher, watched: Watched) -> None:
    batcher.submit([[7] * 100, [8] * 3]).result(PATIENCE_SECONDS)
    assert sorted(len(sequences[0]) for sequences in watched.batches) == [3, 100]


def test_a_request_is_told_when_its_first_text_goes_into_a_batch(batcher: Batcher, watched: Watched) -> None:
    watched.hold.clear()
    first = batcher.submit([[5] * 60])
    until(lambda: len(watched.batches) == 1)
    started: list[int] = []
    waiting = batcher.submit([[6] * 60] * 3, on_start=lambda: started.append(len(watched.batches)))
    assert not started
    watched.hold.set()
    for future in (first, waiting):
        future.result(PATIENCE_SECONDS)
    assert started == [1]  # before the second batch of all, its own first one, and not again


def test_a_large_request_does_not_starve_a_small_one(batcher: Batcher, watched: Watched) -> None:
    watched.hold.clear()
    large = batcher.submit([[10 + i] * 60 for i in range(200)])
    until(lambda: len(watched.batches) == 1)
    small = batcher.submit([[9] * 60])
    watched.hold.set()
    small.result(PATIENCE_SECONDS)
    asked = [i for i, sequences in enumerate(watched.batches) if sequences[0][0] == 9]
    assert asked[0] <= 3
    large.result(PATIENCE_SECONDS)


def test_what_has_waited_too_long_goes_first(
    batcher: Batcher, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.hold.clear()
    batcher.submit([[5] * 64])
    until(lambda: len(watched.batches) == 1)
    anchor = batcher.submit([[6] * 20])
    unlike = batcher.submit([[7] * 40])
    alike = batcher.submit([[8] * 20])
    monkeypatch.setattr(batcher_module, "AGE_CAP_SECONDS", 0.0)
    watched.hold.set()
    for future in (anchor, unlike, alike):
        future.result(PATIENCE_SECONDS)
    assert [sequence[0] for sequence in watched.batches[1]] == [6, 7]


def test_a_bad_text_fails_alone_and_names_itself(batcher: Batcher, watched: Watched, embedder: Embedder) -> None:
    watched.breaks = lambda sequences: ValueError("poison") if any(s[1:2] == [77] for s in sequences) else None
    watched.hold.clear()
    batcher.submit([[5] * 64])
    until(lambda: len(watched.batches) == 1)
    good = [batcher.submit([[20 + i] * 5]) for i in range(5)]
    bad = batcher.submit([[4] * 5, [77] * 5, [6] * 5])
    watched.hold.set()
    with pytest.raises(SequenceFailedError, match="text 1 failed in the model: poison") as failure:
        bad.result(PATIENCE_SECONDS)
    assert failure.value.index == 1
    for i, future in enumerate(good):
        np.testing.assert_allclose(future.result(PATIENCE_SECONDS), embedder.forward([[20 + i] * 5]), atol=1e-6)


def test_cancelled_work_is_dropped(batcher: Batcher, watched: Watched) -> None:
    watched.hold.clear()
    first = batcher.submit([[5] * 64])
    until(lambda: len(watched.batches) == 1)
    dropped = batcher.submit([[66] * 60 for _ in range(50)])
    assert batcher.queued_tokens == 64 + 3000
    assert dropped.cancel()
    assert batcher.queued_tokens == 64
    last = batcher.submit([[5] * 8])
    watched.hold.set()
    last.result(PATIENCE_SECONDS)
    first.result(PATIENCE_SECONDS)
    assert len(watched.batches) == 2
    until(lambda: batcher.queued_tokens == 0)


def test_too_much_work_is_refused_with_an_estimate(watched: Watched) -> None:
    batcher = running(watched, max_wait_seconds=0.0)
    watched.hold.clear()
    accepted = batcher.submit([[5] * 200] * 20)
    with pytest.raises(OverloadedError, match="is full") as refusal:
        batcher.submit([[5] * 3])
    assert refusal.value.retry_after_seconds >= 1
    watched.hold.set()
    accepted.result(PATIENCE_SECONDS)
    until(lambda: batcher.queued_tokens == 0)
    batcher.submit([[5] * 3]).result(PATIENCE_SECONDS)
    batcher.close()


def test_a_large_request_is_no_reason_to_refuse_small_ones_but_the_next_large_one_is_refused(watched: Watched) -> None:
    batcher = slow(watched, max_wait_seconds=0.6)
    watched.hold.clear()
    large = batcher.submit([[6] * 64] * 800)  # 10 s
    until(lambda: len(watched.batches) == 13)
    assert batcher.drain_seconds > 5
    small = [batcher.submit([[7] * 10]) for _ in range(10)]
    with pytest.raises(OverloadedError, match="is full") as refusal:
        batcher.submit([[8] * 64] * 800)
    assert 4 < refusal.value.retry_after_seconds < 60
    watched.hold.set()
    for future in small:
        future.result(PATIENCE_SECONDS)
    assert len(watched.batches) < 20
    large.cancel()
    batcher.close()


def test_many_small_requests_fill_the_queue_all_the_same(watched: Watched) -> None:
    batcher = slow(watched, max_wait_seconds=0.6)
    watched.hold.clear()
    taken: list[Any] = []

    def submit() -> None:
        while len(taken) < 20:
            taken.append(batcher.submit([[5] * 64] * 8))  # a batch each

    with pytest.raises(OverloadedError):
        submit()
    assert 3 <= len(taken) <= 8
    watched.hold.set()
    for future in taken:
        future.result(PATIENCE_SECONDS)
    batcher.close()


def test_small_ones_that_waited_behind_a_large_one_are_served_together(
    batcher: Batcher, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher_module, "AGE_CAP_SECONDS", 0.0)  # the model is so slow that all wait too long
    watched.hold.clear()
    large = batcher.submit([[6] * 8] * 400)
    until(lambda: len(watched.batches) == 1)
    small = [batcher.submit([[7] * 8]) for _ in range(8)]
    watched.hold.set()
    for future in small:
        future.result(PATIENCE_SECONDS)
    served = [i for i, sequences in enumerate(watched.batches) if any(sequence[0] == 7 for sequence in sequences)]
    assert served[-1] <= 3
    large.cancel()


def test_lone_short_texts_say_nothing_about_how_long_many_long_ones_take(batcher: Batcher, watched: Watched) -> None:
    watched.breaks = lambda sequences: time.sleep(0.1 if len(sequences) == 1 else 0)  # 0.05 s a token
    for _ in range(10):
        batcher.submit([[5, 6]]).result(PATIENCE_SECONDS)
    watched.hold.clear()
    many = batcher.submit([[5] * 20] * 500)
    assert 0 < batcher.drain_seconds < 0.05 * 10_000 / 10
    watched.hold.set()
    many.result(PATIENCE_SECONDS)


@pytest.mark.parametrize("death", [SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_the_model_thread_comes_back(batcher: Batcher, watched: Watched, death: BaseException) -> None:
    watched.breaks = lambda sequences: death
    doomed = batcher.submit([[5] * 5])
    with pytest.raises(QueueClosedError, match="the model thread failed"):
        doomed.result(PATIENCE_SECONDS)
    assert not batcher.ready
    waiting = batcher.submit([[6] * 5])
    watched.breaks = lambda sequences: None
    waiting.result(PATIENCE_SECONDS)
    assert batcher.ready
    assert batcher.restarts == 1


def test_a_model_that_cannot_start_ends_what_waits(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Batcher, "_warm_up", lambda self: 1 / 0)
    batcher = Batcher(watched)  # type: ignore[arg-type]
    waiting = batcher.submit([[5] * 5])
    batcher.start()
    with pytest.raises(QueueClosedError, match="ZeroDivisionError"):
        waiting.result(PATIENCE_SECONDS)
    assert not batcher.ready
    batcher.close()


def test_closing_finishes_what_is_queued(watched: Watched) -> None:
    batcher = running(watched, batch_tokens=64)
    watched.hold.clear()
    futures = [batcher.submit([[5 + i] * 60]) for i in range(5)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    until(lambda: not batcher.ready)
    with pytest.raises(QueueClosedError):
        batcher.submit([[5]])
    watched.hold.set()
    closing.join(PATIENCE_SECONDS)
    assert [future.result(0).shape for future in futures] == [(1, watched.dimensions)] * 5


def test_closing_gives_up_after_the_grace_time(watched: Watched) -> None:
    batcher = running(watched)
    watched.hold.clear()
    future = batcher.submit([[5] * 60])
    until(lambda: len(watched.batches) == 1)
    batcher.close(grace_seconds=0.05, end_seconds=0)
    with pytest.raises(QueueClosedError, match="shutting down"):
        future.result(0)
    watched.hold.set()


def test_each_batch_is_told(embedder: Embedder) -> None:
    told: list[BatchStats] = []
    batcher = running(embedder, on_batch=told.append, batch_tokens=512)
    batcher.submit([[5] * 9, [6] * 4]).result(PATIENCE_SECONDS)
    batcher.close()
    assert (told[-1].tokens, told[-1].sequences, told[-1].budget_tokens) == (13, 2, 512)
    assert told[-1].seconds > 0


def test_nothing_to_embed_is_answered_at_once(embedder: Embedder) -> None:
    assert Batcher(embedder).submit([]).result(0).shape == (0, embedder.dimensions)


def test_a_future_waits_until_there_is_a_model(embedder: Embedder) -> None:
    batcher = Batcher(embedder)
    future = batcher.submit([[5] * 5])
    with pytest.raises(NotInTime):
        future.result(0.01)
    batcher.start()
    future.result(PATIENCE_SECONDS)
    batcher.close()
