"""Dispatch: which jobs leave the queues now, in which batch, to which worker. Pure."""

import math
import operator
from collections.abc import Iterator, Mapping, Sequence

from broker.core.jobs import Job
from broker.core.models import Model
from broker.core.outcomes import remove_suspects
from broker.core.pool import Pool
from broker.core.reuse import MAX_DROPPED, drop_known
from broker.core.state import State
from broker.core.worker import Lease, Worker
from broker.wire import protocol as wire
from broker.wire.errors import LocalProtocolError
from broker.wire.protocol import Lane, ModelKey

#: Size of a batch relative to the one that its worker proposes. With larger bulk batches the device is idle less often
#: between two of them (5 to 9 % more texts/s), and interactive batches overtake them.
BATCH_SIZES = {Lane.INTERACTIVE: 1, Lane.BULK: 3}

Models = Mapping[ModelKey, Model]


def dispatch_waiting(state: State, now: float) -> None:
    """Send all batches that may leave now, the model with the oldest job first."""
    waiting = [(model.queue.find_oldest(), key) for key, model in state.models.items() if model.queue]
    left = MAX_DROPPED
    for _, key in sorted(waiting):
        while left > 0 and (chosen := _choose_batch(state.models, state.pool, key, now)):
            worker, jobs = chosen
            if not jobs:
                raise LocalProtocolError(f"a batch of {key.name!r} for {worker.name} has no job")
            if jobs := remove_suspects(state, jobs, now):
                rest = drop_known(state, jobs, now)
                left -= len(jobs) - len(rest)
                if rest:
                    _lease_batch(state, worker, rest, key, now)
    if left <= 0:
        state.coalescing.due = now


def _lease_batch(state: State, worker: Worker, jobs: list[Job], model: ModelKey, now: float) -> None:
    """Lease jobs of one lane to a worker and send them."""
    # The rows of one frontend must be adjacent; the order within a frontend makes logs readable.
    jobs.sort(key=operator.attrgetter("key"))
    state.newest_batch += 1
    lease = Lease(state.newest_batch, model, jobs[0].request.lane, jobs, now)
    worker.add_lease(lease)
    for job in jobs:
        job.dispatched_at = now
    state.events.batch_dispatched(worker, lease, now)
    requests = dict.fromkeys([job.request for job in jobs])
    batch = wire.Batch(
        epoch=state.epoch,
        batch=lease.batch,
        model=model.name,
        kinds=bytes([job.request.kind for job in jobs]),
        lengths=wire.pack_u32([job.size for job in jobs]),
        lane=lease.lane,
        options=lease.options if any(lease.options) else b"",
        origins=[request.origin for request in requests if request.origin.request_id],
        revision=model.revision,
    )
    state.outbox.put(worker.peer, batch, [b"".join(_list_payloads(jobs))])


def _list_payloads(jobs: Sequence[Job]) -> Iterator[memoryview]:
    """Yield the inputs of jobs, those with adjacent positions in one piece."""
    first = 0
    for at, job in enumerate(jobs, 1):
        following = jobs[at] if at < len(jobs) else None
        if not following or following.request is not job.request or following.position != job.position + 1:
            yield job.request.read_inputs(jobs[first].position, job.position)
            first = at


def next_dispatch_at(models: Models, pool: Pool) -> float | None:
    """Return when the next batch may leave without a further message; None if no job waits for a time."""
    reserved = find_reserved(models, pool)
    times = (
        pool.next_dispatch_at(key, model.queue.list_lanes(pool.find_batch_tokens(key)), reserved)
        for key, model in models.items()
        if model.queue
    )
    return min((time for time in times if time is not None), default=None)


def _choose_batch(models: Models, pool: Pool, key: ModelKey, now: float) -> tuple[Worker, list[Job]] | None:
    """Take a model's next suspect, else its next batch, from the queue. Return None if no batch may leave now."""
    return _choose_suspect(models, pool, key) or _choose_ordinary(models, pool, key, now)


def _choose_suspect(models: Models, pool: Pool, key: ModelKey) -> tuple[Worker, list[Job]] | None:
    queue = models[key].queue
    worker = pool.choose_suspect_worker(key, _list_busy(models)) if queue.has_suspect else None
    if worker is None or worker.leases:
        return None
    return worker, queue.take_suspect()


def _choose_ordinary(models: Models, pool: Pool, key: ModelKey, now: float) -> tuple[Worker, list[Job]] | None:
    queue, reserved = models[key].queue, find_reserved(models, pool)
    for lane in queue.list_lanes(pool.find_batch_tokens(key)):
        worker = pool.choose_worker(key, lane, now, reserved)
        if worker:
            # Workers without a batch share the queue, so that the first one does not take all of it.
            share = math.ceil(queue.count_lane_tokens(lane) * pool.compute_share(worker, key, lane))
            return worker, queue.take(lane, min(BATCH_SIZES[lane] * worker.models[key].batch_tokens, share), now)
    return None


def _list_busy(models: Models) -> set[ModelKey]:
    """Return the models with waiting jobs that are not suspects."""
    return {key for key, model in models.items() if model.queue.list_lanes(0)}


def find_reserved(models: Models, pool: Pool) -> list[Worker]:
    """Return the workers that get no further batch, so that they become idle and can run a suspect.

    There is one for each model that has a waiting suspect and none running.
    """
    waiting = [key for key, model in models.items() if model.queue.has_suspect]
    suspected = [key for key in waiting if not pool.is_running_suspect(key)]
    busy = _list_busy(models) if suspected else set()
    chosen = (pool.choose_suspect_worker(key, busy) for key in suspected)
    return [worker for worker in chosen if worker]
