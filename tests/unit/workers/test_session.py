"""The session of a worker, without a socket."""

import pytest

from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from broker.wire.protocol import Availability, ModelInfo, ModelKey, ModelState
from workers.session.session import Session

BATCH = wire.Batch(7, 1, "m", b"\0", wire.pack_u32([1]))


@pytest.fixture
def session() -> Session:
    """Return a session that a broker of epoch 7 has welcomed at time 0."""
    hello = wire.WorkerHello(1, 1, "test", b"." * 16, 1, "host", 1, "CPU", [], 100, 1000, 0)
    session = Session(hello, slots=2)
    session.make_hello(0.0)
    session.handle(wire.Welcome(1, 7, 1000, 3500, 20_000, 1), 0.0)
    return session


def test_hello_grants_the_free_slots(session: Session) -> None:
    session.handle(BATCH, 0.0)
    hello = session.make_hello(0.0)
    assert isinstance(hello, wire.WorkerHello)
    assert hello.credit == 1


def test_precisions_are_those_of_all_models(session: Session) -> None:
    assert session.precisions == ""
    session.announce([ModelInfo(name, "r", 4, 10, precision=name) for name in ("f32", "bf16")])
    assert session.precisions == "bf16+f32"


def test_heartbeat_is_due_with_the_credit(session: Session) -> None:
    session.handle(BATCH, 0.5)
    assert session.due(0.9) == []
    assert session.next_deadline() == 1.0
    assert session.due(1.0) == [wire.WorkerHeartbeat(credit=1, seen=1)]


def test_ping_is_answered_at_once(session: Session) -> None:
    session.handle(BATCH, 0.5)
    assert session.handle(wire.Heartbeat(5), 0.6) == (None, [wire.WorkerHeartbeat(credit=1, seen=1, ping=5)])
    assert session.handle(wire.Heartbeat(), 0.7) == (None, [])


def test_ping_without_a_session_is_not_answered(session: Session) -> None:
    session.handle(wire.Goodbye(ErrorCode.INTERNAL, ""), 0.5)
    assert session.handle(wire.Heartbeat(5), 0.6) == (None, [])


def test_result_frees_the_batchs_slot(session: Session) -> None:
    assert session.handle(BATCH, 0.0) == (BATCH, [])
    result = session.make_result(BATCH, 4, wire.pack_u32([3]), [], 10)
    assert result == wire.BatchResult(7, 1, 4, wire.pack_u32([3]), [], 10, credit=2, seen=1)
    assert not session.held


def test_result_has_truncated_tokens_sizes_and_padding(session: Session) -> None:
    ran = {"padding": 5, "micro_batches": 2, "micro_batch_inputs": 3}
    session.handle(BATCH, 0.0)
    ones, twos = wire.pack_u32([1]), wire.pack_u32([2])
    result = session.make_result(BATCH, 4, ones, [], 10, truncated=twos, sizes=ones, **ran)
    assert result == wire.BatchResult(7, 1, 4, ones, [], 10, credit=2, seen=1, truncated=twos, sizes=ones, **ran)


def test_error_frees_the_batchs_slot(session: Session) -> None:
    session.handle(BATCH, 0.0)
    assert session.make_error(BATCH, ErrorCode.DEVICE, "x") == wire.BatchError(7, 1, ErrorCode.DEVICE, "x", 2, 1)


def test_batch_of_another_epoch_is_ignored(session: Session) -> None:
    assert session.handle(wire.Batch(8, 1, "m", b"\0", wire.pack_u32([1])), 0.0) == (None, [])
    assert not session.held


def test_who_is_answered_with_a_hello(session: Session) -> None:
    _, (hello,) = session.handle(wire.Who(), 0.0)
    assert isinstance(hello, wire.WorkerHello)
    assert not session.welcomed


@pytest.mark.parametrize("message", [wire.Goodbye(ErrorCode.REVISION_CONFLICT, ""), None])
def test_hello_is_repeated_after_goodbye_or_silence(session: Session, message: wire.Message | None) -> None:
    now = 4.0
    if message:
        session.handle(message, 3.0)
    (hello,) = session.due(now)
    assert isinstance(hello, wire.WorkerHello)


def test_refused_session_waits_longer_each_time(session: Session) -> None:
    pauses = []
    for _ in range(6):
        now = session.next_deadline()
        session.due(now)
        session.handle(wire.Goodbye(ErrorCode.REVISION_CONFLICT, "why"), now)
        pauses.append(session.next_deadline() - now)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    now = session.next_deadline()
    (hello,) = session.due(now)
    assert isinstance(hello, wire.WorkerHello)
    session.handle(wire.Welcome(1, 7, 1000, 3500, 20_000, hello.number), now)
    session.handle(wire.Goodbye(ErrorCode.INTERNAL, "silent"), now)
    assert session.next_deadline() == now + 1.0


def test_draining_session_answers_only_held_batches(session: Session) -> None:
    session.handle(BATCH, 0.0)
    assert session.drain() == [wire.WorkerDrain(b"")]
    assert session.due(1.0) == [wire.WorkerHeartbeat(credit=0, seen=1)]
    result = session.make_result(BATCH, 4, wire.pack_u32([3]), [], 10)
    assert isinstance(result, wire.BatchResult)
    assert result.credit == 0
    session.handle(wire.Goodbye(ErrorCode.INTERNAL, ""), 2.0)
    assert session.due(9.0) == []
    assert session.drain() == []


def test_one_hello_answers_several_whos(session: Session) -> None:
    _, first = session.handle(wire.Who(), 0.0)
    _, second = session.handle(wire.Who(), 0.0)
    assert (len(first), len(second)) == (1, 0)
    session.handle(wire.Welcome(1, 7, 1000, 3500, 20_000, 2), 0.0)
    assert len(session.handle(wire.Who(), 0.0)[1]) == 1


def test_hung_batch_is_found_after_a_broker_restart(session: Session) -> None:
    assert not session.is_hung(0.0)
    session.handle(BATCH, 0.0)
    assert not session.is_hung(0.0)
    session.make_hello(10.0)
    session.handle(wire.Welcome(1, 8, 1000, 3500, 20_000, 2), 10.0)
    assert not session.is_hung(19.0)
    assert session.is_hung(20.0)
    session.make_result(BATCH, 4, wire.pack_u32([3]), [], 10)
    assert not session.is_hung(99.0)


def test_answer_to_an_earlier_hello_is_ignored(session: Session) -> None:
    session.make_hello(1.0)
    session.make_hello(1.5)
    session.handle(wire.Welcome(1, 7, 1000, 3500, 20_000, 2), 1.6)
    assert session.handle(BATCH, 1.6) == (None, [])
    session.handle(wire.Welcome(1, 7, 1000, 3500, 20_000, 3), 1.7)
    assert session.handle(BATCH, 1.7) == (BATCH, [])


def test_new_broker_is_informed_of_the_drain(session: Session) -> None:
    session.drain()
    session.make_hello(1.0)
    batch, replies = session.handle(wire.Welcome(1, 8, 1000, 3500, 20_000, 2), 1.0)
    assert (batch, replies) == (None, [wire.WorkerDrain(b"")])


def test_repr_shows_state_and_held_batches(session: Session) -> None:
    assert repr(session) == "<Session SERVING epoch=7 held=[]>"
    session.handle(BATCH, 0.0)
    session.make_hello(1.0)
    assert repr(session) == "<Session CONNECTING epoch=None held=[(7, 1)]>"
    session.drain()
    assert repr(session) == "<Session DRAINING epoch=None held=[(7, 1)]>"


def test_held_batches_keep_their_models_busy(session: Session) -> None:
    session.handle(BATCH, 0.0)
    assert session.list_busy() == {BATCH.key}
    session.make_error(BATCH, ErrorCode.DEVICE, "x")
    assert session.list_busy() == set()


# --- models ----------------------------------------------------------------------------------------------------------

OLD, NEW = ModelInfo("m", "r", 4, 100), ModelInfo("m", "s", 4, 100)
WELCOME = wire.Welcome(1, 7, 1000, 3500, 20_000, 2)


def test_changed_models_are_announced_once(session: Session) -> None:
    assert session.announce([OLD]) == [wire.WorkerModels(1, [OLD])]
    assert session.announce([OLD]) == []
    states = [ModelState("n", Availability.LOADING)]
    assert session.announce([OLD], states) == [wire.WorkerModels(2, [OLD], states)]


def test_hello_has_the_changed_models(session: Session) -> None:
    session.announce([OLD])
    hello = session.make_hello(0.0)
    assert isinstance(hello, wire.WorkerHello)
    assert hello.models == [OLD]
    assert session.announce([NEW]) == []
    assert session.handle(WELCOME, 0.0) == (None, [wire.WorkerModels(2, [NEW])])


def test_states_are_announced_after_a_welcome(session: Session) -> None:
    states = [ModelState("n", Availability.FAILED, "broken")]
    session.announce([OLD], states)
    session.make_hello(0.0)
    assert session.handle(WELCOME, 0.0) == (None, [wire.WorkerModels(1, [OLD], states)])


@pytest.mark.parametrize("after", [[NEW], [], [ModelInfo("m", "r", 4, 100, unloaded=True)]])
def test_old_model_is_kept_until_its_release(session: Session, after: list[ModelInfo]) -> None:
    session.announce([OLD])
    session.announce(after)
    session.handle(wire.Release("m", "r", 1), 0.0)
    session.handle(wire.Release("n", "r", 2), 0.0)
    assert session.take_released() == []
    session.handle(wire.Release("m", "r", 2), 0.0)
    assert session.take_released() == [OLD.key]
    assert session.take_released() == []


def test_restored_model_is_not_released(session: Session) -> None:
    session.announce([OLD])
    session.announce([NEW])
    session.announce([OLD])
    session.handle(wire.Release("m", "r", 3), 0.0)
    assert session.take_released() == []
    session.handle(wire.Release("m", "s", 3), 0.0)
    assert session.take_released() == [NEW.key]


def test_new_session_releases_what_ended_before(session: Session) -> None:
    session.announce([OLD])
    session.announce([NEW])
    session.make_hello(0.0)
    session.announce([])
    session.handle(wire.Release("m", "r", 3), 0.0)
    assert session.take_released() == []
    session.handle(WELCOME, 0.0)
    assert session.take_released() == [ModelKey("m", "r")]
    session.handle(wire.Release("m", "s", 3), 0.0)
    assert session.take_released() == [NEW.key]
