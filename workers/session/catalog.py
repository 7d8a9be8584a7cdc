"""Models that a worker is configured to serve, and the state of each: which one to load or to unload next. Pure.

    configured → loading → served → removed     loading → failed (until its configuration or its files change)
    served → unloaded → loading (when the broker requests it) → served

The old version of a model is served until its new version is loaded.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import msgspec

from broker.wire.columns import MAX_TEXT_LENGTH
from broker.wire.protocol import Availability, ModelInfo, ModelKey, ModelState

#: Configuration of a model. Versions that are equal give the same vectors.
Version = object


def repair_text(text: str) -> str:
    """Return a text from the command line, a file or the file system as the UTF-8 that it is.

    In the locale C without UTF-8 mode, Python reads other bytes than ASCII as surrogates, which cannot be sent. A JSON
    file may have other surrogates.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()


def repair_failure(text: str) -> str:
    """Return the reason of a failure as the wire allows it."""
    return repair_text(text)[:MAX_TEXT_LENGTH]


@dataclass(eq=False)
class _Entry:
    """A model by its name."""

    #: Configured version; None: it cannot be read.
    wanted: Version | None
    #: Version that was loaded last, and how the worker announces it; None before the first.
    served: Version | None = None
    info: ModelInfo | None = None
    #: Whether the loaded version is in memory.
    in_memory: bool = False
    #: Version that could not be loaded, and why the model fails.
    failed: Version | None = None
    failure: str = ""
    #: Whether the broker requests an unloaded model.
    demanded: bool = False
    used_at: float = 0.0

    @property
    def must_load(self) -> bool:
        """Whether a version waits to be loaded."""
        if self.wanted is None or self.wanted == self.failed:
            return False
        return self.wanted != self.served or self.demanded

    @property
    def may_idle(self) -> bool:
        """Whether the model is in use and could be loaded again after it is unloaded."""
        return self.info is not None and not self.info.unloaded and self.wanted == self.served


class Catalog:
    """The models of one worker. At most one of them is being loaded."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        #: Name and version that is being loaded.
        self.loading: tuple[str, Version] | None = None

    # --- configuration and loads -------------------------------------------------------------------------------------

    def configure(self, wanted: Mapping[str, Version], refused: Mapping[str, str], *, retry: bool = False) -> bool:
        """Set the versions to serve, and why other models cannot be served. Return whether a version changed.

        A refused model that is being served stays. `retry`: try again what failed before.
        """
        gone = self._entries.keys() - wanted.keys() - refused.keys()
        for name in gone:
            del self._entries[name]
        changed = bool(gone)
        for name, version in wanted.items():
            entry = self._entries.setdefault(name, _Entry(None))
            if entry.wanted != version or (retry and entry.failed is not None):
                changed |= entry.wanted != version
                entry.wanted, entry.failed, entry.failure = version, None, ""
        for name, reason in refused.items():
            entry = self._entries.setdefault(name, _Entry(None))
            entry.wanted, entry.failure = None, repair_failure(reason)
        return changed

    def begin_load(self) -> tuple[str, Version] | None:
        """Return the next model to load, which is then being loaded; None if there is none, or one is being loaded."""
        if self.loading is not None:
            return None
        for name, entry in self._entries.items():
            if entry.must_load:
                self.loading = name, entry.wanted
                return self.loading
        return None

    def end_load(self, info: ModelInfo, now: float) -> bool:
        """Record that the version is loaded. Return whether it is still wanted, and is now served."""
        (name, version), self.loading = self._take_loading()
        entry = self._entries.get(name)
        if entry is None or (entry.wanted is not None and entry.wanted != version):
            return False
        entry.served, entry.info, entry.in_memory = version, info, True
        entry.demanded, entry.failure, entry.used_at = False, "", now
        return True

    def fail_load(self, reason: str) -> None:
        """Record that the version cannot be loaded. What was loaded before stays."""
        (name, version), self.loading = self._take_loading()
        if entry := self._entries.get(name):
            entry.failed, entry.failure, entry.demanded = version, repair_failure(reason), False
            if not entry.in_memory:
                entry.info = None

    def _take_loading(self) -> tuple[tuple[str, Version], None]:
        if self.loading is None:
            raise ValueError("no model is being loaded")
        return self.loading, None

    # --- use ---------------------------------------------------------------------------------------------------------

    def use(self, key: ModelKey, now: float) -> None:
        """Record that a batch of a model came or ended. A model that waits to be unloaded stays in memory."""
        entry = self._find(key)
        if entry and entry.info:
            entry.used_at = now
            entry.info = msgspec.structs.replace(entry.info, unloaded=not entry.in_memory)

    def demand(self, key: ModelKey, now: float) -> None:
        """Record that the broker requests an unloaded model. If it cannot be loaded, it is no longer announced."""
        entry = self._find(key)
        if entry and entry.in_memory:
            self.use(key, now)
        elif entry and entry.wanted is not None and entry.wanted != entry.failed:
            entry.demanded = True
        elif entry:
            entry.info = None

    def unload_idle(self, now: float, idle_s: float, busy: Collection[ModelKey]) -> None:
        """Announce as unloaded what was not used for `idle_s` and is not busy. Its memory is freed by `release`.

        A model of which another version is configured stays, because the old version cannot be loaded again.
        """
        for entry in self._entries.values():
            if entry.info is None or not entry.may_idle:
                continue
            if entry.info.key in busy:
                entry.used_at = now
            elif now >= entry.used_at + idle_s:
                entry.info = msgspec.structs.replace(entry.info, unloaded=True)

    def release(self, key: ModelKey) -> bool:
        """Record that the broker sends no more batches of a model. Return whether its memory can be freed."""
        entry = self._find(key)
        if entry is None or entry.info is None:
            return True
        if entry.info.unloaded:
            entry.in_memory = False
        return entry.info.unloaded

    def next_idle_at(self, idle_s: float) -> float | None:
        """Return when the next model may be idle; None if no model is in use."""
        times = (entry.used_at + idle_s for entry in self._entries.values() if entry.may_idle)
        return min(times, default=None)

    def _find(self, key: ModelKey) -> _Entry | None:
        entry = self._entries.get(key.name)
        return entry if entry and entry.info and entry.info.key == key else None

    # --- what is announced -------------------------------------------------------------------------------------------

    def list_models(self) -> list[ModelInfo]:
        """Return the models as the worker announces them."""
        return [entry.info for entry in self._entries.values() if entry.info]

    def list_states(self) -> list[ModelState]:
        """Return the states of models that are not served, or of which a newer version is not served."""
        return [
            ModelState(name, state, entry.failure)
            for name, entry in self._entries.items()
            if (state := self._describe(name, entry)) != Availability.AVAILABLE
        ]

    def _describe(self, name: str, entry: _Entry) -> Availability:
        if self.loading and self.loading[0] == name:
            return Availability.LOADING
        if entry.failure:
            return Availability.FAILED
        return Availability.START if entry.must_load else Availability.AVAILABLE

    def list_failures(self) -> list[str]:
        """Return a sentence for each model that cannot be served as it is configured."""
        return [f"{name}: {entry.failure}" for name, entry in self._entries.items() if entry.failure]
