"""Removal of workers that are dead, hung or faulty, or that leave. Pure."""

from broker.core.events import EvictionReason
from broker.core.outcomes import requeue_lease
from broker.core.state import State
from broker.core.worker import Worker
from broker.wire import protocol as wire


def evict_worker(state: State, worker: Worker, reason: EvictionReason, now: float, *, notify: bool = True) -> None:
    """Remove a worker and requeue its jobs. Blame running batches if they can have caused the end.

    `notify`: whether the worker is sent a goodbye.
    """
    del state.pool.workers[worker.peer]
    state.events.worker_evicted(worker, reason, now)
    # A draining worker may be killed when the drain takes too long: no batch is to blame.
    may_blame = reason == EvictionReason.LEASE_EXPIRED or (
        reason in (EvictionReason.SILENT, EvictionReason.CONNECTION_LOST) and not worker.draining
    )
    blamed = worker.list_running() if may_blame else []
    for lease in reversed(worker.leases.values()):
        if lease in blamed:
            lease.jobs = state.blame.blame_for_crash(worker, lease, now)
        requeue_lease(state, lease)
    if blamed:
        state.pool.ping += 1
        for other in state.pool.workers:
            state.outbox.put(other, wire.Heartbeat(state.pool.ping))
    if notify:
        text = f"{worker.name} was removed: {reason.text}; batches returned to the queue: {len(worker.leases)}"
        state.outbox.put(worker.peer, wire.Goodbye(reason.code, text))
    mark_unserved(state, worker, now)


def mark_unserved(state: State, worker: Worker, now: float) -> None:
    """Start the grace period of models for which this worker was the last one; the worker is gone, or drains."""
    state.models_changed = True
    for key in worker.models:
        if not state.pool.list_ready(key) and state.models[key].unserved_since is None:
            state.models[key].unserved_since = now
