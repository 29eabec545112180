"""Many callers share one model's batches: a queue of token ids before one model thread.

    submit -> one deque -> the model is free: take a batch -> forward -> each caller's vectors

Invariant: no timers. A batch forms the moment the model is free, from what is queued then; a text is in one batch, and
a caller's future ends exactly once: with all its vectors, or with one error. Nobody starves: a request that has been
served goes to the back, so that large ones are split between others, and what has waited too long goes first. New work
is refused for what would come before it in that order, not for all that is queued.
Knows no text, no HTTP and no event loop: `asyncio.wrap_future` makes a future awaitable.
"""

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from udever.engine.embedder import Embedder, Vectors
from udever.engine.threads import fitting_threads
from udever.errors import OverloadedError, QueueClosedError, SequenceFailedError

MAX_WAIT_SECONDS = 30.0
LOOK_AHEAD_BATCHES = 4
"""How many batches' worth of queued tokens are looked at for texts of like length."""
AGE_CAP_SECONDS = 0.5
"""What has waited longer goes into the next batch, of like length or not."""
FORGETTING = 0.9
"""How much of the earlier batches' tokens and seconds the estimate of speed keeps at each batch."""
WARM_UP_TEXTS = 32
"""As many short texts tell the model's speed; of fewer tokens, a batch's time says more of its fixed costs."""
RESTART_SECONDS = 0.5
"""Pause before the model thread begins again after a failure that nobody foresaw."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BatchStats:
    """What `on_batch` is told after each batch."""

    tokens: int
    sequences: int
    seconds: float
    budget_tokens: int


@dataclass(kw_only=True, eq=False)
class _Request:
    """One `submit`."""

    sequences: list[list[int]]
    future: "Future[Vectors]"
    out: Vectors
    waits_since: float
    """When it arrived, or was last given room in a batch."""
    waiting: deque[int]
    """Indices not yet in a batch."""
    tokens_left: int
    """Tokens not yet computed."""
    on_start: Callable[[], None] | None
    """To be called once; None after that."""


@dataclass(frozen=True, slots=True)
class _Item:
    """One text of a request."""

    request: _Request
    index: int

    @property
    def tokens(self) -> int:
        return len(self.request.sequences[self.index])


class Batcher:
    """A queue before one model. `start` it, `submit` from any thread, `close` it."""

    def __init__(
        self,
        embedder: Embedder,
        *,
        batch_tokens: int | None = None,
        max_wait_seconds: float = MAX_WAIT_SECONDS,
        on_batch: Callable[[BatchStats], None] | None = None,
    ) -> None:
        """Args:
        batch_tokens: tokens the model sees at once; None: what the embedder takes by itself.
        max_wait_seconds: new work is refused while what comes before it is estimated to take longer than this.
        on_batch: called in the model thread after each batch.
        """
        self.embedder, self.max_wait_seconds = embedder, max_wait_seconds
        self.batch_tokens = batch_tokens or embedder.batch_tokens
        self.restarts = 0
        """How often the model thread failed and began again."""
        self._on_batch = on_batch
        self._requests: deque[_Request] = deque()
        """Those with texts that are in no batch yet."""
        self._running: list[_Item] = []
        self._past_tokens = self._past_seconds = 0.0
        self._telling_tokens = 0
        """Smaller batches are left out of the estimate of speed."""
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._main, name=f"udever-model-{embedder.name}", daemon=True)

    @property
    def ready(self) -> bool:
        """Whether the model thread is alive, has embedded its first text, and takes work."""
        return self._ready.is_set() and not self._closing.is_set() and self._thread.is_alive()

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait or are being computed."""
        with self._changed:
            unfinished = {*self._requests, *(item.request for item in self._running)}
            return sum(request.tokens_left for request in unfinished if not request.future.done())

    @property
    def drain_seconds(self) -> float:
        """Estimate of when all that is queued now will be done."""
        return self._seconds_for(self.queued_tokens)

    def wait_seconds(self, tokens: int) -> float:
        """Estimate of how long a new request of so many tokens waits for others, if large ones take turns with it."""
        return self._seconds_for(self._tokens_before(tokens))

    def start(self) -> None:
        """Start the model thread; `ready` follows after its first embedding."""
        self._thread.start()

    def close(self, *, grace_seconds: float = 10.0, end_seconds: float = 10.0) -> None:
        """Take no more work, finish what is queued, and give up on what is left after `grace_seconds`.

        The batch in the model cannot be given up: its thread is waited for `end_seconds` longer, because a process that
        ends under it aborts.
        """
        with self._changed:
            self._closing.set()
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(grace_seconds)
        with self._changed:
            self._abandon([*self._requests, *(item.request for item in self._running)], "the server is shutting down")
            self._requests.clear()
        if self._thread.is_alive():
            self._thread.join(end_seconds)

    def submit(self, sequences: list[list[int]], *, on_start: Callable[[], None] | None = None) -> "Future[Vectors]":
        """Queue token ids, as `Embedder.tokenize` makes them.

        Args:
            on_start: called in the model thread when the first of them goes into a batch.

        Returns:
            a future of raw hidden states float32 [len(sequences), width], for `Embedder.finish`. Cancelling it drops
            what is not yet computed. It may raise `SequenceFailedError` or `QueueClosedError`.

        Raises:
            OverloadedError: it would wait longer for others than `max_wait_seconds`.
            QueueClosedError: after `close`.
        """
        width = self.embedder.dimensions
        request = _Request(
            sequences=sequences,
            future=Future(),
            out=np.empty((len(sequences), width), np.float32),
            waits_since=time.monotonic(),
            waiting=deque(range(len(sequences))),
            tokens_left=sum(map(len, sequences)),
            on_start=on_start,
        )
        if not sequences:
            request.future.set_result(request.out)
            return request.future
        self.require_room(request.tokens_left)
        with self._changed:
            if self._closing.is_set():
                raise QueueClosedError("the server is shutting down")
            self._requests.append(request)
            self._changed.notify()
        return request.future

    def require_room(self, tokens: int) -> None:
        """Raises OverloadedError, as `submit` of so many tokens would now."""
        wait_seconds = self.wait_seconds(tokens)
        excess_seconds = wait_seconds - self.max_wait_seconds
        if excess_seconds > 0:
            raise OverloadedError(
                f"the queue before {self.embedder.name} is full: {wait_seconds:.0f} s of work come first",
                retry_after_seconds=max(1.0, excess_seconds),
            )

    def _tokens_before(self, tokens: int) -> int:
        """Those of the batch that runs, and of each request that waits as many as fit into the turns this one needs."""
        turns = math.ceil(tokens / self.batch_tokens)
        with self._changed:
            running: Counter[_Request] = Counter()
            for item in self._running:
                if not item.request.future.done():
                    running[item.request] += item.tokens
            waiting = (request for request in self._requests if not request.future.done())
            lefts = (max(0, request.tokens_left - running[request]) for request in waiting)
            return running.total() + sum(min(left, turns * self.batch_tokens) for left in lefts)

    def _seconds_for(self, tokens: int) -> float:
        return tokens * self._past_seconds / self._past_tokens if self._past_tokens else 0.0

    # ---- in the model thread ----

    def _main(self) -> None:
        while not self._closing.is_set() or self._requests:
            try:
                self._warm_up()
                for batch in self._batches():
                    self._run(batch)
                    self._running = []
            except BaseException as error:  # whatever it was, requests must end and the next be served
                log.exception("the model thread failed and begins again", exc_info=error)
                self._recover(error)
                self._closing.wait(RESTART_SECONDS)

    def _recover(self, error: BaseException) -> None:
        """End what was being computed; all that waits too, if the model could not even be warmed up."""
        with self._changed:
            lost = [item.request for item in self._running]
            if not self._ready.is_set():
                lost += self._requests
            self._ready.clear()
            self.restarts += 1
            self._running = []
            self._abandon(lost, f"the model thread failed: {error!r}")
            self._requests = deque(request for request in self._requests if request.waiting)

    def _warm_up(self) -> None:
        """The first embedding pays for caches and gives the first estimate of speed."""
        sequences = self.embedder.tokenize([f"warm up {i}" for i in range(WARM_UP_TEXTS)])
        self.embedder.forward(sequences)
        self._telling_tokens = sum(map(len, sequences))
        self._timed(sequences)
        self._ready.set()

    def _batches(self) -> Iterator[list[_Item]]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._requests or self._closing.is_set())
                self._running = self._take()
                if not self._running and self._closing.is_set() and not self._requests:
                    return
            if self._running:
                yield self._running

    def _take(self) -> list[_Item]:
        """The next batch: the first request's next text, then the overdue, then texts of like length."""
        self._requests = deque(request for request in self._requests if not request.future.done())
        if not self._requests:
            return []
        anchor, *others = self._look_ahead()
        now = time.monotonic()
        overdue = now - AGE_CAP_SECONDS
        others.sort(
            key=lambda item: (item.request.waits_since if item.request.waits_since < overdue else np.inf,
                              abs(item.tokens - anchor.tokens))
        )  # fmt: skip
        batch, room = [anchor], self.batch_tokens - anchor.tokens
        for item in others:
            if item.tokens <= room:
                batch.append(item)
                room -= item.tokens
        for item in batch:
            item.request.waiting.remove(item.index)
            item.request.waits_since = now
            _start(item.request)
        self._requests.rotate(-1)  # whoever was first has been served: others are first now
        self._requests = deque(request for request in self._requests if request.waiting)
        return batch

    def _look_ahead(self) -> list[_Item]:
        """Queued texts, a batch's worth of each request at most, as far as one looks."""
        found: list[_Item] = []
        left = LOOK_AHEAD_BATCHES * self.batch_tokens
        for request in self._requests:
            share = self.batch_tokens
            for index in request.waiting:
                item = _Item(request, index)
                found.append(item)
                share -= item.tokens
                left -= item.tokens
                if share <= 0:
                    break
            if left <= 0:
                break
        return found

    def _run(self, batch: list[_Item]) -> None:
        """Compute a batch; one that fails is halved until the texts that fail stand alone."""
        try:
            vectors = self._timed([item.request.sequences[item.index] for item in batch])
        except Exception as error:  # noqa: BLE001  whatever a text provokes must not reach its neighbours
            log.warning("a batch of %d texts failed: %s", len(batch), type(error).__name__)  # its words may quote them
            if len(batch) == 1:
                self._fail(batch[0], error)
            else:
                self._run(batch[: len(batch) // 2])
                self._run(batch[len(batch) // 2 :])
            return
        for item, vector in zip(batch, vectors, strict=True):
            request = item.request
            request.out[item.index] = vector
            request.tokens_left -= item.tokens
            if not request.tokens_left:
                with suppress(InvalidStateError):  # cancelled or given up
                    request.future.set_result(request.out)

    def _timed(self, sequences: list[list[int]]) -> Vectors:
        began = time.monotonic()
        tokens = sum(map(len, sequences))
        with fitting_threads(tokens * self.embedder.config.flops_per_token):
            vectors = self.embedder.forward(sequences, batch_tokens=self.batch_tokens)
        seconds = time.monotonic() - began
        if tokens >= self._telling_tokens:
            self._past_tokens = FORGETTING * self._past_tokens + tokens
            self._past_seconds = FORGETTING * self._past_seconds + seconds
        if self._on_batch:
            stats = BatchStats(
                tokens=tokens, sequences=len(sequences), seconds=seconds, budget_tokens=self.batch_tokens
            )
            self._on_batch(stats)
        return vectors

    def _fail(self, item: _Item, error: Exception) -> None:
        failure = SequenceFailedError(f"text {item.index} failed in the model: {error}", index=item.index)
        failure.__cause__ = error
        self._end(item.request, failure)

    def _abandon(self, requests: list[_Request], why: str) -> None:
        for request in requests:
            self._end(request, QueueClosedError(why))

    def _end(self, request: _Request, error: Exception) -> None:
        request.waiting.clear()
        with suppress(InvalidStateError):  # cancelled or given up
            request.future.set_exception(error)


def _start(request: _Request) -> None:
    if request.on_start is not None:
        request.on_start()
        request.on_start = None
