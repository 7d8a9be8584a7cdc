"""Reloads of the workers' configurations."""

from broker.core.reloads import MAX_OPEN, Reloads
from broker.wire import protocol as wire
from broker.wire.columns import MAX_TEXT_LENGTH
from tests.harness.core import Core


def answer(core: Core, peer: bytes, *, changed: bool = False, failure: str = "") -> None:
    """Let a worker answer the reload that it was sent."""
    ((_, reload, _),) = core.take(wire.Reload, peer)
    core.handle(peer, wire.Reloaded(reload.number, changed, failure))


def results(core: Core) -> list[wire.ModelsReloaded]:
    """Take the answers that F1 was sent."""
    return [message for _, message, _ in core.take(wire.ModelsReloaded, b"F1")]


def test_reload_ends_when_all_workers_have_answered(core: Core) -> None:
    core.worker(b"W2")
    core.handle(b"F1", wire.ReloadModels(5))
    answer(core, b"W1")
    assert results(core) == []
    answer(core, b"W2", changed=True)
    assert results(core) == [wire.ModelsReloaded(5, changed=True)]


def test_failures_of_workers_are_joined(core: Core) -> None:
    for peer in (b"W2", b"W3"):
        core.worker(peer)
    core.handle(b"F1", wire.ReloadModels(1))
    answer(core, b"W1", failure="a: broken", changed=True)
    answer(core, b"W2", failure="a: broken")
    answer(core, b"W3", failure="b" * MAX_TEXT_LENGTH)
    (result,) = results(core)
    assert result.changed
    assert result.failure.startswith("a: broken; b")
    assert len(result.failure) == MAX_TEXT_LENGTH


def test_reload_does_not_wait_for_lost_workers(core: Core) -> None:
    core.handle(b"F1", wire.ReloadModels(1))
    core.lost(b"W1")
    assert results(core) == [wire.ModelsReloaded(1, changed=False)]
    core.handle(b"F1", wire.ReloadModels(2))
    assert results(core) == [wire.ModelsReloaded(2, changed=False)]


def test_answers_of_others_are_ignored(core: Core) -> None:
    core.handle(b"F1", wire.ReloadModels(1))
    core.worker(b"W2")
    ((_, reload, _),) = core.take(wire.Reload, b"W1")
    core.handle(b"W2", wire.Reloaded(reload.number, changed=True))
    core.handle(b"W1", wire.Reloaded(reload.number + 1, changed=True))
    core.handle(b"W1", wire.Reloaded(reload.number, changed=False))
    core.handle(b"W1", wire.Reloaded(reload.number, changed=True))
    assert results(core) == [wire.ModelsReloaded(1, changed=False)]


def test_reload_of_lost_frontend_is_dropped(core: Core) -> None:
    core.handle(b"F1", wire.ReloadModels(1))
    core.lost(b"F1")
    answer(core, b"W1")
    assert core.take(wire.ModelsReloaded) == []


def test_answer_to_an_earlier_broker_ends_no_reload() -> None:
    stale, reloads = Reloads(epoch=2**62 + 1), Reloads(epoch=2**62 + 2)
    number = stale.begin(b"F", 1, [b"W1"])
    assert reloads.begin(b"F", 1, [b"W1"]) != number
    reloads.record_answer(b"W1", wire.Reloaded(number, changed=True))
    assert reloads.take_ended([b"W1"]) == []


def test_oldest_of_too_many_reloads_fails(core: Core) -> None:
    for number in range(MAX_OPEN):
        core.handle(b"F1", wire.ReloadModels(number))
    assert results(core) == []
    core.handle(b"F1", wire.ReloadModels(MAX_OPEN))
    (result,) = results(core)
    assert (result.number, result.changed) == (0, False)
    assert "still loading" in result.failure
