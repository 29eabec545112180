"""The data of mteb's tasks: from the local cache, else from the hub, else an error at once.

Invariant: without a hub no time goes into retries (huggingface_hub waits 23 s a file): one request asks whether it
answers, and if it does not, only the cache is read. Nobody's download counter is told.
Does not know: models or scores.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets  # type: ignore[import-untyped]
from datasets.exceptions import DatasetNotFoundError  # type: ignore[import-untyped]
from datasets.naming import camelcase_to_snakecase  # type: ignore[import-untyped]
from huggingface_hub import constants, is_offline_mode
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled  # type: ignore[attr-defined]
from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

from udever.errors import DatasetUnavailableError

if TYPE_CHECKING:
    from mteb import AbsTask

PROBE_SECONDS = 5.0
"""How long the hub may take to answer at all."""

_KEPT = "then run it again: what is finished is kept"
_REASONS: tuple[tuple[type[Exception], str, str], ...] = (
    (
        DatasetNotFoundError,
        "the hub has no such dataset, or its owner gives access on request",
        f"accept the terms on the dataset's hub page and run `hf auth login`, {_KEPT}",
    ),
    (
        OfflineModeIsEnabled,
        "it is not, or not wholly, in the local cache, and the hub is out of reach or HF_HUB_OFFLINE forbids to ask it",
        f"connect or copy a connected machine's cache (HF_HOME) to this one, {_KEPT}; "
        "data of your own needs no hub: udever evaluate suite",
    ),
)
"""What went wrong, what it means, the way out."""


class HubData:
    """Loads tasks' data; asks for the hub once."""

    @cached_property
    def online(self) -> bool:
        """Whether the hub answers, whatever it says."""
        if is_offline_mode():
            return False
        try:
            get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
        except (HTTPError, OSError):
            return False
        return True

    def load(self, task: "AbsTask") -> None:
        """Fill `task.dataset`.

        Raises:
            DatasetUnavailableError: names the task, its dataset, what went wrong and the way out.
        """
        if task.data_loaded:
            return
        if not self.online:
            _require_revision(task)
        with _hub_settings(online=self.online):
            try:
                task.load_data()
            except Exception as error:  # mteb, datasets and huggingface_hub share no class of errors
                raise self._unavailable(task, error) from error

    def _unavailable(self, task: "AbsTask", error: Exception) -> DatasetUnavailableError:
        source = task.metadata.dataset["path"]
        data = f"the data of task {task.metadata.name} ({source}) cannot be had"
        kinds = [type(cause) for cause in _causes(error)] + ([] if self.online else [OfflineModeIsEnabled])
        for kind, meaning, way_out in _REASONS:
            if any(issubclass(found, kind) for found in kinds):
                return DatasetUnavailableError(f"{data}: {meaning}", hint=way_out)
        reason = (str(error).strip() or "no details").splitlines()[0]
        return DatasetUnavailableError(
            f"{data}: {type(error).__name__}: {reason}", hint=f"check connection, proxy and disk space, {_KEPT}"
        )


def _require_revision(task: "AbsTask") -> None:
    """Without a hub, `datasets` takes whichever revision its cache holds; mteb would write the wanted one's name."""
    source, wanted = task.metadata.dataset["path"], task.metadata.dataset["revision"]
    owner, _, name = source.rpartition("/")
    folder = "___".join(part for part in (owner, camelcase_to_snakecase(name)) if part)
    cached = sorted(
        {path.name for path in Path(datasets.config.HF_DATASETS_CACHE, folder).glob("*/*/*") if path.is_dir()}
    )
    if cached and wanted not in cached:
        raise DatasetUnavailableError(
            f"task {task.metadata.name} needs {source} at revision {wanted}; the local cache has it at "
            f"{', '.join(cached)}, and the hub is out of reach",
            hint=f"connect, {_KEPT}",
        )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def _hub_settings(*, online: bool) -> Iterator[None]:
    """huggingface_hub and datasets read these when they act; outside of our call they stay as they were."""
    wanted: list[tuple[Any, str, bool]] = [(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)]
    if not online:
        wanted += [(constants, "HF_HUB_OFFLINE", True), (datasets.config, "HF_HUB_OFFLINE", True)]
    before = [(module, name, getattr(module, name)) for module, name, _ in wanted]
    try:
        for module, name, value in wanted:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
