"""What clients asked for and then left, which counts against their part of the queue for a while. Pure.

A client that sends large requests and goes away before they are answered holds nothing open, so a bound on open jobs
does not stop it. Its abandoned jobs therefore count as open until they have faded.
"""

import math
from collections.abc import Hashable

#: Half-life of an abandoned job's weight, in seconds. With 30 s a client that keeps abandoning large requests gets one
#: admitted about once a second; with 5 s the admitted ones kept a worker busy.
HALF_LIFE_S = 30.0
#: Clients remembered at most; those that have abandoned least are forgotten first.
MAX_CLIENTS = 10_000


class Abandonment:
    """Abandoned jobs of each client."""

    def __init__(self) -> None:
        #: For each client, a number of jobs and the time at which that number held.
        self._jobs: dict[Hashable, tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, client: Hashable, jobs: int, now: float) -> None:
        """Count jobs that a client has just abandoned."""
        self._jobs[client] = (self.count(client, now) + jobs, now)
        if len(self._jobs) > MAX_CLIENTS:
            self._forget_least(now)

    def count(self, client: Hashable, now: float) -> float:
        """Return the jobs that count against a client now."""
        jobs, since = self._jobs.get(client, (0.0, now))
        return jobs * math.exp2((since - now) / HALF_LIFE_S)

    def find_wait_s(self, client: Hashable, most: float, now: float) -> float:
        """Return the seconds until at most `most` jobs, more than none, count against a client."""
        jobs = self.count(client, now)
        return HALF_LIFE_S * math.log2(jobs / most) if jobs > most else 0.0

    def _forget_least(self, now: float) -> None:
        """Keep the half of the clients that has abandoned most."""
        kept = sorted(self._jobs, key=lambda client: self.count(client, now), reverse=True)[: MAX_CLIENTS // 2]
        self._jobs = {client: self._jobs[client] for client in kept}
