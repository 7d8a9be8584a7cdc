"""Which jobs leave next, and with which worker: where the queues' order and the pool's choice meet. Pure.

It takes what leaves out of its queue, and leases nothing: that is the scheduler's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from broker.core.jobs import Job
from broker.core.models import Model
from broker.core.pool import Pool, Worker

Models = Mapping[str, Model]


def next_batch(models: Models, pool: Pool, name: str, now: float) -> tuple[Worker, list[Job]] | None:
    """A model's next suspect, else its next batch, and the worker for it; None when none may leave or is wanted."""
    return _suspect(models, pool, name) or _batch(models, pool, name, now)


def next_dispatch(models: Models, pool: Pool) -> float | None:
    """When the next batch may leave if nothing happens before; None: no job waits for the time."""
    kept = kept_for_suspects(models, pool)
    times = (
        pool.next_dispatch(name, model.queue.find_lanes(pool.batch_tokens(name)), kept)
        for name, model in models.items()
        if model.queue
    )
    return min((time for time in times if time is not None), default=None)


def _suspect(models: Models, pool: Pool, name: str) -> tuple[Worker, list[Job]] | None:
    queue = models[name].queue
    worker = pool.choose_for_suspect(name, _busy(models)) if queue.suspected else None
    if worker is None or worker.leases:
        return None
    return worker, queue.take_suspect()


def _batch(models: Models, pool: Pool, name: str, now: float) -> tuple[Worker, list[Job]] | None:
    queue, kept = models[name].queue, kept_for_suspects(models, pool)
    for lane in queue.find_lanes(pool.batch_tokens(name)):
        worker = pool.choose(name, lane, now, kept)
        if worker:
            # Workers that have none share what waits, rather than one taking it all.
            share = math.ceil(queue.count_lane_tokens(lane) * pool.share(worker, name, lane))
            return worker, queue.take(lane, min(worker.batch_tokens, share), now)
    return None


def _busy(models: Models) -> set[str]:
    """Models with jobs that are no suspects."""
    return {name for name, model in models.items() if model.queue.find_lanes(0)}


def kept_for_suspects(models: Models, pool: Pool) -> list[Worker]:
    """Workers that get nothing more until they are idle and take a suspect: one for each model that has any waiting and
    none running."""
    waiting = [name for name, model in models.items() if model.queue.suspected]
    suspected = [name for name in waiting if not pool.tries_suspect(name)]
    busy = _busy(models) if suspected else set()
    chosen = (pool.choose_for_suspect(name, busy) for name in suspected)
    return [worker for worker in chosen if worker]
