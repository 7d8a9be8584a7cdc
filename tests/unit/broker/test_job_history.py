"""History of the events of each job, bounded in bytes."""

import tracemalloc

from broker.core.job_history import MAX_BYTES, JobHistory
from broker.wire import protocol as wire
from tests.harness.core import Core, make_request


def test_history_lists_events_of_job(core: Core) -> None:
    core.submit(1, ["a"])
    core.batches()
    core.lost(b"W1")
    core.worker(b"W2")
    core.answer(*core.batches())
    owner = next(iter(core.scheduler.state.ledger.by_uuid))
    events = [line.split()[1] for line in core.scheduler.describe_job(owner, 1, 0)]
    assert events == ["admitted", "dispatched", "returned", "dispatched", "ended"]
    assert core.scheduler.describe_job(owner, 2, 0) == []


def test_history_omits_events_of_other_jobs() -> None:
    request, other = make_request([b"a", b"b"]), make_request([b"c"], number=2)
    assert request.tokens
    assert other.tokens
    history = JobHistory()
    history.add_request(1.0, "admitted", "bulk", request)
    history.add_jobs(2.0, "dispatched", "in batch 1", [request.make_job(1), other.make_job(0)])
    assert history.describe_job(b"F", 1, 0) == ["1.000 admitted bulk"]
    assert history.describe_job(b"F", 1, 1) == ["1.000 admitted bulk", "2.000 dispatched in batch 1"]
    assert history.describe_job(b"F", 2, 0) == ["2.000 dispatched in batch 1"]
    assert history.describe_job(b"G", 1, 0) == []


def test_abandoned_requests_do_not_grow_history(core: Core) -> None:
    core.submit(1, ["keeps the worker busy"])
    lengths, frame = wire.pack_u32([6] * 2048), b"secret" * 2048
    tracemalloc.start()
    try:
        for number in range(2, 1200):
            submission = wire.Submission(number, "m", wire.Lane.BULK, "", 60_000, wire.Kind.TEXT, lengths)
            core.scheduler.handle(b"F1", wire.Submit([submission]), core.now, [frame])
            core.scheduler.handle(b"F1", wire.Cancel(wire.pack_u64([number])), core.now)
        grown_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown_bytes < 2 * MAX_BYTES
    assert core.scheduler.count_totals()["jobs_cancelled"] > 1_000_000


def test_large_batches_do_not_grow_history() -> None:
    request = make_request([b"a"] * 2048)
    assert request.tokens
    jobs = [request.make_job(position) for position in range(request.inputs)]
    history = JobHistory()
    tracemalloc.start()
    try:
        for number in range(5000):
            history.add_jobs(0.0, "dispatched", f"in batch {number}", jobs)
        grown_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown_bytes < 2 * MAX_BYTES
    assert history.describe_job(b"F", 1, 2047)[-1] == "0.000 dispatched in batch 4999"
