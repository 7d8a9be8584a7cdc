"""Which jobs are suspected when a worker dies or its device fails, and which are given up. Pure.

Only a batch that ran can have been the cause. Its jobs become suspects: they run again alone (see `ModelQueue`), beside
no other batch (see `Worker.available`), so that the next time names the culprit.
"""

import hashlib
from collections import deque
from collections.abc import Sequence

from broker.core.jobs import Job
from broker.core.limits import Limits
from broker.core.pool import Lease, Worker
from broker.wire.protocol import WorkerHello

#: How long the verdict on a job waits, in seconds: time for a worker whose connection alone has ended to be back.
TRIAL_S = 4.0
#: How long an input that was poison is refused instead of dispatched, in seconds, so that a client's retry does not
#: kill again.
BLOCKED_S = 600.0
#: Inputs refused so at most; the oldest are let go.
MAX_BLOCKED = 10_000
#: Open jobs that are remembered with the worker that they were blamed for, in case only its connection has ended.
MAX_REMEMBERED = 10_000


class Blame:
    """Counts against jobs."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        #: Jobs that were blamed for the end of a worker, by its uuid and incarnation.
        self._crashed: dict[tuple[bytes, int], list[Job]] = {}
        #: Jobs on trial and when it is over, in that order.
        self._trials: deque[tuple[float, Job]] = deque()
        #: Until when each fingerprint is blocked, oldest first.
        self._blocked: dict[bytes, float] = {}

    def crashed(self, worker: Worker, lease: Lease, now: float) -> list[Job]:
        """The worker seems to have died while this batch ran: the open jobs that may run again. Those that have now
        been there too often are on trial."""
        jobs = [job for job in lease.jobs if job.open]
        self._remember(worker, jobs)
        free = []
        for job in jobs:
            job.suspect = True
            job.crashes += 1
            if job.crashes < self._limits.max_crashes:
                free.append(job)
            else:
                self._trials.append((now + TRIAL_S, job))
        return free

    def _remember(self, worker: Worker, jobs: list[Job]) -> None:
        """Remember what a worker was blamed for, and forget what has ended meanwhile and what is too much."""
        self._crashed.setdefault((worker.uuid, worker.incarnation), []).extend(jobs)
        still_open = {known: [job for job in blamed if job.open] for known, blamed in self._crashed.items()}
        self._crashed = {known: blamed for known, blamed in still_open.items() if blamed}
        while sum(map(len, self._crashed.values())) > MAX_REMEMBERED:
            del self._crashed[next(iter(self._crashed))]

    def verdicts(self, now: float) -> tuple[list[Job], list[Job]]:
        """The jobs whose trial is over: those that are poison, and those that were pardoned meanwhile."""
        poison: list[Job] = []
        free: list[Job] = []
        while self._trials and self._trials[0][0] <= now:
            _, job = self._trials.popleft()
            if job.open:
                (poison if job.crashes >= self._limits.max_crashes else free).append(job)
        return poison, free

    def on_trial(self) -> list[Job]:
        """The open jobs that neither wait nor run."""
        return [job for _, job in self._trials if job.open]

    def next_deadline(self) -> float | None:
        """When the next trial is over."""
        return self._trials[0][0] if self._trials else None

    def block(self, job: Job, now: float) -> None:
        """The job was poison: refuse its like for a while."""
        self._blocked[_fingerprint(job)] = now + BLOCKED_S
        while len(self._blocked) > MAX_BLOCKED:
            del self._blocked[next(iter(self._blocked))]

    def find_blocked(self, jobs: Sequence[Job], now: float) -> list[Job]:
        """Return the jobs that are known poison. Costs nothing while none is."""
        while self._blocked and next(iter(self._blocked.values())) <= now:
            del self._blocked[next(iter(self._blocked))]
        return [job for job in jobs if _fingerprint(job) in self._blocked] if self._blocked else []

    def pardon(self, hello: WorkerHello) -> None:
        """The process that was thought dead lives: only its connection had ended, and no input did that."""
        for job in self._crashed.pop((hello.uuid, hello.incarnation), []):
            job.crashes -= 1

    def failed(self, lease: Lease) -> list[Job]:
        """The device failed on this batch: the open jobs that have now been there too often."""
        jobs = [job for job in lease.jobs if job.open]
        for job in jobs:
            job.suspect = True
            job.errors += 1
        return [job for job in jobs if job.errors >= self._limits.max_errors]


def _fingerprint(job: Job) -> bytes:
    digest = hashlib.blake2b(job.payload, digest_size=16, salt=bytes([job.request.kind]))
    digest.update(job.request.model.encode())
    return digest.digest()
