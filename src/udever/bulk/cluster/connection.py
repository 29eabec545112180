"""Ray: imported, connected to, and kept quiet. What it has to say is told in receipts and errors.

Invariant: a cluster that is there already stays; one that is started here ends here.
Does not know: shards.
"""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from udever.errors import BulkError

KNOCK_SECONDS = 10.0
STORE_BYTES = 128 << 20
"""Shared memory of a cluster of our own: shards and receipts are all that is in it."""

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # its C++ half writes to our stderr what is told in the receipts, or is no news
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # it warns that this will be so; our workers name their device anyway
}


def require_ray() -> None:
    """Import Ray Data.

    Raises:
        BulkError: it is not installed.
    """
    # Ray reads these when it is imported; whoever set them already is obeyed.
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray.data  # noqa: F401
    except ModuleNotFoundError as error:
        raise BulkError(
            f"a Ray cluster needs the package {error.name}, which is not installed", hint="pip install 'udever[bulk]'"
        ) from error


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Inside, Ray is there; one that was there before stays."""
    import ray

    _quiet()
    if ray.is_initialized():
        yield
        return
    ours = address == "local" or (address is None and not os.environ.get("RAY_ADDRESS"))
    own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": STORE_BYTES} if ours else {}
    try:
        _knock(address or "")
        with _silence():
            ray.init("local" if ours else address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (OSError, RuntimeError, ValueError) as error:
        raise BulkError(
            f"no Ray cluster at {address or 'RAY_ADDRESS'}: {error}",
            hint="start one: ray start --head; without --address one on this machine is started",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Fail at once where nobody listens at host:port; Ray itself waits for minutes."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing reaches stderr inside: Ray's C++ half says there that it was told to be quiet."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _quiet() -> None:
    """Progress is ours to show, and errors are told once."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
