"""How fast clients take their answers, and which of them have to go. Pure."""

from collections import deque
from collections.abc import Hashable
from enum import StrEnum
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)

#: Up to so many unread bytes only a standstill counts: small answers take as long as the way to the client does.
SMALL = 64 * 1024
#: How often within the time-out it is noted what a client has taken.
NOTES = 16
#: Where room is needed: how old a client's backlog must be before the client can be ended, in seconds, ...
PRESSED_AFTER_S = 1.0
#: ... and in how many seconds it must be able to take the rest, at its speed of the last half or whole second.
PRESSED_FINISH_S = 10.0


class Reason(StrEnum):
    """Why a client is ended."""

    STALLED = "stalled"
    SLOW = "slow"
    PRESSED = "pressed"


class Limits(NamedTuple):
    """What is asked of clients: to take something within the time-out, and this many bytes a second over it."""

    timeout_s: float
    min_rate: float


class _Note(NamedTuple):
    """How many bytes of its connection a client had taken by then."""

    at: float
    taken: int


class _Reader:
    """A client for which bytes wait. `notes`: of about the last time-out; `recent`: of about the last second."""

    __slots__ = ("moved_at", "notes", "recent", "since", "taken", "unread")

    def __init__(self, now: float, taken: int) -> None:
        self.since = self.moved_at = now
        self.taken = taken
        self.unread = 0
        self.notes = deque([_Note(now, taken)])
        self.recent = deque([_Note(now, taken)])

    def note(self, now: float, taken: int, unread: int, timeout_s: float) -> None:
        if taken != self.taken:
            self.taken, self.moved_at = taken, now
        self.unread = unread
        _keep(self.notes, _Note(now, taken), timeout_s, timeout_s / NOTES)
        _keep(self.recent, _Note(now, taken), PRESSED_AFTER_S / 2, PRESSED_AFTER_S / 2)

    def rate(self, now: float) -> float:
        """Bytes a second lately."""
        first = self.recent[0]
        return (self.taken - first.taken) / (now - first.at) if now > first.at else 0.0

    def mean_rate(self, now: float) -> float:
        """Bytes a second over the time-out."""
        return (self.taken - self.notes[0].taken) / (now - self.notes[0].at)


def _keep(notes: deque[_Note], new: _Note, span_s: float, step_s: float) -> None:
    """Add to the notes one step after another; the first that stays is the youngest at least as old as the span."""
    if new.at - notes[-1].at >= step_s:
        notes.append(new)
    while len(notes) > 1 and new.at - notes[1].at >= span_s:
        notes.popleft()


class Readers(Generic[K]):
    """All clients that have something to take."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._readers: dict[K, _Reader] = {}

    def note(self, key: K, now: float, *, taken: int, sent: int, unread: int) -> None:
        """How a connection is doing: bytes that its client has taken so far, bytes that are on the way to it, and what
        would be free if it ended. Who has taken all that was sent waits for us, and its time begins anew."""
        if not sent:
            self._readers.pop(key, None)
            return
        reader = self._readers.get(key)
        if reader is None:
            reader = self._readers[key] = _Reader(now, taken)
        reader.note(now, taken, unread, self._limits.timeout_s)

    def forget(self, key: K) -> None:
        """The connection has ended."""
        self._readers.pop(key, None)

    def unread(self) -> int:
        """Bytes of all of them."""
        return sum(reader.unread for reader in self._readers.values())

    def too_slow(self, now: float) -> dict[K, Reason]:
        """Who has taken nothing within the time-out, or too little."""
        return {key: reason for key, reader in self._readers.items() if (reason := self._judge(reader, now))}

    def _judge(self, reader: _Reader, now: float) -> Reason | None:
        timeout_s, min_rate = self._limits
        if now - reader.moved_at >= timeout_s:
            return Reason.STALLED
        judged = reader.unread > SMALL and now - reader.notes[0].at >= timeout_s
        return Reason.SLOW if judged and reader.mean_rate(now) < min_rate else None

    def slowest(self, now: float, needed: int) -> list[K]:
        """The slowest, until so many bytes would be free; none that is about to have it all, and none that has just
        begun. Of those that are equally slow the oldest first."""
        old = [
            (reader.rate(now), reader.since, key, reader.unread)
            for key, reader in self._readers.items()
            if now - reader.since >= PRESSED_AFTER_S and reader.rate(now) * PRESSED_FINISH_S < reader.unread
        ]
        chosen: list[K] = []
        for _, _, key, unread in sorted(old, key=lambda one: one[:2]):
            if needed <= 0:
                break
            chosen.append(key)
            needed -= unread
        return chosen
