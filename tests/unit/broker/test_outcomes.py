"""Ends of jobs and batches: what the frontend is sent, and what is closed or requeued."""

from broker.core.ledger import MAX_EXPIRED
from broker.core.limits import Limits
from broker.core.outcomes import RETRY_AFTER_MS, cancel_request, fail_job, fail_request, fail_unserved, requeue_lease
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from tests.harness.core import Core


def take_failures(core: Core) -> list[wire.Failure]:
    """Return the failures in the outbox."""
    messages = [send.message for send in core.scheduler.state.outbox.take_all()]
    return [failure for message in messages if isinstance(message, wire.Failures) for failure in message.failures]


def test_failed_request_has_retry_after(core: Core) -> None:
    core.submit(1, ["a", "b"])
    (request,) = core.frontend_requests()
    fail_request(core.scheduler.state, request, ErrorCode.NO_WORKER, "text", core.now)
    assert take_failures(core) == [wire.Failure(1, -1, ErrorCode.NO_WORKER, "text", RETRY_AFTER_MS)]
    assert core.scheduler.open_jobs == 0
    assert core.scheduler.count_totals()["jobs_failed"] == 2


def test_failed_job_leaves_its_neighbours_open(core: Core) -> None:
    core.submit(1, ["a", "b"])
    (request,) = core.frontend_requests()
    fail_job(core.scheduler.state, request.make_job(1), ErrorCode.POISON, "text", core.now)
    assert take_failures(core) == [wire.Failure(1, 1, ErrorCode.POISON, "text")]
    assert [position for position, job in request.jobs.items() if job.is_open] == [0]
    assert core.scheduler.open_jobs == 1


def test_cancelled_request_sends_no_message(core: Core) -> None:
    core.submit(1, ["a"])
    (request,) = core.frontend_requests()
    cancel_request(core.scheduler.state, request, core.now)
    assert core.scheduler.state.outbox.take_all() == []
    assert core.scheduler.count_totals()["jobs_cancelled"] == 1


def test_only_open_jobs_of_lease_are_requeued(core: Core) -> None:
    core.submit(1, ["a", "b"])
    state = core.scheduler.state
    lease = state.pool.workers[b"W1"].release_lease(1, core.now)
    assert lease
    fail_job(state, lease.jobs[0], ErrorCode.TOO_LONG, "text", core.now)
    requeue_lease(state, lease)
    assert core.waiting() == [(1, 1)]
    assert core.scheduler.count_totals()["jobs_requeued"] == 1


def test_unserved_requests_fail_in_several_calls() -> None:
    core = Core(Limits(worker_grace_s=1000))
    core.frontend()
    core.worker()
    core.lost(b"W1")
    for number in range(MAX_EXPIRED + 1):
        core.submit(number, ["a"])
    state = core.scheduler.state
    fail_unserved(state, core.model(), core.now)
    failures = take_failures(core)
    assert [failure.request for failure in failures] == list(range(MAX_EXPIRED))
    assert {failure.text for failure in failures} == {"no worker that serves 'm' is connected"}
    fail_unserved(state, core.model(), core.now)
    assert [failure.request for failure in take_failures(core)] == [MAX_EXPIRED]
