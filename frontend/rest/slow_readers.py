"""Policy on clients that read their answers slowly: how fast each reads, and which connections to end. Pure."""

from collections import deque
from collections.abc import Collection, Hashable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)

#: A client with at most this many bytes is ended for a stall only: the network path, rather than the client, decides
#: how long a small answer takes.
SMALL_BYTES = 64 * 1024
#: Number of samples within the time-out.
SAMPLES = 16
#: When memory is needed: seconds after which a client with unread bytes can be ended, ...
PRESSED_AFTER_S = 1.0
#: ... unless it can read the rest within this many seconds, at its rate of the last half or whole second.
PRESSED_FINISH_S = 10.0


class Reason(StrEnum):
    """Why a connection is ended; a label value of a metric."""

    STALLED = "stalled"
    SLOW = "slow"
    PRESSED = "pressed"


class ReadLimits(NamedTuple):
    """Limits on clients: the longest time without progress, and the minimum mean rate over that time."""

    timeout_s: float
    #: Bytes per second.
    min_rate: float


class _Sample(NamedTuple):
    """Number of bytes that a client had read at a time."""

    at: float
    taken: int


@dataclass(slots=True)
class _Reader:
    """Client with unread bytes."""

    #: When the bytes became unread, in monotonic seconds.
    since: float
    #: Bytes that the client has read since it connected.
    taken: int
    moved_at: float = field(init=False)
    #: Memory that becomes free when the connection ends, and unread bytes of the answer.
    held: int = 0
    rest: int = 0
    #: Samples of about the last time-out.
    samples: deque[_Sample] = field(init=False)
    #: Samples of about the last second.
    recent: deque[_Sample] = field(init=False)

    def __post_init__(self) -> None:
        self.moved_at = self.since
        self.samples = deque([_Sample(self.since, self.taken)])
        self.recent = deque(self.samples)

    def record_state(self, now: float, taken: int, held: int, rest: int, timeout_s: float) -> None:
        if taken != self.taken:
            self.taken, self.moved_at = taken, now
        self.held, self.rest = held, rest
        _append_sample(self.samples, _Sample(now, taken), timeout_s, timeout_s / SAMPLES)
        _append_sample(self.recent, _Sample(now, taken), PRESSED_AFTER_S / 2, PRESSED_AFTER_S / 2)

    def recent_rate(self, now: float) -> float:
        """Return the rate of about the last second, in bytes per second."""
        first = self.recent[0]
        return (self.taken - first.taken) / (now - first.at) if now > first.at else 0.0

    def mean_rate(self, now: float) -> float:
        """Return the rate of about the last time-out, in bytes per second."""
        return (self.taken - self.samples[0].taken) / (now - self.samples[0].at)


def _append_sample(samples: deque[_Sample], new: _Sample, span_s: float, step_s: float) -> None:
    """Append a sample if the last one is a step old. Drop the oldest while the next one is as old as the span."""
    if new.at - samples[-1].at >= step_s:
        samples.append(new)
    while len(samples) > 1 and new.at - samples[1].at >= span_s:
        samples.popleft()


class Readers(Generic[K]):
    """All clients with unread bytes, by connection."""

    def __init__(self, limits: ReadLimits) -> None:
        self._limits = limits
        self._readers: dict[K, _Reader] = {}

    def record_state(self, key: K, now: float, *, taken: int, sent: int, held: int, rest: int) -> None:
        """Record the state of a connection, in bytes.

        Args:
            key: The connection.
            now: Monotonic time in seconds.
            taken: What the client has read since it connected.
            sent: What is in the kernel's send queue. If it is 0, the client waits for the server, and its measurement
                starts again with the next call.
            held: The memory that becomes free when the connection ends.
            rest: What the client has not read of its answer.
        """
        if not sent:
            self._readers.pop(key, None)
            return
        reader = self._readers.get(key)
        if reader is None:
            reader = self._readers[key] = _Reader(now, taken)
        reader.record_state(now, taken, held, rest, self._limits.timeout_s)

    def forget(self, key: K) -> None:
        """Forget a connection."""
        self._readers.pop(key, None)

    def sum_held(self, among: Collection[K]) -> int:
        """Return the memory of these connections, in bytes."""
        return sum(reader.held for key, reader in self._readers.items() if key in among)

    def find_slow(self, now: float) -> dict[K, Reason]:
        """Return the connections of clients that read no bytes, or too few, within the time-out."""
        return {key: reason for key, reader in self._readers.items() if (reason := self._check_limits(reader, now))}

    def _check_limits(self, reader: _Reader, now: float) -> Reason | None:
        timeout_s, min_rate = self._limits
        if now - reader.moved_at >= timeout_s:
            return Reason.STALLED
        measured = reader.held > SMALL_BYTES and now - reader.samples[0].at >= timeout_s
        return Reason.SLOW if measured and reader.mean_rate(now) < min_rate else None

    def choose_slowest(self, now: float, needed: int, among: Collection[K]) -> list[K]:
        """Return those of the given connections to end so that `needed` bytes become free.

        The slowest comes first, and the older one of two that are equally slow. Connections that are younger than
        PRESSED_AFTER_S, or finish within PRESSED_FINISH_S at their recent rate, are left out.
        """
        candidates = [
            (reader.recent_rate(now), reader.since, key, reader.held)
            for key, reader in self._readers.items()
            if key in among
            and now - reader.since >= PRESSED_AFTER_S
            and reader.recent_rate(now) * PRESSED_FINISH_S < reader.rest
        ]
        chosen: list[K] = []
        for _, _, key, held in sorted(candidates, key=lambda candidate: candidate[:2]):
            if needed <= 0:
                break
            chosen.append(key)
            needed -= held
        return chosen
