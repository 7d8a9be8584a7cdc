"""The workers: what each serves, what it holds, whether it lives, and which one gets the next batch. Pure."""

import itertools
from collections import deque
from collections.abc import Container, Sequence

import msgspec

from broker.core.jobs import Job
from broker.core.throughput import Speed
from broker.wire.protocol import Lane, ModelInfo, WorkerHello

#: A worker's next batch is sent this long before it is expected to need it, the way there and a part of what runs, for
#: predictions are not exact; but not before half of what runs is done.
LEAD_S = 0.005
LEAD_SHARE = 0.4
#: Batches of one lane that a worker holds: one that runs and the next. So a late one leaves room for the other lane.
MAX_HELD = 2
#: Suspects that a worker runs one after the other while there is other work for it.
MAX_SUSPECTS = 8


class Lease:
    """The record that a batch is with a worker until it is answered or the worker is evicted."""

    __slots__ = ("batch", "jobs", "lane", "model", "options", "overlap", "since", "tokens")

    def __init__(self, batch: int, model: str, lane: Lane, jobs: list[Job], now: float) -> None:
        self.batch = batch
        self.model = model
        self.lane = lane
        self.jobs = jobs
        #: `Option` bits of each job.
        self.options = bytes(job.request.options for job in jobs)
        #: By the estimate at its dispatch.
        self.tokens = sum(job.tokens for job in jobs)
        #: When it became the worker's oldest batch of its lane, one that runs.
        self.since = now
        #: Tokens of the other lane's batches that were answered while it ran.
        self.overlap = 0


class Worker:
    """One live worker. READY → DRAINING → gone; a gone one is no longer in the pool.

    It runs the batches of a lane in their order, and those of the interactive lane before those of the bulk lane.
    """

    def __init__(self, peer: bytes, hello: WorkerHello, now: float, slot: int = 0) -> None:
        self.peer = peer
        self.uuid = hello.uuid
        self.incarnation = hello.incarnation
        self.name = f"{hello.host}/{hello.pid}"
        self.host, self.device = hello.host, hello.device
        #: Distinguishes the connected workers of one device of a host; see `Pool.find_free_slot`.
        self.slot = slot
        self.models = {model.name: model for model in hello.models}
        self.batch_tokens = hello.batch_tokens
        self.speed = Speed(hello.tokens_per_s, hello.batch_tokens)
        self.streams = hello.streams
        self.credit = hello.credit
        #: Batches sent that the worker has not yet told it has seen; its credit does not count them yet.
        self.unseen: deque[int] = deque()
        #: Leases by batch, oldest first.
        self.leases: dict[int, Lease] = {}
        self.last_heard = now
        self.draining = False
        #: Suspects among its last batches, since the last other one.
        self.suspects = 0
        self.answered_batches = 0
        self.answered_jobs = 0

    @property
    def label(self) -> str:
        """The worker's name in metrics, which the next process in its place has too."""
        return f"{self.host}/{self.device}/{self.slot}"

    @property
    def available(self) -> int:
        """How many more batches may be sent to it now; none beside a suspect, whose verdict must be its own."""
        return 0 if self.suspect_of else max(0, self.credit - len(self.unseen))

    @property
    def suspect_of(self) -> str | None:
        """The model of the suspect that it runs, if any."""
        return next((lease.model for lease in self.leases.values() if lease.jobs[0].suspect), None)

    def grant(self, credit: int, seen: int) -> None:
        """Take over the worker's own absolute count."""
        self.credit = credit
        while self.unseen and self.unseen[0] <= seen:
            self.unseen.popleft()

    def lease(self, lease: Lease) -> None:
        """Record that the batch has been sent."""
        self.leases[lease.batch] = lease
        self.unseen.append(lease.batch)
        self.suspects = self.suspects + 1 if lease.jobs[0].suspect else 0

    def held(self, lane: Lane) -> list[Lease]:
        """Its leases of a lane, oldest first."""
        return [lease for lease in self.leases.values() if lease.lane == lane]

    def running(self) -> list[Lease]:
        """The leases that may have been begun: the oldest of each lane."""
        return [held[0] for lane in Lane if (held := self.held(lane))]

    def release(self, batch: int, now: float) -> Lease | None:
        """End the batch's lease; if it ran, the next one of its lane starts to run now. None: it has no such lease."""
        lease = self.leases.pop(batch, None)
        if lease:
            for after in self.held(lease.lane)[:1]:
                if after.batch > batch:
                    after.since = max(after.since, now)
        return lease

    def learn(self, lease: Lease, tokens: int, now: float) -> None:
        """A batch of so many tokens, refused jobs' not counted, is answered, and its lease released. What ran beside
        others says little of the speed: a bulk batch is counted with all that was answered meanwhile, and an
        interactive one not at all."""
        others = self.held(Lane.BULK if lease.lane == Lane.INTERACTIVE else Lane.INTERACTIVE)
        for other in others[:1]:
            other.overlap += tokens
        if tokens and (lease.lane == Lane.BULK or not others):
            self.speed.learn(tokens + lease.overlap, now - lease.since)

    def wants_next(self, lane: Lane) -> float:
        """From when on its next batch of a lane should be sent: shortly before what it holds of it, which is something,
        is done."""
        held = self.held(lane)
        run = self.speed.predict(held[0].tokens + held[0].overlap)
        rest = sum(self.speed.predict(lease.tokens) for lease in held[1:])
        return held[0].since + run + rest - min(LEAD_S + LEAD_SHARE * run, run / 2)


class Pool:
    """All live workers, by connection."""

    def __init__(self, liveness_s: float, lease_s: float) -> None:
        self.liveness_s = liveness_s
        self.lease_s = lease_s
        self.workers: dict[bytes, Worker] = {}

    def find_free_slot(self, host: str, device: str) -> int:
        """Return the lowest number that no connected worker of this host and device has."""
        workers = self.workers.values()
        taken = {worker.slot for worker in workers if (worker.host, worker.device) == (host, device)}
        return next(slot for slot in itertools.count() if slot not in taken)

    def choose(self, model: str, lane: Lane, now: float, kept: Container[Worker]) -> Worker | None:
        """The worker for a lane's next batch: the fastest of the idle ones, or of those that hold none of the lane,
        else one that is about to be done with what it holds.

        Who holds some is given the next batch just in time, not early: what waits in the broker can still grow, be
        overtaken or cancelled, or go to whichever worker is free first. None of those `kept` for suspects.
        """
        taking_more = self._taking_more(model, lane, kept)
        free = [worker for worker in taking_more if not worker.held(lane)]
        if free:
            return max(free, key=lambda worker: (not worker.leases, worker.speed.tokens_per_s))
        due = [worker for worker in taking_more if now >= worker.wants_next(lane)]
        return min(due, key=lambda worker: worker.wants_next(lane), default=None)

    def choose_for_suspect(self, model: str, busy: Container[str]) -> Worker | None:
        """The worker for a model's next suspect: the fastest idle one, else the one that holds least, which is to be
        kept free until it is idle. None that has just run many, if one of the `busy` models has work for it."""
        fitting = [
            worker
            for worker in self._fitting(model)
            if worker.suspects < MAX_SUSPECTS or not any(name in busy for name in worker.models)
        ]
        return min(fitting, key=lambda worker: (len(worker.leases), -worker.speed.tokens_per_s), default=None)

    def tries_suspect(self, model: str) -> bool:
        """Whether a worker runs a suspect of the model."""
        return any(worker.suspect_of == model for worker in self.workers.values())

    def share(self, worker: Worker, model: str, lane: Lane) -> float:
        """The part of a lane's waiting jobs that the worker should take: by its speed among those that have none."""
        free = [other.speed.tokens_per_s for other in self._fitting(model) if not other.held(lane)]
        return 1.0 if worker.held(lane) else worker.speed.tokens_per_s / sum(free)

    def next_dispatch(self, model: str, lanes: Sequence[Lane], kept: Container[Worker]) -> float | None:
        """When a worker, but for those `kept`, wants the next batch of one of these lanes of a model. All of them have
        jobs, so every worker that may have more holds some of each already."""
        times = (worker.wants_next(lane) for lane in lanes for worker in self._taking_more(model, lane, kept))
        return min(times, default=None)

    def idle(self, model: str) -> int:
        """How many workers could start a batch of this model at once."""
        return sum(1 for worker in self._fitting(model) if not worker.leases)

    def tokens_per_s(self, model: str) -> float:
        """What all workers of a model do together."""
        return sum(worker.speed.tokens_per_s for worker in self._taking(model))

    def leased_tokens(self, model: str, lane: Lane) -> int:
        """Tokens that workers hold and run before what comes into a lane now."""
        leases = [lease for worker in self._taking(model) for lease in worker.leases.values()]
        return sum(lease.tokens for lease in leases if lease.lane <= lane)

    def batch_tokens(self, model: str) -> int:
        """The largest batch that a worker of a model wants."""
        return max((worker.batch_tokens for worker in self._taking(model)), default=0)

    def _taking(self, model: str) -> list[Worker]:
        return [worker for worker in self.workers.values() if model in worker.models and not worker.draining]

    def _fitting(self, model: str) -> list[Worker]:
        return [worker for worker in self._taking(model) if worker.available]

    def _taking_more(self, model: str, lane: Lane, kept: Container[Worker]) -> list[Worker]:
        """Whom `choose` may choose, and for whom `next_dispatch` must wake."""
        return [worker for worker in self._fitting(model) if worker not in kept and len(worker.held(lane)) < MAX_HELD]

    def revision(self, name: str) -> str | None:
        """The one revision of a model that all connected workers have, those that drain included."""
        return next((worker.models[name].revision for worker in self.workers.values() if name in worker.models), None)

    def live_model(self, name: str) -> ModelInfo | None:
        """The model as the workers that take work for it announce it, with their number; None when there are none."""
        serving = [worker.models[name] for worker in self._taking(name)]
        if not serving:
            return None
        return msgspec.structs.replace(serving[0], workers=len(serving))

    def drains(self, name: str) -> bool:
        """Whether a worker that serves the model takes nothing more."""
        return any(worker.draining and name in worker.models for worker in self.workers.values())

    def silent(self, now: float) -> list[Worker]:
        """Workers not heard of for too long."""
        return [worker for worker in self.workers.values() if now >= worker.last_heard + self.liveness_s]

    def hung(self, now: float) -> list[Worker]:
        """Workers whose batch has run for too long."""
        return [
            worker
            for worker in self.workers.values()
            if any(now >= lease.since + self.lease_s for lease in worker.running())
        ]

    def next_deadline(self) -> float | None:
        """When `silent` or `hung` may next find one."""
        silent = (worker.last_heard + self.liveness_s for worker in self.workers.values())
        late = (lease.since + self.lease_s for worker in self.workers.values() for lease in worker.running())
        return min(itertools.chain(silent, late), default=None)
