"""What has happened lately, for the one question "what happened to this job?". Pure.

A ring of one entry for each request and each batch, not for each job, so that it costs next to nothing.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from broker.queues import Job

#: Entries kept.
LENGTH = 2000


class Entry(NamedTuple):
    """Something that happened to some jobs."""

    time: float
    event: str
    detail: str
    jobs: Sequence[Job]


class Story:
    """The ring."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=LENGTH)

    def note(self, now: float, event: str, detail: str, jobs: Sequence[Job]) -> None:
        """Something happens."""
        self._entries.append(Entry(now, event, detail, jobs))

    def of(self, owner: bytes, request: int, position: int) -> list[str]:
        """What is remembered of a job, oldest first."""
        key = (owner, request, position)
        return [
            f"{entry.time:.3f} {entry.event} {entry.detail}".rstrip()
            for entry in self._entries
            if any((job.owner, job.request, job.position) == key for job in entry.jobs)
        ]
