"""The workers: what each serves, what it holds, whether it lives, and which one gets the next batch. Pure."""

import itertools
from collections import deque

from broker.protocol import ModelInfo, WorkerHello
from broker.queues import Job
from broker.speed import Speed

#: A worker's next batch is sent this long before it is expected to need it, the way there and a part of what runs, for
#: predictions are not exact; but not before half of what runs is done.
LEAD_S = 0.005
LEAD_SHARE = 0.4


class Lease:
    """The record that a batch is with a worker until it is answered or the worker is evicted."""

    __slots__ = ("batch", "jobs", "model", "since", "tokens")

    def __init__(self, batch: int, model: str, jobs: list[Job], now: float) -> None:
        self.batch = batch
        self.model = model
        self.jobs = jobs
        #: By the estimate at its dispatch.
        self.tokens = sum(job.tokens for job in jobs)
        #: When it became the worker's oldest batch, the one that runs.
        self.since = now


class Worker:
    """One live worker. READY → DRAINING → gone; a gone one is no longer in the pool."""

    def __init__(self, peer: bytes, hello: WorkerHello, now: float) -> None:
        self.peer = peer
        self.uuid = hello.uuid
        self.incarnation = hello.incarnation
        self.name = f"{hello.host}/{hello.pid}"
        self.device = hello.device
        self.models = {model.name: model for model in hello.models}
        self.batch_tokens = hello.batch_tokens
        self.speed = Speed(hello.tokens_per_s, hello.batch_tokens)
        self.credit = hello.credit
        #: Batches sent that the worker has not yet told it has seen; its credit does not count them yet.
        self.unseen: deque[int] = deque()
        #: Leases by batch, oldest first: a worker runs its batches in order, so the first one is running.
        self.leases: dict[int, Lease] = {}
        self.last_heard = now
        self.draining = False
        self.answered_batches = 0
        self.answered_jobs = 0

    @property
    def available(self) -> int:
        """How many more batches may be sent to it now."""
        return 0 if self.draining else max(0, self.credit - len(self.unseen))

    def grant(self, credit: int, seen: int) -> None:
        """Take over the worker's own absolute count."""
        self.credit = credit
        while self.unseen and self.unseen[0] <= seen:
            self.unseen.popleft()

    def lease(self, lease: Lease) -> None:
        """Record that the batch has been sent."""
        self.leases[lease.batch] = lease
        self.unseen.append(lease.batch)

    def release(self, batch: int, now: float) -> Lease | None:
        """End the batch's lease; if it ran, the next one starts to run now. None: it was not leased to this worker."""
        ran = self.running
        lease = self.leases.pop(batch, None)
        if lease and lease is ran and self.running:
            self.running.since = max(self.running.since, now)
        return lease

    def wants_next(self) -> float:
        """From when on its next batch should be sent: shortly before what it holds is done. It holds something."""
        held = list(self.leases.values())
        run = self.speed.predict(held[0].tokens)
        rest = sum(self.speed.predict(lease.tokens) for lease in held[1:])
        return held[0].since + run + rest - min(LEAD_S + LEAD_SHARE * run, run / 2)

    @property
    def running(self) -> Lease | None:
        """The oldest lease."""
        return next(iter(self.leases.values()), None)


class Pool:
    """All live workers, by connection."""

    def __init__(self, liveness_s: float, lease_s: float) -> None:
        self.liveness_s = liveness_s
        self.lease_s = lease_s
        self.workers: dict[bytes, Worker] = {}

    def choose(self, model: str, now: float) -> Worker | None:
        """The worker for the next batch of a model: the fastest idle one, else one that is about to be idle.

        A busy worker is given its next batch just in time, not early: what waits in the broker can still grow, be
        overtaken or cancelled, or go to whichever worker is free first.
        """
        fitting = self._fitting(model)
        idle = [worker for worker in fitting if not worker.leases]
        if idle:
            return max(idle, key=lambda worker: worker.speed.tokens_per_s)
        due = [worker for worker in fitting if now >= worker.wants_next()]
        return min(due, key=lambda worker: worker.wants_next(), default=None)

    def share(self, worker: Worker, model: str) -> float:
        """The part of what waits that the worker should take: by its speed among those that are idle."""
        idle = [other.speed.tokens_per_s for other in self._fitting(model) if not other.leases]
        return worker.speed.tokens_per_s / sum(idle) if not worker.leases else 1.0

    def next_dispatch(self, model: str) -> float | None:
        """When a busy worker wants the next batch of a model."""
        return min((worker.wants_next() for worker in self._fitting(model) if worker.leases), default=None)

    def idle(self, model: str) -> int:
        """How many workers could start a batch of this model at once."""
        return sum(1 for worker in self._fitting(model) if not worker.leases)

    def tokens_per_s(self, model: str) -> float:
        """What all workers of a model do together."""
        return sum(worker.speed.tokens_per_s for worker in self.workers.values() if model in worker.models)

    def _fitting(self, model: str) -> list[Worker]:
        return [worker for worker in self.workers.values() if model in worker.models and worker.available]

    def revision(self, name: str) -> str | None:
        """The one revision of a model that all connected workers have, those that drain included."""
        return next((worker.models[name].revision for worker in self.workers.values() if name in worker.models), None)

    def live_model(self, name: str) -> ModelInfo | None:
        """The model as the workers that take work for it announce it, with their number; None when there are none."""
        taking = (worker for worker in self.workers.values() if not worker.draining)
        serving = [worker.models[name] for worker in taking if name in worker.models]
        if not serving:
            return None
        first = serving[0]
        return ModelInfo(first.name, first.revision, first.dimension, first.max_tokens, len(serving))

    def silent(self, now: float) -> list[Worker]:
        """Workers not heard of for too long."""
        return [worker for worker in self.workers.values() if now >= worker.last_heard + self.liveness_s]

    def hung(self, now: float) -> list[Worker]:
        """Workers whose batch has run for too long."""
        running = [(worker, worker.running) for worker in self.workers.values()]
        return [worker for worker, lease in running if lease and now >= lease.since + self.lease_s]

    def next_deadline(self) -> float | None:
        """When `silent` or `hung` may next find one."""
        silent = (worker.last_heard + self.liveness_s for worker in self.workers.values())
        late = (worker.running.since + self.lease_s for worker in self.workers.values() if worker.running)
        return min(itertools.chain(silent, late), default=None)
