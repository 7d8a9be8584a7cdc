"""Results and errors that workers send: to which batch they belong, and what becomes of a faulty worker. Pure."""

from collections.abc import Sequence

from broker.core.events import EvictionReason
from broker.core.eviction import evict_worker
from broker.core.outcomes import answer_batch, fail_batch
from broker.core.result_split import matches_lease
from broker.core.state import State
from broker.core.worker import Worker
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from broker.wire.protocol import Frame


def receive_error(state: State, worker: Worker, message: wire.BatchError, now: float) -> None:
    """Fail the batch that a worker could not compute."""
    worker.update_credit(message.credit, message.seen)
    lease = worker.release_lease(message.batch, now) if message.epoch == state.epoch else None
    if lease is None:
        state.events.result_late()
        return
    fail_batch(state, lease, message.code, message.text, now)


def receive_result(
    state: State, worker: Worker, message: wire.BatchResult, frames: Sequence[Frame], now: float
) -> None:
    """Answer a batch. Evict the worker if its result does not match the batch."""
    worker.update_credit(message.credit, message.seen)
    lease = worker.leases.get(message.batch) if message.epoch == state.epoch else None
    if lease is None:
        state.events.result_late()
        return
    worker.release_lease(message.batch, now)
    if matches_lease(lease, message, worker.models[lease.model].info.dimension):
        answer_batch(state, worker, lease, message, frames[0], now)
    else:
        fail_batch(state, lease, ErrorCode.DEVICE, "the worker's result does not match its batch", now)
        evict_worker(state, worker, EvictionReason.INVALID_RESULT, now)
