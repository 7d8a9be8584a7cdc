"""Dispatch: which jobs form a batch, which worker gets the batch, and when.

Each call of the scheduler is followed by a check of all invariants; see `tests/harness/core.py`.
"""

import pytest

from broker.core.client_queue import MAX_BATCH_BYTES, MAX_BATCH_JOBS
from broker.core.dispatch import BATCH_SIZES
from broker.core.limits import Limits
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode, LocalProtocolError
from broker.wire.protocol import Kind, Lane
from tests.harness.core import DIMENSION, EPOCH, KEY, Core, vector


def test_idle_worker_gets_job_at_once(core: Core) -> None:
    core.submit(1, ["a"])
    assert core.batches() == [(b"W1", 1, ["a"])]


def test_jobs_of_requests_are_batched_while_waiting(core: Core) -> None:
    core.frontend(b"F2")
    core.submit(1, ["a"])
    (first,) = core.batches()
    core.submit(2, ["b"])
    core.submit(1, ["c", "d"], b"F2")
    assert core.batches() == []
    core.answer(first)
    assert core.batches() == [(b"W1", 2, ["b", "c", "d"])]


def test_frontend_gets_rows_in_one_message(core: Core) -> None:
    core.frontend(b"F2")
    core.submit(9, ["x"])
    (first,) = core.batches()
    core.submit(1, ["a"], b"F2")
    core.submit(1, ["b"])
    core.submit(2, ["c", "d"], b"F2")
    core.answer(first)
    assert core.answers() == {(9, 0): vector("x")}
    core.answer(*core.batches())
    assert core.answers(b"F1") == {(1, 0): vector("b")}
    assert len([send for send in core.sent if send.peer == b"F2" and isinstance(send.message, wire.Answers)]) == 1
    assert core.answers(b"F2") == {(1, 0): vector("a"), (2, 0): vector("c"), (2, 1): vector("d")}


def test_batch_is_bounded_by_batch_tokens() -> None:
    core = Core()
    core.frontend()
    core.worker(batch_tokens=20)
    core.submit(1, ["x" * 20] * 5)  # 8 tokens each by the estimate
    assert [len(texts) for _, _, texts in core.batches()] == [2]


def test_job_above_batch_tokens_runs_alone() -> None:
    core = Core()
    core.frontend()
    core.worker(batch_tokens=5)
    core.submit(1, ["x" * 1000, "y" * 1000])
    (batch,) = core.batches()
    core.answer(batch)
    assert [batch[2], *(texts for _, _, texts in core.batches())] == [["x" * 1000], ["y" * 1000]]


def test_idle_workers_share_a_request(core: Core) -> None:
    core.worker(b"W2")
    core.submit(1, ["a", "b", "c", "d"])
    assert sorted(texts for _, _, texts in core.batches()) == [["a", "b"], ["c", "d"]]


def test_next_batch_is_sent_just_in_time() -> None:
    core = Core()
    core.frontend()
    core.worker(tokens_per_s=100)
    core.submit(1, ["x" * 300])  # 92 tokens by the estimate: about 0.9 s
    core.batches()
    core.submit(2, ["b"])
    assert core.batches() == []
    due = core.scheduler.next_deadline()
    assert due is not None
    assert 0.5 < due - core.now < 1.0
    core.submit(3, ["c"])
    core.tick(due - core.now)
    assert core.batches() == [(b"W1", 2, ["b", "c"])]
    core.submit(4, ["d"])
    core.tick(2.0)
    assert core.batches() == []


def test_interactive_job_overtakes_bulk_batches() -> None:
    core = Core()
    core.frontend()
    core.worker(credit=4, batch_tokens=100)
    core.submit(1, ["x" * 100] * 20, lane=Lane.BULK)
    core.tick(0.02)
    assert len(core.batches()) == 2
    core.submit(2, ["a", "b"])
    (urgent,) = core.batches()
    assert urgent[2] == ["a", "b"]
    core.submit(3, ["c"])
    core.submit(4, ["d"])
    assert core.batches() == []
    core.answer(urgent, credit=2)
    assert [texts for _, _, texts in core.batches()] == [["c", "d"]]


@pytest.mark.parametrize("lane", list(Lane))
def test_bulk_batches_are_larger(lane: Lane) -> None:
    core = Core()
    core.frontend()
    core.worker(batch_tokens=100)
    core.submit(1, ["x" * 30] * 200, lane=lane)
    (lease,) = core.scheduler.state.pool.workers[b"W1"].leases.values()
    limit = 100 * BATCH_SIZES[lane]
    assert limit - lease.jobs[0].tokens < lease.tokens <= limit


def test_late_worker_holds_two_batches_per_lane() -> None:
    core = Core()
    core.frontend()
    core.worker(credit=4, batch_tokens=10)
    core.submit(1, ["x" * 30] * 20, lane=Lane.BULK)
    for _ in range(10):
        core.tick(0.1)
    assert len(core.batches()) == 2
    core.submit(2, ["a"])
    assert [texts for _, _, texts in core.batches()] == [["a"]]


def test_requeued_bulk_batch_saves_no_share() -> None:
    """Only interactive jobs were dispatched while the bulk batch was leased."""
    core = Core(Limits(lease_s=1000, liveness_s=1000))
    core.frontend()
    core.worker(credit=4, batch_tokens=100)
    core.submit(1, ["x" * 300] * 10, lane=Lane.BULK, budget_ms=10**6)
    (held, *_) = core.batches()
    for request in range(2, 200):
        core.submit(request, ["y" * 300])
        for batch in core.batches():
            if batch[2][0].startswith("y"):
                core.answer(batch, credit=3)
    core.handle(b"W1", wire.WorkerDrain(wire.pack_u64([held[1]])))
    core.worker(b"W2", credit=4, batch_tokens=100)
    for lane in Lane:
        core.submit(1000 + lane, ["z" * 300] * 50, lane=lane, budget_ms=10**6)
    lanes = []
    for _ in range(20):
        for to, sent, frames in core.take(wire.Batch):
            lanes.append(sent.lane)
            texts = [str(part, "utf-8") for part in wire.split_frame(frames[0], wire.unpack_u32(sent.lengths))]
            core.answer((to, sent.batch, texts), credit=4)
    assert lanes[:10].count(Lane.INTERACTIVE) >= 4


def test_batch_has_the_lane_of_its_jobs() -> None:
    core = Core()
    core.frontend()
    core.worker(credit=4)
    core.submit(1, ["a"], lane=Lane.BULK)
    core.submit(2, ["b"])
    assert [batch.lane for _, batch, _ in core.take(wire.Batch)] == [Lane.BULK, Lane.INTERACTIVE]


def test_interactive_flood_leaves_bulk_its_share() -> None:
    core = Core(Limits(liveness_s=1000))
    core.frontend()
    core.worker(credit=4, batch_tokens=100)
    for lane in Lane:
        core.submit(1 + lane, ["x" * 50] * 2000, lane=lane, budget_ms=1_000_000)
    answered = {lane: 0 for lane in Lane}
    held: list[tuple[Lane, tuple[bytes, int, list[str]]]] = []
    while sum(answered.values()) < 2000:
        for to, batch, frames in core.take(wire.Batch):
            texts = [str(part, "utf-8") for part in wire.split_frame(frames[0], wire.unpack_u32(batch.lengths))]
            held.append((batch.lane, (to, batch.batch, texts)))
        # A worker runs interactive batches first.
        held.sort(key=lambda item: (item[0], item[1][1]))
        lane, first = held.pop(0)
        core.now += 0.01
        core.answer(first, credit=4 - len(held))
        answered[lane] += len(first[2])
    assert 0.15 < answered[Lane.BULK] / 2000 < 0.25


def test_throughput_includes_batches_that_overtook() -> None:
    core = Core()
    core.frontend()
    core.worker(credit=4, batch_tokens=1000, tokens_per_s=1000)
    speed = core.scheduler.state.pool.workers[b"W1"].models[KEY].throughput
    for request in range(0, 400, 2):
        core.submit(request + 1, ["x" * 98], lane=Lane.BULK)
        core.submit(request + 2, ["x" * 98])
        bulk, urgent = core.batches()
        core.now += 0.2
        core.answer(urgent, credit=3)
        core.now += 0.2
        core.answer(bulk, credit=4)
    assert speed.tokens_per_s == pytest.approx(500, rel=0.01)


def test_no_batch_without_credit() -> None:
    core = Core()
    core.frontend()
    core.worker(credit=0)
    core.submit(1, ["a"])
    assert core.batches() == []
    core.handle(b"W1", wire.WorkerHeartbeat(credit=1, seen=0))
    assert core.batches() == [(b"W1", 1, ["a"])]


def test_repeated_credit_adds_no_credit(core: Core) -> None:
    core.submit(1, ["a"])
    core.batches()
    for _ in range(3):
        core.handle(b"W1", wire.WorkerHeartbeat(credit=1, seen=1))
    core.submit(2, ["x" * 9000])
    core.tick(0.1)
    assert len(core.batches()) == 1
    core.handle(b"W1", wire.WorkerHeartbeat(credit=1, seen=1))
    core.submit(3, ["x" * 9000])
    core.tick(1)
    assert core.batches() == []


def test_long_words_do_not_spoil_token_estimate(core: Core) -> None:
    for request in range(200):
        core.submit(request, ["a" * 100_000])
        ((peer, number, _),) = core.batches()
        core.handle(peer, wire.BatchResult(EPOCH, number, DIMENSION, wire.pack_u32([3]), [], 5, 2, number), bytes(16))
    assert core.model().choose_pricing(Kind.TEXT).count_tokens([1000])[0] > 50


def test_long_input_counts_model_maximum_and_tokenization() -> None:
    core = Core(Limits(max_tokens=500))
    core.frontend()
    core.worker(tokens_per_s=100)
    core.submit(1, ["a" * 1000, "b" * 102_400])
    assert core.scheduler.state.ledger.tokens == 101 + 101 + 100
    core.submit(2, ["c"])
    assert core.failures() == []


def test_rejected_inputs_do_not_raise_throughput(core: Core) -> None:
    before = core.scheduler.state.pool.workers[b"W1"].models[KEY].throughput.tokens_per_s
    for request in range(50):
        core.submit(request, ["a" * 100_000, "b"])
        (batch,) = core.batches()
        core.now += 0.01
        core.answer(batch, failures=[wire.JobFailure(0, ErrorCode.TOO_LONG, "long")])
    assert core.scheduler.state.pool.workers[b"W1"].models[KEY].throughput.tokens_per_s <= before


def test_batch_is_bounded_in_jobs_and_bytes() -> None:
    core = Core(Limits(max_client_share=1.0))
    core.frontend()
    core.worker(batch_tokens=2**31)
    core.submit(1, [""] * (MAX_BATCH_JOBS + 1))
    (batch,) = core.batches()
    assert len(batch[2]) == MAX_BATCH_JOBS
    core.answer(batch)
    core.answer(*core.batches())
    core.submit(2, ["x" * (MAX_BATCH_BYTES // 4)] * 5)
    (batch,) = core.batches()
    assert len(batch[2]) == 4


def test_tokens_per_byte_are_learned_from_results(core: Core) -> None:
    (before,) = core.model().choose_pricing(Kind.TEXT).count_tokens([50])
    for request in range(50):
        core.submit(request, ["a" * 98])
        core.answer(*core.batches())
    assert core.model().choose_pricing(Kind.TEXT).count_tokens([50])[0] > 2 * before


def test_frontend_with_unread_answers_is_rejected() -> None:
    core = Core(Limits(max_unread_bytes=3 * DIMENSION * 4))
    core.frontend()
    core.worker()
    for request in range(4):
        core.submit(request, ["a"])
        core.answer(*core.batches())
    # The frontend has not reported what it has read; frontends of older builds never do.
    core.submit(4, ["b"])
    core.answer(*core.batches())
    core.handle(b"F1", wire.FrontendHeartbeat(DIMENSION * 4))
    core.submit(4, ["b"])
    assert core.failures() == [(4, -1, ErrorCode.OVERLOADED)]
    core.frontend(b"F2")
    core.submit(1, ["b"], b"F2")
    core.answer(*core.batches())
    assert core.answers(b"F2")
    core.handle(b"F1", wire.FrontendHeartbeat(2 * DIMENSION * 4))
    core.submit(5, ["c"])
    core.answer(*core.batches())
    core.submit(6, ["d"])
    assert core.failures() == [(6, -1, ErrorCode.OVERLOADED)]
    core.frontend()
    core.submit(7, ["e"])
    assert core.failures() == []


def test_batch_without_job_raises(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core.model().queue, "take", lambda *_: [])
    with pytest.raises(LocalProtocolError, match="has no job"):
        core.submit(1, ["a"])
