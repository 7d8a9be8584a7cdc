"""State of a new scheduler, and its outbox."""

from broker.core.limits import Limits
from broker.core.outbox import Outbox, Send
from broker.core.state import State
from broker.wire import protocol as wire


def test_new_state_is_empty() -> None:
    state = State(7, Limits())
    assert (state.epoch, state.newest_batch, state.models_changed, state.draining) == (7, 0, False, False)
    assert (state.models, state.pool.workers, state.ledger.by_peer) == ({}, {}, {})
    assert not any(state.events.metrics.count_totals().values())
    assert state.outbox.take_all() == []


def test_limits_reach_the_parts_of_state() -> None:
    limits = Limits(liveness_s=2.0, lease_s=3.0)
    state = State(7, limits)
    assert state.limits is limits
    assert (state.ledger.liveness_s, state.pool.liveness_s, state.pool.lease_s) == (2.0, 2.0, 3.0)
    assert state.loading.record_notice(b"W1", wire.WorkerLoading(b"." * 16, "host", 1, "m"), 10.0)
    assert state.loading.next_deadline() == 12.0


def test_outbox_keeps_order_and_is_emptied() -> None:
    outbox = Outbox()
    outbox.put(b"W", wire.Heartbeat())
    outbox.put(b"F", wire.Who(), [b"frame"])
    assert outbox.take_all() == [Send(b"W", wire.Heartbeat()), Send(b"F", wire.Who(), [b"frame"])]
    assert outbox.take_all() == []
