"""The models that are served: each is loaded once, at start or by its first request, and has one queue.

    name -> Hosted -> (loading thread) embedder + batcher -> vectors

Invariant: torch is imported in a loading thread and nowhere else here, so that the process answers health checks before
its model is there; `ready` is true only while every model that should be there takes work.
Does not know: HTTP, accounts, or what the vectors are for.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

from udever.catalog.manifests import ModelManifest
from udever.errors import UdeverError
from udever.server.errors import ModelLoadingError, RequestError
from udever.server.inputs import Prepared, Texts, prepare, split_model
from udever.server.schemas import Role, TokenIds, Truncate
from udever.server.settings import Settings
from udever.server.telemetry import Telemetry, describe

if TYPE_CHECKING:
    from udever.engine.batcher import Batcher
    from udever.engine.embedder import Embedder, Vectors

INLINE_CHARACTERS = 4000
"""Shorter requests are tokenised in the event loop: that takes less time than the way to a thread and back."""
TOKENIZER_THREADS = 2
RETRY_SECONDS = 1.0
CLOSE_SECONDS = 5.0
"""How long a thread that is in the model is waited for at the end."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model that is there."""

    embedder: "Embedder"
    batcher: "Batcher"
    fingerprint: str
    base: str = ""
    """Name of the model that a delta belongs to; empty for a full checkpoint."""


class Hosted:
    """One served model. Its methods are called from the event loop."""

    def __init__(
        self,
        name: str,
        *,
        source: str,
        settings: Settings,
        telemetry: Telemetry,
        manifest: ModelManifest | None = None,
    ) -> None:
        self.name = name
        """The id that clients use."""
        self.manifest = manifest
        """What the catalogue knows of it beforehand."""
        self.source = source
        """What `Embedder.load` takes."""
        self._settings = settings
        self._telemetry = telemetry
        self._loading: Future[Loaded] | None = None
        self._pool = ThreadPoolExecutor(TOKENIZER_THREADS, thread_name_prefix="udever-tokenize")

    @property
    def state(self) -> str:
        """waiting, loading, failed, starting (the first embedding runs, or the model thread restarts) or ready."""
        if self._loading is None:
            return "waiting"
        if not self._loading.done():
            return "loading"
        if self._loading.exception():
            return "failed"
        return "ready" if self._loading.result().batcher.ready else "starting"

    @property
    def microcredits_per_token(self) -> int:
        """The price: the settings', else the catalogue's, else that of the model's own `udever.json`."""
        listed = self.manifest.microcredits_per_token if self.manifest else None
        own = self.loaded.embedder.manifest.microcredits_per_token if self.loaded else 1
        return self._settings.prices.get(self.name, own if listed is None else listed)

    @property
    def loaded(self) -> Loaded | None:
        """None until the model is there."""
        done = self._loading is not None and self._loading.done() and not self._loading.exception()
        return self._loading.result() if self._loading is not None and done else None

    def load(self) -> Future[Loaded]:
        """Begin loading, unless that has begun; a load that failed begins again."""
        if self._loading is None or (self._loading.done() and self._loading.exception()):
            self._loading = Future()
            # A daemon: a download that hangs must not keep the process from ending.
            threading.Thread(
                target=self._load, args=(self._loading,), name=f"udever-load-{self.name}", daemon=True
            ).start()
        return self._loading

    async def get(self) -> Loaded:
        """The model, waiting for it a while.

        Raises:
            ModelLoadingError: it is not there yet.
            ModelError: it cannot be loaded.
        """
        if self.loaded:
            return self.loaded
        waiting = asyncio.wrap_future(self.load())
        try:
            return await asyncio.wait_for(asyncio.shield(waiting), self._settings.load_wait_seconds)
        except TimeoutError:
            raise ModelLoadingError(self.name, retry_after_seconds=RETRY_SECONDS) from None

    async def prepare(
        self, texts: Texts, *, role: Role, truncate: Truncate, token_ids: TokenIds = "cl100k_base"
    ) -> Prepared:
        """`inputs.prepare`, large requests in a thread."""
        embedder = (await self.get()).embedder

        def work() -> Prepared:
            return prepare(embedder, texts, role=role, truncate=truncate, token_ids=token_ids)

        if sum(map(len, texts.items)) < INLINE_CHARACTERS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def require_room(self, tokens: int) -> None:
        """Raises OverloadedError, as `embed` of so many tokens would: cheaper to hear before anything is charged."""
        if self.loaded:
            self.loaded.batcher.require_room(tokens)

    async def embed(self, sequences: list[list[int]], *, on_start: Callable[[], None] | None = None) -> "Vectors":
        """Raw float32 [n, width]; cancelling the caller drops what is not yet computed.

        Args:
            on_start: called, in another thread, when the first of them goes into a batch.
        """
        loaded = await self.get()
        return await asyncio.wrap_future(loaded.batcher.submit(sequences, on_start=on_start))

    def close(self) -> None:
        """Give up what is queued: requests have had their grace. Then wait for the threads that are in the model,
        because a process that ends under them aborts, unless it ends as `udever.cli.run` does.
        """
        if self._loading:
            wait([self._loading], timeout=CLOSE_SECONDS)
        if self.loaded:
            self.loaded.batcher.close(grace_seconds=0.0, end_seconds=CLOSE_SECONDS)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _load(self, future: Future[Loaded]) -> None:
        began = time.monotonic()
        try:
            loaded = self._make()
        except Exception as error:  # noqa: BLE001  whatever it was, those who wait must hear of it
            why = error if isinstance(error, UdeverError) else describe(error)
            log.error("the model %s cannot be loaded: %s", self.name, why)  # noqa: TRY400  no traceback: it may quote
            future.set_exception(error)
            return
        log.info("the model %s is loaded in %.1f s: %s", self.name, time.monotonic() - began, loaded.fingerprint)
        future.set_result(loaded)

    def _make(self) -> Loaded:
        from udever.engine.batcher import Batcher
        from udever.engine.embedder import Embedder
        from udever.engine.locating import locate

        settings = self._settings
        embedder = Embedder.load(self.source, precision=settings.precision, device=settings.device)
        embedder.warm_up()
        batcher = Batcher(
            embedder,
            batch_tokens=settings.batch_tokens,
            max_wait_seconds=settings.max_wait_seconds,
            on_batch=self._telemetry.on_batch(self.name),
        )
        fingerprint = embedder.fingerprint
        delta = locate(self.source).delta
        batcher.start()
        self._telemetry.watch(self.name, batcher)
        base = _public_name(delta.base.name) if delta else ""
        return Loaded(embedder=embedder, batcher=batcher, fingerprint=fingerprint, base=base)


class Hosting:
    """All served models by name."""

    def __init__(
        self, settings: Settings, *, telemetry: Telemetry, catalog: Mapping[str, ModelManifest] | None = None
    ) -> None:
        known = catalog or {}
        named = [_split(model) for model in settings.models]
        self.models = {
            name: Hosted(
                name, source=source, settings=settings, telemetry=telemetry, manifest=known.get(name, known.get(source))
            )
            for name, source in named
        }
        self._lazy = settings.load == "lazy"

    def start(self, *, on_failure: Callable[[str, BaseException], None]) -> None:
        """Begin loading, unless models are loaded lazily. `on_failure` is called in the loading thread."""
        for hosted in () if self._lazy else self.models.values():

            def report(future: Future[Loaded], name: str = hosted.name) -> None:
                if error := future.exception():
                    on_failure(f"the model {name}", error)

            hosted.load().add_done_callback(report)

    def find(self, name: str, *, input_type: str | None = None) -> tuple[Hosted, Role]:
        """The model and the role that an id and an input type mean.

        Raises:
            RequestError: no such model (404), or two roles at once.
        """
        bare, role = split_model(name, input_type)
        if bare not in self.models:
            message = f"The model `{name}` does not exist; GET /v1/models lists those that do."
            raise RequestError(message, code="model_not_found", status=404, param="model")
        return self.models[bare], role

    @property
    def states(self) -> dict[str, str]:
        """Name → state."""
        return {name: hosted.state for name, hosted in self.models.items()}

    @property
    def ready(self) -> bool:
        """Whether requests would be served; of lazy models only one that was served before can fail that.

        One that is being loaded, or could not be, answers for itself: it must not keep others from being asked for, nor
        itself from being asked for again.
        """
        fine: Sequence[str] = ("ready", "waiting", "loading", "failed") if self._lazy else ("ready",)
        return all(state in fine for state in self.states.values())

    def close(self) -> None:
        """Close all models."""
        for hosted in self.models.values():
            hosted.close()


def _split(model: str) -> tuple[str, str]:
    """`ID=SOURCE`, or a source that is its own id."""
    name, equals, source = model.partition("=")
    return (name, source) if equals else (model, model)


def _public_name(base: str) -> str:
    """A base as a page may name it: of a folder only its last part, because where it lies is nobody's business."""
    return base.rstrip("/").rpartition("/")[2] if base.startswith((".", "/")) else base
