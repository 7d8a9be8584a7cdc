"""The pure scheduler: messages and time in, messages out. Every step checks all invariants (see tests/core.py)."""

import pytest

from broker import protocol as wire
from broker.blame import BLOCKED_S, MAX_BLOCKED, MAX_REMEMBERED, TRIAL_S, Blame
from broker.errors import ErrorCode, LocalProtocolError
from broker.ledger import MAX_ENDED
from broker.limits import Limits
from broker.protocol import Kind, Lane, ModelInfo
from broker.queues import MAX_BATCH_BYTES, MAX_BATCH_JOBS
from broker.scheduler import FORGET_MODEL_S
from tests.core import DIMENSION, EPOCH, Core, vector


@pytest.fixture
def core() -> Core:
    """One frontend and one worker, connected."""
    core = Core()
    core.frontend()
    core.worker()
    return core


# --- batching --------------------------------------------------------------------------------------------------------


def test_idle_worker_gets_work_at_once(core: Core) -> None:
    core.submit(1, ["a"])
    assert core.batches() == [(b"W1", 1, ["a"])]


def test_jobs_gather_across_requests_while_all_workers_are_busy(core: Core) -> None:
    core.frontend(b"F2")
    core.submit(1, ["a"])
    (first,) = core.batches()
    core.submit(2, ["b"])
    core.submit(1, ["c", "d"], b"F2")
    assert core.batches() == []
    core.answer(first)
    assert core.batches() == [(b"W1", 2, ["b", "c", "d"])]


def test_each_frontend_gets_its_own_rows_in_one_message_a_batch(core: Core) -> None:
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
    assert len([one for one in core.sent if one.peer == b"F2" and isinstance(one.message, wire.Answers)]) == 1
    assert core.answers(b"F2") == {(1, 0): vector("a"), (2, 0): vector("c"), (2, 1): vector("d")}


def test_batch_is_bounded_by_the_workers_budget() -> None:
    core = Core()
    core.frontend()
    core.worker(batch_tokens=20)
    core.submit(1, ["x" * 20] * 5)  # 8 tokens each by the estimate
    assert [len(texts) for _, _, texts in core.batches()] == [2]


def test_job_above_the_budget_runs_alone() -> None:
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


def test_busy_worker_gets_its_next_batch_just_in_time() -> None:
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


def test_interactive_job_does_not_wait_for_bulk_batches() -> None:
    core = Core()
    core.frontend()
    core.worker(credit=4, batch_tokens=100)
    core.submit(1, ["x" * 100] * 20, lane=Lane.BULK)
    core.tick(0.006)
    assert len(core.batches()) == 2
    core.submit(2, ["a", "b"])
    (urgent,) = core.batches()
    assert urgent[2] == ["a", "b"]
    core.submit(3, ["c"])
    core.submit(4, ["d"])
    assert core.batches() == []
    core.answer(urgent, credit=2)
    assert [texts for _, _, texts in core.batches()] == [["c", "d"]]


def test_batch_says_which_lane_it_is_of() -> None:
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
    done = {lane: 0 for lane in Lane}
    held: list[tuple[Lane, tuple[bytes, int, list[str]]]] = []
    while sum(done.values()) < 2000:
        for to, batch, frames in core.take(wire.Batch):
            texts = [str(part, "utf-8") for part in wire.split(frames[0], wire.unpack_u32(batch.lengths))]
            held.append((batch.lane, (to, batch.batch, texts)))
        # As a worker runs them: interactive ones first.
        held.sort(key=lambda one: (one[0], one[1][1]))
        lane, first = held.pop(0)
        core.now += 0.01
        core.answer(first, credit=4 - len(held))
        done[lane] += len(first[2])
    assert 0.15 < done[Lane.BULK] / 2000 < 0.25


def test_speed_is_learned_from_a_bulk_batch_with_all_that_overtook_it() -> None:
    core = Core()
    core.frontend()
    core.worker(credit=4, batch_tokens=1000, tokens_per_s=1000)
    speed = core.scheduler.pool.workers[b"W1"].speed
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


def test_credit_is_absolute_so_repeating_it_grants_nothing(core: Core) -> None:
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


def test_words_of_a_hundred_kilobytes_do_not_make_everybody_look_short(core: Core) -> None:
    for request in range(200):
        core.submit(request, ["a" * 100_000])
        ((peer, number, _),) = core.batches()
        core.handle(peer, wire.BatchResult(EPOCH, number, DIMENSION, wire.pack_u32([3]), [], 5, 2, number), bytes(16))
    assert core.scheduler.models["m"].tokens(Kind.TEXT, 1000) > 50


def test_input_costs_no_more_than_the_longest_that_the_model_takes() -> None:
    core = Core(Limits(max_tokens=500))
    core.frontend()
    core.worker(tokens_per_s=100)
    core.submit(1, ["a" * 100_000, "b" * 1_000_000])
    assert core.scheduler.ledger.tokens == 2 * 101
    core.submit(2, ["c"])
    assert core.failures() == []


def test_refused_inputs_do_not_make_their_worker_look_fast(core: Core) -> None:
    before = core.scheduler.pool.workers[b"W1"].speed.tokens_per_s
    for request in range(50):
        core.submit(request, ["a" * 100_000, "b"])
        (batch,) = core.batches()
        core.now += 0.01
        core.answer(batch, failures=[wire.JobFailure(0, ErrorCode.TOO_LONG, "long")])
    assert core.scheduler.pool.workers[b"W1"].speed.tokens_per_s == before


def test_batch_fits_its_frames_however_much_the_worker_wants() -> None:
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


def test_lengths_are_learned_from_results(core: Core) -> None:
    before = core.scheduler.models["m"].tokens(Kind.TEXT, 50)
    for request in range(50):
        core.submit(request, ["a" * 98])
        core.answer(*core.batches())
    assert core.scheduler.models["m"].tokens(Kind.TEXT, 50) > 2 * before


def test_frontend_that_does_not_read_its_answers_gets_no_more() -> None:
    core = Core(Limits(max_unread_bytes=3 * DIMENSION * 4))
    core.frontend()
    core.worker()
    for request in range(4):
        core.submit(request, ["a"])
        core.answer(*core.batches())
    core.submit(4, ["b"])
    assert core.failures() == [(4, -1, ErrorCode.OVERLOADED)]
    core.frontend(b"F2")
    core.submit(1, ["b"], b"F2")
    core.answer(*core.batches())
    assert core.answers(b"F2")
    core.handle(b"F1", wire.FrontendHeartbeat(DIMENSION * 4))
    core.submit(5, ["c"])
    core.answer(*core.batches())
    core.submit(6, ["d"])
    assert core.failures() == [(6, -1, ErrorCode.OVERLOADED)]
    core.frontend()
    core.submit(7, ["e"])
    assert core.failures() == []


# --- refusals --------------------------------------------------------------------------------------------------------


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
    core = Core(limits)
    core.frontend()
    core.worker()
    core.submit(1, ["aa", "bb", "cc"])
    assert core.failures() == [(1, -1, ErrorCode.OVERLOADED)]
    assert core.scheduler.ledger.jobs == 0
    core.submit(2, ["aa", "bb"])
    assert core.failures() == []


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
    assert core.scheduler.counters["duplicate_requests"] == 1


def test_job_that_the_worker_refuses_fails_alone(core: Core) -> None:
    core.submit(1, ["a", "long", "c"])
    core.answer(*core.batches(), failures=[wire.JobFailure(1, ErrorCode.TOO_LONG, "too long")])
    assert core.failures() == [(1, 1, ErrorCode.TOO_LONG)]
    assert core.answers() == {(1, 0): vector("a"), (1, 2): vector("c")}


# --- deadlines and cancellation --------------------------------------------------------------------------------------


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
    assert core.scheduler.ledger.jobs == 0


def test_deadlines_of_ended_requests_are_let_go_before_there_are_too_many(core: Core) -> None:
    core.submit(1, ["stays"], budget_ms=20_000)
    (held,) = core.batches()
    for request in range(2, 2 * MAX_ENDED):
        core.submit(request, ["a"])
        core.handle(b"F1", wire.Cancel(wire.pack_u64([request])))
    assert len(core.scheduler.ledger._deadlines) <= MAX_ENDED + 3
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
    assert core.scheduler.ledger.jobs == 0
    core.handle(b"F1", wire.FrontendHeartbeat())
    assert core.take(wire.Who, b"F1")


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


# --- workers leave and die -------------------------------------------------------------------------------------------


def test_dead_workers_batch_goes_to_another(core: Core) -> None:
    core.submit(1, ["a"])
    core.batches()
    core.worker(b"W2")
    core.lost(b"W1")
    (batch,) = core.batches()
    assert batch[0] == b"W2"
    core.answer(batch)
    assert core.answers() == {(1, 0): vector("a")}


def test_jobs_that_saw_a_worker_die_run_alone_and_the_culprit_is_poison(core: Core) -> None:
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


def test_worker_that_is_back_in_time_acquits_the_job_on_trial() -> None:
    core = Core(Limits(max_crashes=1))
    core.frontend()
    core.worker()
    core.submit(1, ["a"])
    core.batches()
    core.lost(b"W1")
    core.worker(b"W2", uuid=b"W1")
    assert core.batches() == []
    core.now += TRIAL_S
    core.handle(b"F1", wire.FrontendHeartbeat())
    core.answer(*core.batches())
    assert core.answers() == {(1, 0): vector("a")}


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
    assert core.scheduler.ledger.jobs == 0


def test_known_poison_is_refused_at_the_door_for_a_while() -> None:
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
    core.now += BLOCKED_S
    core.frontend()
    core.worker(b"W3")
    core.submit(3, ["bad"])
    assert len(core.batches()) == 1


def test_remembered_ends_of_workers_are_bounded(core: Core) -> None:
    blame = Blame(Limits())
    core.submit(1, ["a"])
    worker = core.scheduler.pool.workers[b"W1"]
    (lease,) = worker.leases.values()
    for number in range(MAX_REMEMBERED + 10):
        worker.incarnation = number
        blame.crashed(worker, lease, 0.0)
    assert len(blame._crashed) == MAX_REMEMBERED


def test_blocked_inputs_are_bounded(core: Core) -> None:
    core.submit(1, [str(number) for number in range(MAX_BLOCKED + 5)])
    blame = Blame(Limits())
    jobs = core.scheduler.models["m"].queue.waiting()
    jobs += [job for lease in core.scheduler.pool.workers[b"W1"].leases.values() for job in lease.jobs]
    for job in jobs:
        blame.block(job, core.now)
    assert len(blame.blocked(jobs, core.now)) == MAX_BLOCKED


def test_story_tells_what_happened_to_a_job(core: Core) -> None:
    core.submit(1, ["a"])
    core.batches()
    core.lost(b"W1")
    core.worker(b"W2")
    core.answer(*core.batches())
    owner = next(iter(core.scheduler.ledger.by_uuid))
    words = [line.split()[1] for line in core.scheduler.story(owner, 1, 0)]
    assert words == ["admitted", "dispatched", "returned", "dispatched", "ended"]
    assert core.scheduler.story(owner, 2, 0) == []


def test_job_that_would_end_twice_is_a_loud_fault_with_its_story(core: Core) -> None:
    core.submit(1, ["a"])
    ((_, lease),) = core.scheduler.pool.workers[b"W1"].leases.items()
    core.answer(*core.batches())
    with pytest.raises(LocalProtocolError, match=r"ends twice: .* admitted .* dispatched .* ended"):
        core.scheduler._close(lease.jobs[0])


def test_only_the_running_batch_is_blamed() -> None:
    core = Core()
    core.frontend()
    core.worker(batch_tokens=10)
    core.submit(1, ["running"])
    core.submit(2, ["x" * 30])
    core.tick(0.1)
    assert len(core.batches()) == 2
    core.lost(b"W1")
    waiting = core.scheduler.models["m"].queue.waiting()
    assert [(job.request, job.crashes) for job in waiting] == [(1, 1), (2, 0)]


def test_of_each_lane_the_running_batch_is_blamed() -> None:
    core = Core(Limits(max_crashes=1))
    core.frontend()
    core.worker(credit=4, batch_tokens=20)
    core.submit(1, ["a" * 60, "b" * 60], lane=Lane.BULK)
    core.tick(0.003)
    core.submit(2, ["c"])
    assert [texts for _, _, texts in core.batches()] == [["a" * 60], ["b" * 60], ["c"]]
    core.lost(b"W1")
    core.worker(b"W2", credit=4)
    assert [texts for _, _, texts in core.batches()] == [["b" * 60]]
    assert sorted(job.request for job in core.scheduler.on_trial()) == [1, 2]


def test_suspect_runs_beside_nothing_else() -> None:
    core = Core()
    core.frontend()
    core.worker(credit=4)
    core.submit(1, ["a"], lane=Lane.BULK)
    core.submit(2, ["b"])
    core.batches()
    core.lost(b"W1")
    core.worker(b"W1", credit=4)
    core.submit(3, ["c"])
    ran = []
    for _ in range(2):
        (alone,) = core.batches()
        ran += alone[2]
        core.tick(0.5)
        assert core.batches() == []
        core.answer(alone, credit=4)
    assert sorted(ran) == ["a", "b"]
    assert [texts for _, _, texts in core.batches()] == [["c"]]


def test_suspect_waits_until_a_worker_is_idle() -> None:
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


def test_requeued_jobs_keep_their_place_at_the_head() -> None:
    core = Core()
    core.frontend()
    core.worker(batch_tokens=10)
    for request in range(4):
        core.submit(request, ["x" * 30])
    core.tick(0.1)
    assert len(core.batches()) == 2
    core.handle(b"W1", wire.WorkerGoodbye())
    assert [job.request for job in core.scheduler.models["m"].queue.waiting()] == [0, 1, 2, 3]


def test_leaving_worker_blames_nobody(core: Core) -> None:
    core.submit(1, ["a", "b"])
    core.batches()
    core.handle(b"W1", wire.WorkerGoodbye())
    core.worker(b"W2")
    assert core.batches() == [(b"W2", 2, ["a", "b"])]


def test_draining_worker_gets_nothing_new_and_its_unstarted_batch_goes_elsewhere() -> None:
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


def test_worker_that_is_killed_while_it_drains_blames_nobody() -> None:
    core = Core(Limits(max_crashes=1))
    core.frontend()
    core.worker()
    core.submit(1, ["a"])
    core.batches()
    core.handle(b"W1", wire.WorkerDrain(b""))
    core.lost(b"W1")
    assert core.scheduler.counters["workers_evicted"] == 1
    core.worker(b"W2")
    assert [texts for _, _, texts in core.batches()] == [["a"]]


def test_batch_that_hangs_a_draining_worker_is_blamed() -> None:
    core = Core(Limits(max_crashes=1, lease_s=1))
    core.frontend()
    core.worker()
    core.submit(1, ["a"])
    core.batches()
    core.handle(b"W1", wire.WorkerDrain(b""))
    core.tick(1.0)
    assert len(core.scheduler.on_trial()) == 1


def test_draining_worker_that_gives_back_what_it_never_had_changes_nothing(core: Core) -> None:
    core.submit(1, ["a"])
    (batch,) = core.batches()
    core.handle(b"W1", wire.WorkerDrain(wire.pack_u64([batch[1] + 1])))
    core.answer(batch)
    assert core.answers() == {(1, 0): vector("a")}


def test_refusal_of_a_job_that_is_no_longer_open_is_not_told(core: Core) -> None:
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


def test_heartbeats_keep_a_worker_until_its_lease_ends() -> None:
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


def test_lease_of_a_stuck_batch_is_not_renewed_by_other_batches_answers() -> None:
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


def test_connection_that_ends_twice_under_a_living_worker_makes_nobody_poison(core: Core) -> None:
    core.submit(1, ["a"])
    for connection in (b"W2", b"W3", b"W4"):
        core.batches()
        core.lost(next(iter(core.scheduler.pool.workers)))
        core.worker(connection, uuid=b"W1")
    core.answer(*core.batches())
    assert core.answers() == {(1, 0): vector("a")}


def test_failed_batch_runs_again_job_by_job_and_only_the_culprit_fails(core: Core) -> None:
    core.submit(1, ["good", "bad", "fine"])
    core.fail(*core.batches())
    for _ in range(3):
        (batch,) = core.batches()
        assert len(batch[2]) == 1
        core.fail(batch) if batch[2] == ["bad"] else core.answer(batch)
    assert core.failures() == [(1, 1, ErrorCode.DEVICE)]
    assert core.answers() == {(1, 0): vector("good"), (1, 2): vector("fine")}
    assert core.batches() == []


def test_job_that_fails_once_gets_another_try(core: Core) -> None:
    core.submit(1, ["a"])
    core.fail(*core.batches())
    core.answer(*core.batches())
    assert core.answers() == {(1, 0): vector("a")}


def test_result_of_another_shape_is_not_served_and_its_jobs_are_tried_elsewhere(core: Core) -> None:
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
    assert core.scheduler.counters["late_answers"] == 2


def test_worker_that_says_hello_again_on_its_connection_keeps_serving(core: Core) -> None:
    core.submit(1, ["a"])
    (first,) = core.batches()
    core.worker()
    (again,) = core.batches()
    core.answer(first)
    assert core.answers() == {}
    core.answer(again)
    assert core.answers() == {(1, 0): vector("a")}
    assert core.take(wire.Goodbye) == []


def test_worker_on_a_new_connection_replaces_its_old_one(core: Core) -> None:
    core.worker(b"W2", uuid=b"W1")
    assert list(core.scheduler.pool.workers) == [b"W2"]
    assert core.take(wire.Goodbye, b"W1")


# --- no worker -------------------------------------------------------------------------------------------------------


def test_jobs_wait_for_a_worker_to_come_back(core: Core) -> None:
    core.lost(b"W1")
    core.submit(1, ["a"], budget_ms=60_000)
    core.worker(b"W2")
    assert core.batches() == [(b"W2", 1, ["a"])]


def test_without_a_worker_for_longer_than_the_grace_requests_fail() -> None:
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


# --- peers -----------------------------------------------------------------------------------------------------------


def test_without_a_grace_a_served_model_is_served() -> None:
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


def test_frontend_is_told_of_models_as_they_come_and_go() -> None:
    core = Core()
    core.frontend()
    core.worker()
    core.worker(b"W2")
    core.lost(b"W1")
    core.lost(b"W2")
    seen = [[model.workers for model in message.models] for _, message, _ in core.take(wire.Models, b"F1")]
    assert seen == [[], [1], [2], [1], [0]]


def test_second_revision_of_a_model_is_refused_while_the_first_is_served(core: Core) -> None:
    core.worker(b"W2", revision="other")
    ((_, goodbye, _),) = core.take(wire.Goodbye, b"W2")
    assert goodbye.code == ErrorCode.REVISION_CONFLICT
    core.lost(b"W1")
    core.worker(b"W2", revision="other")
    assert core.scheduler.models["m"].info == ModelInfo("m", "other", DIMENSION, 100)


def test_request_never_has_vectors_of_two_revisions() -> None:
    core = Core()
    core.frontend()
    core.worker(batch_tokens=5)
    core.submit(1, ["a", "b" * 90])
    core.submit(2, ["c"])
    core.answer(*core.batches())
    core.batches()
    core.lost(b"W1")
    core.worker(b"W2", revision="new")
    assert core.failures() == [(1, -1, ErrorCode.NO_WORKER)]
    core.answer(*core.batches())
    assert (2, 0) in core.answers()


def test_draining_worker_does_not_count_as_serving(core: Core) -> None:
    core.take(wire.Models)
    core.handle(b"W1", wire.WorkerDrain(b""))
    ((_, models, _),) = core.take(wire.Models, b"F1")
    assert [model.workers for model in models.models] == [0]
    core.worker(b"W2", revision="other")
    ((_, goodbye, _),) = core.take(wire.Goodbye, b"W2")
    assert goodbye.code == ErrorCode.REVISION_CONFLICT


def test_models_that_nobody_serves_are_forgotten_in_the_end(core: Core) -> None:
    core.lost(b"W1")
    core.tick(FORGET_MODEL_S)
    assert core.scheduler.models == {}


def test_worker_of_two_models_serves_both() -> None:
    core = Core()
    core.frontend()
    models = [ModelInfo("a", "r", DIMENSION, 100), ModelInfo("b", "r", DIMENSION, 100)]
    core.handle(b"W1", wire.WorkerHello(1, 1, "test", b"." * 16, 1, "host", 1, "CPU", models, 10, 1000, 1))
    for request in range(6):
        core.now += 0.001
        core.submit(request, ["x" * 20], model="ab"[request % 2])
    served = []
    for _ in range(6):
        ((peer, batch, frames),) = core.take(wire.Batch)
        served.append(batch.model)
        core.answer((peer, batch.batch, [str(bytes(frames[0]), "utf-8")]), credit=1)
    assert served == ["a", "b"] * 3


@pytest.mark.parametrize("versions", [(0, 0), (2, 9)])
def test_peer_without_a_common_protocol_version_is_refused(core: Core, versions: tuple[int, int]) -> None:
    core.handle(b"F9", wire.FrontendHello(*versions, "test", b"." * 16, 1, "host", 1))
    core.handle(b"W9", wire.WorkerHello(*versions, "test", b"." * 16, 1, "host", 1, "CPU", [], 1, 1, 1))
    codes = [(peer, goodbye.code) for peer, goodbye, _ in core.take(wire.Goodbye)]
    assert codes == [(b"F9", ErrorCode.PROTOCOL), (b"W9", ErrorCode.PROTOCOL)]
    assert b"W9" not in core.scheduler.pool.workers


def test_stranger_is_asked_who_it_is_and_leaves_no_state(core: Core) -> None:
    core.handle(b"W9", wire.WorkerHeartbeat(2, 0))
    core.submit(1, ["a"], b"F9")
    assert [peer for peer, _, _ in core.take(wire.Who)] == [b"W9", b"F9"]
    assert core.scheduler.ledger.jobs == 0


def test_heartbeats_are_answered(core: Core) -> None:
    core.submit(1, ["a"])
    core.answer(*core.batches())
    core.handle(b"W1", wire.WorkerHeartbeat(2, 1))
    core.handle(b"F1", wire.FrontendHeartbeat())
    assert core.take(wire.Heartbeat, b"W1")
    ((_, stats, _),) = core.take(wire.Stats, b"F1")
    assert stats.counters["jobs_answered"] == 1
    assert [(one.name, one.answered_jobs) for one in stats.workers] == [("host/1", 1)]


def test_goodbye_of_a_frontend_cancels_what_it_is_owed(core: Core) -> None:
    core.submit(1, ["a"])
    core.handle(b"F1", wire.FrontendGoodbye())
    assert core.scheduler.ledger.jobs == 0
    assert core.scheduler.counters["jobs_cancelled"] == 1


def test_frontend_that_leaves_with_open_requests_is_a_loud_fault(core: Core) -> None:
    core.submit(1, ["a"])
    with pytest.raises(LocalProtocolError, match="open requests"):
        core.scheduler.ledger.leave(core.scheduler.ledger.by_peer[b"F1"])


def test_broken_invariant_is_loud(core: Core) -> None:
    core.scheduler.ledger.jobs += 1
    with pytest.raises(LocalProtocolError, match="number of open jobs"):
        core.scheduler.check()
