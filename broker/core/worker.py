"""One connected worker: its models and their speed, its credit, and the batches that it holds. Pure."""

from collections import deque
from dataclasses import dataclass, field

from broker.core.jobs import TOKENIZE, Job
from broker.core.throughput import Throughput
from broker.wire.protocol import Lane, ModelInfo, ModelKey, ModelState, WorkerHello

#: A worker's next batch is sent this much earlier than the current one is expected to end: seconds for the way to the
#: worker, plus a share of the current batch's run time because predictions are not exact. The lead is at most half of
#: the run time.
LEAD_S = 0.005
LEAD_SHARE = 0.4
#: Most characters of a host in a worker's name. Linux allows 64 (gethostname(2)).
MAX_HOST = 255


@dataclass(slots=True, eq=False)
class Lease:
    """Record of a batch that a worker holds, until the worker answers it or is evicted."""

    batch: int
    model: ModelKey
    lane: Lane
    jobs: list[Job] = field(repr=False)
    #: When the batch became the worker's oldest of its lane, so that it may be running.
    since: float
    #: `Option` bits of each job, and whether any is only tokenized.
    options: bytes = field(init=False, repr=False)
    tokenizes: bool = field(init=False, repr=False)
    #: Tokens by the estimate at dispatch.
    tokens: int = field(init=False)
    #: Tokens of the other lane's batches of this model that the worker answered while this batch ran, and the expected
    #: time of those of other models.
    overlap: int = field(init=False, default=0)
    overlap_s: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.options = bytes([job.request.options for job in self.jobs])
        self.tokenizes = any(options & TOKENIZE for options in set(self.options))
        self.tokens = sum([job.tokens for job in self.jobs])


class WorkerModel:
    """A model of one worker: its speed there, and whether the worker has it in memory."""

    def __init__(self, info: ModelInfo, batch_tokens: int, throughput: Throughput) -> None:
        self.info = info
        self.batch_tokens = batch_tokens
        self.throughput = throughput
        #: Whether the worker announces the model. Otherwise it only answers requests that were admitted before.
        self.listed = True
        #: Whether the worker has the model in memory, and since when it waits for the `Release` to free that memory.
        self.loaded = not info.unloaded
        self.retired_at: float | None = None
        #: When the worker was sent a `Load` that it has not followed; None: none.
        self.asked_at: float | None = None

    @property
    def tokens_per_s(self) -> float:
        """Throughput of the model on the worker."""
        return self.throughput.tokens_per_s

    def update(self, info: ModelInfo, now: float) -> None:
        """Apply what the worker announces about the model."""
        self.info, self.listed = info, True
        if not info.unloaded:
            self.loaded, self.retired_at, self.asked_at = True, None, None
        elif self.loaded and self.retired_at is None:
            self.retired_at = now

    def retire(self, now: float) -> None:
        """Record that the worker no longer announces the model."""
        self.listed = False
        self.retired_at = now if self.retired_at is None else self.retired_at


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
        #: What a model has that announces no figures of its own.
        self._batch_tokens, self._tokens_per_s = hello.batch_tokens, hello.tokens_per_s
        self.models: dict[ModelKey, WorkerModel] = {}
        #: Number of the worker's latest `WorkerModels`, and its states of models that it does not serve.
        self.announced = 0
        self.states: list[ModelState] = []
        self.streams = hello.streams
        #: Batches that the worker accepts after the newest one that it reported as seen.
        self.credit = hello.credit
        #: Batches sent since then.
        self.unseen: deque[int] = deque()
        #: Leases by batch number, oldest first; the same by lane.
        self.leases: dict[int, Lease] = {}
        self._lanes: dict[Lane, list[Lease]] = {lane: [] for lane in Lane}
        #: Results of `next_dispatch_at` since the leases or the throughput changed.
        self._dispatch_at: dict[Lane, float] = {}
        self.last_heard = now
        self.draining = False
        #: Newest ping of the pool that the worker has answered.
        self.answered_ping = 0
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
    def suspect_model(self) -> ModelKey | None:
        """Model of the suspect that the worker runs; None if it runs none."""
        for lease in self.leases.values():
            if lease.jobs[0].suspect:
                return lease.model
        return None

    def list_model(self, info: ModelInfo, now: float) -> None:
        """Record that the worker announces a model."""
        known = self.models.get(info.key)
        if known:
            known.update(info, now)
            return
        batch_tokens = info.batch_tokens or self._batch_tokens
        throughput = Throughput(info.tokens_per_s or self._tokens_per_s, batch_tokens)
        self.models[info.key] = WorkerModel(info, batch_tokens, throughput)

    def update_credit(self, credit: int, seen: int) -> None:
        """Set the credit as of batch `seen`."""
        self.credit = credit
        while self.unseen and self.unseen[0] <= seen:
            self.unseen.popleft()

    def add_lease(self, lease: Lease) -> None:
        """Record that a batch is sent."""
        self.leases[lease.batch] = lease
        self._lanes[lease.lane].append(lease)
        self._dispatch_at.clear()
        self.unseen.append(lease.batch)
        self.suspects = self.suspects + 1 if lease.jobs[0].suspect else 0

    def list_leases(self, lane: Lane) -> list[Lease]:
        """Return the leases of a lane, oldest first. The list changes with the leases."""
        return self._lanes[lane]

    def list_running(self) -> list[Lease]:
        """Return the leases of batches that may be running: the oldest of each lane."""
        return [leases[0] for lane in Lane if (leases := self.list_leases(lane))]

    def release_lease(self, batch: int, now: float) -> Lease | None:
        """Remove and return a batch's lease, and start the time of the next one in its lane; None if there is none."""
        lease = self.leases.pop(batch, None)
        if lease:
            self._lanes[lease.lane].remove(lease)
            self._dispatch_at.clear()
            for following in self.list_leases(lease.lane)[:1]:
                if following.batch > batch:
                    following.since = max(following.since, now)
        return lease

    def record_batch_time(self, lease: Lease, tokens: int, now: float) -> None:
        """Learn from an answered batch after its lease is released; `tokens` were run through the model.

        A batch that ran together with another lane's batch hides the throughput. A bulk batch is therefore
        counted together with the interactive tokens of its model answered meanwhile, and not counted if there were
        tokens of another model. An interactive batch that ran together with a bulk batch is not counted.
        """
        self._dispatch_at.clear()
        throughput = self.models[lease.model].throughput
        others = self.list_leases(Lane.BULK if lease.lane == Lane.INTERACTIVE else Lane.INTERACTIVE)
        for other in others[:1]:
            if other.model == lease.model:
                other.overlap += tokens
            else:
                other.overlap_s += throughput.predict_seconds(tokens)
        if tokens and not lease.overlap_s and (lease.lane == Lane.BULK or not others):
            throughput.record_batch(tokens + lease.overlap, now - lease.since)

    def next_dispatch_at(self, lane: Lane) -> float:
        """Return when to send the lane's next batch: just before the held ones are expected to end.

        The worker must hold a batch of the lane.
        """
        if lane not in self._dispatch_at:
            leases = self.list_leases(lane)
            first_s = self._predict_seconds(leases[0])
            rest_s = sum(self._predict_seconds(lease) for lease in leases[1:])
            lead_s = min(LEAD_S + LEAD_SHARE * first_s, first_s / 2)
            self._dispatch_at[lane] = leases[0].since + first_s + rest_s - lead_s
        return self._dispatch_at[lane]

    def _predict_seconds(self, lease: Lease) -> float:
        throughput = self.models[lease.model].throughput
        return throughput.predict_seconds(lease.tokens + lease.overlap) + lease.overlap_s
