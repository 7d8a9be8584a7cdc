"""Suspicion of jobs after a worker crash or a device failure, and poison inputs. Pure.

Only a batch that was running can have caused the crash. Its jobs become suspects: each runs again alone (see
`ModelQueue`), on a worker without other batches (see `Worker.available`), so that the next crash identifies the job.
"""

import hashlib
from collections import deque
from collections.abc import Sequence

from broker.core.jobs import Job
from broker.core.limits import Limits
from broker.core.worker import Lease, Worker
from broker.wire.protocol import WorkerHello

#: Seconds between the last allowed crash and the verdict "poison": time for a worker that only lost its connection to
#: reconnect, which clears the job.
TRIAL_S = 4.0
#: Seconds for which an input that was poison is rejected, so that a client's retry does not crash another worker.
BLOCKED_S = 600.0
#: Most blocked inputs; the oldest are dropped.
MAX_BLOCKED = 10_000
#: Most open jobs remembered together with the worker that they were blamed for.
MAX_REMEMBERED = 10_000


class Blame:
    """Suspects, jobs on trial, and blocked inputs."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        #: Jobs blamed for a worker's crash, by the worker's uuid and incarnation.
        self._crashed: dict[tuple[bytes, int], list[Job]] = {}
        #: Jobs on trial with the end of each trial, in that order.
        self._trials: deque[tuple[float, Job]] = deque()
        #: End of each input's block by fingerprint, oldest first.
        self._blocked: dict[bytes, float] = {}

    def blame_for_crash(self, worker: Worker, lease: Lease, now: float) -> list[Job]:
        """Make a batch's open jobs suspects after its worker crashed. Return the jobs that may run again.

        Jobs that have reached `max_crashes` go on trial instead.
        """
        jobs = [job for job in lease.jobs if job.is_open]
        self._remember_crash(worker, jobs)
        retried = []
        for job in jobs:
            job.suspect = True
            job.crashes += 1
            if job.crashes < self._limits.max_crashes:
                retried.append(job)
            else:
                self._trials.append((now + TRIAL_S, job))
        return retried

    def _remember_crash(self, worker: Worker, jobs: list[Job]) -> None:
        """Store the jobs blamed for a worker's crash, and drop jobs that have ended or exceed `MAX_REMEMBERED`."""
        self._crashed.setdefault((worker.uuid, worker.incarnation), []).extend(jobs)
        still_open = {known: [job for job in blamed if job.is_open] for known, blamed in self._crashed.items()}
        self._crashed = {known: blamed for known, blamed in still_open.items() if blamed}
        while sum(map(len, self._crashed.values())) > MAX_REMEMBERED:
            del self._crashed[next(iter(self._crashed))]

    def end_trials(self, now: float) -> tuple[list[Job], list[Job]]:
        """End the trials that are due. Return the poison jobs, and the jobs that were cleared meanwhile."""
        poison: list[Job] = []
        cleared: list[Job] = []
        while self._trials and self._trials[0][0] <= now:
            _, job = self._trials.popleft()
            if job.is_open:
                (poison if job.crashes >= self._limits.max_crashes else cleared).append(job)
        return poison, cleared

    def list_on_trial(self) -> list[Job]:
        """Return the open jobs on trial, which neither wait in a queue nor run."""
        return [job for _, job in self._trials if job.is_open]

    def next_deadline(self) -> float | None:
        """Return when the next trial ends; None without a trial."""
        return self._trials[0][0] if self._trials else None

    def block_input(self, job: Job, now: float) -> None:
        """Reject a poison job's input for `BLOCKED_S`."""
        self._blocked[_fingerprint(job)] = now + BLOCKED_S
        while len(self._blocked) > MAX_BLOCKED:
            del self._blocked[next(iter(self._blocked))]

    def find_blocked(self, jobs: Sequence[Job], now: float) -> list[Job]:
        """Return the jobs with a blocked input. Computes no fingerprint while no input is blocked."""
        while self._blocked and next(iter(self._blocked.values())) <= now:
            del self._blocked[next(iter(self._blocked))]
        return [job for job in jobs if _fingerprint(job) in self._blocked] if self._blocked else []

    def clear_jobs(self, hello: WorkerHello) -> None:
        """Withdraw the blame for a crash because the worker's process reconnected: only its connection had ended."""
        for job in self._crashed.pop((hello.uuid, hello.incarnation), []):
            job.crashes -= 1

    def blame_for_failure(self, lease: Lease) -> list[Job]:
        """Make a batch's open jobs suspects after the device failed. Return those that have reached `max_errors`."""
        jobs = [job for job in lease.jobs if job.is_open]
        for job in jobs:
            job.suspect = True
            job.errors += 1
        return [job for job in jobs if job.errors >= self._limits.max_errors]


def _fingerprint(job: Job) -> bytes:
    digest = hashlib.blake2b(job.payload, digest_size=16, salt=bytes([job.request.kind]))
    digest.update("\0".join(job.request.model).encode())
    return digest.digest()
