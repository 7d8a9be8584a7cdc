"""Recent events of each job, to answer "what happened to this job?". Pure.

The history holds names and never inputs, and at most `MAX_BYTES`, so that no client can fill the memory.
"""

import itertools
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from broker.core.jobs import Job, Request

#: Bytes that all entries together may take, by the estimate below.
MAX_BYTES = 4 * 1024 * 1024
#: Bytes of an entry, and of each request in it, without positions (sys.getsizeof of the parts, rounded up).
ENTRY_BYTES, REQUEST_BYTES = 400, 250
#: Bytes of a position.
POSITION_BYTES = 4

#: A frontend's uuid and the number of one of its requests.
Key = tuple[bytes, int]


class Entry(NamedTuple):
    """An event of some jobs."""

    time: float
    event: str
    detail: str
    #: Positions of the jobs, by request; None stands for all jobs of the request that were open at the time.
    positions: dict[Key, "array[int] | None"]
    size: int


class JobHistory:
    """The latest entries, bounded in bytes."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        self._size = 0

    def add_request(self, now: float, event: str, detail: str, request: Request) -> None:
        """Record an event of all open jobs of a request."""
        self._add_entry(now, event, detail, {(request.owner, request.number): None})

    def add_jobs(self, now: float, event: str, detail: str, jobs: Iterable[Job]) -> None:
        """Record an event of some jobs; the jobs of one request must be adjacent."""
        by_request = itertools.groupby(jobs, lambda job: job.request)
        positions: dict[Key, array[int] | None] = {
            (request.owner, request.number): array("I", [job.position for job in group])
            for request, group in by_request
        }
        self._add_entry(now, event, detail, positions)

    def _add_entry(self, now: float, event: str, detail: str, positions: "dict[Key, array[int] | None]") -> None:
        known = sum(map(len, filter(None, positions.values())))
        size = ENTRY_BYTES + len(detail) + REQUEST_BYTES * len(positions) + POSITION_BYTES * known
        self._entries.append(Entry(now, event, detail, positions, size))
        self._size += size
        while self._size > MAX_BYTES:
            self._size -= self._entries.popleft().size

    def describe_job(self, owner: bytes, number: int, position: int) -> list[str]:
        """Return one line for each remembered event of a job, oldest first."""
        return [
            f"{entry.time:.3f} {entry.event} {entry.detail}".rstrip()
            for entry in self._entries
            if (owner, number) in entry.positions and _covers(entry.positions[owner, number], position)
        ]


def _covers(positions: Sequence[int] | None, position: int) -> bool:
    return positions is None or position in positions
