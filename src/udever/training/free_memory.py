"""How much memory a process may still take: of the GPU, or of the machine within its control group's limits.

Invariant: file pages that the system gives back when asked count as free, here and there: a run that has just read its
base finds as much as one that has not.
Does not know: what the memory is for.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path("/")


def free_bytes(device: torch.device, *, root: Path = ROOT) -> int:
    """What can still be allocated on the device.

    Args:
        root: where `proc` and `sys` lie.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return max(0, min([_available(root), *_group_rooms(root)]))


def _available(root: Path) -> int:
    """Linux's own estimate; where there is none, all memory there is."""
    try:
        lines = (root / "proc/meminfo").read_text("utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _group_rooms(root: Path) -> Iterator[int]:
    """What each control group that this process is in, and those above it, still allow: version 2, then version 1."""
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return
    for number, controllers, path in (line.split(":", 2) for line in lines):
        place = Path(path.lstrip("/"))
        if number == "0":
            mount, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            mount = root / "sys/fs/cgroup/memory"
        else:
            continue
        for folder in (place, *place.parents):  # in a container the path may be the host's, and only the top is there
            room = _room(mount / folder, *names)
            if room is not None:
                yield room


def _room(folder: Path, limit: str, usage: str, reclaimable: str) -> int | None:
    try:
        most, used = ((folder / name).read_text("utf-8").strip() for name in (limit, usage))
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text("utf-8").splitlines())
        return None if most == "max" else int(most) - int(used) + int(statistics.get(reclaimable, 0))
    except (OSError, ValueError):
        return None
