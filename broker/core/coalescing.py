"""Coalescing: an input that is being computed is not computed again; equal inputs follow it. Pure.

1. A job leads its key from its dispatch on. Jobs with the same key follow it: they wait in no queue, keep their own
   deadline and client, and end with the leader.
2. An interactive job does not follow a bulk job, because it would wait for a bulk batch. It is computed, and leads.
3. A leader runs, or is a suspect. If it returns to its queue otherwise, its followers return to their own queues.
4. If the leader's request ends first, a follower takes its place: in the batch, or as a suspect.
5. A leader that fails by its own fault fails its followers alike.

Many jobs may follow one leader. They are settled in parts, so that no call takes long.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from broker.core.jobs import Job
from broker.core.limits import Limits
from broker.core.result_cache import ResultCache, Row
from broker.wire.errors import ErrorCode
from broker.wire.protocol import Lane


class Settlement(NamedTuple):
    """Jobs that followed, and what becomes of them: a row, a failure, or, with neither, their queues."""

    jobs: deque[Job]
    row: Row | None = None
    failure: tuple[ErrorCode, str] | None = None


class Coalescing:
    """Results in memory, leaders and followers."""

    def __init__(self, limits: Limits) -> None:
        self.cache = ResultCache(limits.cache_bytes)
        #: Open jobs that lead, by key.
        self.leaders: dict[bytes, Job] = {}
        #: Jobs that follow, by key. Those that are closed are dropped when the leader ends.
        self.followers: dict[bytes, deque[Job]] = {}
        self.settlements: deque[Settlement] = deque()
        #: When work was left for the next call; None if all is done.
        self.due: float | None = None

    def next_deadline(self) -> float | None:
        """Return when the next call is due for what was left; None if all is done."""
        return self.due

    def may_follow(self, key: bytes, lane: Lane) -> bool:
        """Return whether a job of this key and lane can follow the leader; False without a leader."""
        leader = self.leaders.get(key)
        return leader is not None and leader.request.lane <= lane

    def follow(self, job: Job, key: bytes, now: float) -> None:
        """Let a job that has left its queue follow the leader of its key."""
        job.input_key, job.dispatched_at = key, now
        self.followers.setdefault(key, deque()).append(job)

    def lead(self, job: Job, key: bytes) -> None:
        """Make a job the leader of its key; followers of an earlier leader follow this one."""
        job.input_key = key
        self.leaders[key] = job

    def end_with_row(self, job: Job, row: Row) -> int:
        """Store the row of a computed job for others, and settle its followers. Return the number of evicted rows."""
        if self.leaders.get(job.input_key) is job:
            del self.leaders[job.input_key]
        self._settle(job.input_key, row=row)
        return 0 if job.suspect else self.cache.add_row(job.input_key, row)

    def end_with_failure(self, job: Job, code: ErrorCode, text: str) -> None:
        """Settle the followers of a job that fails by its own fault."""
        if job.input_key and self.leaders.get(job.input_key) is job:
            del self.leaders[job.input_key]
            self._settle(job.input_key, failure=(code, text))

    def release_followers(self, jobs: Iterable[Job]) -> None:
        """Let jobs lead no longer that return to their queue, and return their followers."""
        for job in jobs:
            if job.input_key and self.leaders.get(job.input_key) is job:
                del self.leaders[job.input_key]
                self._settle(job.input_key)

    def _settle(self, key: bytes, row: Row | None = None, failure: tuple[ErrorCode, str] | None = None) -> None:
        if jobs := self.followers.pop(key, None):
            self.settlements.append(Settlement(jobs, row, failure))

    def replace_leaders(self, closed: Iterable[Job]) -> dict[Job, Job]:
        """Choose an open follower to replace each of the closed jobs that leads. Return the successors by leader."""
        successors = {}
        for job in closed:
            if not job.input_key or self.leaders.get(job.input_key) is not job:
                continue
            del self.leaders[job.input_key]
            followers = self.followers.get(job.input_key, deque())
            while followers and not followers[0].is_open:
                followers.popleft()
            if followers:
                successors[job] = self.leaders[job.input_key] = followers.popleft()
            if not followers:
                self.followers.pop(job.input_key, None)
        return successors

    def list_followers(self) -> Iterator[Job]:
        """Yield the open jobs that follow a leader or are being settled."""
        for jobs in (*self.followers.values(), *(settlement.jobs for settlement in self.settlements)):
            yield from (job for job in jobs if job.is_open)
