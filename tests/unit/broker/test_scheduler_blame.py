"""Blame: which jobs are suspected after a crash or a failed batch, and how the suspicion ends.

Each call of the scheduler is followed by a check of all invariants; see `tests/harness/core.py`.
"""

from collections.abc import Sequence

import pytest

from broker.core.blame import BLOCKED_S, MAX_BLOCKED, MAX_REMEMBERED, TRIAL_S, Blame
from broker.core.dispatch import find_reserved
from broker.core.limits import Limits
from broker.core.outcomes import close_jobs
from broker.core.pool import MAX_SUSPECTS
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode, LocalProtocolError
from broker.wire.protocol import Lane, ModelInfo
from tests.harness.core import DIMENSION, Core, make_request, vector


def test_suspects_run_alone_and_culprit_is_poison(core: Core) -> None:
    core.submit(1, ["good", "bad", "fine"])
    core.batches()
    core.lost(b"W1")
    core.worker(b"W2", credit=1)
    (good,) = core.batches()
    assert good[2] == ["good"]
    core.answer(good, credit=1)
    (bad,) = core.batches()
    assert bad[2] == ["bad"]
    core.lost(b"W2")
    core.worker(b"W3")
    core.answer(*core.batches())
    assert core.failures() == []
    core.now += TRIAL_S
    core.handle(b"F1", wire.FrontendHeartbeat())
    assert core.failures() == [(1, 1, ErrorCode.POISON)]
    assert core.answers() == {(1, 0): vector("good"), (1, 2): vector("fine")}


def start_cleared_trial(limits: Limits) -> Core:
    """Return a core with a job on trial, whose worker has reconnected as W2."""
    core = Core(limits)
    core.frontend()
    core.worker()
    core.submit(1, ["a"])
    core.batches()
    core.lost(b"W1")
    core.worker(b"W2", uuid=b"W1")
    assert core.batches() == []
    return core


def test_reconnected_worker_clears_job_on_trial() -> None:
    core = start_cleared_trial(Limits(max_crashes=1))
    core.now += TRIAL_S
    core.handle(b"F1", wire.FrontendHeartbeat())
    core.answer(*core.batches())
    assert core.answers() == {(1, 0): vector("a")}


def test_cleared_job_without_a_worker_fails_at_once() -> None:
    core = start_cleared_trial(Limits(max_crashes=1, worker_grace_s=0.0, liveness_s=2 * TRIAL_S))
    core.lost(b"W2")
    core.tick(TRIAL_S)
    assert core.failures() == [(1, -1, ErrorCode.NO_WORKER)]
    assert not core.scheduler.open_jobs


def test_job_on_trial_can_be_cancelled() -> None:
    core = Core(Limits(max_crashes=1))
    core.frontend()
    core.worker()
    core.submit(1, ["a"])
    core.lost(b"W1")
    core.handle(b"F1", wire.Cancel(wire.pack_u64([1])))
    core.now += TRIAL_S
    core.handle(b"F1", wire.FrontendHeartbeat())
    assert core.failures() == []
    assert core.scheduler.state.ledger.jobs == 0


def test_known_poison_is_blocked_for_a_while() -> None:
    core = Core(Limits(max_crashes=1))
    core.frontend()
    core.worker()
    core.submit(1, ["bad"])
    core.batches()
    core.lost(b"W1")
    core.now += TRIAL_S
    core.handle(b"F1", wire.FrontendHeartbeat())
    assert core.failures() == [(1, 0, ErrorCode.POISON)]
    core.worker(b"W2")
    core.submit(2, ["good", "bad"])
    assert core.failures() == [(2, 1, ErrorCode.POISON)]
    core.answer(*core.batches())
    assert core.answers() == {(2, 0): vector("good")}
    core.submit(3, ["bad"])
    assert core.failures() == [(3, 0, ErrorCode.POISON)]
    assert core.batches() == []
    core.now += BLOCKED_S
    core.frontend()
    core.worker(b"W3")
    core.submit(4, ["bad"])
    assert len(core.batches()) == 1


def crash_workers(core: Core, texts: Sequence[str], workers: Sequence[bytes] = (b"W1",)) -> None:
    """Submit texts, let workers crash with them, one after another, and cancel the request."""
    core.submit(1, texts)
    for worker in workers:
        if worker != b"W1":
            core.worker(worker)
        assert len(core.batches(worker)) == 1
        core.lost(worker)
    core.handle(b"F1", wire.Cancel(wire.pack_u64([1])))


def test_poison_of_a_client_that_gives_up_is_blocked() -> None:
    """The client gives up while its job is on trial, and sends the input again."""
    core = Core(Limits(liveness_s=60.0))
    core.frontend()
    core.worker()
    crash_workers(core, ["bad"], (b"W1", b"W2"))
    core.worker(b"W3")
    core.tick(TRIAL_S)
    core.submit(2, ["bad"])
    assert core.failures() == [(2, 0, ErrorCode.POISON)]
    assert core.batches() == []


def test_retry_during_the_trial_runs_alone(core: Core) -> None:
    crash_workers(core, ["bad"], (b"W1", b"W2"))
    core.worker(b"W3")
    core.submit(2, ["bad", "good"])
    (first,) = core.batches()
    core.answer(first)
    (second,) = core.batches()
    assert sorted([first[2], second[2]]) == [["bad"], ["good"]]


def test_crash_counts_after_the_request_has_failed() -> None:
    """The only worker needs longer than the grace period to restart, and the client sends its request again."""
    core = Core(Limits(worker_grace_s=5.0, liveness_s=60.0))
    core.frontend()
    core.worker()
    core.submit(1, ["bad"])
    core.batches()
    core.lost(b"W1")
    core.tick(5.0)
    assert core.failures() == [(1, -1, ErrorCode.NO_WORKER)]
    core.frontend()
    core.worker(b"W2")
    core.submit(2, ["bad", "good"])
    for _ in range(2):
        (batch,) = core.batches()
        assert len(batch[2]) == 1
        if batch[2] == ["bad"]:
            core.lost(b"W2")
            core.worker(b"W3")
        else:
            core.answer(batch)
    core.tick(TRIAL_S)
    assert core.failures() == [(2, 0, ErrorCode.POISON)]


def test_answered_suspect_is_no_suspect_again(core: Core) -> None:
    core.submit(1, ["a", "b"])
    core.batches()
    core.lost(b"W1")
    core.worker(b"W2")
    for _ in range(2):
        core.answer(*core.batches())
    core.submit(2, ["a", "b"])
    assert [texts for _, _, texts in core.batches()] == [["a", "b"]]


def test_suspicion_ends_after_a_while(core: Core) -> None:
    crash_workers(core, ["a", "b"])
    core.now += BLOCKED_S
    core.frontend()
    core.worker(b"W2")
    core.submit(2, ["a", "b"])
    assert [texts for _, _, texts in core.batches()] == [["a", "b"]]


def test_reconnected_worker_ends_the_suspicion(core: Core) -> None:
    crash_workers(core, ["a", "b"])
    core.worker(b"W2", uuid=b"W1")
    core.submit(2, ["a", "b"])
    assert [texts for _, _, texts in core.batches()] == [["a", "b"]]


def test_reconnected_worker_withdraws_one_crash(core: Core) -> None:
    crash_workers(core, ["bad"], (b"W1", b"W2"))
    core.worker(b"W3", uuid=b"W2")
    core.submit(2, ["bad", "good"])
    for _ in range(2):
        ((peer, number, texts),) = core.batches()
        assert len(texts) == 1
        core.answer((peer, number, texts))
    assert core.failures() == []


def test_remembered_crashes_are_bounded() -> None:
    core = Core()
    core.frontend()
    core.worker(batch_tokens=10**6)
    core.submit(1, ["a"] * 1000)
    blame = Blame(Limits())
    worker = core.scheduler.state.pool.workers[b"W1"]
    (lease,) = worker.leases.values()
    for number in range(MAX_REMEMBERED // 1000 + 10):
        worker.incarnation = number
        blame.blame_for_crash(worker, lease, 0.0)
    assert sum(map(len, blame._crashed.values())) == MAX_REMEMBERED
    core.handle(b"F1", wire.Cancel(wire.pack_u64([1])))
    assert blame.recognize_jobs([], BLOCKED_S) == ([], [])
    blame.blame_for_crash(worker, lease, BLOCKED_S)
    assert blame._crashed == {}


def test_blocked_inputs_are_bounded() -> None:
    texts = [str(number).encode() for number in range(MAX_BLOCKED + 5)]
    request = make_request(texts)
    assert request.tokens
    jobs = [request.make_job(position) for position in range(request.inputs)]
    blame = Blame(Limits())
    for job in jobs:
        job.fingerprint, job.crashes = bytes(job.payload), 2
        blame.block_input(job, 1000.0)
    assert len(blame.recognize_jobs(jobs, 1000.0)[0]) == MAX_BLOCKED


def test_closing_job_twice_raises_with_history(core: Core) -> None:
    core.submit(1, ["a"])
    ((_, lease),) = core.scheduler.state.pool.workers[b"W1"].leases.items()
    core.answer(*core.batches())
    with pytest.raises(LocalProtocolError, match=r"ends twice: .* admitted .* dispatched .* ended"):
        close_jobs(core.scheduler.state, [lease.jobs[0]])


def test_only_the_running_batch_is_blamed() -> None:
    core = Core()
    core.frontend()
    core.worker(batch_tokens=10)
    core.submit(1, ["running"])
    core.submit(2, ["x" * 30])
    core.tick(0.1)
    assert len(core.batches()) == 2
    core.lost(b"W1")
    jobs = [job for request in core.frontend_requests() for job in request.jobs.values()]
    assert [(job.request.number, job.crashes) for job in jobs] == [(1, 1), (2, 0)]
    assert core.waiting() == [(1, 0), (2, 0)]


def test_running_batch_of_each_lane_is_blamed() -> None:
    core = Core(Limits(max_crashes=1))
    core.frontend()
    core.worker(credit=4, batch_tokens=20)
    core.submit(1, ["a" * 180, "b" * 180], lane=Lane.BULK)
    core.tick(0.009)
    core.submit(2, ["c"])
    assert [texts for _, _, texts in core.batches()] == [["a" * 180], ["b" * 180], ["c"]]
    core.lost(b"W1")
    core.worker(b"W2", credit=4)
    assert [texts for _, _, texts in core.batches()] == [["b" * 180]]
    assert sorted(job.request.number for job in core.scheduler.state.blame.list_on_trial()) == [1, 2]


def test_suspect_waits_for_a_worker_that_answers_the_ping(core: Core) -> None:
    """The other worker may have died together with the one that crashed, for example because their host did."""
    core.submit(1, ["a"])
    core.batches(b"W1")
    core.worker(b"W2")
    core.silent.add(b"W2")
    core.lost(b"W1")
    assert core.take(wire.Heartbeat) == [(b"W2", wire.Heartbeat(1), [])]
    core.submit(2, ["b"])
    assert [texts for _, _, texts in core.batches()] == [["b"]]
    core.worker(b"W3")
    assert core.take(wire.Heartbeat) == [(b"W3", wire.Heartbeat(1), [])]
    assert [(peer, texts) for peer, _, texts in core.batches()] == [(b"W3", ["a"])]
    assert core.take(wire.Heartbeat) == []


def test_suspect_goes_to_the_worker_once_it_has_answered_the_newest_ping(core: Core) -> None:
    core.worker(b"W2")
    core.worker(b"W3")
    core.silent.add(b"W3")
    core.submit(1, ["a"])
    core.submit(2, ["b"])
    held = {peer: texts for peer, _, texts in core.batches()}
    assert held == {b"W1": ["a"], b"W2": ["b"]}
    core.lost(b"W1")
    core.lost(b"W2")
    assert [message.ping for _, message, _ in core.take(wire.Heartbeat, b"W3")] == [1, 2]
    core.answer_ping(b"W3", 1)
    assert core.batches() == []
    core.answer_ping(b"W3", 2)
    assert [texts for _, _, texts in core.batches()] == [["b"]]


def test_no_worker_is_pinged_if_no_batch_is_blamed(core: Core) -> None:
    core.worker(b"W2")
    core.lost(b"W1")
    assert core.take(wire.Heartbeat) == []


def test_suspect_runs_without_other_batches() -> None:
    core = Core()
    core.frontend()
    core.worker(credit=4)
    core.submit(1, ["a"], lane=Lane.BULK)
    core.submit(2, ["b"])
    core.batches()
    core.lost(b"W1")
    core.worker(b"W1", credit=4)
    core.submit(3, ["c"])
    texts = []
    for _ in range(2):
        (alone,) = core.batches()
        texts += alone[2]
        core.tick(0.5)
        assert core.batches() == []
        core.answer(alone, credit=4)
    assert sorted(texts) == ["a", "b"]
    assert [texts for _, _, texts in core.batches()] == [["c"]]


def test_suspect_waits_for_an_idle_worker() -> None:
    core = Core()
    core.frontend()
    core.worker(credit=4)
    core.submit(1, ["a"])
    core.worker(b"W2", credit=4)
    core.submit(2, ["b"], lane=Lane.BULK)
    (_, busy) = core.batches()
    assert busy[0] == b"W2"
    core.lost(b"W1")
    assert core.batches() == []
    core.answer(busy, credit=4)
    assert [texts for _, _, texts in core.batches()] == [["a"]]


def create_suspects(core: Core, number: int) -> None:
    """Crash a worker that holds a batch of this number of jobs."""
    core.worker(b"W9", credit=4, batch_tokens=10**6)
    core.submit(1, [f"s{index}" for index in range(number)], budget_ms=1_000_000)
    core.batches()
    core.lost(b"W9")


def serve_batches(core: Core, batches: int) -> list[str]:
    """Answer the next batches, and return the first text of each."""
    texts: list[str] = []
    while len(texts) < batches:
        for batch in core.batches():
            texts.append(batch[2][0])
            core.now += 0.001
            core.answer(batch, credit=4)
    return texts


def test_suspects_leave_time_for_others() -> None:
    core = Core(Limits(liveness_s=1000))
    core.frontend()
    create_suspects(core, 100)
    core.submit(2, ["other"], budget_ms=1_000_000)
    core.worker(credit=4)
    texts = serve_batches(core, 100)
    assert "other" in texts[: MAX_SUSPECTS + 2]


def test_suspects_share_worker_with_other_model() -> None:
    core = Core(Limits(liveness_s=1000))
    core.frontend()
    create_suspects(core, 30)
    models = [ModelInfo("m", "r", DIMENSION, 100), ModelInfo("n", "r", DIMENSION, 100)]
    core.handle(b"W1", wire.WorkerHello(1, 1, "", b"1" * 16, 1, "h", 1, "CPU", models, 10, 1000, 4))
    core.submit(2, ["n" * 30] * 60, model="n", lane=Lane.BULK, budget_ms=1_000_000)
    texts = serve_batches(core, 60)
    suspects = [text for text in texts if text.startswith("s")]
    assert len(suspects) == 30
    assert texts[: MAX_SUSPECTS + 3].count("n" * 30) >= 1


def test_one_busy_worker_is_reserved_for_suspects() -> None:
    core = Core(Limits(liveness_s=1000))
    core.frontend()
    core.worker(b"W9", credit=1)
    core.submit(1, ["s1", "s2"], budget_ms=1_000_000)
    core.batches()
    for peer in (b"W1", b"W2"):
        core.worker(peer, credit=4, batch_tokens=10)
    core.submit(2, ["x" * 30] * 100, lane=Lane.BULK, budget_ms=1_000_000)
    core.tick(1.0)
    held = core.batches()
    core.lost(b"W9")
    (reserved,) = find_reserved(core.scheduler.state.models, core.scheduler.state.pool)
    for batch in [batch for batch in held if batch[0] == reserved.peer]:
        assert core.batches(reserved.peer) == []
        core.answer(batch, credit=4)
    assert [texts for _, _, texts in core.batches(reserved.peer)] == [["s1"]]
    other = next(batch for batch in held if batch[0] != reserved.peer)
    core.answer(other, credit=4)
    core.tick(1.0)
    assert {(peer, texts[0][0]) for peer, _, texts in core.batches()} == {(other[0], "x")}


def test_no_job_is_blamed_for_goodbye(core: Core) -> None:
    core.submit(1, ["a", "b"])
    core.batches()
    core.handle(b"W1", wire.WorkerGoodbye())
    core.worker(b"W2")
    assert core.batches() == [(b"W2", 2, ["a", "b"])]


def test_no_job_is_blamed_for_interrupted_drain() -> None:
    core = Core(Limits(max_crashes=1))
    core.frontend()
    core.worker()
    core.submit(1, ["a"])
    core.batches()
    core.handle(b"W1", wire.WorkerDrain(b""))
    core.lost(b"W1")
    assert core.scheduler.count_totals()["workers_evicted"] == 1
    core.worker(b"W2")
    assert [texts for _, _, texts in core.batches()] == [["a"]]


def test_batch_that_hangs_draining_worker_is_blamed() -> None:
    core = Core(Limits(max_crashes=1, lease_s=1))
    core.frontend()
    core.worker()
    core.submit(1, ["a"])
    core.batches()
    core.handle(b"W1", wire.WorkerDrain(b""))
    core.tick(1.0)
    assert len(core.scheduler.state.blame.list_on_trial()) == 1


def test_lost_connections_of_live_worker_blame_no_job(core: Core) -> None:
    core.submit(1, ["a"])
    for connection in (b"W2", b"W3", b"W4"):
        core.batches()
        core.lost(next(iter(core.scheduler.state.pool.workers)))
        core.worker(connection, uuid=b"W1")
    core.answer(*core.batches())
    assert core.answers() == {(1, 0): vector("a")}


def test_jobs_of_failed_batch_run_alone(core: Core) -> None:
    core.submit(1, ["good", "bad", "fine"])
    core.fail(*core.batches())
    for _ in range(3):
        (batch,) = core.batches()
        assert len(batch[2]) == 1
        core.fail(batch) if batch[2] == ["bad"] else core.answer(batch)
    assert core.failures() == [(1, 1, ErrorCode.DEVICE)]
    assert core.answers() == {(1, 0): vector("good"), (1, 2): vector("fine")}
    assert core.batches() == []


def test_job_is_retried_after_one_failure(core: Core) -> None:
    core.submit(1, ["a"])
    core.fail(*core.batches())
    core.answer(*core.batches())
    assert core.answers() == {(1, 0): vector("a")}
