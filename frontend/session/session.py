"""The frontend's half of the conversation with the broker: hello, heartbeats, submissions, resends, grace.

Pure: no socket, clock or event loop. Each call takes the time and returns what to send and which requests have ended.
The frontend owns a request until its answer has come: a broker that does not know this frontend, because it or the
connection is new, is sent everything that is unanswered again, with the same numbers.

AWAY (hello until welcomed) → CONNECTED (heartbeats) → AWAY, when the connection ends, the broker is silent, says
goodbye, or does not know this frontend.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from broker.wire.protocol import Frame, Message, ModelInfo, ModelState, State
from frontend.api.errors import ApiError, broker_away, from_failure, quote, unknown_model
from frontend.session.pending import Door, Pending, Table

#: Heartbeat and liveness until a welcome names the broker's own, in seconds.
HEARTBEAT_S, LIVENESS_S = 0.25, 3.5
#: Submissions in one message at most, so that the broker's other peers never wait long while it reads one.
MAX_SUBMISSIONS = 64
#: Why a model that has had no worker yet cannot be asked.
_NOT_YET = {State.LOADING: "is still being loaded", State.FAILED: "could not be loaded by any worker"}


class Outgoing(NamedTuple):
    """A message to send, with its raw frames."""

    message: Message
    frames: Sequence[Frame] = ()


class Step(NamedTuple):
    """What a call asks for: messages to send, in this order, and requests that have ended."""

    sends: Sequence[Outgoing] = ()
    ended: Sequence[Pending] = ()


class Session:
    """One for each frontend process."""

    def __init__(self, hello: wire.FrontendHello, grace_s: float, now: float) -> None:
        self._hello = hello
        self._grace_s = grace_s
        self.models: dict[str, ModelInfo] = {}
        #: The state of each model, including models that no worker has served yet.
        self.states: dict[str, ModelState] = {}
        self.stats: wire.Stats | None = None
        self.door = Door()
        self._seen_models: set[str] = set()
        self._table = Table()
        #: What the next `flush` submits, by number, and cancels.
        self._outbox: dict[int, Pending] = {}
        self._cancelled: list[Pending] = []
        self._epoch: int | None = None
        #: Bytes of vectors received since the welcome.
        self._received = 0
        self._heartbeat_s, self._liveness_s = HEARTBEAT_S, LIVENESS_S
        self._next_heartbeat = now + HEARTBEAT_S
        self._last_heard = self._welcomed_at = self._away_since = now

    @property
    def connected(self) -> bool:
        """Whether the broker has welcomed this frontend and has been heard since."""
        return self._epoch is not None

    @property
    def unanswered(self) -> int:
        """How many requests wait for their answer."""
        return len(self._table.unanswered())

    @property
    def has_outgoing(self) -> bool:
        """Whether `flush` has something to send."""
        return self.connected and bool(self._outbox or self._cancelled)

    # --- the connection ----------------------------------------------------------------------------------------------

    def connect(self) -> Step:
        """Open the conversation: a connection has been made."""
        return Step([Outgoing(self._hello)])

    def disconnect(self, now: float) -> Step:
        """Note that the connection, or the broker, is gone. Unanswered requests wait for the next one."""
        if self.connected:
            self._away_since = now
        self._epoch = None
        self.models, self.states, self.stats = {}, {}, None
        self._forget_outgoing()
        return Step()

    def handle(self, message: Message, frames: Sequence[Frame], now: float) -> Step:
        """Handle a message from the broker."""
        self._last_heard = now
        match message:
            case wire.Answers():
                self._received += len(frames[0])
                return Step(ended=self._table.answered(message, frames[0]))
            case wire.Failures():
                return Step(ended=self._table.failed(message.failures))
            case wire.Models():
                self._update_models(message)
            case wire.Stats():
                self.stats = message
            case wire.Welcome():
                self._begin(message, now)
            case wire.Who():
                # The broker has forgotten this frontend, and its unanswered requests too.
                self.disconnect(now)
                return self.connect()
            case wire.Goodbye():
                self.disconnect(now)
        return Step()

    def _begin(self, message: wire.Welcome, now: float) -> None:
        self._epoch = message.epoch
        self._received = 0
        self.door.max_wait_s = message.max_wait_ms / 1000
        # The models follow, and then all that is unanswered is sent again.
        self.models = {}
        self._forget_outgoing()
        self._welcomed_at = now
        self._heartbeat_s, self._liveness_s = message.heartbeat_ms / 1000, message.liveness_ms / 1000

    def _forget_outgoing(self) -> None:
        """A new conversation begins with all that is unanswered, and its broker has nothing to cancel."""
        self._outbox, self._cancelled = {}, []

    def _update_models(self, message: wire.Models) -> None:
        """Take over the broker's list, and submit the requests that waited for a model that is new on it."""
        new = {model.name for model in message.models} - set(self.models)
        self.models = {model.name: model for model in message.models}
        self.states = {state.name: state for state in message.states}
        self._seen_models |= set(self.models)
        self._outbox |= {one.number: one for one in self._table.unanswered() if one.model in new}

    # --- time --------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """Return when `due` must be called."""
        return self._next_heartbeat

    def due(self, now: float) -> Step:
        """Do what time asks for: send a heartbeat, or a hello while away, and end requests whose grace is over."""
        if now < self._next_heartbeat:
            return Step()
        self._next_heartbeat = now + self._heartbeat_s
        if self.connected and now >= self._last_heard + self._liveness_s:
            self.disconnect(now)
        sends = [Outgoing(self.heartbeat() if self.connected else self._hello)]
        since = self._welcomed_at if self.connected else self._away_since
        return Step(sends, self._give_up() if now >= since + self._grace_s else ())

    def heartbeat(self) -> wire.FrontendHeartbeat:
        """Return a heartbeat, which the broker answers with its stats."""
        return wire.FrontendHeartbeat(self._received)

    def _give_up(self) -> list[Pending]:
        """Fail what waits for a broker, or for a model to come back to it."""
        gone = [one for one in self._table.unanswered() if one.model not in self.models]
        texts = ((one.number, str(self._explain_missing(one.model))) for one in gone)
        return self._table.failed(wire.Failure(number, -1, ErrorCode.NO_WORKER, text, 5000) for number, text in texts)

    # --- requests ----------------------------------------------------------------------------------------------------

    def find_model(self, name: str, asked_at: float, now: float) -> ModelInfo | float:
        """Return a model, or the time until which to wait for it: a start or a loss takes a moment.

        Raise ApiError when the broker does not know the model, has no worker for it yet, or is away for too long.
        """
        if name in self.models:
            return self.models[name]
        until = (self._welcomed_at if self.connected else asked_at) + self._grace_s
        if now >= until:
            raise self._explain_missing(name)
        return until

    def _explain_missing(self, name: str) -> ApiError:
        if not self.connected:
            return broker_away()
        state = self.states.get(name)
        if state and state.state in _NOT_YET:
            return from_failure(ErrorCode.NO_WORKER, f"the model {quote(name)} {_NOT_YET[state.state]}", 5000)
        if name in self._seen_models or not any(model.workers for model in self.models.values()):
            return from_failure(ErrorCode.NO_WORKER, f"no worker that serves {quote(name)} is connected", 5000)
        return unknown_model(name)

    def submit(
        self, submission: wire.Submission, frame: Frame, deadline: float, *, per_item: bool, max_tokens: float
    ) -> Pending:
        """Begin a request, which the next `flush` sends. The submission gets its number here."""
        pending = self._table.add(submission, frame, deadline, per_item=per_item, max_tokens=max_tokens)
        self._outbox[pending.number] = pending
        return pending

    def finish(self, pending: Pending) -> None:
        """End a request that nobody waits for any more; the next `flush` cancels it if the broker still holds it."""
        self._table.remove(pending)
        self._outbox.pop(pending.number, None)
        if pending.missing and not pending.told:
            self._cancelled.append(pending)

    def flush(self, now: float) -> Step:
        """Return the messages for all that was submitted and finished since the last call."""
        outbox = [one for one in self._outbox.values() if not one.ended]
        cancelled = self._cancelled
        self._outbox, self._cancelled = {}, []
        if not self.connected:
            return Step()
        sends = []
        for at in range(0, len(outbox), MAX_SUBMISSIONS):
            part = outbox[at : at + MAX_SUBMISSIONS]
            sends.append(Outgoing(wire.Submit([_with_budget(one, now) for one in part]), [one.frame for one in part]))
        if cancelled:
            abandoned = wire.pack_u64(one.number for one in cancelled if one.abandoned)
            sends.append(Outgoing(wire.Cancel(wire.pack_u64(one.number for one in cancelled), abandoned)))
        return Step(sends)


def _with_budget(pending: Pending, now: float) -> wire.Submission:
    """Return the submission with what is left of its time."""
    budget_ms = max(0, int((pending.deadline - now) * 1000))
    return msgspec.structs.replace(pending.submission, budget_ms=budget_ms)
