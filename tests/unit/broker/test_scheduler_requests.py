"""Requests: admission, deadlines, cancellation, and what a frontend receives after a reconnect.

Each call of the scheduler is followed by a check of all invariants; see `tests/harness/core.py`.
"""

import msgspec
import pytest

from broker.core.ledger import MAX_ENDED, MAX_EXPIRED
from broker.core.limits import Limits
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from tests.harness.core import Core, vector


def test_unknown_model_is_rejected(core: Core) -> None:
    core.submit(1, ["a"], model="other")
    assert core.failures() == [(1, -1, ErrorCode.UNKNOWN_MODEL)]


def test_requests_of_one_message_are_considered_in_order() -> None:
    core = Core(Limits(max_wait_s=0.01))
    core.frontend()
    core.worker(tokens_per_s=1000, batch_tokens=5)
    names = ["m", "other", "m", "other", "m"]
    submissions = [
        wire.Submission(number, name, wire.Lane.BULK, "", 10_000, wire.Kind.TEXT, wire.pack_u32([20]))
        for number, name in enumerate(names)
    ]
    core.scheduler.handle(b"F1", wire.Submit(submissions), core.now, [b"x" * 20] * 5)
    assert [request.number for request in core.frontend_requests()] == [0]
    assert core.scheduler.count_totals()["requests_rejected"] == 4


def test_request_without_input_is_rejected(core: Core) -> None:
    core.submit(1, [])
    assert core.failures() == [(1, -1, ErrorCode.INVALID_INPUT)]


def test_token_ids_of_odd_size_are_rejected(core: Core) -> None:
    submission = wire.Submission(1, "m", wire.Lane.BULK, "", 1000, wire.Kind.TOKENS, wire.pack_u32([6]))
    core.handle(b"F1", wire.Submit([submission]), b"123456")
    assert core.failures() == [(1, -1, ErrorCode.INVALID_INPUT)]


@pytest.mark.parametrize("limits", [Limits(max_jobs=2), Limits(max_bytes=5)])
def test_request_above_limits_is_rejected_whole(limits: Limits) -> None:
    core = Core(msgspec.structs.replace(limits, max_client_share=1.0))
    core.worker()
    core.submit(1, ["aa"], core.frontend(b"F2"))
    core.frontend()
    core.submit(2, ["bb", "cc"])
    assert core.failures() == [(2, -1, ErrorCode.OVERLOADED)]
    assert core.scheduler.state.ledger.jobs == 1
    core.submit(3, ["bb"])
    assert core.failures() == []


@pytest.mark.parametrize("limits", [Limits(max_jobs=2), Limits(max_bytes=5), Limits(max_tokens=5)])
def test_request_too_large_for_limits_is_invalid(limits: Limits) -> None:
    core = Core(limits)
    core.frontend()
    core.worker()
    core.submit(1, ["aa", "bb", "cc"])
    assert core.failures() == [(1, -1, ErrorCode.INVALID_INPUT)]


def test_flood_of_client_does_not_block_others() -> None:
    core = Core(Limits(max_wait_s=2))
    core.frontend()
    core.worker(tokens_per_s=100)
    for request in range(50):
        core.submit(request, ["x" * 100] * 5)
    assert {code for _, _, code in core.failures()} == {ErrorCode.OVERLOADED}
    core.frontend(b"F2")
    core.submit(1, ["y"], b"F2")
    assert core.failures(b"F2") == []


def test_draining_broker_rejects_and_still_answers(core: Core) -> None:
    core.submit(1, ["a"])
    core.scheduler.drain()
    core.submit(2, ["b"])
    assert core.failures() == [(2, -1, ErrorCode.DRAINING)]
    core.answer(*core.batches())
    assert core.answers() == {(1, 0): vector("a")}


def test_repeated_submission_is_ignored(core: Core) -> None:
    core.submit(1, ["a"])
    core.submit(1, ["a"])
    (batch,) = core.batches()
    core.answer(batch)
    assert core.batches() == []
    assert core.answers() == {(1, 0): vector("a")}
    assert core.scheduler.count_totals()["duplicate_requests"] == 1


def test_job_rejected_by_worker_fails_alone(core: Core) -> None:
    core.submit(1, ["a", "long", "c"])
    core.answer(*core.batches(), failures=[wire.JobFailure(1, ErrorCode.TOO_LONG, "too long")])
    assert core.failures() == [(1, 1, ErrorCode.TOO_LONG)]
    assert core.answers() == {(1, 0): vector("a"), (1, 2): vector("c")}


def test_expired_job_is_never_dispatched(core: Core) -> None:
    core.submit(1, ["a"])
    (first,) = core.batches()
    core.submit(2, ["b"], budget_ms=1)
    core.tick(0.001)
    assert core.failures() == [(2, -1, ErrorCode.DEADLINE)]
    core.answer(first)
    assert core.batches() == []


def test_request_of_several_inputs_expires_whole(core: Core) -> None:
    core.submit(1, ["a", "b"], budget_ms=500)
    core.tick(0.5)
    assert core.failures() == [(1, -1, ErrorCode.DEADLINE)]
    assert core.scheduler.state.ledger.jobs == 0


def test_deadlines_of_ended_requests_are_bounded(core: Core) -> None:
    core.submit(1, ["stays"], budget_ms=20_000)
    (held,) = core.batches()
    for request in range(2, 2 * MAX_ENDED):
        core.submit(request, ["a"])
        core.handle(b"F1", wire.Cancel(wire.pack_u64([request])))
    assert len(core.scheduler.state.ledger._deadlines) <= MAX_ENDED + 3
    for _ in range(20):
        core.handle(b"F1", wire.FrontendHeartbeat())
        core.handle(b"W1", wire.WorkerHeartbeat(0, held[1]))
        core.tick(1.0)
    assert core.failures() == [(1, -1, ErrorCode.DEADLINE)]


def test_row_of_expired_job_is_dropped(core: Core) -> None:
    core.submit(1, ["a"], budget_ms=500)
    (batch,) = core.batches()
    core.tick(0.5)
    assert core.failures() == [(1, -1, ErrorCode.DEADLINE)]
    core.answer(batch)
    assert core.answers() == {}


def test_cancelled_queued_job_is_never_dispatched(core: Core) -> None:
    core.submit(1, ["a"])
    (first,) = core.batches()
    core.submit(2, ["b"])
    core.submit(3, ["c"])
    core.handle(b"F1", wire.Cancel(wire.pack_u64([2, 99])))
    core.answer(first)
    assert core.batches() == [(b"W1", 2, ["c"])]


def test_row_of_cancelled_job_is_dropped(core: Core) -> None:
    core.submit(9, ["x"])
    (first,) = core.batches()
    core.submit(1, ["a"])
    core.submit(2, ["b"])
    core.submit(3, ["c"])
    core.answer(first)
    (batch,) = core.batches()
    core.answers()
    core.handle(b"F1", wire.Cancel(wire.pack_u64([2])))
    core.answer(batch)
    assert core.answers() == {(1, 0): vector("a"), (3, 0): vector("c")}


def test_jobs_of_lost_frontend_are_cancelled(core: Core) -> None:
    core.frontend(b"F2")
    core.submit(1, ["a"])
    (first,) = core.batches()
    core.submit(1, ["b"], b"F2")
    core.submit(2, ["c"])
    core.lost(b"F2")
    core.answer(first)
    assert core.batches() == [(b"W1", 2, ["c"])]


def test_silent_frontend_is_removed(core: Core) -> None:
    core.submit(1, ["a"])
    core.tick(3.5)
    assert core.scheduler.state.ledger.jobs == 0
    core.handle(b"F1", wire.FrontendHeartbeat())
    assert core.take(wire.Who, b"F1")


def test_frontend_with_unread_messages_is_kept(core: Core) -> None:
    core.submit(1, ["a"])
    core.now += 3.5
    core.scheduler.tick(core.now, frontends_read=False)
    assert core.scheduler.state.ledger.jobs == 1
    core.handle(b"F1", wire.FrontendHeartbeat())
    core.tick()
    assert core.scheduler.state.ledger.jobs == 1


def test_simultaneous_deadlines_take_several_calls(core: Core) -> None:
    for number in range(2 * MAX_EXPIRED + 1):
        core.submit(number, ["a"], budget_ms=500)
    core.now += 0.5
    failures_per_call = []
    while core.scheduler.state.ledger.jobs:
        due = core.scheduler.next_deadline()
        assert due is not None
        assert due <= core.now
        core.tick()
        failures_per_call.append(len(core.failures()))
    assert failures_per_call == [MAX_EXPIRED, MAX_EXPIRED, 1]


def test_reconnected_frontend_gets_resent_request_answered() -> None:
    core = Core()
    core.frontend()
    core.worker(batch_tokens=5)
    core.submit(1, ["aaaa", "b" * 90])
    core.answer(*core.batches())
    (running,) = core.batches()
    core.sent.clear()  # the row sent on the old connection is lost
    core.frontend(b"F2", uuid=b"F1")
    core.submit(1, ["aaaa", "b" * 90], b"F2")
    core.answer(running)
    for _ in range(2):
        core.answer(*core.batches())
    assert core.answers(b"F2") == {(1, 0): vector("aaaa"), (1, 1): vector("b" * 90)}


def test_repeated_hello_keeps_open_requests(core: Core) -> None:
    core.submit(1, ["a"])
    core.frontend()
    core.answer(*core.batches())
    assert core.answers() == {(1, 0): vector("a")}


def test_new_process_gets_no_answers_of_old(core: Core) -> None:
    core.submit(1, ["a"])
    core.frontend(b"F1", uuid=b"other")
    core.answer(*core.batches())
    assert core.answers() == {}


def test_request_without_time_is_never_dispatched(core: Core) -> None:
    core.submit(1, ["a"], budget_ms=0)
    assert core.batches() == []
    assert core.failures() == [(1, -1, ErrorCode.DEADLINE)]
