"""What a run on a cluster is asked for: which model, and how much of which cluster.

Does not know: Ray.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from udever.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where each node finds the model; the precision is the job's."""

    name: str
    """Built-in name, hub id, or a folder that every node has under the same path."""
    device: str = "auto"
    """auto: cuda for workers that hold a GPU, else cpu."""
    revision: str | None = None

    def on_nodes(self, pool: "Pool") -> "ModelSource":
        """The same model as a node must ask for it.

        Raises:
            OptionError: a device that workers of this pool have not.
        """
        device = self.device
        if device == "auto":
            device = "cuda" if pool.gpus_per_worker else "cpu"
        if device.startswith("cuda:"):
            raise OptionError(f"on a cluster a worker sees only GPUs of its own, not {device}", hint="choose cuda")
        if device == "cuda" and not pool.gpus_per_worker:
            raise OptionError("workers on cuda need a GPU", hint="pass --gpus-per-worker 1")
        folder = Path(self.name).expanduser()
        return replace(self, name=str(folder.absolute()) if folder.is_dir() else self.name, device=device)


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Which cluster, and how much of it."""

    address: str | None = None
    """host:port, auto, local or ray://…; None: what RAY_ADDRESS says, else a cluster of our own on this machine."""
    workers: tuple[int, int] | None = None
    """At least, at most; a cluster that scales by itself grows and shrinks between them. None: as many as fit now."""
    cpus_per_worker: int = 1
    """Threads of a worker, too."""
    gpus_per_worker: float = 0.0
    """Below 1: workers share a GPU."""

    def checked(self) -> "Pool":
        """Itself.

        Raises:
            OptionError: a number that cannot be.
        """
        low, high = self.workers or (1, 1)
        if not 1 <= low <= high:
            raise OptionError(f"{low}:{high} workers cannot be", hint="at least 1, and at most no fewer: 4 or 1:16")
        if self.cpus_per_worker < 1:
            raise OptionError(f"a worker needs at least 1 CPU, not {self.cpus_per_worker}")
        if self.gpus_per_worker < 0 or (self.gpus_per_worker > 1 and self.gpus_per_worker % 1):
            raise OptionError(
                f"a worker cannot have {self.gpus_per_worker} GPUs", hint="0, a part of one, or whole ones"
            )
        return self
