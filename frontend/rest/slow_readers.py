"""How fast clients take their answers, and which of them have to go. Pure."""

from collections import deque
from collections.abc import Collection, Hashable
from enum import StrEnum
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)

#: A client that holds no more bytes than this is ended for a standstill only: how long a small answer takes depends on
#: the way to the client.
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

    __slots__ = ("held", "moved_at", "notes", "recent", "rest", "since", "taken")

    def __init__(self, now: float, taken: int) -> None:
        self.since = self.moved_at = now
        self.taken = taken
        self.held = self.rest = 0
        self.notes = deque([_Note(now, taken)])
        self.recent = deque([_Note(now, taken)])

    def note(self, now: float, taken: int, held: int, rest: int, timeout_s: float) -> None:
        if taken != self.taken:
            self.taken, self.moved_at = taken, now
        self.held, self.rest = held, rest
        _keep(self.notes, _Note(now, taken), timeout_s, timeout_s / NOTES)
        _keep(self.recent, _Note(now, taken), PRESSED_AFTER_S / 2, PRESSED_AFTER_S / 2)

    def rate(self, now: float) -> float:
        """Return how many bytes a second the client has taken lately."""
        first = self.recent[0]
        return (self.taken - first.taken) / (now - first.at) if now > first.at else 0.0

    def mean_rate(self, now: float) -> float:
        """Return how many bytes a second the client has taken over the time-out."""
        return (self.taken - self.notes[0].taken) / (now - self.notes[0].at)


def _keep(notes: deque[_Note], new: _Note, span_s: float, step_s: float) -> None:
    """Add a note if the last one is a step old, and drop the oldest while the one after it is as old as the span."""
    if new.at - notes[-1].at >= step_s:
        notes.append(new)
    while len(notes) > 1 and new.at - notes[1].at >= span_s:
        notes.popleft()


class Readers(Generic[K]):
    """All clients that have something to take."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._readers: dict[K, _Reader] = {}

    def note(self, key: K, now: float, *, taken: int, sent: int, held: int, rest: int) -> None:
        """Note the state of a connection, in bytes.

        `taken`: what the client has taken since it connected. `sent`: what is on the way to it. `held`: the memory that
        is free when the connection ends. `rest`: what the client has not taken of what it is to get. When nothing is on
        the way, the client waits for the server, and is measured anew from the next note on.
        """
        if not sent:
            self._readers.pop(key, None)
            return
        reader = self._readers.get(key)
        if reader is None:
            reader = self._readers[key] = _Reader(now, taken)
        reader.note(now, taken, held, rest, self._limits.timeout_s)

    def forget(self, key: K) -> None:
        """Forget a connection that has ended."""
        self._readers.pop(key, None)

    def held(self, among: Collection[K]) -> int:
        """Return how many bytes these connections hold."""
        return sum(reader.held for key, reader in self._readers.items() if key in among)

    def too_slow(self, now: float) -> dict[K, Reason]:
        """Return the connections whose clients have taken nothing, or too little, within the time-out."""
        return {key: reason for key, reader in self._readers.items() if (reason := self._judge(reader, now))}

    def _judge(self, reader: _Reader, now: float) -> Reason | None:
        timeout_s, min_rate = self._limits
        if now - reader.moved_at >= timeout_s:
            return Reason.STALLED
        judged = reader.held > SMALL and now - reader.notes[0].at >= timeout_s
        return Reason.SLOW if judged and reader.mean_rate(now) < min_rate else None

    def slowest(self, now: float, needed: int, among: Collection[K]) -> list[K]:
        """Return those of the given connections that have to end so that `needed` bytes become free.

        The slowest comes first, and of two that are equally slow the older one. A connection that has just begun, or
        that has the rest of its answer within PRESSED_FINISH_S at its present speed, is left out.
        """
        old = [
            (reader.rate(now), reader.since, key, reader.held)
            for key, reader in self._readers.items()
            if key in among
            and now - reader.since >= PRESSED_AFTER_S
            and reader.rate(now) * PRESSED_FINISH_S < reader.rest
        ]
        chosen: list[K] = []
        for _, _, key, held in sorted(old, key=lambda one: one[:2]):
            if needed <= 0:
                break
            chosen.append(key)
            needed -= held
        return chosen
