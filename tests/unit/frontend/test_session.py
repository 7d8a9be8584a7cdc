"""The frontend's half of the conversation with the broker."""

import math

import pytest

from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from broker.wire.protocol import Kind, Lane, ModelInfo, ModelState, State
from frontend.api.errors import ApiError
from frontend.session.pending import Pending
from frontend.session.session import MAX_SUBMISSIONS, Session, Step

HELLO = wire.FrontendHello(1, 1, "", b"f" * 16, "host", 1)
GRACE_S = 5.0
M = ModelInfo("m", "r", 2, 100, workers=1)


class Talk:
    """A session, its clock, and what it has sent."""

    def __init__(self) -> None:
        self.now = 100.0
        self.session = Session(HELLO, GRACE_S, self.now)

    def hear(self, message: wire.Message, *frames: bytes) -> Step:
        """The broker says something."""
        return self.session.handle(message, frames, self.now)

    def join(self, *models: ModelInfo) -> None:
        """The broker welcomes the frontend and tells its models."""
        assert self.session.connect().sends == [(HELLO, ())]
        self.hear(wire.Welcome(1, 7, 1000, 3500, 20_000, max_wait_ms=9000))
        self.hear(wire.Models(list(models)))

    def submit(self, model: str = "m", inputs: int = 1) -> Pending:
        """A request of one-letter texts."""
        lengths = wire.pack_u32([1] * inputs)
        asked = wire.Submission(0, model, Lane.BULK, "", 0, Kind.TEXT, lengths)
        return self.session.submit(asked, b"a" * inputs, self.now + 60, per_item=False, max_tokens=math.inf)

    def flush(self) -> list[tuple[str, list[int]]]:
        """What leaves now: the kind of each message, and the numbers of its requests."""
        found = []
        for message, _ in self.session.flush(self.now).sends:
            if isinstance(message, wire.Submit):
                found.append(("submit", [one.request for one in message.submissions]))
            elif isinstance(message, wire.Cancel):
                found.append(("cancel", wire.unpack_u64(message.requests).tolist()))
        return found

    def pass_time(self, seconds: float) -> Step:
        """Time passes, in one jump."""
        self.now += seconds
        return self.session.due(self.now)


@pytest.fixture
def talk() -> Talk:
    """A session that is connected to a broker with one model."""
    talk = Talk()
    talk.join(M)
    return talk


def answers(pending: Pending) -> tuple[wire.Answers, bytes]:
    """The answer to a request of one input."""
    row = bytes(8)
    return wire.Answers(wire.pack_u64([pending.number]), wire.pack_u32([0]), wire.pack_u32([3]), 2, 1, 1, "r"), row


def test_request_is_submitted_once_with_its_budget_and_answered(talk: Talk) -> None:
    pending = talk.submit()
    assert talk.session.has_outgoing
    talk.now += 10
    ((message, frames),) = talk.session.flush(talk.now).sends
    assert isinstance(message, wire.Submit)
    assert (message.submissions[0].budget_ms, frames) == (50_000, [b"a"])
    assert talk.flush() == []
    assert not talk.session.has_outgoing
    message, row = answers(pending)
    assert talk.hear(message, row).ended == [pending]
    talk.session.finish(pending)
    assert talk.flush() == []
    assert talk.session.unanswered == 0


def test_submissions_of_one_turn_leave_in_messages_of_bounded_length(talk: Talk) -> None:
    for _ in range(MAX_SUBMISSIONS + 1):
        talk.submit()
    assert [len(numbers) for _, numbers in talk.flush()] == [MAX_SUBMISSIONS, 1]


def test_request_that_nobody_waits_for_is_cancelled_and_told_apart_when_its_client_left(talk: Talk) -> None:
    ended, left = talk.submit(), talk.submit()
    talk.flush()
    left.abandoned = True
    for pending in (ended, left):
        talk.session.finish(pending)
    ((message, _),) = talk.session.flush(talk.now).sends
    assert isinstance(message, wire.Cancel)
    assert wire.unpack_u64(message.requests).tolist() == [ended.number, left.number]
    assert wire.unpack_u64(message.abandoned).tolist() == [left.number]


def test_request_that_the_broker_refused_is_not_cancelled(talk: Talk) -> None:
    pending = talk.submit()
    talk.flush()
    failure = wire.Failure(pending.number, -1, ErrorCode.OVERLOADED, "full")
    assert talk.hear(wire.Failures([failure])).ended == [pending]
    talk.session.finish(pending)
    assert talk.flush() == []


def test_unanswered_requests_are_sent_again_to_the_next_broker(talk: Talk) -> None:
    first, second = talk.submit(), talk.submit()
    talk.flush()
    message, row = answers(first)
    talk.hear(message, row)
    talk.session.disconnect(talk.now)
    assert not talk.session.connected
    assert talk.flush() == []
    talk.join(M)
    assert talk.flush() == [("submit", [second.number])]


def test_broker_that_does_not_know_the_frontend_is_greeted_again(talk: Talk) -> None:
    pending = talk.submit()
    talk.flush()
    assert talk.hear(wire.Who()).sends == [(HELLO, ())]
    assert not talk.session.connected
    talk.join(M)
    assert talk.flush() == [("submit", [pending.number])]


def test_goodbye_ends_the_connection_and_hellos_go_on(talk: Talk) -> None:
    talk.hear(wire.Goodbye(ErrorCode.REVOKED, "this key has been taken off the list"))
    assert not talk.session.connected
    assert talk.pass_time(1.0).sends == [(HELLO, ())]


def test_heartbeats_tell_what_was_received_at_the_brokers_pace(talk: Talk) -> None:
    message, row = answers(talk.submit())
    talk.hear(message, row)
    # The first is due at the pace of before the welcome.
    assert talk.pass_time(0.25).sends == [(wire.FrontendHeartbeat(8), ())]
    assert talk.pass_time(0.9) == Step()
    assert talk.session.next_deadline() == pytest.approx(talk.now + 0.1)
    assert talk.session.heartbeat() == wire.FrontendHeartbeat(8)
    talk.hear(wire.Stats({"a": 1}, [], 0, 0))
    assert talk.session.stats == wire.Stats({"a": 1}, [], 0, 0)


def test_silent_broker_is_taken_for_gone(talk: Talk) -> None:
    assert talk.pass_time(3.5).sends == [(HELLO, ())]
    assert not talk.session.connected


def test_requests_fail_when_the_grace_for_a_broker_is_over(talk: Talk) -> None:
    pending = talk.submit()
    talk.flush()
    talk.session.disconnect(talk.now)
    assert talk.pass_time(GRACE_S - 0.1).ended == ()
    assert talk.pass_time(1.5).ended == [pending]
    assert pending.failure
    assert (pending.failure.code, pending.failure.text) == (ErrorCode.NO_WORKER, "the broker cannot be reached")


def test_requests_fail_when_their_model_does_not_come_back(talk: Talk) -> None:
    pending = talk.submit()
    talk.flush()
    talk.session.disconnect(talk.now)
    talk.join()
    assert talk.pass_time(1.0).ended == ()
    ended: list[Pending] = []
    for _ in range(5):
        talk.hear(wire.Stats({}, [], 0, 0))
        ended += talk.pass_time(1.0).ended
    assert ended == [pending]
    assert pending.failure
    assert pending.failure.text == "no worker that serves 'm' is connected"


def explain(talk: Talk, name: str) -> str:
    """Why a model cannot be asked."""
    with pytest.raises(ApiError) as raised:
        talk.session.find_model(name, talk.now - GRACE_S, talk.now)
    return str(raised.value)


def test_model_is_found_at_once_or_waited_for(talk: Talk) -> None:
    assert talk.session.find_model("m", talk.now, talk.now) == M
    assert talk.session.find_model("n", talk.now, talk.now) == talk.now + GRACE_S
    talk.session.disconnect(talk.now)
    assert talk.session.find_model("m", talk.now - 1, talk.now) == talk.now - 1 + GRACE_S


def test_model_that_cannot_be_asked_is_explained(talk: Talk) -> None:
    talk.now += GRACE_S
    assert "The model 'n' does not exist" in explain(talk, "n")
    states = [ModelState("n", State.LOADING), ModelState("o", State.FAILED, "broken"), ModelState("p", State.END)]
    talk.hear(wire.Models([M], states))
    assert explain(talk, "n") == "the model 'n' is still being loaded"
    assert explain(talk, "o") == "the model 'o' could not be loaded by any worker"
    assert "does not exist" in explain(talk, "p")
    talk.hear(wire.Models([], []))
    assert explain(talk, "m") == "no worker that serves 'm' is connected"
    assert explain(talk, "never seen") == "no worker that serves 'never seen' is connected"
    talk.session.disconnect(talk.now)
    assert explain(talk, "m") == "the broker cannot be reached"


def test_message_for_a_worker_changes_nothing(talk: Talk) -> None:
    assert talk.hear(wire.Heartbeat()) == Step()
    assert talk.session.connected


def test_connection_that_ends_twice_has_ended_the_first_time(talk: Talk) -> None:
    pending = talk.submit()
    talk.session.disconnect(talk.now)
    talk.now += GRACE_S
    talk.session.disconnect(talk.now)
    assert talk.session.due(talk.now).ended == [pending]
