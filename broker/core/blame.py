"""Suspicion of jobs after a worker crash or a device failure, and poison inputs. Pure.

Only a batch that was running can have caused the crash. Its jobs become suspects: each runs again alone (see
`ModelQueue`), on a worker without other batches (see `Worker.available`), so that the next crash identifies the job.

The inputs of suspects are remembered until they are answered, because a client sends its input again after a time-out.
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
#: Seconds for which an input that was poison is rejected, so that a client's retry does not crash another worker, and
#: for which an input that was part of one crash is a suspect.
BLOCKED_S = 600.0
#: Most blocked inputs, and most inputs of suspects; the oldest are dropped.
MAX_BLOCKED = 10_000
#: Most open jobs remembered together with the worker that they were blamed for.
MAX_REMEMBERED = 10_000


class RecentInputs:
    """Inputs by fingerprint, each with the crashes that it was part of, for `BLOCKED_S` and at most `MAX_BLOCKED`."""

    def __init__(self) -> None:
        #: Crashes and the time until which they count, oldest first.
        self._entries: dict[bytes, tuple[int, float]] = {}

    def put(self, fingerprint: bytes, crashes: int, now: float) -> None:
        """Remember an input from now on, or forget it if it has no crash."""
        self.remove(fingerprint)
        if crashes > 0:
            self._entries[fingerprint] = crashes, now + BLOCKED_S
        if len(self._entries) > MAX_BLOCKED:
            del self._entries[next(iter(self._entries))]

    def remove(self, fingerprint: bytes) -> None:
        """Forget an input."""
        self._entries.pop(fingerprint, None)

    def drop_expired(self, now: float) -> None:
        """Forget the inputs whose time is over."""
        while self._entries and next(iter(self._entries.values()))[1] <= now:
            del self._entries[next(iter(self._entries))]

    def count_crashes(self, fingerprint: bytes) -> int:
        """Return the crashes of an input; 0 if it is not known."""
        return self._entries.get(fingerprint, (0, 0.0))[0]

    def __bool__(self) -> bool:
        return bool(self._entries)


class Blame:
    """Suspects, jobs on trial, and blocked inputs."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        #: Jobs blamed for a worker's crash, by the worker's uuid and incarnation.
        self._crashed: dict[tuple[bytes, int], list[Job]] = {}
        #: Jobs on trial with the end of each trial, in that order.
        self._trials: deque[tuple[float, Job]] = deque()
        #: Poison inputs, and inputs that no worker has survived since their last crash.
        self._blocked, self._suspected = RecentInputs(), RecentInputs()

    def blame_for_crash(self, worker: Worker, lease: Lease, now: float) -> list[Job]:
        """Make a batch's open jobs suspects after its worker crashed. Return the jobs that may run again.

        Jobs that have reached `max_crashes` go on trial instead.
        """
        jobs = [job for job in lease.jobs if job.is_open]
        retried = []
        for job in jobs:
            job.suspect = True
            job.crashes += 1
            job.fingerprint = job.fingerprint or _fingerprint(job)
            self._suspected.put(job.fingerprint, job.crashes, now)
            if job.crashes < self._limits.max_crashes:
                retried.append(job)
            else:
                self._trials.append((now + TRIAL_S, job))
        self._remember_crash(worker, jobs)
        return retried

    def _remember_crash(self, worker: Worker, jobs: list[Job]) -> None:
        """Store the jobs blamed for a worker's crash, and drop those acquitted, or that exceed `MAX_REMEMBERED`."""
        self._crashed.setdefault((worker.uuid, worker.incarnation), []).extend(jobs)
        suspected = {
            known: [job for job in blamed if job.is_open or self._suspected.count_crashes(job.fingerprint)]
            for known, blamed in self._crashed.items()
        }
        self._crashed = {known: blamed for known, blamed in suspected.items() if blamed}
        while sum(map(len, self._crashed.values())) > MAX_REMEMBERED:
            del self._crashed[next(iter(self._crashed))]

    def end_trials(self, now: float) -> tuple[list[Job], list[Job]]:
        """End the trials that are due, and block the inputs of poison jobs.

        Return the open poison jobs, and the open jobs that were cleared meanwhile. The input of a job whose client has
        given up is blocked too.
        """
        poison: list[Job] = []
        cleared: list[Job] = []
        while self._trials and self._trials[0][0] <= now:
            _, job = self._trials.popleft()
            is_poison = job.crashes >= self._limits.max_crashes
            if is_poison:
                self.block_input(job, now)
            if job.is_open:
                (poison if is_poison else cleared).append(job)
        return poison, cleared

    def list_on_trial(self) -> list[Job]:
        """Return the open jobs on trial, which neither wait in a queue nor run."""
        return [job for _, job in self._trials if job.is_open]

    def next_deadline(self) -> float | None:
        """Return when the next trial ends; None without a trial."""
        return self._trials[0][0] if self._trials else None

    def block_input(self, job: Job, now: float) -> None:
        """Reject a poison job's input for `BLOCKED_S`."""
        self._suspected.remove(job.fingerprint)
        self._blocked.put(job.fingerprint, job.crashes, now)

    def recognize_jobs(self, jobs: Sequence[Job], now: float) -> tuple[list[Job], list[Job]]:
        """Return the jobs with a blocked input, and those that become suspects because of their input's earlier crash.

        Computes no fingerprint while no input is blocked or suspected.
        """
        self._blocked.drop_expired(now)
        self._suspected.drop_expired(now)
        blocked: list[Job] = []
        suspects: list[Job] = []
        for job in jobs if self._blocked or self._suspected else ():
            fingerprint = job.fingerprint or _fingerprint(job)
            if self._blocked.count_crashes(fingerprint):
                blocked.append(job)
            elif not job.suspect and (crashes := self._suspected.count_crashes(fingerprint)):
                job.suspect, job.fingerprint, job.crashes = True, fingerprint, self.limit_crashes(crashes)
                suspects.append(job)
        return blocked, suspects

    def acquit(self, job: Job) -> None:
        """Forget the crashes of a suspect's input, because a worker has survived it."""
        self._suspected.remove(job.fingerprint)

    def limit_crashes(self, crashes: int) -> int:
        """Return the crashes of a job with the input of another job: it runs once more before it goes on trial."""
        return min(crashes, self._limits.max_crashes - 1)

    def clear_jobs(self, hello: WorkerHello, now: float) -> None:
        """Withdraw the blame for a crash because the worker's process reconnected: only its connection had ended."""
        for job in self._crashed.pop((hello.uuid, hello.incarnation), []):
            job.crashes -= 1
            self._suspected.put(job.fingerprint, job.crashes, now)

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
