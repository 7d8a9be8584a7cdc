"""Requests: who is refused, what a deadline and a cancellation end, what frontends are owed.

The pure scheduler: messages and time in, messages out. Every step checks all invariants (see tests/harness/core.py).
"""

import msgspec
import pytest

from broker.core.ledger import MAX_ENDED, MAX_EXPIRED
from broker.core.limits import Limits
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from tests.harness.core import Core, vector


def test_unknown_model_is_refused(core: Core) -> None:
    core.submit(1, ["a"], model="other")
    assert core.failures() == [(1, -1, ErrorCode.UNKNOWN_MODEL)]


def test_request_without_input_is_refused(core: Core) -> None:
    core.submit(1, [])
    assert core.failures() == [(1, -1, ErrorCode.INVALID_INPUT)]


def test_token_ids_of_odd_size_are_refused(core: Core) -> None:
    submission = wire.Submission(1, "m", wire.Lane.BULK, "", 1000, wire.Kind.TOKENS, wire.pack_u32([6]))
    core.handle(b"F1", wire.Submit([submission]), b"123456")
    assert core.failures() == [(1, -1, ErrorCode.INVALID_INPUT)]


@pytest.mark.parametrize("limits", [Limits(max_jobs=2), Limits(max_bytes=5)])
def test_request_above_the_bounds_is_refused_whole(limits: Limits) -> None:
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
def test_request_that_can_never_be_admitted_is_told_so(limits: Limits) -> None:
    core = Core(limits)
    core.frontend()
    core.worker()
    core.submit(1, ["aa", "bb", "cc"])
    assert core.failures() == [(1, -1, ErrorCode.INVALID_INPUT)]


def test_one_clients_flood_makes_no_other_wait_longer_than_its_turns() -> None:
    core = Core(Limits(max_wait_s=2))
    core.frontend()
    core.worker(tokens_per_s=100)
    for request in range(50):
        core.submit(request, ["x" * 100] * 5)
    assert {code for _, _, code in core.failures()} == {ErrorCode.OVERLOADED}
    core.frontend(b"F2")
    core.submit(1, ["y"], b"F2")
    assert core.failures(b"F2") == []


def test_draining_broker_refuses_and_still_answers(core: Core) -> None:
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


def test_job_that_the_worker_refuses_fails_alone(core: Core) -> None:
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


def test_deadlines_of_ended_requests_are_let_go_before_there_are_too_many(core: Core) -> None:
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


def test_deadline_of_a_leased_job_drops_its_row(core: Core) -> None:
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


def test_cancelled_running_jobs_rows_are_dropped_and_neighbours_get_theirs(core: Core) -> None:
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


def test_jobs_of_a_lost_frontend_are_dropped(core: Core) -> None:
    core.frontend(b"F2")
    core.submit(1, ["a"])
    (first,) = core.batches()
    core.submit(1, ["b"], b"F2")
    core.submit(2, ["c"])
    core.lost(b"F2")
    core.answer(first)
    assert core.batches() == [(b"W1", 2, ["c"])]


def test_silent_frontend_is_dropped(core: Core) -> None:
    core.submit(1, ["a"])
    core.tick(3.5)
    assert core.scheduler.state.ledger.jobs == 0
    core.handle(b"F1", wire.FrontendHeartbeat())
    assert core.take(wire.Who, b"F1")


def test_frontend_is_not_judged_before_what_it_sent_has_been_read(core: Core) -> None:
    core.submit(1, ["a"])
    core.now += 3.5
    core.scheduler.tick(core.now, frontends_read=False)
    assert core.scheduler.state.ledger.jobs == 1
    core.handle(b"F1", wire.FrontendHeartbeat())
    core.tick()
    assert core.scheduler.state.ledger.jobs == 1


def test_requests_that_expire_together_are_told_in_several_calls(core: Core) -> None:
    for number in range(2 * MAX_EXPIRED + 1):
        core.submit(number, ["a"], budget_ms=500)
    core.now += 0.5
    told = []
    while core.scheduler.state.ledger.jobs:
        due = core.scheduler.next_deadline()
        assert due is not None
        assert due <= core.now
        core.tick()
        told.append(len(core.failures()))
    assert told == [MAX_EXPIRED, MAX_EXPIRED, 1]


def test_frontend_on_a_new_connection_starts_anew_for_what_was_sent_into_the_old_one_is_lost() -> None:
    core = Core()
    core.frontend()
    core.worker(batch_tokens=5)
    core.submit(1, ["aaaa", "b" * 90])
    core.answer(*core.batches())
    (running,) = core.batches()
    core.sent.clear()  # the row that went into the old connection
    core.frontend(b"F2", uuid=b"F1")
    core.submit(1, ["aaaa", "b" * 90], b"F2")
    core.answer(running)
    for _ in range(2):
        core.answer(*core.batches())
    assert core.answers(b"F2") == {(1, 0): vector("aaaa"), (1, 1): vector("b" * 90)}


def test_hello_repeated_on_a_connection_changes_nothing(core: Core) -> None:
    core.submit(1, ["a"])
    core.frontend()
    core.answer(*core.batches())
    assert core.answers() == {(1, 0): vector("a")}


def test_connection_that_says_it_is_another_process_is_owed_nothing_of_the_first(core: Core) -> None:
    core.submit(1, ["a"])
    core.frontend(b"F1", uuid=b"other")
    core.answer(*core.batches())
    assert core.answers() == {}


def test_budget_of_nothing_is_never_dispatched(core: Core) -> None:
    core.submit(1, ["a"], budget_ms=0)
    assert core.batches() == []
    assert core.failures() == [(1, -1, ErrorCode.DEADLINE)]
