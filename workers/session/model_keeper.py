"""Keeps a worker's models as they are configured: loads, replaces, unloads and removes them while the worker serves."""

import logging
import math
import time

from broker.wire import protocol as wire
from broker.wire.protocol import Message, ModelKey
from workers.engine.pipeline import Pipeline
from workers.session.catalog import Catalog, repair_failure
from workers.session.loader import Loaded, Loader, Scan
from workers.session.session import Session

log = logging.getLogger(__name__)


class ModelKeeper:
    """Carries out what the catalog decides. The thread of the service calls all methods."""

    def __init__(
        self, catalog: Catalog, loader: Loader, session: Session, pipeline: Pipeline, unload_idle_s: float
    ) -> None:
        """Take the parts of a worker. `unload_idle_s` 0: no model is unloaded."""
        self._catalog = catalog
        self._loader = loader
        self._session = session
        self._pipeline = pipeline
        self._idle_s = unload_idle_s or math.inf
        #: Numbers of the broker's `Reload`s whose scans are to come, oldest first.
        self._reloads: list[int] = []
        #: The reloads that were scanned, and whether the configuration had changed.
        self._scanned: dict[int, bool] = {}
        #: Why the configuration cannot be read.
        self._failure = ""

    def start(self, first: Scan, loaded: Loaded) -> None:
        """Serve the first model of a scan, which was loaded before; the catalog has the scan and the model."""
        self._pipeline.add_model(loaded.info.key, loaded.backend)
        self._session.announce(self._catalog.list_models(), self._catalog.list_states())
        self._loader.start(first)

    def handle(self, message: Message, now: float) -> None:
        """Handle a message from the broker, after the session has."""
        match message:
            case wire.Batch():
                self._catalog.use(message.key, now)
            case wire.Load():
                self._catalog.demand(ModelKey(message.model, message.revision), now)
            case wire.Reload():
                self._reloads.append(message.number)
                self._loader.scan_now()

    def run(self, now: float) -> list[Message]:
        """Do what is due, and return the messages to send."""
        while self._loader.done:
            self._handle_result(self._loader.done.popleft(), now)
        if self._idle_s < math.inf:
            self._catalog.unload_idle(now, self._idle_s, self._session.list_busy())
        # A worker that drains ends before the model would be loaded.
        if not self._session.draining and (begun := self._catalog.begin_load()):
            log.info("loading %s", begun[0])
            self._loader.load_model(*begun)
        messages = self._session.announce(self._catalog.list_models(), self._catalog.list_states())
        for key in self._session.take_released():
            if self._catalog.release(key):
                log.info("freed %s revision %s", *key)
                self._pipeline.remove_model(key)
        return messages + self._end_reloads()

    def next_deadline(self) -> float:
        """Return when to call `run`, if nothing happens before."""
        idle_at = self._catalog.next_idle_at(self._idle_s)
        # A busy model is looked at again a second later.
        return math.inf if idle_at is None else max(idle_at, time.monotonic() + 1.0)

    def _handle_result(self, result: Scan | str | Loaded, now: float) -> None:
        match result:
            case Scan():
                self._apply_scan(result)
            case Loaded():
                if self._catalog.end_load(result.info, now):
                    self._pipeline.add_model(result.info.key, result.backend)
                    log.info("serving %s revision %s", *result.info.key)
            case str():
                log.error("%s", result)
                self._catalog.fail_load(result)

    def _apply_scan(self, scan: Scan) -> None:
        self._failure = scan.failure
        changed = False
        if scan.failure:
            log.error("the models stay as they are: %s", scan.failure)
        else:
            changed = self._catalog.configure(scan.wanted, scan.refused, retry=scan.requested)
            for name, reason in scan.refused.items():
                log.error("cannot serve %s: %s", name, reason)
        if changed:
            log.info("the configuration has changed")
        if scan.requested:
            self._scanned[self._reloads.pop(0)] = changed

    def _end_reloads(self) -> list[Message]:
        """Return the answers to the broker's reloads, when all models are loaded or have failed."""
        if not self._scanned or self._catalog.loading:
            return []
        failure = repair_failure(self._failure or "; ".join(self._catalog.list_failures()))
        ended = [wire.Reloaded(number, changed, failure) for number, changed in self._scanned.items()]
        self._scanned.clear()
        return [*ended]
