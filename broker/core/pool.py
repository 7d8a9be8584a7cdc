"""Connected workers: what each serves and holds, which are dead, and which one gets the next batch. Pure."""

import itertools
from collections import deque
from collections.abc import Container, Sequence
from dataclasses import dataclass, field

import msgspec

from broker.core.jobs import Job
from broker.core.throughput import Throughput
from broker.wire.protocol import Lane, ModelInfo, WorkerHello

#: A worker's next batch is sent this much earlier than the current one is expected to end: seconds for the way to the
#: worker, plus a share of the current batch's run time because predictions are not exact. The lead is at most half of
#: the run time.
LEAD_S = 0.005
LEAD_SHARE = 0.4
#: Most batches of one lane that a worker holds: the running one and the next. A slow worker keeps credit for the
#: other lane.
MAX_HELD = 2
#: Most characters of a host in a worker's name. Linux allows 64 (gethostname(2)).
MAX_HOST = 255
#: Suspects that a worker runs in a row while it has other work.
MAX_SUSPECTS = 8


@dataclass(slots=True, eq=False)
class Lease:
    """Record of a batch that a worker holds, until the worker answers it or is evicted."""

    batch: int
    model: str
    lane: Lane
    jobs: list[Job] = field(repr=False)
    #: When the batch became the worker's oldest of its lane, so that it may be running.
    since: float
    #: `Option` bits of each job.
    options: bytes = field(init=False, repr=False)
    #: Tokens by the estimate at dispatch.
    tokens: int = field(init=False)
    #: Tokens of the other lane's batches that the worker answered while this batch ran.
    overlap: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.options = bytes(job.request.options for job in self.jobs)
        self.tokens = sum(job.tokens for job in self.jobs)


class Worker:
    """One connected worker. READY → DRAINING → gone; the pool holds no worker that is gone.

    A worker runs the batches of a lane in order, and interactive batches before bulk batches.
    """

    def __init__(self, peer: bytes, hello: WorkerHello, now: float, slot: int = 0) -> None:
        self.peer = peer
        self.uuid = hello.uuid
        self.incarnation = hello.incarnation
        #: Name in logs and in `Stats`, which holds names of up to 512 characters.
        self.name = f"{hello.host[:MAX_HOST]}/{hello.pid}"
        self.host, self.device = hello.host, hello.device
        #: Number of the worker among the connected workers of its host and device.
        self.slot = slot
        self.models = {model.name: model for model in hello.models}
        self.batch_tokens = hello.batch_tokens
        self.throughput = Throughput(hello.tokens_per_s, hello.batch_tokens)
        self.streams = hello.streams
        #: Batches that the worker accepts after the newest one that it reported as seen.
        self.credit = hello.credit
        #: Batches sent since then.
        self.unseen: deque[int] = deque()
        #: Leases by batch number, oldest first.
        self.leases: dict[int, Lease] = {}
        self.last_heard = now
        self.draining = False
        #: Suspects run in a row.
        self.suspects = 0
        self.answered_batches = 0
        self.answered_jobs = 0

    def __repr__(self) -> str:
        state = "draining" if self.draining else "ready"
        return f"<Worker {self.name}, {state}, credit {self.credit}, leases {list(self.leases.values())}>"

    @property
    def label(self) -> str:
        """Value of the label `worker` in metrics; a restarted worker gets the same value."""
        return f"{self.host}/{self.device}/{self.slot}"

    @property
    def available(self) -> int:
        """Batches that may be sent now; 0 while a suspect runs, so that a crash can be blamed on the suspect alone."""
        return 0 if self.suspect_model else max(0, self.credit - len(self.unseen))

    @property
    def suspect_model(self) -> str | None:
        """Model of the suspect that the worker runs; None if it runs none."""
        return next((lease.model for lease in self.leases.values() if lease.jobs[0].suspect), None)

    def update_credit(self, credit: int, seen: int) -> None:
        """Set the credit as of batch `seen`."""
        self.credit = credit
        while self.unseen and self.unseen[0] <= seen:
            self.unseen.popleft()

    def add_lease(self, lease: Lease) -> None:
        """Record that a batch is sent."""
        self.leases[lease.batch] = lease
        self.unseen.append(lease.batch)
        self.suspects = self.suspects + 1 if lease.jobs[0].suspect else 0

    def list_leases(self, lane: Lane) -> list[Lease]:
        """Return the leases of a lane, oldest first."""
        return [lease for lease in self.leases.values() if lease.lane == lane]

    def list_running(self) -> list[Lease]:
        """Return the leases of batches that may be running: the oldest of each lane."""
        return [leases[0] for lane in Lane if (leases := self.list_leases(lane))]

    def release_lease(self, batch: int, now: float) -> Lease | None:
        """Remove and return a batch's lease, and start the time of the next one in its lane; None if there is none."""
        lease = self.leases.pop(batch, None)
        if lease:
            for following in self.list_leases(lease.lane)[:1]:
                if following.batch > batch:
                    following.since = max(following.since, now)
        return lease

    def record_batch_time(self, lease: Lease, tokens: int, now: float) -> None:
        """Learn from an answered batch after its lease is released; `tokens` were run through the model.

        A batch that ran together with another lane's batch says little about the throughput. A bulk batch is therefore
        counted together with the interactive tokens answered meanwhile, and an interactive batch is not counted.
        """
        others = self.list_leases(Lane.BULK if lease.lane == Lane.INTERACTIVE else Lane.INTERACTIVE)
        for other in others[:1]:
            other.overlap += tokens
        if tokens and (lease.lane == Lane.BULK or not others):
            self.throughput.record_batch(tokens + lease.overlap, now - lease.since)

    def next_dispatch_at(self, lane: Lane) -> float:
        """Return when to send the lane's next batch: just before the held ones are expected to end.

        The worker must hold a batch of the lane.
        """
        leases = self.list_leases(lane)
        first_s = self.throughput.predict_seconds(leases[0].tokens + leases[0].overlap)
        rest_s = sum(self.throughput.predict_seconds(lease.tokens) for lease in leases[1:])
        return leases[0].since + first_s + rest_s - min(LEAD_S + LEAD_SHARE * first_s, first_s / 2)


class Pool:
    """All connected workers, by peer."""

    def __init__(self, liveness_s: float, lease_s: float) -> None:
        self.liveness_s = liveness_s
        self.lease_s = lease_s
        self.workers: dict[bytes, Worker] = {}

    def add_worker(self, peer: bytes, hello: WorkerHello, now: float) -> Worker:
        """Add and return a worker, with the lowest slot that is free on its host and device."""
        taken = {
            other.slot for other in self.workers.values() if (other.host, other.device) == (hello.host, hello.device)
        }
        slot = next(slot for slot in itertools.count() if slot not in taken)
        worker = self.workers[peer] = Worker(peer, hello, now, slot)
        return worker

    def choose_worker(self, model: str, lane: Lane, now: float, reserved: Container[Worker]) -> Worker | None:
        """Return the worker for a lane's next batch, or None if no worker should get one now.

        Prefer workers that hold no batch of the lane: idle ones first, then the fastest. Otherwise take a worker that
        is about to finish. Batches are sent just in time, because jobs that wait in the broker can still be batched
        with later ones, be overtaken or cancelled, or go to whichever worker is free first. Workers `reserved` for
        suspects get no batch.
        """
        candidates = self._list_candidates(model, lane, reserved)
        free = [worker for worker in candidates if not worker.list_leases(lane)]
        if free:
            return max(free, key=lambda worker: (not worker.leases, worker.throughput.tokens_per_s))
        due = [worker for worker in candidates if now >= worker.next_dispatch_at(lane)]
        return min(due, key=lambda worker: worker.next_dispatch_at(lane), default=None)

    def choose_suspect_worker(self, model: str, busy: Container[str]) -> Worker | None:
        """Return the worker to reserve for a model's next suspect, or None if there is none.

        Prefer the worker with the fewest leases, then the fastest. A worker that has run `MAX_SUSPECTS` in a row is
        left to the `busy` models that it serves.
        """
        candidates = [
            worker
            for worker in self._list_available(model)
            if worker.suspects < MAX_SUSPECTS or not any(name in busy for name in worker.models)
        ]
        return min(candidates, key=lambda worker: (len(worker.leases), -worker.throughput.tokens_per_s), default=None)

    def is_running_suspect(self, model: str) -> bool:
        """Return whether a worker runs a suspect of the model."""
        return any(worker.suspect_model == model for worker in self.workers.values())

    def compute_share(self, worker: Worker, model: str, lane: Lane) -> float:
        """Return the fraction of a lane's queue that a worker should take: by throughput, among those without a batch.

        Return 1 for a worker that already holds a batch of the lane.
        """
        free = [other.throughput.tokens_per_s for other in self._list_available(model) if not other.list_leases(lane)]
        return 1.0 if worker.list_leases(lane) else worker.throughput.tokens_per_s / sum(free)

    def next_dispatch_at(self, model: str, lanes: Sequence[Lane], reserved: Container[Worker]) -> float | None:
        """Return when a worker should next get a batch of these lanes, all of which have waiting jobs.

        Every candidate already holds a batch of each lane, because a worker without one would have got one at once.
        """
        times = (
            worker.next_dispatch_at(lane) for lane in lanes for worker in self._list_candidates(model, lane, reserved)
        )
        return min(times, default=None)

    def count_idle(self, model: str) -> int:
        """Return the number of workers that could start a batch of the model at once."""
        return sum(1 for worker in self._list_available(model) if not worker.leases)

    def sum_tokens_per_s(self, model: str) -> float:
        """Return the throughput of all workers of a model together."""
        return sum(worker.throughput.tokens_per_s for worker in self._list_ready(model))

    def count_leased_tokens(self, model: str, lane: Lane) -> int:
        """Return the tokens that workers hold and run before a job that enters the lane now."""
        leases = [lease for worker in self._list_ready(model) for lease in worker.leases.values()]
        return sum(lease.tokens for lease in leases if lease.lane <= lane)

    def find_batch_tokens(self, model: str) -> int:
        """Return the largest batch size, in tokens, of a model's workers."""
        return max((worker.batch_tokens for worker in self._list_ready(model)), default=0)

    def _list_ready(self, model: str) -> list[Worker]:
        return [worker for worker in self.workers.values() if model in worker.models and not worker.draining]

    def _list_available(self, model: str) -> list[Worker]:
        return [worker for worker in self._list_ready(model) if worker.available]

    def _list_candidates(self, model: str, lane: Lane, reserved: Container[Worker]) -> list[Worker]:
        """Return the workers that may get a batch of the lane, now or after the ones that they hold."""
        return [
            worker
            for worker in self._list_available(model)
            if worker not in reserved and len(worker.list_leases(lane)) < MAX_HELD
        ]

    def find_revision(self, name: str) -> str | None:
        """Return the revision of a model that all connected workers share, draining ones included; None without one."""
        return next((worker.models[name].revision for worker in self.workers.values() if name in worker.models), None)

    def find_live_model(self, name: str) -> ModelInfo | None:
        """Return a model as its ready workers announce it, with their number; None without a ready worker."""
        serving = [worker.models[name] for worker in self._list_ready(name)]
        if not serving:
            return None
        return msgspec.structs.replace(serving[0], workers=len(serving))

    def has_draining_worker(self, name: str) -> bool:
        """Return whether a worker that serves the model is draining."""
        return any(worker.draining and name in worker.models for worker in self.workers.values())

    def find_silent(self, now: float) -> list[Worker]:
        """Return the workers that have sent no message for `liveness_s`."""
        return [worker for worker in self.workers.values() if now >= worker.last_heard + self.liveness_s]

    def find_hung(self, now: float) -> list[Worker]:
        """Return the workers with a batch that has run for `lease_s`."""
        return [
            worker
            for worker in self.workers.values()
            if any(now >= lease.since + self.lease_s for lease in worker.list_running())
        ]

    def next_deadline(self) -> float | None:
        """Return the earliest time at which `find_silent` or `find_hung` can find a worker; None without workers."""
        silent = (worker.last_heard + self.liveness_s for worker in self.workers.values())
        late = (lease.since + self.lease_s for worker in self.workers.values() for lease in worker.list_running())
        return min(itertools.chain(silent, late), default=None)
