"""Workers that leave, crash, fall silent, hang or reconnect, and hellos of all peers.

Each call of the scheduler is followed by a check of all invariants; see `tests/harness/core.py`.
"""

import pytest

from broker.core.limits import Limits
from broker.core.revisions import FORGET_S
from broker.core.state import FAILED_GRACE_S
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode, LocalProtocolError
from broker.wire.protocol import Lane, ModelInfo
from tests.harness.core import DIMENSION, KEY, Core, vector


def test_batch_of_lost_worker_is_requeued(core: Core) -> None:
    core.submit(1, ["a"])
    core.batches()
    core.worker(b"W2")
    core.lost(b"W1")
    (batch,) = core.batches()
    assert batch[0] == b"W2"
    core.answer(batch)
    assert core.answers() == {(1, 0): vector("a")}


def test_requeued_jobs_return_to_queue_head() -> None:
    core = Core()
    core.frontend()
    core.worker(batch_tokens=10)
    for request in range(4):
        core.submit(request, ["x" * 30])
    core.tick(0.1)
    assert len(core.batches()) == 2
    core.handle(b"W1", wire.WorkerGoodbye())
    assert core.waiting() == [(0, 0), (1, 0), (2, 0), (3, 0)]


def test_unstarted_batch_of_draining_worker_is_requeued() -> None:
    core = Core()
    core.frontend()
    core.worker(batch_tokens=10)
    core.submit(1, ["x" * 30])
    core.submit(2, ["y" * 30])
    core.tick(0.1)
    running, unstarted = core.batches()
    core.handle(b"W1", wire.WorkerDrain(wire.pack_u64([unstarted[1]])))
    core.submit(3, ["z"])
    assert core.batches() == []
    core.answer(running)
    core.worker(b"W2")
    assert core.batches() == [(b"W2", 3, ["y" * 30, "z"])]


def test_unknown_batch_in_drain_is_ignored(core: Core) -> None:
    core.submit(1, ["a"])
    (batch,) = core.batches()
    core.handle(b"W1", wire.WorkerDrain(wire.pack_u64([batch[1] + 1])))
    core.answer(batch)
    assert core.answers() == {(1, 0): vector("a")}


def test_failure_of_cancelled_job_is_dropped(core: Core) -> None:
    core.submit(1, ["a", "b"])
    (batch,) = core.batches()
    core.handle(b"F1", wire.Cancel(wire.pack_u64([1])))
    core.answer(batch, failures=[wire.JobFailure(0, ErrorCode.TOO_LONG, "long")])
    assert (core.answers(), core.failures()) == ({}, [])


def test_silent_worker_is_evicted(core: Core) -> None:
    core.submit(1, ["a"])
    core.batches()
    core.now += 3.0
    core.handle(b"F1", wire.FrontendHeartbeat())
    core.tick(0.5)
    assert core.take(wire.Goodbye, b"W1")
    core.worker(b"W2")
    assert core.batches() == [(b"W2", 2, ["a"])]


def test_worker_with_heartbeats_is_evicted_after_lease() -> None:
    core = Core(Limits(lease_s=10, liveness_s=3))
    core.frontend()
    core.worker()
    core.submit(1, ["a"], budget_ms=60_000)
    core.batches()
    for _ in range(9):
        core.tick(1)
        core.handle(b"W1", wire.WorkerHeartbeat(1, 1))
        core.handle(b"F1", wire.FrontendHeartbeat())
    assert core.take(wire.Goodbye) == []
    core.tick(1)
    ((_, goodbye, _),) = core.take(wire.Goodbye)
    assert goodbye.code == ErrorCode.LEASE_EXPIRED


@pytest.mark.parametrize("stuck", list(Lane))
def test_lease_expires_while_other_lane_is_answered(stuck: Lane) -> None:
    core = Core(Limits(lease_s=10, liveness_s=1000))
    core.frontend()
    core.worker(credit=4)
    core.submit(1, ["stuck"], lane=stuck)
    core.batches()
    (other,) = [lane for lane in Lane if lane != stuck]
    for request in range(2, 12):
        core.submit(request, ["a"], lane=other)
        core.tick(0.9)
        core.answer(*core.batches(), credit=3)
    core.submit(99, ["a"], lane=other)
    core.tick(1.1)
    assert [message.code for _, message, _ in core.take(wire.Goodbye)] == [ErrorCode.LEASE_EXPIRED]


def test_lease_is_not_renewed_by_other_answers() -> None:
    core = Core(Limits(lease_s=10, liveness_s=1000))
    core.frontend()
    core.worker(batch_tokens=5)
    core.submit(1, ["stuck"], budget_ms=10**6)
    stuck = core.batches()
    for request in range(2, 12):
        core.submit(request, ["x" * 20], budget_ms=10**6)
        core.tick(0.9)
        for batch in core.batches():
            core.answer(batch)
    assert core.take(wire.Goodbye) == []
    core.tick(1.1)
    assert [goodbye.code for _, goodbye, _ in core.take(wire.Goodbye)] == [ErrorCode.LEASE_EXPIRED]
    assert stuck


def test_jobs_of_invalid_result_run_elsewhere(core: Core) -> None:
    core.submit(1, ["a", "b"])
    ((peer, number, _),) = core.batches()
    core.answer((peer, number, ["a"]))
    assert core.answers() == {}
    assert core.take(wire.Goodbye, b"W1")
    core.worker(b"W2")
    core.answer(*core.batches())
    core.answer(*core.batches())
    assert len(core.answers()) == 2


@pytest.mark.parametrize("epoch", [7, 8])
def test_late_answers_are_counted_and_ignored(core: Core, epoch: int) -> None:
    core.submit(1, ["a"])
    (batch,) = core.batches()
    if epoch == 7:
        core.answer(batch)
        assert len(core.answers()) == 1
    core.answer(batch, epoch=epoch)
    core.handle(b"W1", wire.BatchError(epoch, 99, ErrorCode.DEVICE, "", 2, 1))
    assert core.answers() == {}
    assert core.failures() == []
    assert core.scheduler.count_totals()["late_answers"] == 2


def test_worker_with_repeated_hello_keeps_serving(core: Core) -> None:
    core.submit(1, ["a"])
    (first,) = core.batches()
    core.worker()
    (again,) = core.batches()
    core.answer(first)
    assert core.answers() == {}
    core.answer(again)
    assert core.answers() == {(1, 0): vector("a")}
    assert core.take(wire.Goodbye) == []


def test_reconnected_worker_replaces_its_old_session(core: Core) -> None:
    core.worker(b"W2", uuid=b"W1")
    assert list(core.scheduler.state.pool.workers) == [b"W2"]
    assert core.take(wire.Goodbye, b"W1")


def test_jobs_wait_for_the_next_worker(core: Core) -> None:
    core.lost(b"W1")
    core.submit(1, ["a"], budget_ms=60_000)
    core.worker(b"W2")
    assert core.batches() == [(b"W2", 1, ["a"])]


def test_requests_fail_after_grace_without_worker() -> None:
    core = Core(Limits(worker_grace_s=2))
    core.frontend()
    core.worker()
    core.lost(b"W1")
    core.submit(1, ["a", "b"], budget_ms=60_000)
    assert core.scheduler.next_deadline() == core.now + 2
    core.tick(2)
    assert core.failures() == [(1, -1, ErrorCode.NO_WORKER)]
    core.submit(2, ["c"])
    assert core.failures() == [(2, -1, ErrorCode.NO_WORKER)]


def test_requests_fail_soon_if_loading_fails() -> None:
    core = Core(Limits(worker_grace_s=30))
    core.frontend()
    core.worker()
    old = wire.WorkerLoading(b"o" * 16, "host", 1, "m", "the disk was full")
    core.handle(b"W7", old)
    core.tick(1)
    core.lost(b"W1")
    core.submit(1, ["a"], budget_ms=60_000)
    # The failure is older than the loss of the last worker, which may be restarting.
    assert core.scheduler.state.find_grace_s(KEY) == 30
    core.handle(b"W8", wire.WorkerLoading(b"n" * 16, "host", 2, "m", "the file is damaged"))
    assert core.scheduler.next_deadline() == core.now + FAILED_GRACE_S
    core.handle(b"W9", wire.WorkerLoading(b"l" * 16, "host", 3, "m"))
    assert core.scheduler.state.find_grace_s(KEY) == 30
    core.handle(b"W9", wire.WorkerLoading(b"l" * 16, "host", 3, "m", "the file is damaged"))
    core.tick(FAILED_GRACE_S)
    core.submit(2, ["c"])
    text = "no worker that serves 'm' is connected; loading the model failed: the file is damaged"
    failures = [one for _, message, _ in core.take(wire.Failures) for one in message.failures]
    assert [(one.request, one.code, one.text) for one in failures] == [(n, ErrorCode.NO_WORKER, text) for n in (1, 2)]


def test_zero_grace_still_serves_models() -> None:
    core = Core(Limits(worker_grace_s=0))
    core.frontend()
    core.worker()
    core.submit(1, ["a"])
    (batch,) = core.batches()
    core.answer(batch)
    assert core.answers() == {(1, 0): vector("a")}
    core.lost(b"W1")
    core.submit(2, ["a"])
    assert core.failures() == [(2, -1, ErrorCode.NO_WORKER)]


def test_client_may_always_have_one_input() -> None:
    core = Core(Limits(max_jobs=3, max_client_share=0.3))
    core.frontend()
    core.worker()
    core.submit(1, ["a"])
    core.frontend(b"F2")
    core.submit(1, ["b"], b"F2")
    core.submit(2, ["c"], b"F2")
    assert core.failures(b"F2") == [(2, -1, ErrorCode.QUOTA)]


def test_models_are_sent_when_workers_change() -> None:
    core = Core()
    core.frontend()
    core.worker()
    core.worker(b"W2")
    core.lost(b"W1")
    core.lost(b"W2")
    worker_counts = [[model.workers for model in message.models] for _, message, _ in core.take(wire.Models, b"F1")]
    assert worker_counts == [[], [1], [2], [1], [0]]


def test_second_revision_is_refused_while_first_serves(core: Core) -> None:
    core.worker(b"W2", revision="other")
    ((_, goodbye, _),) = core.take(wire.Goodbye, b"W2")
    assert goodbye.code == ErrorCode.REVISION_CONFLICT
    core.lost(b"W1")
    core.worker(b"W2", revision="other")
    assert core.model().info == ModelInfo("m", "other", DIMENSION, 100)


def test_request_never_mixes_two_revisions() -> None:
    core = Core()
    core.frontend()
    core.worker(batch_tokens=5)
    core.submit(1, ["a", "b" * 90])
    core.submit(2, ["c"])
    core.answer(*core.batches())
    core.batches()
    core.lost(b"W1")
    core.worker(b"W2", revision="new")
    assert core.batches() == []
    core.tick()
    assert core.failures() == [(1, -1, ErrorCode.REPLACED), (2, -1, ErrorCode.REPLACED)]
    # The frontend submits both again.
    core.answers()
    core.submit(1, ["a", "b" * 90])
    core.submit(2, ["c"])
    for _ in range(2):
        for batch in core.batches():
            core.answer(batch)
        core.tick(1)
    assert sorted(core.answers()) == [(1, 0), (1, 1), (2, 0)]


def test_draining_worker_does_not_count_as_serving(core: Core) -> None:
    core.take(wire.Models)
    core.handle(b"W1", wire.WorkerDrain(b""))
    ((_, models, _),) = core.take(wire.Models, b"F1")
    assert [model.workers for model in models.models] == [0]
    core.worker(b"W2", revision="other")
    ((_, goodbye, _),) = core.take(wire.Goodbye, b"W2")
    assert goodbye.code == ErrorCode.REVISION_CONFLICT


def test_unserved_models_are_forgotten_after_a_while(core: Core) -> None:
    core.lost(b"W1")
    core.tick(FORGET_S)
    assert core.scheduler.state.models == {}


def test_departures_and_evictions_are_counted(core: Core) -> None:
    core.worker()
    core.handle(b"W1", wire.WorkerGoodbye())
    core.worker(b"W2")
    core.lost(b"W2")
    totals = core.scheduler.count_totals()
    assert {name: totals[f"workers_{name}"] for name in ("joined", "left", "evicted")} == {
        "joined": 3,
        "left": 2,
        "evicted": 1,
    }


@pytest.mark.parametrize("held", ["waiting", "leased", "on trial"])
def test_model_with_open_jobs_is_not_forgotten(held: str) -> None:
    core = Core(Limits(worker_grace_s=3 * FORGET_S, lease_s=2 * FORGET_S, max_crashes=1))
    core.frontend()
    core.worker()
    core.submit(1, ["a"], budget_ms=10**9)
    core.batches()
    if held == "waiting":
        core.handle(b"W1", wire.WorkerGoodbye())
    else:
        core.handle(b"W1", wire.WorkerDrain(b""))
    seconds = {"waiting": FORGET_S, "leased": FORGET_S, "on trial": 2 * FORGET_S}[held]
    core.now += seconds
    core.handle(b"F1", wire.FrontendHeartbeat())
    core.handle(b"W1", wire.WorkerHeartbeat(2, 1))
    core.tick()
    assert core.scheduler.state.models
    core.handle(b"F1", wire.Cancel(wire.pack_u64([1])))
    core.tick()
    core.lost(b"W1")
    core.tick()
    assert core.scheduler.state.models == {}


def test_drain_fails_jobs_without_worker_at_once(core: Core) -> None:
    core.submit(1, ["a"])
    core.handle(b"W1", wire.WorkerDrain(wire.pack_u64([core.batches()[0][1]])))
    core.submit(2, ["b"])
    core.tick(1)
    assert core.failures() == []
    core.scheduler.drain()
    assert core.scheduler.next_deadline() == core.now - 1
    core.tick()
    assert sorted(core.failures()) == [(1, -1, ErrorCode.DRAINING), (2, -1, ErrorCode.DRAINING)]


def test_long_names_fit_into_messages(core: Core) -> None:
    """`Core` decodes every message that the scheduler sends."""
    name = "\U000e0041" * 512
    for revision in ("r", "s"):
        models = [ModelInfo(name, revision, DIMENSION, 100)]
        uuid = revision.encode() * 16
        hello = wire.WorkerHello(1, 1, "test", uuid, 1, "h" * 512, 2**63, "C" * 512, models, 10, 1000, 1)
        core.handle(b"W" + revision.encode(), hello)
    assert [goodbye.code for _, goodbye, _ in core.take(wire.Goodbye)] == [ErrorCode.REVISION_CONFLICT]
    core.handle(b"F1", wire.FrontendHeartbeat())
    assert len(core.take(wire.Stats)) == 1
    core.lost(b"Wr")
    core.tick(0.1)
    core.submit(1, ["a"], model=name)
    core.submit(2, ["a"], model="\U000e0042" * 512)
    core.scheduler.state.limits = Limits(worker_grace_s=0)
    core.submit(3, ["a"], model=name)
    core.tick()
    codes = [(2, -1, ErrorCode.UNKNOWN_MODEL), (3, -1, ErrorCode.NO_WORKER), (1, -1, ErrorCode.NO_WORKER)]
    assert core.failures() == codes


def test_worker_of_two_models_serves_both() -> None:
    core = Core()
    core.frontend()
    models = [ModelInfo("a", "r", DIMENSION, 100), ModelInfo("b", "r", DIMENSION, 100)]
    core.handle(b"W1", wire.WorkerHello(1, 1, "test", b"." * 16, 1, "host", 1, "CPU", models, 10, 1000, 1))
    for request in range(6):
        core.now += 0.001
        core.submit(request, ["x" * 20], model="ab"[request % 2])
    served_models = []
    for _ in range(6):
        ((peer, batch, frames),) = core.take(wire.Batch)
        served_models.append(batch.model)
        core.answer((peer, batch.batch, [str(bytes(frames[0]), "utf-8")]), credit=1)
    assert served_models == ["a", "b"] * 3


@pytest.mark.parametrize("versions", [(0, 0), (2, 9)])
def test_peer_without_common_protocol_version_is_refused(core: Core, versions: tuple[int, int]) -> None:
    core.handle(b"F9", wire.FrontendHello(*versions, "test", b"." * 16, "host", 1))
    core.handle(b"W9", wire.WorkerHello(*versions, "test", b"." * 16, 1, "host", 1, "CPU", [], 1, 1, 1))
    codes = [(peer, goodbye.code) for peer, goodbye, _ in core.take(wire.Goodbye)]
    assert codes == [(b"F9", ErrorCode.PROTOCOL), (b"W9", ErrorCode.PROTOCOL)]
    assert b"W9" not in core.scheduler.state.pool.workers


def test_unknown_peer_is_sent_who(core: Core) -> None:
    core.handle(b"W9", wire.WorkerHeartbeat(2, 0))
    core.submit(1, ["a"], b"F9")
    assert [peer for peer, _, _ in core.take(wire.Who)] == [b"W9", b"F9"]
    assert core.scheduler.state.ledger.jobs == 0


def test_heartbeats_are_answered(core: Core) -> None:
    core.submit(1, ["a"])
    core.answer(*core.batches())
    core.handle(b"W1", wire.WorkerHeartbeat(2, 1))
    core.handle(b"F1", wire.FrontendHeartbeat())
    assert core.take(wire.Heartbeat, b"W1")
    ((_, stats, _),) = core.take(wire.Stats, b"F1")
    assert stats.counters["jobs_answered"] == 1
    assert [(worker.name, worker.answered_jobs) for worker in stats.workers] == [("host/1", 1)]


def test_goodbye_of_frontend_cancels_its_requests(core: Core) -> None:
    core.submit(1, ["a"])
    core.handle(b"F1", wire.FrontendGoodbye())
    assert core.scheduler.state.ledger.jobs == 0
    assert core.scheduler.count_totals()["jobs_cancelled"] == 1


def test_removing_frontend_with_open_requests_raises(core: Core) -> None:
    core.submit(1, ["a"])
    with pytest.raises(LocalProtocolError, match="open requests"):
        core.scheduler.state.ledger.remove_frontend(core.scheduler.state.ledger.by_peer[b"F1"])


def test_broken_invariant_raises(core: Core) -> None:
    core.scheduler.state.ledger.jobs += 1
    with pytest.raises(LocalProtocolError, match="number of open jobs"):
        core.scheduler.check_invariants()
