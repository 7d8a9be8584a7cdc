"""Jobs that wait, and the order in which they leave: one queue a model.

Decides which waiting jobs make up the next batch, and nothing else. Pure.
"""

from collections import deque
from collections.abc import Sequence

from broker.protocol import Frame, Kind, Lane


class Job:
    """One input from its admission to its one answer. Data only; the scheduler changes it."""

    __slots__ = (
        "arrived",
        "bytes",
        "crashes",
        "dispatched",
        "kind",
        "lane",
        "model",
        "open",
        "owner",
        "payload",
        "position",
        "queued",
        "request",
        "suspect",
        "tokens",
    )

    def __init__(
        self,
        owner: bytes,
        request: int,
        position: int,
        *,
        model: str,
        lane: Lane,
        kind: Kind,
        payload: Frame,
        tokens: int,
        arrived: float,
    ) -> None:
        #: uuid of the frontend process that is owed the answer.
        self.owner = owner
        self.request = request
        self.position = position
        self.model = model
        self.lane = lane
        self.kind = kind
        self.payload = payload
        self.bytes = len(payload)
        #: Estimated for text, exact for token ids.
        self.tokens = tokens
        self.arrived = arrived
        self.dispatched = arrived
        #: How many workers died while it ran.
        self.crashes = 0
        #: It was in a batch that killed or failed its worker: it runs alone, so that the next time names the cause.
        self.suspect = False
        #: False once answered, failed or cancelled: whoever still holds it drops it.
        self.open = True
        #: Whether its model's queue counts it.
        self.queued = False


class ModelQueue:
    """The waiting jobs of one model. A job that is no longer open is dropped when its turn comes."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self._suspects: deque[Job] = deque()
        self.jobs = 0
        self.tokens = 0

    def __bool__(self) -> bool:
        return self.jobs > 0

    def push(self, job: Job) -> None:
        """Admit a job at the end."""
        self._jobs.append(job)
        self._enter(job)

    def push_back(self, jobs: Sequence[Job]) -> None:
        """Return leased jobs to the head, in their old order; suspects wait apart."""
        for job in reversed(jobs):
            (self._suspects if job.suspect else self._jobs).appendleft(job)
            self._enter(job)

    def discard(self, job: Job) -> None:
        """Stop counting a waiting job; it leaves when its turn comes."""
        job.queued = False
        self.jobs -= 1
        self.tokens -= job.tokens

    def take(self, max_tokens: int) -> list[Job]:
        """The next batch: up to `max_tokens`, but always at least one job while any waits; a suspect goes alone."""
        while self._suspects:
            job = self._suspects.popleft()
            if job.queued:
                self.discard(job)
                return [job]
        batch: list[Job] = []
        room = max_tokens
        while self._jobs and (not batch or self._jobs[0].tokens <= room):
            job = self._jobs.popleft()
            if job.queued:
                self.discard(job)
                batch.append(job)
                room -= job.tokens
        return batch

    def waiting(self) -> list[Job]:
        """All jobs that wait, in the order of their leaving."""
        return [job for job in (*self._suspects, *self._jobs) if job.queued]

    def _enter(self, job: Job) -> None:
        job.queued = True
        self.jobs += 1
        self.tokens += job.tokens
