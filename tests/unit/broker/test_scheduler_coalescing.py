"""Coalescing in the scheduler: equal inputs that are being computed, and what ends them."""

import pytest

from broker.core import reuse
from broker.core.blame import TRIAL_S
from broker.core.limits import Limits
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from broker.wire.protocol import Caching, Lane, Source
from tests.harness.core import Core, vector
from tests.unit.broker.test_scheduler_cache import answer_all, count, sources, start


def cancel(core: Core, *numbers: int) -> None:
    core.handle(b"F1", wire.Cancel(wire.pack_u64(numbers)))


def end_trial(core: Core) -> None:
    core.tick(TRIAL_S / 2)
    core.handle(b"F1", wire.FrontendHeartbeat())
    core.tick(TRIAL_S / 2)


def follow(core: Core, followers: int = 2, text: str = "aa", **options: object) -> tuple[bytes, int, list[str]]:
    """Submit equal requests 1, 2, … and return the batch of the first one, which the others follow."""
    for number in range(1, followers + 2):
        core.submit(number, [text], **options)  # type: ignore[arg-type]
    (batch,) = core.batches()
    assert batch[2] == [text]
    assert len(list(core.scheduler.state.coalescing.list_followers())) == followers
    return batch


def test_flood_of_one_text_is_computed_once() -> None:
    core = start(workers=2)
    for number in range(300):
        core.submit(number, ["aa"])
    assert answer_all(core) == ["aa"]
    for _ in range(3):
        core.tick()
    assert core.answers() == {(number, 0): vector("aa") for number in range(300)}
    assert count(core) == {"hits": 0, "coalesced": 299, "misses": 1, "evictions": 0}


def test_flood_that_waits_for_a_worker_is_computed_once() -> None:
    core = Core(cache=True)
    core.frontend()
    core.worker(credit=0)
    for number in range(30):
        core.submit(number, ["aa", "bb"])
    core.handle(b"W1", wire.WorkerHeartbeat(2, 0))
    assert sorted(answer_all(core)) == ["aa", "bb"]
    assert len(core.answers()) == 60


def test_equal_inputs_of_one_request_are_computed_once() -> None:
    core = start()
    core.submit(1, ["header", "a", "header", "b", "header"])
    (batch,) = core.batches()
    assert batch[2] == ["header", "a", "b"]
    core.answer(batch)
    found = {(1, at): vector(text) for at, text in enumerate(["header", "a", "header", "b", "header"])}
    assert core.answers() == found
    assert core.scheduler.open_jobs == 0


def test_source_of_each_row_is_named() -> None:
    core = start()
    core.answer(follow(core, 1))
    core.submit(3, ["aa"])
    assert sources(core) == {(1, 0): Source.COMPUTED, (2, 0): Source.COALESCED, (3, 0): Source.CACHE}


def test_follower_keeps_its_own_deadline() -> None:
    core = start()
    core.submit(1, ["aa"])
    core.submit(2, ["aa"], budget_ms=50)
    core.tick(0.1)
    assert core.failures() == [(2, 0 - 1, ErrorCode.DEADLINE)]
    core.answer(core.batches()[0])
    assert core.answers() == {(1, 0): vector("aa")}


def test_cancelled_follower_gets_no_answer() -> None:
    core = start()
    batch = follow(core)
    cancel(core, 2)
    core.answer(batch)
    assert core.answers().keys() == {(1, 0), (3, 0)}


def test_clients_of_another_scope_do_not_follow() -> None:
    core = start(workers=2)
    core.submit(1, ["aa"], client="key one")
    core.submit(2, ["aa"], client="key two")
    assert [batch[2] for batch in core.batches()] == [["aa"], ["aa"]]


@pytest.mark.parametrize("caching", [Caching.REFRESH, Caching.SKIP])
def test_request_without_look_up_follows_no_other(caching: Caching) -> None:
    core = start(workers=2)
    core.submit(1, ["aa"])
    core.submit(2, ["aa"], caching=caching)
    assert [batch[2] for batch in core.batches()] == [["aa"], ["aa"]]


def test_computed_refresh_leads_others() -> None:
    core = start()
    core.submit(1, ["aa"], caching=Caching.REFRESH)
    core.submit(2, ["aa"])
    core.answer(core.batches()[0])
    assert core.answers().keys() == {(1, 0), (2, 0)}


# --- lanes -----------------------------------------------------------------------------------------------------------


def test_interactive_input_does_not_wait_for_a_bulk_batch() -> None:
    core = start()
    core.submit(1, ["aa"], lane=Lane.BULK)
    core.submit(2, ["aa"], lane=Lane.BULK)
    core.submit(3, ["aa"], lane=Lane.INTERACTIVE)
    bulk, interactive = core.batches()
    assert interactive[2] == ["aa"]
    core.answer(interactive)
    # The bulk input that waited is answered with it; the one that runs is answered by its own batch.
    assert core.answers().keys() == {(2, 0), (3, 0)}
    core.answer(bulk)
    assert core.answers() == {(1, 0): vector("aa")}


def test_first_result_answers_all_that_wait() -> None:
    core = start()
    core.submit(1, ["aa"], lane=Lane.BULK)
    core.submit(2, ["aa"], lane=Lane.INTERACTIVE)
    core.submit(3, ["aa"], lane=Lane.INTERACTIVE)
    bulk, interactive = core.batches()
    core.answer(bulk)
    assert core.answers().keys() == {(1, 0), (3, 0)}
    core.answer(interactive)
    assert core.answers() == {(2, 0): vector("aa")}


def test_bulk_input_follows_an_interactive_one() -> None:
    core = start()
    core.submit(1, ["aa"], lane=Lane.INTERACTIVE)
    core.submit(2, ["aa"], lane=Lane.BULK)
    core.answer(core.batches()[0])
    assert core.answers().keys() == {(1, 0), (2, 0)}


# --- the leader ends -------------------------------------------------------------------------------------------------


def test_follower_takes_the_place_of_a_cancelled_leader() -> None:
    core = start()
    batch = follow(core)
    cancel(core, 1)
    core.submit(9, ["aa"])
    assert core.batches() == []
    core.answer(batch)
    assert core.answers() == {(number, 0): vector("aa") for number in (2, 3, 9)}


def test_leader_without_open_followers_is_forgotten() -> None:
    core = start()
    follow(core, 1)
    cancel(core, 2, 1)
    assert not core.scheduler.state.coalescing.leaders
    assert not core.scheduler.state.coalescing.followers


def test_leader_that_fails_by_its_own_fault_fails_followers() -> None:
    core = start()
    batch = follow(core)
    core.answer(batch, failures=[wire.JobFailure(0, ErrorCode.TOO_LONG, "long")])
    assert core.failures() == [(number, 0, ErrorCode.TOO_LONG) for number in (1, 2, 3)]
    assert core.answers() == {}


def test_failure_of_another_cause_fails_no_follower() -> None:
    """A job that does not lead any more ends alone."""
    core = start()
    core.submit(1, ["aa"], lane=Lane.BULK)
    core.submit(2, ["aa"], lane=Lane.INTERACTIVE)
    core.submit(3, ["aa"], lane=Lane.INTERACTIVE)
    bulk, interactive = core.batches()
    core.answer(bulk, failures=[wire.JobFailure(0, ErrorCode.TOO_LONG, "long")])
    assert core.failures() == [(1, 0, ErrorCode.TOO_LONG)]
    core.answer(interactive)
    assert core.answers().keys() == {(2, 0), (3, 0)}


def test_death_of_a_worker_changes_no_follower() -> None:
    core = start(workers=2)
    batch = follow(core)
    core.lost(batch[0])
    assert answer_all(core) == ["aa"]
    assert core.answers() == {(number, 0): vector("aa") for number in (1, 2, 3)}


def test_followers_of_a_returned_batch_return_to_their_queues() -> None:
    core = start()
    core.submit(1, ["aa"], lane=Lane.BULK)
    core.submit(2, ["aa"], lane=Lane.BULK)
    ((peer, number, _),) = core.batches()
    core.handle(peer, wire.WorkerDrain(wire.pack_u64([number])))
    assert sorted(core.waiting()) == [(1, 0), (2, 0)]
    core.worker(b"W2")
    assert answer_all(core) == ["aa"]
    assert core.answers().keys() == {(1, 0), (2, 0)}
    assert count(core)["misses"] == 1


def test_cancelled_follower_returns_to_no_queue() -> None:
    core = start()
    batch = follow(core, 1)
    cancel(core, 2)
    core.handle(batch[0], wire.WorkerDrain(wire.pack_u64([batch[1]])))
    assert core.waiting() == [(1, 0)]


def test_poison_fails_followers_after_its_trial() -> None:
    core = start(workers=3)
    batch = follow(core)
    for _ in range(2):
        core.lost(batch[0])
        batch = (core.batches() or [batch])[0]
    end_trial(core)
    assert core.failures() == [(number, 0, ErrorCode.POISON) for number in (1, 2, 3)]


def test_device_failure_fails_followers_alike() -> None:
    core = start()
    batch = follow(core)
    core.fail(batch)
    (batch,) = core.batches()
    core.fail(batch)
    assert core.failures() == [(number, 0, ErrorCode.DEVICE) for number in (1, 2, 3)]


def test_follower_takes_the_place_of_a_waiting_suspect() -> None:
    core = start()
    batch = follow(core)
    core.lost(batch[0])
    cancel(core, 1)
    core.worker(b"W2")
    (batch,) = core.batches()
    (lease,) = core.scheduler.state.pool.workers[b"W2"].leases.values()
    assert lease.jobs[0].suspect
    assert lease.jobs[0].crashes == 1
    core.answer(batch)
    assert core.answers().keys() == {(2, 0), (3, 0)}


def test_follower_takes_the_place_of_a_running_suspect() -> None:
    core = start(workers=2)
    batch = follow(core)
    core.lost(batch[0])
    (batch,) = core.batches()
    cancel(core, 1)
    core.answer(batch)
    assert core.answers().keys() == {(2, 0), (3, 0)}


def test_follower_of_a_job_on_trial_runs_once_more() -> None:
    core = start(workers=3)
    batch = follow(core)
    core.lost(batch[0])
    core.lost(core.batches()[0][0])
    cancel(core, 1)
    (batch,) = core.batches()
    (lease,) = core.scheduler.state.pool.workers[batch[0]].leases.values()
    assert (lease.jobs[0].suspect, lease.jobs[0].crashes) == (True, 1)
    core.lost(batch[0])
    end_trial(core)
    assert core.failures() == [(2, 0, ErrorCode.POISON), (3, 0, ErrorCode.POISON)]


def test_followers_fail_with_a_suspect_without_a_worker() -> None:
    core = start(Limits(worker_grace_s=1.0))
    batch = follow(core, 5)
    core.lost(batch[0])
    core.tick(1.0)
    assert core.failures() == [(number, -1, ErrorCode.NO_WORKER) for number in range(1, 7)]
    assert core.scheduler.open_jobs == 0


def test_lost_frontend_leaves_followers_of_others() -> None:
    core = start()
    core.frontend(b"F2")
    core.submit(1, ["aa"], client="key one")
    core.submit(2, ["aa"], b"F2", client="key one")
    (batch,) = core.batches()
    core.lost(b"F1")
    core.answer(batch)
    assert core.answers(b"F2") == {(2, 0): vector("aa")}


def test_followers_of_other_models_leases_stay() -> None:
    core = start()
    core.worker(b"W2", model="n")
    core.submit(8, ["aa"], model="n")
    batches = core.batches()
    batch = follow(core, 1)
    cancel(core, 1)
    core.answer(batch)
    core.answer(batches[0])
    assert core.answers().keys() == {(2, 0), (8, 0)}


# --- limits of a call ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", ["answered", "failed", "returned"])
def test_many_followers_are_settled_in_parts(outcome: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "MAX_SETTLED", 10)
    core = start(Limits(max_wait_s=1e6))
    batch = follow(core, 25)
    if outcome == "answered":
        core.answer(batch)
    elif outcome == "failed":
        core.answer(batch, failures=[wire.JobFailure(0, ErrorCode.TOO_LONG, "long")])
    else:
        core.handle(batch[0], wire.WorkerDrain(wire.pack_u64([batch[1]])))
    assert core.scheduler.next_deadline() == core.now
    cancel(core, 20)
    for _ in range(3):
        core.tick()
    assert core.scheduler.state.coalescing.due is None
    ended = [key for key in core.answers()] + [failure[:2] for failure in core.failures()]
    assert len(ended) == (0 if outcome == "returned" else 25)
    assert len(core.waiting()) == (25 if outcome == "returned" else 0)
