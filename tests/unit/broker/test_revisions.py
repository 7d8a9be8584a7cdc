"""Models that workers add, replace, remove, unload and load while they serve.

Each call of the scheduler is followed by a check of all invariants; see `tests/harness/core.py`.
"""

import pytest

from broker.core.limits import Limits
from broker.core.revisions import FORGET_S, LINGER_S, LOAD_AGAIN_S, LOAD_WAIT_S
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode, LocalProtocolError
from broker.wire.protocol import Availability, ModelKey, ModelState
from tests.harness.core import KEY, Core, info, vector

NEW = ModelKey("m", "s")


def read_models(core: Core) -> dict[str, tuple[str, int]]:
    """Take the lists of models sent to F1, and return the revision and number of workers of each model in the last."""
    message = core.take(wire.Models, b"F1")[-1][1]
    return {model.name: (model.revision, model.workers) for model in message.models}


def read_states(core: Core) -> dict[str, tuple[Availability, str]]:
    """Take the lists of models sent to F1, and return the state of each model in the last."""
    message = core.take(wire.Models, b"F1")[-1][1]
    return {state.name: (state.state, state.text) for state in message.states}


# --- adding ----------------------------------------------------------------------------------------------------------


def test_added_model_is_served(core: Core) -> None:
    core.announce(info(), info("n"))
    assert read_models(core) == {"m": ("r", 1), "n": ("r", 1)}
    core.submit(1, ["a"], model="n")
    ((_, batch, _),) = core.take(wire.Batch)
    assert (batch.model, batch.revision) == ("n", "r")


def test_each_model_has_its_own_speed(core: Core) -> None:
    core.announce(info(), info("n", batch_tokens=50, tokens_per_s=20))
    worker = core.scheduler.state.pool.workers[b"W1"]
    speeds = {key.name: (model.batch_tokens, round(model.tokens_per_s)) for key, model in worker.models.items()}
    assert speeds == {"m": (1000, 9616), "n": (50, 20)}


def test_other_models_tokens_teach_no_speed() -> None:
    """A bulk batch that shared the worker with another model's batch says little about its own model."""
    core = Core()
    core.frontend()
    core.worker(credit=4)
    core.announce(info(), info("n"))
    core.submit(1, ["a" * 90], lane=wire.Lane.BULK)
    (bulk,) = core.batches()
    before = core.scheduler.state.pool.workers[b"W1"].models[KEY].tokens_per_s
    core.tick(0.001)
    core.submit(2, ["b" * 90], model="n")
    core.tick(0.001)
    core.answer(*core.batches(), credit=4)
    (lease,) = core.scheduler.state.pool.workers[b"W1"].leases.values()
    assert (lease.overlap, lease.overlap_s > 0) == (0, True)
    core.tick(1)
    core.answer(bulk, credit=4)
    assert core.scheduler.state.pool.workers[b"W1"].models[KEY].tokens_per_s == before


def test_draining_worker_changes_no_models(core: Core) -> None:
    core.handle(b"W1", wire.WorkerDrain(b""))
    core.take(wire.Models)
    core.announce(info(revision="s"), info("n"))
    core.tick(1)
    assert core.scheduler.state.current["m"] == KEY
    assert "n" not in core.scheduler.state.current


# --- replacing -------------------------------------------------------------------------------------------------------


def test_replacement_gets_new_requests(core: Core) -> None:
    core.submit(1, ["old"])
    (old,) = core.batches()
    core.announce(info(revision="s"))
    assert read_models(core) == {"m": ("s", 1)}
    assert core.scheduler.count_totals()["models_replaced"] == 1
    core.tick(1)
    core.submit(2, ["new"])
    ((peer, batch, _),) = core.take(wire.Batch)
    assert batch.revision == "s"
    core.answer((peer, batch.batch, ["new"]))
    core.answer(old)
    messages = core.take(wire.Answers)
    assert [message.revision for _, message, _ in messages] == ["s", "r"]


def test_waiting_request_keeps_its_revision() -> None:
    core = Core()
    core.frontend()
    core.worker(batch_tokens=5, credit=1)
    core.submit(1, ["a" * 20, "b" * 20, "c" * 20])
    core.announce(info(revision="s"))
    core.submit(2, ["new"])
    revisions = []
    for _ in range(4):
        ((peer, batch, frames),) = core.take(wire.Batch)
        revisions.append(batch.revision)
        core.answer((peer, batch.batch, [str(frames[0], "utf-8")]), credit=1)
        core.tick(0.5)
    assert revisions == ["r", "r", "r", "s"]
    assert core.failures() == []


def test_old_revision_is_released_after_its_last_request(core: Core) -> None:
    core.submit(1, ["a"])
    (batch,) = core.batches()
    core.announce(info(revision="s"), number=7)
    core.tick(LINGER_S + 1)
    assert core.releases() == []
    core.answer(batch)
    ((_, release, _),) = core.take(wire.Release)
    assert release == wire.Release("m", "r", 7)
    assert list(core.scheduler.state.pool.workers[b"W1"].models) == [NEW]


def test_old_revision_is_kept_for_waiting_requests() -> None:
    core = Core()
    core.frontend()
    core.worker(credit=0)
    core.submit(1, ["a"])
    core.announce(info(revision="s"))
    core.tick(2 * LINGER_S)
    assert core.releases() == []
    core.handle(b"W1", wire.WorkerHeartbeat(1, 0))
    core.answer(*core.batches())
    assert core.releases() == [(b"W1", "m", "r")]


def test_old_revision_is_kept_for_requests_on_their_way(core: Core) -> None:
    """A frontend prepared the request before the broker's message about the new revision arrived."""
    core.announce(info(revision="s"))
    assert core.scheduler.next_deadline() == core.now + LINGER_S
    core.submit(1, ["a"], revision="r")
    ((peer, batch, _),) = core.take(wire.Batch)
    assert batch.revision == "r"
    core.answer((peer, batch.batch, ["a"]))
    core.tick(LINGER_S)
    assert core.releases() == [(b"W1", "m", "r")]


def test_request_for_released_revision_is_sent_back(core: Core) -> None:
    core.announce(info(revision="s"))
    core.tick(LINGER_S)
    core.submit(1, ["a"], revision="r")
    assert core.failures() == [(1, -1, ErrorCode.REPLACED)]
    core.submit(1, ["a"], revision="s")
    core.answer(*core.batches())
    assert core.answers() == {(1, 0): vector("a")}


def test_workers_change_at_different_moments(core: Core) -> None:
    core.worker(b"W2")
    core.announce(info(revision="s"))
    # W2 keeps the old revision in memory, so that W1 need not.
    assert core.releases() == [(b"W1", "m", "r")]
    core.submit(1, ["old"], revision="r")
    core.submit(2, ["new"])
    sent = {batch.revision: peer for peer, batch, _ in core.take(wire.Batch)}
    assert sent == {"r": b"W2", "s": b"W1"}
    core.announce(info(revision="s"), peer=b"W2")
    assert read_models(core) == {"m": ("s", 2)}
    assert core.scheduler.count_totals()["models_replaced"] == 1


def test_requests_of_last_old_worker_start_again(core: Core) -> None:
    core.worker(b"W2")
    core.submit(1, ["a"])
    core.submit(2, ["b"])
    core.announce(info(revision="s"))
    core.announce(info(revision="s"), peer=b"W2")
    core.tick()
    for batch in core.batches():
        core.lost(batch[0])
    core.tick()
    assert core.failures() == []
    # Without any worker, they wait: a worker of either revision may come.
    core.worker(b"W3", revision="s")
    core.tick()
    assert sorted(core.failures()) == [(1, -1, ErrorCode.REPLACED), (2, -1, ErrorCode.REPLACED)]


def test_replaced_request_is_charged_once() -> None:
    core = Core()
    core.frontend()
    core.worker(batch_tokens=5)
    core.submit(1, ["x" * 300], client="c", client_tokens=110)
    core.batches()
    core.lost(b"W1")
    core.worker(b"W2", revision="s")
    core.tick()
    assert core.failures() == [(1, -1, ErrorCode.REPLACED)]
    core.submit(1, ["x" * 300], client="c", client_tokens=110)
    assert core.failures() == []


def test_restored_revision_stays_in_memory(core: Core) -> None:
    core.announce(info(revision="s"))
    core.announce(info())
    core.tick(2 * LINGER_S)
    assert core.releases() == [(b"W1", "m", "s")]
    assert read_models(core) == {"m": ("r", 1)}


def test_replacement_of_old_revision_takes_nothing_over(core: Core) -> None:
    """A slow host has not seen the newest configuration."""
    core.worker(b"W2")
    core.announce(info(revision="t"))
    core.announce(info(revision="s"), peer=b"W2")
    assert read_models(core) == {"m": ("t", 1)}
    core.announce(info(revision="t"), peer=b"W2")
    assert read_models(core) == {"m": ("t", 2)}
    assert core.scheduler.count_totals()["models_replaced"] == 1


def test_worker_that_reconnects_with_old_revision_is_welcome(core: Core) -> None:
    core.worker(b"W2")
    core.announce(info(revision="s"))
    core.worker(b"W3", uuid=b"W2")
    assert core.take(wire.Goodbye, b"W3") == []
    assert read_models(core) == {"m": ("s", 1)}


def test_old_revision_does_not_return_at_once(core: Core) -> None:
    core.announce(info(revision="s"))
    core.lost(b"W1")
    core.worker(b"W2", revision="r")
    assert core.scheduler.state.current == {"m": NEW}


def test_old_revision_returns_after_the_grace(core: Core) -> None:
    core.worker(b"W2")
    core.announce(info(revision="s"))
    core.submit(1, ["a"], budget_ms=10**6)
    core.lost(b"W1")
    grace_s = core.scheduler.state.limits.worker_grace_s
    for _ in range(int(grace_s) - 1):
        core.tick(1)
        core.handle(b"W2", wire.WorkerHeartbeat(2, 0))
        core.handle(b"F1", wire.FrontendHeartbeat())
    assert core.batches(b"W2") == []
    assert core.scheduler.next_deadline() == core.now + 1
    core.tick(1)
    assert read_models(core) == {"m": ("r", 1)}
    assert core.failures() == [(1, -1, ErrorCode.REPLACED)]
    core.submit(1, ["a"], revision="r")
    assert core.batches(b"W2")


def test_stray_revision_beside_a_good_model_is_unused(core: Core) -> None:
    hello = wire.WorkerHello(
        1, 1, "test", b"2" * 16, 1, "host", 2, "CPU", [info(revision="stray"), info("n")], 10, 10, 2
    )
    core.handle(b"W2", hello)
    ((_, welcome, _),) = core.take(wire.Welcome, b"W2")
    assert welcome.unused == ["m"]
    assert read_models(core) == {"m": ("r", 1), "n": ("r", 1)}
    core.submit(1, ["a"])
    assert [peer for peer, _, _ in core.batches()] == [b"W1"]


def test_replacement_learns_from_the_old_revision(core: Core) -> None:
    core.model().tokens_per_byte = 0.7
    core.announce(info(revision="s"))
    assert core.model().tokens_per_byte == 0.7


# --- removing --------------------------------------------------------------------------------------------------------


def test_removed_model_answers_and_takes_nothing_new() -> None:
    core = Core()
    core.frontend()
    core.worker(batch_tokens=5, credit=1)
    core.submit(1, ["a" * 20, "b" * 20])
    core.announce()
    message = core.take(wire.Models, b"F1")[-1][1]
    assert (message.removed, message.models[0].workers) == (["m"], 0)
    assert message.states == [ModelState("m", Availability.UNLOADING)]
    core.submit(2, ["late"])
    assert core.failures() == [(2, -1, ErrorCode.UNKNOWN_MODEL)]
    core.submit(3, ["on its way"], revision="r")
    for _ in range(3):
        core.answer(*core.batches(), credit=1)
        core.tick(0.5)
    assert len(core.answers()) == 3
    core.tick(LINGER_S)
    assert core.releases() == [(b"W1", "m", "r")]
    core.submit(4, ["later"], revision="r")
    assert core.failures() == [(4, -1, ErrorCode.UNKNOWN_MODEL)]
    assert read_states(core) == {"m": (Availability.END, "")}


def test_model_of_another_worker_is_not_removed(core: Core) -> None:
    core.worker(b"W2")
    core.announce()
    assert core.releases() == [(b"W1", "m", "r")]
    core.submit(1, ["a"])
    assert [peer for peer, _, _ in core.batches()] == [b"W2"]


def test_removed_model_that_is_added_again_waits(core: Core) -> None:
    core.announce()
    core.tick(LINGER_S)
    assert read_states(core) == {"m": (Availability.END, "")}
    core.announce(states=[ModelState("m", Availability.START)])
    assert read_states(core) == {"m": (Availability.START, "")}
    core.announce(states=[ModelState("m", Availability.LOADING)])
    assert read_states(core) == {"m": (Availability.LOADING, "")}


@pytest.mark.parametrize("revision", ["r", "s"])
def test_removed_model_can_be_added_again(core: Core, revision: str) -> None:
    core.announce()
    core.announce(info(revision=revision))
    message = core.take(wire.Models, b"F1")[-1][1]
    assert (message.removed, message.models[0].revision) == ([], revision)
    core.submit(1, ["a"])
    assert len(core.batches()) == 1


def test_removed_model_is_forgotten_later(core: Core) -> None:
    core.announce()
    core.tick(LINGER_S)
    for _ in range(int(FORGET_S)):
        core.tick(1)
        core.handle(b"W1", wire.WorkerHeartbeat(2, 0))
    state = core.scheduler.state
    assert (state.models, state.current, state.removed) == ({}, {}, set())


def test_old_revision_is_forgotten_later(core: Core) -> None:
    core.announce(info(revision="s"))
    core.tick(LINGER_S)
    for _ in range(int(FORGET_S)):
        core.tick(1)
        core.handle(b"W1", wire.WorkerHeartbeat(2, 0))
    assert list(core.scheduler.state.models) == [NEW]
    assert core.scheduler.state.current == {"m": NEW}


def test_forgotten_revision_leaves_the_name_to_another(core: Core) -> None:
    core.worker(b"W2")
    core.announce(info(revision="s"))
    core.lost(b"W1")
    core.tick(1)
    core.lost(b"W2")
    core.tick(FORGET_S - 0.5)
    assert core.scheduler.state.current == {"m": KEY}
    core.tick(1)
    assert core.scheduler.state.current == {}


# --- unloading and loading -------------------------------------------------------------------------------------------


def unload(core: Core) -> None:
    """Let W1 unload its model, and take the release."""
    core.announce(info(unloaded=True))
    core.tick(LINGER_S)
    assert core.releases() == [(b"W1", "m", "r")]


def test_unloaded_model_is_loaded_for_a_request(core: Core) -> None:
    unload(core)
    core.announce(info(unloaded=True, aliases=["other"]))
    assert read_models(core) == {"m": ("r", 1)}
    core.submit(1, ["a"])
    assert core.batches() == []
    assert core.take(wire.Load) == [(b"W1", wire.Load("m", "r"), [])]
    core.submit(2, ["b"])
    assert core.take(wire.Load) == []
    core.announce(info())
    core.answer(*core.batches())
    assert sorted(core.answers()) == [(1, 0), (2, 0)]


def test_load_without_an_effect_is_sent_again() -> None:
    core = Core(Limits(liveness_s=2 * LOAD_AGAIN_S, worker_grace_s=2 * LOAD_AGAIN_S))
    core.frontend()
    core.worker()
    unload(core)
    core.submit(1, ["a"], budget_ms=10**6)
    assert len(core.take(wire.Load)) == 1
    core.tick(LOAD_AGAIN_S - 1)
    assert core.take(wire.Load) == []
    core.tick(1)
    assert core.take(wire.Load) == [(b"W1", wire.Load("m", "r"), [])]


def test_request_before_the_release_needs_no_load(core: Core) -> None:
    core.announce(info(unloaded=True))
    core.submit(1, ["a"])
    (batch,) = core.batches()
    core.tick(2 * LINGER_S)
    assert (core.releases(), core.take(wire.Load)) == ([], [])
    core.answer(batch)
    assert core.releases() == [(b"W1", "m", "r")]


def test_failed_load_goes_to_another_worker(core: Core) -> None:
    core.worker(b"W2")
    for peer in (b"W1", b"W2"):
        core.announce(info(unloaded=True), peer=peer)
    core.tick(LINGER_S)
    core.submit(1, ["a"])
    ((first, _, _),) = core.take(wire.Load)
    core.announce(peer=first, states=[ModelState("m", Availability.FAILED, "no memory")])
    ((second, _, _),) = core.take(wire.Load)
    assert {first, second} == {b"W1", b"W2"}
    core.announce(info(), peer=second)
    assert [peer for peer, _, _ in core.batches()] == [second]
    assert read_states(core) == {"m": (Availability.AVAILABLE, "no memory")}


def test_request_fails_when_the_only_load_fails() -> None:
    core = Core(Limits(worker_grace_s=2))
    core.frontend()
    core.worker()
    unload(core)
    core.submit(1, ["a"])
    for _ in range(3):
        core.tick(1)
        core.handle(b"F1", wire.FrontendHeartbeat())
        core.handle(b"W1", wire.WorkerHeartbeat(2, 0))
    assert core.failures() == []
    core.announce(states=[ModelState("m", Availability.FAILED, "no memory")])
    assert core.failures() == []
    core.tick(2)
    assert core.failures() == [(1, -1, ErrorCode.NO_WORKER)]


def test_busy_model_is_loaded_on_a_second_worker() -> None:
    core = Core()
    core.frontend()
    core.worker(tokens_per_s=100, batch_tokens=50)
    core.worker(b"W2", tokens_per_s=100, batch_tokens=50)
    core.announce(info(unloaded=True), peer=b"W2")
    assert core.releases() == [(b"W2", "m", "r")]
    tokens = int(100 * LOAD_WAIT_S)
    for request in range(tokens // 50):
        core.submit(request, ["x" * 160], budget_ms=10**6)
    assert core.take(wire.Load) == []
    for request in range(100, 104):
        core.submit(request, ["x" * 160], budget_ms=10**6)
    assert core.take(wire.Load) == [(b"W2", wire.Load("m", "r"), [])]


def test_unloaded_and_removed_model_is_dropped_at_once(core: Core) -> None:
    unload(core)
    core.announce()
    assert core.releases() == []
    assert core.scheduler.state.pool.workers[b"W1"].models == {}


def test_unloaded_model_of_a_hello_can_be_loaded(core: Core) -> None:
    core.handle(b"W2", wire.WorkerHello(1, 1, "", b"2" * 16, 1, "h", 2, "CPU", [info("n", unloaded=True)], 10, 10, 2))
    core.submit(1, ["a"], model="n")
    assert core.take(wire.Load) == [(b"W2", wire.Load("n", "r"), [])]


# --- states and names ------------------------------------------------------------------------------------------------


def test_states_of_loading_models_are_shown(core: Core) -> None:
    states = [
        ModelState("a", Availability.START),
        ModelState("b", Availability.LOADING),
        ModelState("c", Availability.FAILED, "broken"),
        ModelState("m", Availability.LOADING),
    ]
    core.announce(info(), states=states)
    assert read_states(core) == {
        "a": (Availability.START, ""),
        "b": (Availability.LOADING, ""),
        "c": (Availability.FAILED, "broken"),
        "m": (Availability.AVAILABLE, ""),
    }


def test_first_reason_of_several_workers_is_shown(core: Core) -> None:
    core.worker(b"W2")
    for peer, reason in ((b"W1", "first"), (b"W2", "second")):
        core.announce(info(), peer=peer, states=[ModelState("n", Availability.FAILED, reason)])
    assert read_states(core)["n"] == (Availability.FAILED, "first")


def test_aliases_of_all_workers_are_announced(core: Core) -> None:
    core.announce(info(aliases=["b"]))
    core.worker(b"W2")
    core.announce(info(aliases=["a"]), peer=b"W2")
    (model,) = core.take(wire.Models, b"F1")[-1][1].models
    assert model.aliases == ["a", "b"]


def test_floats_of_one_model_serve_together(core: Core) -> None:
    core.announce(info(precision="f32"))
    for peer, precision in ((b"W2", "bf16"), (b"W3", "f32")):
        core.worker(peer)
        core.announce(info(precision=precision), peer=peer)
    (model,) = core.take(wire.Models, b"F1")[-1][1].models
    assert (model.workers, model.precision) == (3, "bf16+f32")
    # int8 has another revision.
    core.worker(b"W4", revision="int8")
    ((_, goodbye, _),) = core.take(wire.Goodbye, b"W4")
    assert goodbye.code == ErrorCode.REVISION_CONFLICT
    core.lost(b"W2")
    core.tick()
    (model,) = core.take(wire.Models, b"F1")[-1][1].models
    assert (model.workers, model.precision) == (2, "f32")


def test_two_revisions_of_a_worker_are_one_series(core: Core) -> None:
    core.submit(1, ["a"])
    core.announce(info(revision="s"))
    families = {family.name: family.samples for family in core.scheduler.collect_metrics()}
    for name in ("worker_up", "worker_model_loaded", "queue_jobs", "workers"):
        labels = [sample.labels for sample in families[name]]
        assert len(labels) == len(set(labels))
    core.handle(b"F1", wire.FrontendHeartbeat())
    ((_, stats, _),) = core.take(wire.Stats)
    assert stats.workers[0].models == ["m"]


def test_wrong_state_of_models_raises(core: Core) -> None:
    core.scheduler.state.current["n"] = KEY
    with pytest.raises(LocalProtocolError, match="current revision of a model"):
        core.scheduler.check_invariants()
