"""Work done one step ahead, in a thread.

Invariant: results come in the order of the items; at most one waits beside the one that is being made.
Does not know: what the work is.
"""

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def one_ahead(
    function: Callable[[In], Out], items: Iterable[In], *, thread: str = "udever-ahead"
) -> Generator[Out, None, None]:
    """`map(function, items)` in a thread of its own: a result is made while the caller uses the one before it.

    So it runs ahead of whoever uses the results by one, and behind whatever makes the items by one. Close it to stop
    early: it then waits for the item in work.

    Args:
        thread: name of the thread, as a debugger shows it.
    """
    with ThreadPoolExecutor(1, thread_name_prefix=thread) as pool:
        waiting: Future[Out] | None = None
        for item in items:
            previous, waiting = waiting, pool.submit(function, item)
            if previous is not None:
                yield previous.result()
        if waiting is not None:
            yield waiting.result()
