"""The frontend's side of the conversation with the broker."""

import math

import msgspec
import pytest

from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from broker.wire.protocol import Availability, Kind, Lane, ModelInfo, ModelState
from frontend.api.errors import ApiError
from frontend.session.pending import Pending
from frontend.session.session import MAX_SUBMISSIONS, Session, Step

HELLO = wire.FrontendHello(1, 1, "", b"f" * 16, "host", 1)
GRACE_S = 5.0
M = ModelInfo("m", "r", 2, 100, workers=1)


class Frontend:
    """Session with a clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.session = Session(HELLO, GRACE_S, self.now)

    def receive(self, message: wire.Message, *frames: bytes) -> Step:
        """Handle a message of the broker."""
        return self.session.handle(message, frames, self.now)

    def join(self, *models: ModelInfo) -> None:
        """Connect, and handle a welcome and a list of models."""
        assert self.session.connect().sends == [(HELLO, ())]
        self.receive(wire.Welcome(1, 7, 1000, 3500, 20_000, max_wait_ms=9000))
        self.receive(wire.Models(list(models)))

    def submit(self, model: str = "m", inputs: int = 1) -> Pending:
        """Submit a request of one-letter texts."""
        lengths = wire.pack_u32([1] * inputs)
        submission = wire.Submission(0, model, Lane.BULK, "", 0, Kind.TEXT, lengths)
        return self.session.submit(submission, b"a" * inputs, self.now + 60, per_item=False, max_tokens=math.inf)

    def flush(self) -> list[tuple[str, list[int]]]:
        """Flush, and return the kind of each message with the numbers of its requests."""
        found = []
        for message, _ in self.session.flush(self.now).sends:
            if isinstance(message, wire.Submit):
                found.append(("submit", [submission.request for submission in message.submissions]))
            elif isinstance(message, wire.Cancel):
                found.append(("cancel", wire.unpack_u64(message.requests).tolist()))
        return found

    def pass_time(self, seconds: float) -> Step:
        """Advance the clock in one step."""
        self.now += seconds
        return self.session.due(self.now)


@pytest.fixture
def frontend() -> Frontend:
    """Return a session that is connected to a broker with one model."""
    frontend = Frontend()
    frontend.join(M)
    return frontend


def make_answers(pending: Pending) -> tuple[wire.Answers, bytes]:
    """Return the answer to a request of one input."""
    row = bytes(8)
    return wire.Answers(wire.pack_u64([pending.number]), wire.pack_u32([0]), wire.pack_u32([3]), 2, 1, 1, "r"), row


def test_model_is_found_by_its_alias(frontend: Frontend) -> None:
    model = msgspec.structs.replace(M, aliases=["other"])
    frontend.receive(wire.Models([model]))
    assert frontend.session.find_model("other", frontend.now, frontend.now) == model


def test_request_is_submitted_once_with_its_budget(frontend: Frontend) -> None:
    pending = frontend.submit()
    assert frontend.session.has_outgoing
    frontend.now += 10
    ((message, frames),) = frontend.session.flush(frontend.now).sends
    assert isinstance(message, wire.Submit)
    assert (message.submissions[0].budget_ms, frames) == (50_000, [b"a"])
    assert frontend.flush() == []
    assert not frontend.session.has_outgoing
    message, row = make_answers(pending)
    assert frontend.receive(message, row).ended == [pending]
    frontend.session.finish(pending)
    assert frontend.flush() == []
    assert frontend.session.unanswered_count == 0


@pytest.mark.parametrize(("seconds", "budget_ms"), [(5e6, 2**32 - 1), (1e300, 2**32 - 1), (-1.0, 0)])
def test_budget_fits_into_its_field(frontend: Frontend, seconds: float, budget_ms: int) -> None:
    submission = wire.Submission(0, "m", Lane.BULK, "", 0, Kind.TEXT, wire.pack_u32([1]))
    frontend.session.submit(submission, b"a", frontend.now + seconds, per_item=False, max_tokens=math.inf)
    ((message, frames),) = frontend.session.flush(frontend.now).sends
    decoded, _ = wire.decode(wire.FROM_FRONTEND, wire.encode(message, frames))
    assert isinstance(decoded, wire.Submit)
    assert decoded.submissions[0].budget_ms == budget_ms


def test_request_knows_its_model_s_dimension(frontend: Frontend) -> None:
    assert [frontend.submit(model).dimension for model in ("m", "unknown")] == [2, 0]


def test_submit_messages_are_bounded(frontend: Frontend) -> None:
    for _ in range(MAX_SUBMISSIONS + 1):
        frontend.submit()
    assert [len(numbers) for _, numbers in frontend.flush()] == [MAX_SUBMISSIONS, 1]


def test_finished_requests_are_cancelled_and_abandoned_ones_marked(frontend: Frontend) -> None:
    ended, left = frontend.submit(), frontend.submit()
    frontend.flush()
    left.abandoned = True
    for pending in (ended, left):
        frontend.session.finish(pending)
    ((message, _),) = frontend.session.flush(frontend.now).sends
    assert isinstance(message, wire.Cancel)
    assert wire.unpack_u64(message.requests).tolist() == [ended.number, left.number]
    assert wire.unpack_u64(message.abandoned).tolist() == [left.number]


def test_refused_request_is_not_cancelled(frontend: Frontend) -> None:
    pending = frontend.submit()
    frontend.flush()
    failure = wire.Failure(pending.number, -1, ErrorCode.OVERLOADED, "full")
    assert frontend.receive(wire.Failures([failure])).ended == [pending]
    frontend.session.finish(pending)
    assert frontend.flush() == []


def test_unanswered_requests_are_resubmitted_after_reconnect(frontend: Frontend) -> None:
    first, second = frontend.submit(), frontend.submit()
    frontend.flush()
    message, row = make_answers(first)
    frontend.receive(message, row)
    frontend.session.disconnect(frontend.now)
    assert not frontend.session.connected
    assert frontend.flush() == []
    frontend.join(M)
    assert frontend.flush() == [("submit", [second.number])]


def test_unknown_frontend_sends_hello_again(frontend: Frontend) -> None:
    pending = frontend.submit()
    frontend.flush()
    assert frontend.receive(wire.Who()).sends == [(HELLO, ())]
    assert not frontend.session.connected
    frontend.join(M)
    assert frontend.flush() == [("submit", [pending.number])]


def test_malformed_answer_resubmits_requests_once(frontend: Frontend) -> None:
    first = frontend.submit()
    frontend.flush()
    waiting = frontend.submit()
    assert frontend.session.handle_malformed(frontend.now).sends == [(HELLO, ())]
    assert not frontend.session.connected
    # More malformed messages of the session that has ended do not count.
    assert frontend.session.handle_malformed(frontend.now) == Step()
    frontend.join(M)
    assert frontend.flush() == [("submit", [first.number, waiting.number])]
    step = frontend.session.handle_malformed(frontend.now)
    assert (step.ended, len(step.sends)) == ([first], 1)
    assert first.failure
    assert first.failure.code == ErrorCode.INTERNAL
    frontend.join(M)
    assert frontend.flush() == [("submit", [waiting.number])]


def test_malformed_message_without_requests_is_ignored(frontend: Frontend) -> None:
    frontend.submit()
    assert frontend.session.handle_malformed(frontend.now) == Step()
    assert frontend.session.connected


def test_goodbye_disconnects_and_hellos_continue(frontend: Frontend) -> None:
    frontend.receive(wire.Goodbye(ErrorCode.REVOKED, "this key has been taken off the list"))
    assert not frontend.session.connected
    assert frontend.pass_time(1.0).sends == [(HELLO, ())]


def test_refused_session_waits_longer_each_time(frontend: Frontend) -> None:
    hellos = []
    refused_at = frontend.now
    frontend.receive(wire.Goodbye(ErrorCode.PROTOCOL, "other versions"))
    for _ in range(200):
        if frontend.pass_time(0.25).sends:
            hellos.append(frontend.now - refused_at)
            refused_at = frontend.now
            frontend.receive(wire.Goodbye(ErrorCode.PROTOCOL, "other versions"))
    # Heartbeats are a second apart; the first is due at the interval from before the welcome.
    assert hellos[:7] == [0.25, 1, 1, 2, 4, 8, 10]
    frontend.join(M)
    frontend.receive(wire.Goodbye(ErrorCode.REVOKED, "why"))
    assert frontend.pass_time(1.0).sends == [(HELLO, ())]


def test_heartbeats_report_received_bytes(frontend: Frontend) -> None:
    message, row = make_answers(frontend.submit())
    frontend.receive(message, row)
    # The first heartbeat is due at the interval from before the welcome.
    assert frontend.pass_time(0.25).sends == [(wire.FrontendHeartbeat(8), ())]
    assert frontend.pass_time(0.9) == Step()
    assert frontend.session.next_deadline() == pytest.approx(frontend.now + 0.1)
    assert frontend.session.heartbeat() == wire.FrontendHeartbeat(8)
    frontend.receive(wire.Stats({"a": 1}, [], 0, 0))
    assert frontend.session.stats == wire.Stats({"a": 1}, [], 0, 0)


def test_silent_broker_is_disconnected(frontend: Frontend) -> None:
    assert frontend.pass_time(3.5).sends == [(HELLO, ())]
    assert not frontend.session.connected


def test_requests_fail_after_grace_without_broker(frontend: Frontend) -> None:
    pending = frontend.submit()
    frontend.flush()
    frontend.session.disconnect(frontend.now)
    assert frontend.pass_time(GRACE_S - 0.1).ended == ()
    assert frontend.pass_time(1.5).ended == [pending]
    assert pending.failure
    assert (pending.failure.code, pending.failure.text) == (ErrorCode.NO_WORKER, "the broker cannot be reached")


def test_requests_fail_after_grace_without_model(frontend: Frontend) -> None:
    pending = frontend.submit()
    frontend.flush()
    frontend.session.disconnect(frontend.now)
    frontend.join()
    assert frontend.pass_time(1.0).ended == ()
    ended: list[Pending] = []
    for _ in range(5):
        frontend.receive(wire.Stats({}, [], 0, 0))
        ended += frontend.pass_time(1.0).ended
    assert ended == [pending]
    assert pending.failure
    assert pending.failure.text == "no worker that serves 'm' is connected"


def explain_missing(frontend: Frontend, name: str) -> str:
    """Return the error text for a model that cannot be served."""
    with pytest.raises(ApiError) as raised:
        frontend.session.find_model(name, frontend.now - GRACE_S, frontend.now)
    return str(raised.value)


def test_missing_model_is_waited_for(frontend: Frontend) -> None:
    assert frontend.session.find_model("m", frontend.now, frontend.now) == M
    assert frontend.session.find_model("n", frontend.now, frontend.now) == frontend.now + GRACE_S
    frontend.session.disconnect(frontend.now)
    assert frontend.session.find_model("m", frontend.now - 1, frontend.now) == frontend.now - 1 + GRACE_S


def test_model_that_failed_to_load_is_not_waited_for(frontend: Frontend) -> None:
    states = [ModelState("n", Availability.FAILED, "broken"), ModelState("m", Availability.FAILED, "broken")]
    frontend.receive(wire.Models([], states))
    with pytest.raises(ApiError, match="the model 'n' could not be loaded by any worker: broken"):
        frontend.session.find_model("n", frontend.now, frontend.now)
    # A worker served it, and may be restarting.
    assert isinstance(frontend.session.find_model("m", frontend.now, frontend.now), float)


def test_missing_model_is_explained(frontend: Frontend) -> None:
    frontend.now += GRACE_S
    assert "The model 'n' does not exist" in explain_missing(frontend, "n")
    states = [
        ModelState("n", Availability.LOADING),
        ModelState("o", Availability.FAILED, "broken"),
        ModelState("p", Availability.END),
    ]
    frontend.receive(wire.Models([M], states))
    assert explain_missing(frontend, "n") == "the model 'n' is still being loaded"
    assert explain_missing(frontend, "o") == "the model 'o' could not be loaded by any worker: broken"
    assert "does not exist" in explain_missing(frontend, "p")
    frontend.receive(wire.Models([], []))
    assert explain_missing(frontend, "m") == "no worker that serves 'm' is connected"
    assert explain_missing(frontend, "never seen") == "no worker that serves 'never seen' is connected"
    frontend.session.disconnect(frontend.now)
    assert explain_missing(frontend, "m") == "the broker cannot be reached"


@pytest.mark.parametrize("state", [Availability.START, Availability.LOADING])
@pytest.mark.parametrize("removed", [False, True])
def test_configured_model_is_still_being_loaded(frontend: Frontend, state: Availability, removed: bool) -> None:
    frontend.now += GRACE_S
    frontend.receive(wire.Models([M], [ModelState("n", state)], ["n"] if removed else []))
    for name in ("n", "n:query"):
        with pytest.raises(ApiError, match="is still being loaded") as raised:
            frontend.session.find_model(name, frontend.now, frontend.now)
        assert (raised.value.status, raised.value.retry_after_s) == (503, 5)


def test_removed_model_that_fails_is_explained(frontend: Frontend) -> None:
    frontend.receive(wire.Models([M], [ModelState("m", Availability.FAILED, "broken")], ["m"]))
    with pytest.raises(ApiError, match="the model 'm' could not be loaded by any worker: broken") as raised:
        frontend.session.find_model("m", frontend.now, frontend.now)
    assert raised.value.status == 503


def test_message_for_worker_is_ignored(frontend: Frontend) -> None:
    assert frontend.receive(wire.Heartbeat()) == Step()
    assert frontend.session.connected


def test_grace_starts_at_first_disconnect(frontend: Frontend) -> None:
    pending = frontend.submit()
    frontend.session.disconnect(frontend.now)
    frontend.now += GRACE_S
    frontend.session.disconnect(frontend.now)
    assert frontend.session.due(frontend.now).ended == [pending]


# --- revisions -------------------------------------------------------------------------------------------------------

NEW = ModelInfo("m", "s", 2, 100, workers=1)
REPLACED = ErrorCode.REPLACED


def read_revisions(frontend: Frontend) -> list[str]:
    """Flush, and return the revision of each submission."""
    messages = [message for message, _ in frontend.session.flush(frontend.now).sends]
    return [one.revision for message in messages if isinstance(message, wire.Submit) for one in message.submissions]


def fail_replaced(frontend: Frontend, pending: Pending) -> Step:
    return frontend.receive(wire.Failures([wire.Failure(pending.number, -1, REPLACED, REPLACED.text, 1000)]))


def test_request_is_bound_to_the_revision_it_was_prepared_for(frontend: Frontend) -> None:
    frontend.submit()
    assert read_revisions(frontend) == ["r"]


def test_replaced_request_starts_again(frontend: Frontend) -> None:
    pending = frontend.submit(inputs=2)
    frontend.flush()
    row = bytes(8)
    columns = wire.pack_u32([0]), wire.pack_u32([3])
    old = wire.Answers(wire.pack_u64([pending.number]), *columns, 2, 1, 1, "r", truncated=wire.pack_u32([5]))
    frontend.receive(old, row)
    frontend.receive(wire.Models([NEW]))
    assert fail_replaced(frontend, pending) == Step(ended=[])
    assert read_revisions(frontend) == ["s"]
    assert (pending.missing, pending.tokens, pending.truncated) == (2, 0, {})
    # A late row of the old revision.
    assert frontend.receive(old, row).ended == []
    assert pending.missing == 2
    both = wire.pack_u64([pending.number] * 2), wire.pack_u32([0, 1]), wire.pack_u32([3, 3])
    assert frontend.receive(wire.Answers(*both, 2, 1, 1, "s"), row * 2).ended == [pending]
    assert (pending.failure, pending.revision, pending.tokens) == (None, "s", 6)


@pytest.mark.parametrize(
    "model",
    [
        ModelInfo("m", "s", 4, 100, workers=1),
        ModelInfo("m", "s", 2, 50, workers=1),
        ModelInfo("m", "s", 2, 100, workers=1, prompts={"query": "q: "}),
    ],
)
def test_request_for_a_different_model_fails(frontend: Frontend, model: ModelInfo) -> None:
    first, second = frontend.submit(), frontend.submit()
    frontend.flush()
    frontend.receive(wire.Models([model]))
    assert fail_replaced(frontend, first).ended == [first]
    frontend.session.disconnect(frontend.now)
    frontend.session.connect()
    frontend.receive(wire.Welcome(1, 8, 1000, 3500, 20_000))
    assert frontend.receive(wire.Models([model])).ended == [second]
    for pending in (first, second):
        assert pending.failure
        assert pending.failure.code == REPLACED
    assert frontend.flush() == []


def test_restarted_broker_gets_the_new_revision(frontend: Frontend) -> None:
    frontend.submit()
    frontend.flush()
    frontend.session.disconnect(frontend.now)
    frontend.join(NEW)
    assert read_revisions(frontend) == ["s"]


def test_replaced_request_without_a_model_fails(frontend: Frontend) -> None:
    pending = frontend.submit()
    frontend.flush()
    frontend.receive(wire.Models([]))
    assert fail_replaced(frontend, pending).ended == [pending]
    assert fail_replaced(frontend, pending).ended == []


def test_removed_model_takes_no_request(frontend: Frontend) -> None:
    pending = frontend.submit()
    frontend.flush()
    frontend.receive(wire.Models([M, ModelInfo("n", "r", 2, 100, workers=1)], removed=["m"]))
    with pytest.raises(ApiError, match=r"The model 'm' does not exist .*; this server has 'n'") as raised:
        frontend.session.find_model("m", frontend.now, frontend.now)
    assert raised.value.status == 404
    message, row = make_answers(pending)
    assert frontend.receive(message, row).ended == [pending]
    frontend.receive(wire.Models([ModelInfo("n", "r", 2, 100, workers=1)]))
    frontend.now += GRACE_S
    assert "does not exist" in explain_missing(frontend, "m")


def test_result_of_a_reload_is_taken_once(frontend: Frontend) -> None:
    message = frontend.session.begin_reload()
    assert frontend.session.take_reloaded(message.number) is None
    result = wire.ModelsReloaded(message.number, changed=True)
    frontend.receive(result)
    assert frontend.session.take_reloaded(message.number) == result
    assert frontend.session.take_reloaded(message.number) is None
    late = frontend.session.begin_reload()
    assert frontend.session.take_reloaded(late.number, give_up=True) is None
    frontend.receive(wire.ModelsReloaded(late.number, changed=True))
    assert frontend.session.take_reloaded(late.number) is None
