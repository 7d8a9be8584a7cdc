"""Eviction of workers: goodbye, blame, requeued jobs, and the start of the grace period."""

import pytest

from broker.core.events import EvictionReason
from broker.core.eviction import evict_worker, mark_unserved
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from tests.harness.core import DIMENSION, EPOCH, Core


def evict_only_worker(core: Core, reason: EvictionReason, *, notify: bool = True) -> list[wire.Goodbye]:
    """Evict the only worker, and return the goodbyes that the worker is sent."""
    state = core.scheduler.state
    evict_worker(state, state.pool.workers[b"W1"], reason, core.now, notify=notify)
    sends = state.outbox.take_all()
    return [send.message for send in sends if isinstance(send.message, wire.Goodbye) and send.peer == b"W1"]


def count_evictions(core: Core) -> dict[str, float]:
    """Return the evictions of the metrics by reason, without zeros."""
    (family,) = [family for family in core.scheduler.collect_metrics() if family.name == "worker_evictions"]
    return {sample.labels[0]: sample.value for sample in family.samples if sample.value}


def test_worker_with_invalid_result_counts_as_evicted(core: Core) -> None:
    core.submit(1, ["a", "b"])
    ((peer, number, _),) = core.batches()
    one_row = wire.BatchResult(EPOCH, number, DIMENSION, wire.pack_u32([3]), [], 5, 2, number)
    core.handle(peer, one_row, bytes(4 * DIMENSION))
    totals = core.scheduler.count_totals()
    assert (totals["workers_evicted"], totals["workers_left"], totals["batches_failed"]) == (1, 0, 1)
    assert count_evictions(core) == {"invalid_result": 1}
    ((_, goodbye, _),) = core.take(wire.Goodbye, peer)
    assert goodbye.code == ErrorCode.INTERNAL
    assert goodbye.text == "host/1 was removed: invalid result; batches returned to the queue: 0"
    assert core.scheduler.state.pool.workers == {}


@pytest.mark.parametrize("reason", list(EvictionReason))
def test_goodbye_names_reason_and_batches(core: Core, reason: EvictionReason) -> None:
    core.submit(1, ["a"])
    text = f"host/1 was removed: {reason.text}; batches returned to the queue: 1"
    assert evict_only_worker(core, reason) == [wire.Goodbye(reason.code, text)]
    assert count_evictions(core) == ({} if reason.is_departure else {reason.value: 1})
    assert core.waiting() == [(1, 0)]


def test_worker_is_evicted_without_goodbye(core: Core) -> None:
    assert evict_only_worker(core, EvictionReason.REPLACED, notify=False) == []
    assert core.scheduler.state.pool.workers == {}


@pytest.mark.parametrize("draining", [False, True])
@pytest.mark.parametrize("reason", list(EvictionReason))
def test_running_batch_is_blamed_for_crash(core: Core, reason: EvictionReason, draining: bool) -> None:
    core.submit(1, ["a"])
    worker = core.scheduler.state.pool.workers[b"W1"]
    worker.draining = draining
    (job,) = next(iter(worker.leases.values())).jobs
    evict_only_worker(core, reason)
    ends_in_crash = reason in (EvictionReason.SILENT, EvictionReason.CONNECTION_LOST) and not draining
    assert job.crashes == (ends_in_crash or reason == EvictionReason.LEASE_EXPIRED)


def test_grace_starts_with_last_worker(core: Core) -> None:
    core.worker(b"W2")
    model = core.model()
    core.lost(b"W1")
    assert model.unserved_since is None
    core.tick(1.0)
    core.lost(b"W2")
    assert model.unserved_since == core.now


def test_grace_is_not_restarted(core: Core) -> None:
    worker = core.scheduler.state.pool.workers[b"W1"]
    core.handle(b"W1", wire.WorkerDrain(b""))
    mark_unserved(core.scheduler.state, worker, core.now + 5.0)
    assert core.model().unserved_since == core.now
