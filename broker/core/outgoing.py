"""What peers are told of the scheduler's state. Pure; it reads the state and changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.wire import protocol as wire

if TYPE_CHECKING:
    from broker.core.scheduler import Scheduler

#: The longest time that the wire can tell.
MAX_MS = 2**32 - 1


def welcome(scheduler: Scheduler, hello: int) -> wire.Welcome:
    """The answer to a hello of this number."""
    limits = scheduler.limits
    return wire.Welcome(
        protocol=wire.PROTOCOL_MAX,
        epoch=scheduler.epoch,
        heartbeat_ms=int(limits.heartbeat_s * 1000),
        liveness_ms=int(limits.liveness_s * 1000),
        lease_ms=int(min(MAX_MS, limits.lease_s * 1000)),
        hello=hello,
        max_wait_ms=int(min(MAX_MS, limits.max_wait_s * 1000)),
    )


def catalogue(scheduler: Scheduler) -> wire.Models:
    """Every known model, with the number of workers that take work for it, and how each is doing."""
    models = [scheduler.pool.live_model(name) or model.info for name, model in scheduler.models.items()]
    states = {model.name: _state(scheduler, model) for model in models}
    for name, (state, text) in scheduler.loading.states().items():
        if name not in states or state < states[name].state:
            states[name] = wire.ModelState(name, state, text)
    return wire.Models(models, list(states.values()))


def _state(scheduler: Scheduler, model: wire.ModelInfo) -> wire.ModelState:
    if model.workers:
        return wire.ModelState(model.name, wire.State.AVAILABLE)
    return wire.ModelState(model.name, wire.State.UNLOADING if scheduler.pool.drains(model.name) else wire.State.END)


def stats(scheduler: Scheduler) -> wire.Stats:
    """Return the counters, and what is there now."""
    workers = [
        wire.WorkerStats(
            worker.name,
            worker.device,
            list(worker.models),
            len(worker.leases),
            worker.answered_batches,
            worker.answered_jobs,
        )
        for worker in scheduler.pool.workers.values()
    ]
    queued = sum(model.queue.jobs for model in scheduler.models.values())
    return wire.Stats(dict(scheduler.counters), workers, scheduler.ledger.jobs, queued)
