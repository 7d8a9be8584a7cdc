"""Recent events of each job, to answer "what happened to this job?". Pure.

The history holds names and never inputs, and at most `MAX_BYTES`, so that no client can fill the memory.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from broker.core.jobs import Job, Request

#: Bytes that all entries together may take, by the estimate below.
MAX_BYTES = 4 * 1024 * 1024
#: Bytes of an entry without its keys, and of each key (sys.getsizeof of the parts, rounded up).
ENTRY_BYTES, KEY_BYTES = 400, 150

#: A frontend's uuid, the number of one of its requests and a position in it; without a position, all jobs of the
#: request that were open at the time.
Key = tuple[bytes, int, int] | tuple[bytes, int]


class Entry(NamedTuple):
    """An event of some jobs."""

    time: float
    event: str
    detail: str
    keys: Sequence[Key]
    size: int


class JobHistory:
    """The latest entries, bounded in bytes."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        self._size = 0

    def add_request(self, now: float, event: str, detail: str, request: Request) -> None:
        """Record an event of all open jobs of a request."""
        self._add_entry(now, event, detail, [(request.owner, request.number)])

    def add_jobs(self, now: float, event: str, detail: str, jobs: Iterable[Job]) -> None:
        """Record an event of some jobs."""
        self._add_entry(now, event, detail, [job.key for job in jobs])

    def _add_entry(self, now: float, event: str, detail: str, keys: Sequence[Key]) -> None:
        size = ENTRY_BYTES + len(detail) + KEY_BYTES * len(keys)
        self._entries.append(Entry(now, event, detail, keys, size))
        self._size += size
        while self._size > MAX_BYTES:
            self._size -= self._entries.popleft().size

    def describe_job(self, owner: bytes, number: int, position: int) -> list[str]:
        """Return one line for each remembered event of a job, oldest first."""
        return [
            f"{entry.time:.3f} {entry.event} {entry.detail}".rstrip()
            for entry in self._entries
            if (owner, number) in entry.keys or (owner, number, position) in entry.keys
        ]
