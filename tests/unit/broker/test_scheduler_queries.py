"""Queries of the scheduler by the shell, and messages that the role of a peer does not send.

Each call of the scheduler is followed by a check of all invariants; see `tests/harness/core.py`.
"""

import pytest

from broker.core.outbox import Send
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode, LocalProtocolError
from broker.wire.protocol import Message
from tests.harness.core import Core


@pytest.mark.parametrize(
    ("peer", "message", "text"),
    [
        (b"F1", wire.WorkerDrain(b""), "a frontend cannot send WorkerDrain"),
        (b"F1", wire.BatchError(7, 1, ErrorCode.DEVICE, "", 1, 1), "a frontend cannot send BatchError"),
        (b"W1", wire.Submit([]), "a worker cannot send Submit"),
        (b"W1", wire.FrontendGoodbye(), "a worker cannot send FrontendGoodbye"),
    ],
)
def test_message_of_other_role_raises(core: Core, peer: bytes, message: Message, text: str) -> None:
    with pytest.raises(LocalProtocolError, match=text):
        core.scheduler.handle(peer, message, core.now)


def test_peers_are_listed_and_probed(core: Core) -> None:
    assert core.scheduler.peers == {b"F1", b"W1"}
    frontend, worker = core.scheduler.build_probes([b"F1", b"W1"])
    assert isinstance(frontend.message, wire.Models)
    assert [model.name for model in frontend.message.models] == ["m"]
    assert worker == Send(b"W1", wire.Heartbeat())


def test_worker_is_found_by_peer(core: Core) -> None:
    assert [core.scheduler.find_worker_name(peer) for peer in (b"W1", b"W9")] == ["host/1", ""]


def test_open_jobs_are_counted(core: Core) -> None:
    core.submit(1, ["a", "b"])
    assert core.scheduler.open_jobs == 2
    core.answer(*core.batches())
    assert core.scheduler.open_jobs == 0


def test_malformed_messages_are_counted(core: Core) -> None:
    assert [core.scheduler.record_malformed() for _ in range(2)] == [1, 2]
    assert core.scheduler.count_totals()["malformed_messages"] == 2


def test_peers_are_printed_with_their_state(core: Core) -> None:
    core.submit(1, ["a"])
    state = core.scheduler.state
    assert repr(state.ledger.by_peer[b"F1"]) == "<Frontend host/1, 1 open requests>"
    worker = state.pool.workers[b"W1"]
    (lease,) = worker.leases.values()
    assert repr(worker) == f"<Worker host/1, ready, credit 2, leases [{lease!r}]>"
    core.handle(b"W1", wire.WorkerDrain(b""))
    assert "draining" in repr(worker)
