"""Models that processes are loading before they connect as workers, and models that failed to load. Pure."""

from typing import NamedTuple

from broker.wire.protocol import Availability, ModelState, WorkerLoading

#: Seconds for which a failure is reported if no process tries again.
FAILED_S = 3600.0
#: Most processes remembered; the one silent for longest is dropped first.
MAX_REMEMBERED = 1000


class _Entry(NamedTuple):
    """A notice, when it came, and the connection that it came on."""

    at: float
    peer: bytes
    notice: WorkerLoading


class ModelLoading:
    """Latest notice of each loading process, by the process's uuid; at most one from each peer."""

    def __init__(self, liveness_s: float) -> None:
        self._liveness_s = liveness_s
        #: Latest notice of each process, the newest last.
        self._notices: dict[bytes, _Entry] = {}

    @property
    def peers(self) -> set[bytes]:
        """Peers that sent the remembered notices; some are no longer connected."""
        return {entry.peer for entry in self._notices.values()}

    def record_notice(self, peer: bytes, notice: WorkerLoading, now: float) -> bool:
        """Store a notice instead of its process's and its peer's previous ones. Return whether it differs from them."""
        before = self._notices.pop(notice.uuid, None)
        changed = self.drop_peer(peer) or before is None or before.notice != notice
        self._notices[notice.uuid] = _Entry(now, peer, notice)
        while len(self._notices) > MAX_REMEMBERED:
            del self._notices[next(iter(self._notices))]
        return changed

    def drop_peer(self, peer: bytes) -> bool:
        """Drop a peer's notice. Return whether there was one."""
        found = [uuid for uuid, entry in self._notices.items() if entry.peer == peer]
        for uuid in found:
            del self._notices[uuid]
        return bool(found)

    def finish_loading(self, uuid: bytes, models: list[str]) -> None:
        """Drop the notice of a process that now serves these models, and earlier failures of the models."""
        finished = [
            known
            for known, (_, _, notice) in self._notices.items()
            if known == uuid or (notice.failure and notice.model in models)
        ]
        for known in finished:
            del self._notices[known]

    def drop_expired(self, now: float) -> bool:
        """Drop notices that are too old. Return whether there were any."""
        expired = [uuid for uuid, (at, _, notice) in self._notices.items() if now >= at + self._lifetime_s(notice)]
        for uuid in expired:
            del self._notices[uuid]
        return bool(expired)

    def next_deadline(self) -> float | None:
        """Return when the next notice expires; None without notices."""
        return min((at + self._lifetime_s(notice) for at, _, notice in self._notices.values()), default=None)

    def list_states(self) -> list[ModelState]:
        """Return the state of each model, with the latest error of a failed one. Loading takes precedence."""
        notices = [entry.notice for entry in self._notices.values()]
        failed = {
            notice.model: ModelState(notice.model, Availability.FAILED, notice.failure)
            for notice in notices
            if notice.failure
        }
        loading = {
            notice.model: ModelState(notice.model, Availability.LOADING)
            for notice in notices
            # A process that reads its configuration knows no name.
            if notice.model and not notice.failure
        }
        return list((failed | loading).values())

    def find_failure(self, model: str, since: float) -> str:
        """Return why the last process failed to load a model; empty if none failed since a time, or one still loads."""
        entries = [entry for entry in self._notices.values() if entry.notice.model == model]
        if not all(entry.notice.failure for entry in entries):
            return ""
        return next((entry.notice.failure for entry in reversed(entries) if entry.at >= since), "")

    def _lifetime_s(self, notice: WorkerLoading) -> float:
        return FAILED_S if notice.failure else self._liveness_s
