"""Thread that reads the configuration and loads models while the worker serves."""

import collections
import logging
import queue
import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple

from broker.wire.protocol import ModelInfo
from workers.engine.backend import Backend
from workers.session.catalog import Version

log = logging.getLogger(__name__)


class LoadError(Exception):
    """A model or a configuration cannot be used. The text is one sentence for the operator."""


class Scan(NamedTuple):
    """Content of the configuration."""

    wanted: Mapping[str, Version]
    #: Why other models cannot be served.
    refused: Mapping[str, str] = {}
    #: Why the configuration cannot be read; then the other fields are empty.
    failure: str = ""
    #: Lines about settings that have no effect.
    remarks: tuple[str, ...] = ()
    #: Whether the scan was requested by `Loader.scan_now`.
    requested: bool = False


class Loaded(NamedTuple):
    """A model that was loaded."""

    info: ModelInfo
    backend: Backend
    #: OpenVINO device that runs the model.
    device: str = "CPU"


def scan_safely(scan: Callable[[], Scan]) -> Scan:
    """Return a scan. Raise only `LoadError`, whatever a damaged configuration makes a library raise."""
    try:
        return scan()
    except LoadError:
        raise
    except Exception as error:
        # A scan is repeated each second.
        log.debug("could not read the configuration", exc_info=True)
        raise LoadError(f"could not read the configuration: {type(error).__name__}: {error}") from None


def load_safely(load: Callable[[str, Version], Loaded], name: str, version: Version) -> Loaded:
    """Return a model. Raise only `LoadError`, whatever a damaged model makes a library raise."""
    try:
        return load(name, version)
    except LoadError:
        raise
    except Exception as error:
        log.exception("could not load %s", name)
        reason = f"could not load {name}: {type(error).__name__}; the log of the worker has the reason"
        raise LoadError(reason) from None


class Loader:
    """Runs `scan` and `load` one after another in a thread. The results wait in `done`."""

    def __init__(
        self,
        scan: Callable[[], Scan],
        load: Callable[[str, Version], Loaded],
        poll_s: float,
        wake: Callable[[], None],
    ) -> None:
        """Take two functions that may raise `LoadError`. `poll_s`: seconds between two scans; 0: no polling."""
        self._scan, self._load = scan, load
        self._poll_s, self._wake = poll_s, wake
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        #: A scan; or why a model could not be loaded; or the loaded model.
        self.done: collections.deque[Scan | str | Loaded] = collections.deque()
        #: The latest scan, and the latest one in `done`.
        self._seen: Scan | None = None
        self._reported: Scan | None = None
        self._thread = threading.Thread(target=self._run_jobs, name="load", daemon=True)

    def start(self, first: Scan) -> None:
        """Start the thread. The configuration has been scanned before."""
        self._seen = self._reported = first
        self._thread.start()

    def scan_now(self) -> None:
        """Scan, and report the result although it may be unchanged or about to change."""
        self._jobs.put(lambda: self._report_scan(settled=True))

    def load_model(self, name: str, version: Version) -> None:
        """Load a model."""
        self._jobs.put(lambda: self._report_load(name, version))

    def _run_jobs(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=self._poll_s or None)
            except queue.Empty:
                self._report_scan(settled=False)
            else:
                job()

    def _report_scan(self, *, settled: bool) -> None:
        """Scan. Report a polled change when the next scan finds the same, because files may be being written."""
        try:
            found = scan_safely(self._scan)
        except LoadError as error:
            found = Scan({}, failure=str(error))
        if settled or (found == self._seen and found != self._reported):
            for remark in found.remarks:
                log.warning("%s", remark)
            self._reported = found
            self._report(found._replace(requested=settled))
        self._seen = found

    def _report_load(self, name: str, version: Version) -> None:
        try:
            self._report(load_safely(self._load, name, version))
        except LoadError as error:
            self._report(str(error))

    def _report(self, result: Scan | str | Loaded) -> None:
        self.done.append(result)
        self._wake()
