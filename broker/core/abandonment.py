"""Abandoned jobs, which count against their client's limit for a while. Pure.

A client that sends large requests and disconnects before they are answered holds no open jobs, so a limit on open jobs
does not stop it. Its abandoned jobs therefore count as open, with a weight that decays.
"""

import math
from collections.abc import Hashable

#: Half-life of an abandoned job's weight, in seconds. At 30 s, a client that keeps abandoning large requests gets one
#: admitted about once a second; at 5 s, the admitted requests kept a worker busy (`scripts/load --loads abandonment`).
HALF_LIFE_S = 30.0
#: Most clients remembered; those with the fewest abandoned jobs are dropped first.
MAX_CLIENTS = 10_000


class Abandonment:
    """Decaying number of abandoned jobs of each client."""

    def __init__(self) -> None:
        #: For each client, a number of jobs and the time at which that number held.
        self._jobs: dict[Hashable, tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def add_jobs(self, client: Hashable, jobs: int, now: float) -> None:
        """Count jobs that a client has just abandoned."""
        self._jobs[client] = (self.count_jobs(client, now) + jobs, now)
        if len(self._jobs) > MAX_CLIENTS:
            self._drop_least(now)

    def count_jobs(self, client: Hashable, now: float) -> float:
        """Return the jobs that count against a client now."""
        jobs, since = self._jobs.get(client, (0.0, now))
        return jobs * math.exp2((since - now) / HALF_LIFE_S)

    def find_wait_s(self, client: Hashable, most: float, now: float) -> float:
        """Return the seconds until at most `most` jobs (above 0) count against a client."""
        jobs = self.count_jobs(client, now)
        return HALF_LIFE_S * math.log2(jobs / most) if jobs > most else 0.0

    def _drop_least(self, now: float) -> None:
        """Keep the half of the clients that has abandoned the most jobs."""
        kept = sorted(self._jobs, key=lambda client: self.count_jobs(client, now), reverse=True)[: MAX_CLIENTS // 2]
        self._jobs = {client: self._jobs[client] for client in kept}
