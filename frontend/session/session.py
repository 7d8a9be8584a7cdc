"""The frontend's side of the conversation with the broker. Pure: no socket, clock or event loop.

Theory of operation:

1. A session is *away* until the broker's welcome, and then *connected*. At every heartbeat interval it sends a hello
   while away, and a heartbeat while connected. It is away again when the connection ends, when the broker is silent for
   the liveness time, and when the broker sends a goodbye, a malformed message, or does not recognize this frontend.
2. A frontend keeps each request until the answer is complete. After each welcome it submits every unanswered request
   again under its old number, as soon as the broker's list has the request's model. If the list has another revision of
   the model, or the broker fails a request because its revision is no longer served, the request starts again.
3. Requests without a broker, or without their model, fail when the grace period is over.
4. `submit` and `finish` only record what to send; `flush` returns all submissions and cancellations of one turn of the
   event loop together.

Each call takes the time, and returns a `Step`: messages to send and requests that have ended.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from broker.wire import protocol as wire
from broker.wire.errors import MAX_REASON, ErrorCode, describe_no_worker, quote
from broker.wire.protocol import Availability, Frame, Message, ModelInfo, ModelState
from frontend.api.errors import ApiError, broker_away, from_failure, unknown_model
from frontend.api.model_names import resolve_name
from frontend.session.pending import Pending, PendingRequests, RefusalCache

#: Heartbeat and liveness intervals in seconds, until a welcome has the broker's own.
HEARTBEAT_S, LIVENESS_S = 0.25, 3.5
#: Longest pause, in seconds, before the next hello after the broker has refused some in a row.
MAX_PAUSE_S = 10.0
#: Maximum number of submissions in one message, so that the broker's other peers wait briefly while it reads one.
MAX_SUBMISSIONS = 64
#: Malformed messages after which a submitted request fails, because the next answer may be malformed as well.
MAX_MALFORMED = 2
#: States of a removed model that no worker is configured to serve again.
_GONE = (Availability.AVAILABLE, Availability.UNLOADING, Availability.END)


class Outgoing(NamedTuple):
    """Message to send, with its raw frames."""

    message: Message
    frames: Sequence[Frame] = ()


class Step(NamedTuple):
    """Result of a call: messages to send, in this order, and requests that have ended."""

    sends: Sequence[Outgoing] = ()
    ended: Sequence[Pending] = ()


class Session:
    """Conversation of one frontend process with the broker."""

    def __init__(self, hello: wire.FrontendHello, grace_s: float, now: float) -> None:
        self._hello = hello
        self._grace_s = grace_s
        # What the broker sent since the last welcome.
        self.models: dict[str, ModelInfo] = {}
        #: The state of each model, including models that no worker has served yet.
        self.states: dict[str, ModelState] = {}
        #: Models that answer the requests that they have, but take no new ones.
        self.removed: set[str] = set()
        self.stats: wire.Stats | None = None
        #: Results of reloads by number, until `take_reloaded`; None: not answered.
        self._reloads: dict[int, wire.ModelsReloaded | None] = {}
        self._newest_reload = 0
        # Requests. They survive the loss of a broker.
        self.refusals = RefusalCache()
        self._requests = PendingRequests()
        self._seen_models: set[str] = set()
        # What the next `flush` submits, by number, and cancels.
        self._outbox: dict[int, Pending] = {}
        self._cancelled: list[Pending] = []
        # The state of the connection. The epoch is None while the session is away.
        self._epoch: int | None = None
        #: Bytes of vectors received since the welcome.
        self._received_bytes = 0
        self._heartbeat_s, self._liveness_s = HEARTBEAT_S, LIVENESS_S
        self._next_heartbeat = now + HEARTBEAT_S
        self._last_message_at = self._welcomed_at = self._away_since = now
        #: When to send the next hello at the earliest, and seconds from the next goodbye to a hello.
        self._next_hello, self._pause_s = now, HEARTBEAT_S

    @property
    def connected(self) -> bool:
        """Whether the broker has welcomed this frontend and has not been silent for too long since."""
        return self._epoch is not None

    @property
    def unanswered_count(self) -> int:
        """Number of requests without a complete answer."""
        return len(self._requests.list_unanswered())

    @property
    def has_outgoing(self) -> bool:
        """Whether `flush` has something to send."""
        return self.connected and bool(self._outbox or self._cancelled)

    # --- the connection ----------------------------------------------------------------------------------------------

    def connect(self) -> Step:
        """Return the hello for a connection that has been made."""
        return Step([Outgoing(self._hello)])

    def disconnect(self, now: float) -> Step:
        """Handle the loss of the connection or of the broker. Unanswered requests wait for the next welcome."""
        if self.connected:
            self._away_since = now
        self._epoch = None
        self.models, self.states, self.removed, self.stats = {}, {}, set(), None
        self._clear_outgoing()
        return Step()

    def handle(self, message: Message, frames: Sequence[Frame], now: float) -> Step:
        """Handle a message from the broker. Return what to send and which requests have ended."""
        self._last_message_at = now
        match message:
            case wire.Answers():
                self._received_bytes += len(frames[0])
                return Step(ended=self._requests.apply_answers(message, frames[0]))
            case wire.Failures():
                return Step(ended=self._apply_failures(message.failures))
            case wire.Models():
                return Step(ended=self._update_models(message))
            case wire.Stats():
                self.stats = message
            case wire.ModelsReloaded() if message.number in self._reloads:
                self._reloads[message.number] = message
            case wire.Welcome():
                self._begin_session(message, now)
            case wire.Who():
                # The broker has lost this frontend's session, and with it the unanswered requests.
                self.disconnect(now)
                return self.connect()
            case wire.Goodbye():
                self._next_hello = now + self._pause_s
                self._pause_s = min(MAX_PAUSE_S, 2 * self._pause_s)
                self.disconnect(now)
        return Step()

    def handle_malformed(self, now: float) -> Step:
        """Handle a message that cannot be decoded: greet the broker again, because an answer may be lost."""
        submitted = [
            pending
            for pending in self._requests.list_unanswered()
            if pending.model in self.models and pending.number not in self._outbox
        ]
        if not submitted:
            return Step()
        for pending in submitted:
            pending.malformed += 1
        text = "the frontend could not read the answer to this request; its log has the reason"
        ended = self._requests.apply_failures(
            wire.Failure(pending.number, -1, ErrorCode.INTERNAL, text)
            for pending in submitted
            if pending.malformed >= MAX_MALFORMED
        )
        self.disconnect(now)
        return Step(self.connect().sends, ended)

    def _begin_session(self, message: wire.Welcome, now: float) -> None:
        self._epoch = message.epoch
        self._received_bytes = 0
        self.refusals.max_wait_s = message.max_wait_ms / 1000
        # The broker sends its models next, and then all unanswered requests are submitted again.
        self.models = {}
        self._clear_outgoing()
        self._welcomed_at = now
        self._pause_s = HEARTBEAT_S
        self._heartbeat_s, self._liveness_s = message.heartbeat_ms / 1000, message.liveness_ms / 1000

    def _clear_outgoing(self) -> None:
        """Drop submissions and cancellations: a new session submits all unanswered requests, and has none to cancel."""
        self._outbox, self._cancelled = {}, []

    def _update_models(self, message: wire.Models) -> list[Pending]:
        """Replace the list of models, and submit the requests that waited for a model that is new in the list."""
        new = {model.name for model in message.models} - set(self.models)
        self.models = {model.name: model for model in message.models}
        self.states = {state.name: state for state in message.states}
        self.removed = set(message.removed)
        self._seen_models = (self._seen_models | set(self.models)) - self.removed
        waiting = [pending for pending in self._requests.list_unanswered() if pending.model in new]
        return self._requests.apply_failures(
            wire.Failure(pending.number, -1, ErrorCode.REPLACED, ErrorCode.REPLACED.text, 1000)
            for pending in waiting
            if not self._resubmit(pending)
        )

    def _apply_failures(self, failures: Sequence[wire.Failure]) -> list[Pending]:
        """Handle failures from the broker. Requests whose model was replaced start again with its new revision."""
        return self._requests.apply_failures(
            failure
            for failure in failures
            if failure.code != ErrorCode.REPLACED or not self._resubmit(self._requests.find(failure.request))
        )

    def _resubmit(self, pending: Pending | None) -> bool:
        """Submit a request to the current revision of its model. Return whether the model takes the request."""
        model = self.models.get(pending.model) if pending else None
        if pending is None or model is None or not pending.rebind(model):
            return False
        self._outbox[pending.number] = pending
        return True

    # --- time --------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """Return when to call `due`."""
        return self._next_heartbeat

    def due(self, now: float) -> Step:
        """Return the heartbeat, or the hello while away, and the requests that exceed the grace period.

        After a goodbye, the hello waits, because the broker would refuse it for the same reason.
        """
        if now < self._next_heartbeat:
            return Step()
        self._next_heartbeat = now + self._heartbeat_s
        if self.connected and now >= self._last_message_at + self._liveness_s:
            self.disconnect(now)
        sends = [Outgoing(self.heartbeat() if self.connected else self._hello)]
        if not self.connected and now < self._next_hello:
            sends = []
        since = self._welcomed_at if self.connected else self._away_since
        return Step(sends, self._fail_unserved() if now >= since + self._grace_s else ())

    def heartbeat(self) -> wire.FrontendHeartbeat:
        """Return a heartbeat, which the broker answers with its stats."""
        return wire.FrontendHeartbeat(self._received_bytes)

    def _fail_unserved(self) -> list[Pending]:
        """Fail the requests that wait for a broker or for their model, and return them."""
        unserved = [pending for pending in self._requests.list_unanswered() if pending.model not in self.models]
        return self._requests.apply_failures(
            wire.Failure(pending.number, -1, ErrorCode.NO_WORKER, str(self._explain_missing(pending.model)), 5000)
            for pending in unserved
        )

    # --- reloads -----------------------------------------------------------------------------------------------------

    def begin_reload(self) -> wire.ReloadModels:
        """Return a message that makes all workers read their configurations again."""
        self._newest_reload += 1
        self._reloads[self._newest_reload] = None
        return wire.ReloadModels(self._newest_reload)

    def take_reloaded(self, number: int, *, give_up: bool = False) -> wire.ModelsReloaded | None:
        """Return the result of a reload, once; None if there is none yet. Forget the reload to `give_up`."""
        result = self._reloads.get(number)
        if result or give_up:
            self._reloads.pop(number, None)
        return result

    # --- requests ----------------------------------------------------------------------------------------------------

    def find_model(self, name: str, asked_at: float, now: float) -> ModelInfo | float:
        """Return a model, or the time until which to wait for it, because a start or a loss takes a moment.

        Raise `ApiError` if the model is unknown, if it has no worker, or if the grace period for a broker is over.
        """
        model = self.models.get(name)
        if model and name not in self.removed:
            return model
        live = {other: model for other, model in self.models.items() if other not in self.removed}
        if resolved := resolve_name(name, live):
            return live[resolved.model]
        state = self._find_state(name)
        if name in self.removed and (state is None or state.state in _GONE):
            raise unknown_model(name, served=live)
        if state and state.state == Availability.FAILED and name not in self._seen_models:
            raise self._explain_missing(name)
        until = (self._welcomed_at if self.connected else asked_at) + self._grace_s
        if now >= until:
            raise self._explain_missing(name)
        return until

    def _find_state(self, name: str) -> ModelState | None:
        """Return the state of a model, given by its own name or by NAME:PROMPT, or None."""
        return self.states.get(name) or self.states.get(name.rpartition(":")[0])

    def _explain_missing(self, name: str) -> ApiError:
        if not self.connected:
            return broker_away()
        state = self._find_state(name)
        if state and state.state in (Availability.START, Availability.LOADING):
            return from_failure(ErrorCode.NO_WORKER, f"the model {quote(name)} is still being loaded", 5000)
        if state and state.state == Availability.FAILED:
            text = f"the model {quote(name)} could not be loaded by any worker: {state.text[:MAX_REASON]}"
            return from_failure(ErrorCode.NO_WORKER, text, 5000)
        if name in self._seen_models or not any(model.workers for model in self.models.values()):
            return from_failure(ErrorCode.NO_WORKER, describe_no_worker(name), 5000)
        return unknown_model(name, served=self.models.keys() - self.removed)

    def submit(
        self, submission: wire.Submission, frame: Frame, deadline: float, *, per_item: bool, max_tokens: float
    ) -> Pending:
        """Return a new request, which the next `flush` submits. The submission gets its number here."""
        model = self.models.get(submission.model)
        pending = self._requests.add_request(
            submission, frame, deadline, per_item=per_item, max_tokens=max_tokens, model_info=model
        )
        self._outbox[pending.number] = pending
        return pending

    def finish(self, pending: Pending) -> None:
        """Forget a request. The next `flush` cancels the request if the broker still has jobs of it."""
        self._requests.remove(pending)
        self._outbox.pop(pending.number, None)
        if pending.missing and not pending.ended_by_broker:
            self._cancelled.append(pending)

    def flush(self, now: float) -> Step:
        """Return the messages for everything that was submitted and finished since the last call."""
        submitted = [pending for pending in self._outbox.values() if not pending.ended]
        cancelled = self._cancelled
        self._clear_outgoing()
        if not self.connected:
            return Step()
        sends = []
        for begin in range(0, len(submitted), MAX_SUBMISSIONS):
            part = submitted[begin : begin + MAX_SUBMISSIONS]
            message = wire.Submit([_set_budget(pending, now) for pending in part])
            sends.append(Outgoing(message, [pending.frame for pending in part]))
        if cancelled:
            abandoned = wire.pack_u64(pending.number for pending in cancelled if pending.abandoned)
            sends.append(Outgoing(wire.Cancel(wire.pack_u64(pending.number for pending in cancelled), abandoned)))
        return Step(sends)


def _set_budget(pending: Pending, now: float) -> wire.Submission:
    """Return the submission with the time that remains until its deadline, at most what a u32 holds (49 days)."""
    budget_ms = int(min(max(0.0, (pending.deadline - now) * 1000), 2**32 - 1))
    return msgspec.structs.replace(pending.submission, budget_ms=budget_ms)
