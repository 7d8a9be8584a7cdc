"""Which jobs are suspected when a worker dies or its device fails, and which are given up. Pure.

Only the batch that ran can have been the cause. Its jobs become suspects: they run again alone (see `ModelQueue`), so
that the next time names the culprit.
"""

from broker.limits import Limits
from broker.pool import Lease, Worker
from broker.protocol import WorkerHello
from broker.queues import Job

#: Workers whose last batch is remembered, in case only their connection has ended.
MAX_REMEMBERED = 1000


class Blame:
    """Counts against jobs."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        #: Jobs that were blamed for the end of a worker, by its uuid and incarnation.
        self._crashed: dict[tuple[bytes, int], list[Job]] = {}

    def crashed(self, worker: Worker, lease: Lease) -> list[Job]:
        """The worker died while this batch ran: the open jobs that have now been there too often."""
        jobs = [job for job in lease.jobs if job.open]
        self._crashed[worker.uuid, worker.incarnation] = jobs
        while len(self._crashed) > MAX_REMEMBERED:
            del self._crashed[next(iter(self._crashed))]
        for job in jobs:
            job.suspect = True
            job.crashes += 1
        return [job for job in jobs if job.crashes >= self._limits.max_crashes]

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
