"""Dispatch: which jobs leave the queues now, in which batch, to which worker. Pure."""

import math
from collections.abc import Mapping

from broker.core.jobs import Job
from broker.core.models import Model
from broker.core.outcomes import fail_poison
from broker.core.pool import Lease, Pool, Worker
from broker.core.state import State
from broker.wire import protocol as wire
from broker.wire.errors import LocalProtocolError

ModelsByName = Mapping[str, Model]


def dispatch_waiting(state: State, now: float) -> None:
    """Send all batches that may leave now, the model with the oldest job first."""
    waiting = [(model.queue.find_oldest(), name) for name, model in state.models.items() if model.queue]
    for _, name in sorted(waiting):
        while chosen := _choose_batch(state.models, state.pool, name, now):
            worker, jobs = chosen
            if not jobs:
                raise LocalProtocolError(f"a batch of {name!r} for {worker.name} has no job")
            if jobs := fail_poison(state, jobs, now):
                _lease_batch(state, worker, jobs, name, now)


def _lease_batch(state: State, worker: Worker, jobs: list[Job], model: str, now: float) -> None:
    """Lease jobs of one lane to a worker and send them."""
    # The rows of one frontend must be adjacent; the order within a frontend makes logs readable.
    jobs.sort(key=lambda job: job.key)
    state.newest_batch += 1
    lease = Lease(state.newest_batch, model, jobs[0].request.lane, jobs, now)
    worker.add_lease(lease)
    for job in jobs:
        job.dispatched_at = now
    state.events.batch_dispatched(worker, lease, now)
    requests = dict.fromkeys(job.request for job in jobs)
    batch = wire.Batch(
        epoch=state.epoch,
        batch=lease.batch,
        model=model,
        kinds=bytes(job.request.kind for job in jobs),
        lengths=wire.pack_u32(job.size for job in jobs),
        lane=lease.lane,
        options=lease.options if any(lease.options) else b"",
        origins=[request.origin for request in requests if request.origin.request_id],
        revision=worker.models[model].revision,
    )
    state.outbox.put(worker.peer, batch, [b"".join(job.payload for job in jobs)])


def next_dispatch_at(models: ModelsByName, pool: Pool) -> float | None:
    """Return when the next batch may leave without a further message; None if no job waits for a time."""
    reserved = find_reserved(models, pool)
    times = (
        pool.next_dispatch_at(name, model.queue.list_lanes(pool.find_batch_tokens(name)), reserved)
        for name, model in models.items()
        if model.queue
    )
    return min((time for time in times if time is not None), default=None)


def _choose_batch(models: ModelsByName, pool: Pool, name: str, now: float) -> tuple[Worker, list[Job]] | None:
    """Take a model's next suspect, else its next batch, from the queue. Return None if no batch may leave now."""
    return _choose_suspect(models, pool, name) or _choose_ordinary(models, pool, name, now)


def _choose_suspect(models: ModelsByName, pool: Pool, name: str) -> tuple[Worker, list[Job]] | None:
    queue = models[name].queue
    worker = pool.choose_suspect_worker(name, _list_busy(models)) if queue.has_suspect else None
    if worker is None or worker.leases:
        return None
    return worker, queue.take_suspect()


def _choose_ordinary(models: ModelsByName, pool: Pool, name: str, now: float) -> tuple[Worker, list[Job]] | None:
    queue, reserved = models[name].queue, find_reserved(models, pool)
    for lane in queue.list_lanes(pool.find_batch_tokens(name)):
        worker = pool.choose_worker(name, lane, now, reserved)
        if worker:
            # Workers without a batch share the queue, so that the first one does not take all of it.
            share = math.ceil(queue.count_lane_tokens(lane) * pool.compute_share(worker, name, lane))
            return worker, queue.take(lane, min(worker.batch_tokens, share), now)
    return None


def _list_busy(models: ModelsByName) -> set[str]:
    """Return the models with waiting jobs that are not suspects."""
    return {name for name, model in models.items() if model.queue.list_lanes(0)}


def find_reserved(models: ModelsByName, pool: Pool) -> list[Worker]:
    """Return the workers that get no further batch, so that they become idle and can run a suspect.

    There is one for each model that has a waiting suspect and none running.
    """
    waiting = [name for name, model in models.items() if model.queue.has_suspect]
    suspected = [name for name in waiting if not pool.is_running_suspect(name)]
    busy = _list_busy(models) if suspected else set()
    chosen = (pool.choose_suspect_worker(name, busy) for name in suspected)
    return [worker for worker in chosen if worker]
