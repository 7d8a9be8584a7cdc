"""Connected workers: which are dead, and which one gets the next batch. Pure."""

import itertools
from collections.abc import Container, Sequence

import msgspec

from broker.core.worker import Worker
from broker.wire.protocol import Lane, ModelInfo, ModelKey, ModelState, WorkerHello

#: Most batches of one lane that a worker holds: the running one and the next. A slow worker keeps credit for the
#: other lane.
MAX_HELD = 2
#: Suspects that a worker runs in a row while it has other work.
MAX_SUSPECTS = 8


class Pool:
    """All connected workers, by peer."""

    def __init__(self, liveness_s: float, lease_s: float) -> None:
        self.liveness_s = liveness_s
        self.lease_s = lease_s
        self.workers: dict[bytes, Worker] = {}
        #: Number of the newest ping. Every worker is pinged after each crash, and again when it joins.
        self.ping = 0

    def add_worker(self, peer: bytes, hello: WorkerHello, now: float) -> Worker:
        """Add and return a worker, with the lowest slot that is free on its host and device."""
        taken = {
            other.slot for other in self.workers.values() if (other.host, other.device) == (hello.host, hello.device)
        }
        slot = next(slot for slot in itertools.count() if slot not in taken)
        worker = self.workers[peer] = Worker(peer, hello, now, slot)
        return worker

    def choose_worker(self, model: ModelKey, lane: Lane, now: float, reserved: Container[Worker]) -> Worker | None:
        """Return the worker for a lane's next batch, or None if no worker should get one now.

        Prefer workers that hold no batch of the lane: idle ones first, then the fastest. Otherwise take a worker that
        is about to finish. Batches are sent just in time, because jobs that wait in the broker can still be batched
        with later ones, be overtaken or cancelled, or go to whichever worker is free first. Workers `reserved` for
        suspects get no batch.
        """
        candidates = self._list_candidates(model, lane, reserved)
        free = [worker for worker in candidates if not worker.list_leases(lane)]
        if free:
            return max(free, key=lambda worker: (not worker.leases, worker.models[model].tokens_per_s))
        due = [worker for worker in candidates if now >= worker.next_dispatch_at(lane)]
        return min(due, key=lambda worker: worker.next_dispatch_at(lane), default=None)

    def choose_suspect_worker(self, model: ModelKey, busy: Container[ModelKey]) -> Worker | None:
        """Return the worker to reserve for a model's next suspect, or None if there is none.

        Prefer the worker with the fewest leases, then the fastest. A worker that has run `MAX_SUSPECTS` in a row is
        left to the `busy` models that it serves. A worker that has not answered the newest ping may have died together
        with the worker that crashed, for example because their host did, and the suspect would be blamed for it.
        """
        candidates = [
            worker
            for worker in self._list_available(model)
            if worker.answered_ping == self.ping
            and (worker.suspects < MAX_SUSPECTS or not any(name in busy for name in worker.models))
        ]
        return min(candidates, key=lambda worker: rank_by_leases(worker, model), default=None)

    def is_running_suspect(self, model: ModelKey) -> bool:
        """Return whether a worker runs a suspect of the model."""
        return any(worker.suspect_model == model for worker in self.workers.values())

    def compute_share(self, worker: Worker, model: ModelKey, lane: Lane) -> float:
        """Return the fraction of a lane's queue that a worker should take: by throughput, among those without a batch.

        Return 1 for a worker that already holds a batch of the lane.
        """
        if worker.list_leases(lane):
            return 1.0
        free = [
            other.models[model].tokens_per_s for other in self._list_available(model) if not other.list_leases(lane)
        ]
        return worker.models[model].tokens_per_s / sum(free)

    def next_dispatch_at(self, model: ModelKey, lanes: Sequence[Lane], reserved: Container[Worker]) -> float | None:
        """Return when a worker should next get a batch of these lanes, all of which have waiting jobs.

        Every candidate already holds a batch of each lane, because a worker without one would have got one at once.
        """
        times = (
            worker.next_dispatch_at(lane) for lane in lanes for worker in self._list_candidates(model, lane, reserved)
        )
        return min(times, default=None)

    def count_idle(self, model: ModelKey, *, for_suspects: bool = False) -> int:
        """Return the number of workers that could start a batch of the model at once, or a suspect."""
        idle = [worker for worker in self._list_available(model) if not worker.leases]
        return sum(1 for worker in idle if not for_suspects or worker.answered_ping == self.ping)

    def sum_tokens_per_s(self, model: ModelKey) -> float:
        """Return the throughput of all workers together that run a model, or would after loading it."""
        running = self.list_loaded(model) or self.list_ready(model)
        return sum(worker.models[model].tokens_per_s for worker in running)

    def count_leased_tokens(self, model: ModelKey, lane: Lane) -> int:
        """Return the tokens that workers hold and run before a job that enters the lane now."""
        leases = [lease for worker in self.list_ready(model) for lease in worker.leases.values()]
        return sum(lease.tokens for lease in leases if lease.lane <= lane)

    def find_batch_tokens(self, model: ModelKey) -> int:
        """Return the largest batch size, in tokens, of a model's workers."""
        return max((worker.models[model].batch_tokens for worker in self.list_ready(model)), default=0)

    def list_ready(self, model: ModelKey) -> list[Worker]:
        """Return the workers that run a model, or that can load it."""
        return [worker for worker in self.workers.values() if model in worker.models and not worker.draining]

    def list_kept(self, model: ModelKey) -> list[Worker]:
        """Return the workers that have a model in memory and want to keep it there."""
        return [
            worker
            for worker in self.workers.values()
            if (known := worker.models.get(model)) and known.loaded and known.retired_at is None and not worker.draining
        ]

    def list_loaded(self, model: ModelKey) -> list[Worker]:
        """Return the workers that may get a model's batches: those that keep it, else those that wait to free it."""
        return self.list_kept(model) or [worker for worker in self.list_ready(model) if worker.models[model].loaded]

    def list_unloaded(self, model: ModelKey) -> list[Worker]:
        """Return the workers that can load a model and do not have it in memory."""
        return [worker for worker in self.list_ready(model) if not worker.models[model].loaded]

    def _list_available(self, model: ModelKey) -> list[Worker]:
        return [worker for worker in self.list_loaded(model) if worker.available]

    def _list_candidates(self, model: ModelKey, lane: Lane, reserved: Container[Worker]) -> list[Worker]:
        """Return the workers that may get a batch of the lane, now or after the ones that they hold."""
        # The quickest test first, because this runs for each message.
        return [
            worker
            for worker in self.list_loaded(model)
            if len(worker.list_leases(lane)) < MAX_HELD and worker not in reserved and worker.available
        ]

    def has_worker(self, model: ModelKey) -> bool:
        """Return whether a connected worker has a model, draining ones included."""
        return any(model in worker.models for worker in self.workers.values())

    def find_live_model(self, model: ModelKey) -> ModelInfo | None:
        """Return a model as its ready workers announce it, with their number and all of their aliases and precisions.

        Return None without a worker.
        """
        infos = [worker.models[model].info for worker in self.list_ready(model) if worker.models[model].listed]
        if not infos:
            return None
        aliases = sorted({alias for info in infos for alias in info.aliases})
        precision = "+".join(sorted({info.precision for info in infos if info.precision}))
        return msgspec.structs.replace(infos[0], workers=len(infos), aliases=aliases, precision=precision)

    def list_states(self) -> list[ModelState]:
        """Return the states of models that connected workers do not serve."""
        return [state for worker in self.workers.values() for state in worker.states]

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


def rank_by_leases(worker: Worker, model: ModelKey) -> tuple[int, float]:
    """Return a worker's rank for a model's next batch or load: the fewest leases first, then the fastest."""
    return len(worker.leases), -worker.models[model].tokens_per_s
