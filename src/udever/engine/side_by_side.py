"""Pieces of work on the CPU side by side, each on cores of its own.

A batch through a small model is hundreds of short operations, after each of which all threads wait for the slowest:
two batches on a core each take eight or nine tenths of the time of one after the other on both.
Invariant: nothing outlives the call, and PyTorch's number of threads is as the caller set it.
Does not know: what the work is.
"""

import ctypes
import threading
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch

LISTEN_SECONDS = 0.05
"""Between two looks whether a signal came that another thread was told of."""

Item = TypeVar("Item")


def places(device: torch.device) -> int:
    """How many pieces of work this thread may do at once; 1: better one after the other."""
    if device.type != "cpu" or not _threads_are_each_threads_own():
        return 1
    return torch.get_num_threads()


def side_by_side(function: Callable[[Item], object], items: Iterable[Item], *, places: int) -> None:
    """Call the function on every item, in as many threads as there are places, which share this one's cores.

    The items are taken one at a time, in order. The first error, an interrupt too, ends it when the items in work are
    done.
    """
    threads = torch.get_num_threads()
    iterator, turn, errors = iter(items), threading.Lock(), list[BaseException]()
    started = threading.Barrier(places + 1)

    def work(ended: threading.Event) -> None:
        try:
            _take_threads(max(1, threads // places))
            started.wait()
            while not errors:
                with turn:
                    item = next(iterator)
                function(item)
        except StopIteration:
            pass
        except BaseException as error:  # noqa: BLE001  raised below, in the caller's thread
            errors.append(error)
            started.abort()
        finally:
            ended.set()

    # Events, for Thread.join takes a thread for ended if an interrupt comes while it waits (CPython before 3.13).
    workers = {
        ended: threading.Thread(target=work, args=(ended,), name="udever-batch", daemon=True)
        for ended in (threading.Event() for _ in range(places))
    }
    try:
        for worker in workers.values():
            worker.start()
        started.wait()
        torch.set_num_threads(threads)  # what new threads begin with, which each of ours has changed
        for ended in workers:
            while not ended.wait(LISTEN_SECONDS):
                pass
    except threading.BrokenBarrierError:
        pass  # the error that broke it is in the list
    except BaseException as error:
        errors.append(error)
        started.abort()
        raise
    finally:
        for ended, worker in workers.items():
            if worker.ident is not None:
                ended.wait()
        torch.set_num_threads(threads)
    if errors:
        raise errors[0]


def _take_threads(count: int) -> None:
    """Of this thread alone."""
    torch.set_num_threads(count)
    torch.get_num_threads()  # a thread's first look would take over what the process has by then
    own = _mkl_own()
    if own is not None:
        own(count)


@cache
def _threads_are_each_threads_own() -> bool:
    """Whether a thread can have another number of threads than the rest of the process, as OpenMP and MKL have it."""
    has_mkl = torch.backends.mkl.is_available()
    return "backend: OpenMP" in torch.__config__.parallel_info() and (_mkl_own() is not None or not has_mkl)


@cache
def _mkl_own() -> Callable[[int], object] | None:
    """MKL's `mkl_set_num_threads_local`: PyTorch sets the number of the whole process. None: it cannot be reached."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        own: Callable[[int], object] = library.MKL_Set_Num_Threads_Local
    except (OSError, AttributeError):
        return None
    return own
