"""Work side by side: all of it, with the caller's threads left as they were, and an end when something fails."""

import signal
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from udever.engine.side_by_side import places, side_by_side

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_outlives_the_call() -> Iterator[None]:
    threads = torch.get_num_threads()
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist's processes ignore it
    yield
    signal.signal(signal.SIGINT, handler)
    assert torch.get_num_threads() == threads
    for thread in threading.enumerate():
        if thread.name == "udever-batch":
            thread.join(0.5)  # it has ended but for its last lines
            assert not thread.is_alive()


def threads_of_a_new_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize("count", [2, 3, 7])
def test_every_item_once_and_no_more_at_a_time_than_there_are_places(count: int) -> None:
    done: list[int] = []
    at_once: set[int] = set()
    lock, most = threading.Lock(), 0

    def function(item: int) -> None:
        nonlocal most
        with lock:
            at_once.add(item)
            most = max(most, len(at_once))
        time.sleep(0.005)
        with lock:
            at_once.remove(item)
            done.append(item)

    side_by_side(function, iter(range(30)), places=count)
    assert sorted(done) == list(range(30))
    assert most == count
    side_by_side(function, [], places=count)
    assert len(done) == 30


def test_the_places_share_the_callers_threads_and_the_caller_keeps_them() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    try:
        assert places(CPU) in (1, 6)
        seen: set[int] = set()
        side_by_side(lambda _: seen.add(torch.get_num_threads()), range(20), places=3)
        assert seen == {2}
        assert torch.get_num_threads() == 6
        assert threads_of_a_new_thread() == 6
        side_by_side(lambda _: seen.add(torch.get_num_threads()), range(20), places=8)
        assert seen == {2, 1}
    finally:
        torch.set_num_threads(before)
    assert places(torch.device("cuda")) == 1


@pytest.mark.parametrize("error", [ValueError("item 7"), KeyboardInterrupt()])
def test_the_first_error_ends_it(error: BaseException) -> None:
    started: list[int] = []

    def function(item: int) -> None:
        started.append(item)
        if item == 7:
            raise error
        time.sleep(0.005)

    with pytest.raises(type(error)) as caught:
        side_by_side(function, range(1000), places=3)
    assert caught.value is error
    assert 8 <= len(started) < 20


def test_an_error_among_the_items_ends_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        side_by_side(lambda _: None, items(), places=2)


def test_a_thread_that_cannot_start_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    start, begun = threading.Thread.start, []

    def first_only(thread: threading.Thread) -> None:
        if begun:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", first_only)
    with pytest.raises(RuntimeError, match="new thread"):
        side_by_side(lambda _: None, range(10), places=3)


def test_an_interrupt_ends_it_when_the_items_in_work_are_done() -> None:
    begun: list[int] = []
    finished: list[int] = []

    def function(item: int) -> None:
        if item == 5:
            signal.raise_signal(signal.SIGINT)
        begun.append(item)
        time.sleep(0.2 if item == 6 else 0.01)
        finished.append(item)

    with pytest.raises(KeyboardInterrupt):
        side_by_side(function, range(1000), places=2)
    assert 5 <= len(finished) < 30
    assert len(finished) == len(begun), "it has waited for the items in work"
