"""The frontend's link to the broker: one raw DEALER on the event loop's `add_reader`, and requests as futures.

zmq.asyncio costs five times the processor time per message (zeromq-worker-pools.md, section 5). The descriptor of a
ZeroMQ socket is edge-triggered and any call on the socket eats the edge, so reading always drains, and every send is
followed by one more look.
"""

import asyncio
import contextlib
import logging
import math
import os
import socket as host_socket
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import msgspec
import zmq
import zmq.utils.monitor

from broker import protocol as wire
from broker.curve import secure_dealer
from broker.errors import ErrorCode, RemoteProtocolError
from broker.protocol import Frame, Kind, Lane, Message, ModelInfo, ModelState, State
from frontend.config import Config
from frontend.errors import ApiError, from_failure, quote, unknown_model
from frontend.pending import Door, Pending, Table
from frontend.schemas import Terms

log = logging.getLogger(__name__)

#: Messages read in one turn of the event loop before other work gets its turn.
MAX_DRAIN = 64
#: Submissions in one message at most, so that the broker's other peers never wait long while it reads one.
MAX_SUBMISSIONS = 64
#: How much longer than its deadline a request waits for the broker to say that it is over.
DEADLINE_SLACK_S = 2.0
#: How long /health waits for the broker's counts.
STATS_WAIT_S = 1.0
#: Why a model that has had no worker yet cannot be asked.
_NOT_YET = {State.LOADING: "is still being loaded", State.FAILED: "could not be loaded by any worker"}


class BrokerClient:
    """One per frontend process. All methods run on the event loop's thread."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.models: dict[str, ModelInfo] = {}
        #: How each model is doing, those included that no worker has served yet.
        self.states: dict[str, ModelState] = {}
        self.stats: wire.Stats | None = None
        self._seen_models: set[str] = set()
        self._table = Table()
        self._door = Door()
        self._futures: dict[int, asyncio.Future[None]] = {}
        self._outbox: list[Pending] = []
        self._cancelled: list[Pending] = []
        self._epoch: int | None = None
        #: Bytes of vectors since its welcome.
        self._received = 0
        self._heartbeat_s, self._liveness_s = 0.25, 3.5
        self._last_heard = self._welcomed_at = self._away_since = time.monotonic()
        #: Set and replaced whenever the connection or the models change.
        self._changed = asyncio.Event()
        self._stats_answered = asyncio.Event()
        self._families: list[wire.Family] = []
        self._families_answered = asyncio.Event()
        self._uuid, self._incarnation = uuid.uuid4().bytes, time.time_ns()

    @property
    def connected(self) -> bool:
        """Whether the broker is there, as far as can be told."""
        return self._epoch is not None

    async def fresh_stats(self) -> wire.Stats | None:
        """The broker's counts as of now; the last ones when it does not answer at once, None when it is away."""
        if self.connected:
            answered = self._stats_answered
            self._send(wire.FrontendHeartbeat(self._received))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(answered.wait(), STATS_WAIT_S)
        return self.stats

    async def fresh_families(self) -> list[wire.Family]:
        """The broker's metrics as of now; none when it does not answer at once."""
        if self.connected:
            answered = self._families_answered
            self._send(wire.FrontendHeartbeat(self._received, metrics=True))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(answered.wait(), STATS_WAIT_S)
                return self._families
        return []

    # --- requests ----------------------------------------------------------------------------------------------------

    async def run(
        self,
        model: str,
        kind: Kind,
        inputs: Sequence[bytes],
        terms: Terms,
        deadline: float,
        *,
        options: int = 0,
        per_item: bool = False,
        max_tokens: float = math.inf,
    ) -> Pending:
        """A row for each input (with `per_item`: or its failure), or ApiError. Cancelling the call cancels the jobs."""
        lane = self._lane(inputs) if terms.lane is None else terms.lane
        now = time.monotonic()
        wait_s = self._door.refuses(model, lane, terms.client, deadline - now, now)
        if wait_s:
            text = f"the queue is {wait_s:.3g} s long"
            raise from_failure(ErrorCode.OVERLOADED, text, int(wait_s * 1000))
        submission = wire.Submission(
            0,
            model,
            lane,
            terms.client,
            0,
            kind,
            wire.pack_u32(map(len, inputs)),
            options,
            terms.origin,
            terms.client_jobs,
            terms.client_tokens,
            terms.address,
        )
        pending = self._table.add(submission, b"".join(inputs), deadline, per_item=per_item, max_tokens=max_tokens)
        future = self._futures[pending.number] = self._loop.create_future()
        self._submit([pending])
        try:
            await asyncio.wait_for(future, deadline - time.monotonic() + DEADLINE_SLACK_S)
        except TimeoutError:
            text = "the request's deadline passed before it was answered"
            raise from_failure(ErrorCode.DEADLINE, text, 5000) from None
        except asyncio.CancelledError:
            pending.abandoned = True
            raise
        finally:
            self._end(pending)
        self._door.note(pending, time.monotonic())
        if pending.failure:
            raise from_failure(pending.failure.code, pending.failure.text, pending.failure.retry_after_ms)
        return pending

    def _lane(self, inputs: Sequence[bytes]) -> Lane:
        """By a request's size: a search has few and short inputs."""
        config = self._config
        small = len(inputs) <= config.interactive_inputs and sum(map(len, inputs)) <= config.interactive_bytes
        return Lane.INTERACTIVE if small else Lane.BULK

    async def find_model(self, name: str) -> ModelInfo:
        """The model. ApiError when the broker does not know it, or has no worker for it yet, also after the moment that
        a start or a loss takes."""
        until = time.monotonic() + self._config.broker_grace_s
        while name not in self.models:
            left = (self._settled_at if self.connected else until) - time.monotonic()
            if left <= 0:
                raise self._missing(name)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)
        return self.models[name]

    @property
    def _settled_at(self) -> float:
        """From when on a model that the broker does not know does not exist: workers need a moment to come back."""
        return self._welcomed_at + self._config.broker_grace_s

    def _missing(self, name: str) -> ApiError:
        """Why a model cannot be asked."""
        if not self.connected:
            return broker_away()
        state = self.states.get(name)
        if state and state.state in _NOT_YET:
            return from_failure(ErrorCode.NO_WORKER, f"the model {quote(name)} {_NOT_YET[state.state]}", 5000)
        if name in self._seen_models or not any(model.workers for model in self.models.values()):
            return from_failure(ErrorCode.NO_WORKER, f"no worker that serves {quote(name)} is connected", 5000)
        return unknown_model(name)

    def _end(self, pending: Pending) -> None:
        """Nobody waits for the request any more; the broker need not know of an end that it announced itself."""
        self._table.remove(pending)
        del self._futures[pending.number]
        if pending.missing and not pending.told:
            if not self._cancelled:
                self._loop.call_soon(self._flush)
            self._cancelled.append(pending)

    def _submit(self, pending: Sequence[Pending]) -> None:
        """Everything submitted in one turn of the loop leaves together."""
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.extend(pending)

    def _flush(self) -> None:
        outbox, self._outbox = [one for one in self._outbox if not one.ended], []
        cancelled, self._cancelled = self._cancelled, []
        if outbox and self.connected:
            now = time.monotonic()
            awaited = [one for one in outbox if one.number in self._futures]
            for at in range(0, len(awaited), MAX_SUBMISSIONS):
                part = awaited[at : at + MAX_SUBMISSIONS]
                self._send(wire.Submit([_with_budget(one, now) for one in part]), [one.frame for one in part])
        if cancelled and self.connected:
            abandoned = wire.pack_u64(one.number for one in cancelled if one.abandoned)
            self._send(wire.Cancel(wire.pack_u64(one.number for one in cancelled), abandoned))

    def _wake(self, ended: Sequence[Pending]) -> None:
        for pending in ended:
            future = self._futures.get(pending.number)
            if future and not future.done():
                future.set_result(None)

    # --- the connection ----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect, without waiting for the broker. Call it on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        for name, value in wire.DEALER_OPTIONS.items():
            self._socket.setsockopt(getattr(zmq, name), value)
        if self._config.keys:
            secure_dealer(self._socket, Path(self._config.keys), "frontend")
        events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        self._monitor = self._socket.get_monitor_socket(events)
        self._loop.add_reader(self._monitor.fileno(), self._on_monitor)
        self._loop.add_reader(self._socket.fileno(), self._on_readable)
        self._socket.connect(self._config.broker)
        self._loop.call_soon(self._on_monitor)
        self._timer = self._loop.call_later(self._heartbeat_s, self._on_timer)

    def close(self) -> None:
        """Say goodbye and close; what is still pending is cancelled by it."""
        self._timer.cancel()
        if self.connected:
            self._send(wire.FrontendGoodbye())
        self._loop.remove_reader(self._monitor.fileno())
        self._loop.remove_reader(self._socket.fileno())
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close(linger=500)
        self._context.term()

    def _on_monitor(self) -> None:
        while self._monitor.poll(0):
            event = zmq.utils.monitor.recv_monitor_message(self._monitor)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._hello()
            elif event == zmq.EVENT_DISCONNECTED:
                self._away()
            else:
                log.error("the broker at %s refuses this frontend's key", self._config.broker)

    def _hello(self) -> None:
        self._send(
            wire.FrontendHello(
                protocol_min=wire.PROTOCOL_MIN,
                protocol_max=wire.PROTOCOL_MAX,
                build="",
                uuid=self._uuid,
                incarnation=self._incarnation,
                host=host_socket.gethostname(),
                pid=os.getpid(),
            )
        )

    def _away(self) -> None:
        """The broker is gone: nothing is lost, for what is unanswered will be sent to the next one."""
        if self.connected:
            log.warning("the broker at %s is away; %d requests wait for it", self._config.broker, len(self._table))
            self._away_since = time.monotonic()
        self._epoch = None
        self.models, self.states, self.stats = {}, {}, None
        self._notify()

    def _on_timer(self) -> None:
        now = time.monotonic()
        if self.connected and now >= self._last_heard + self._liveness_s:
            self._away()
        if self.connected:
            self._send(wire.FrontendHeartbeat(self._received))
        else:
            self._hello()
            if now >= self._away_since + self._config.broker_grace_s:
                self._give_up()
        if self.connected and now >= self._settled_at:
            self._give_up()
        self._timer = self._loop.call_later(self._heartbeat_s, self._on_timer)

    def _give_up(self) -> None:
        """The grace is over: end what waits for a broker, or for a model to come back to it."""
        gone = [one for one in self._table.unanswered() if one.model not in self.models]
        texts = ((one.number, str(self._missing(one.model))) for one in gone)
        failures = [wire.Failure(number, -1, ErrorCode.NO_WORKER, text, 5000) for number, text in texts]
        self._wake(self._table.failed(failures))

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # --- messages ----------------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        if self._socket.closed:
            return
        for _ in range(MAX_DRAIN):
            try:
                header, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            try:
                message, payload = wire.decode(wire.TO_FRONTEND, [header.bytes, *(frame.buffer for frame in frames)])
            except RemoteProtocolError as error:
                log.warning("ignored a malformed message: %s", error)
                continue
            self._last_heard = time.monotonic()
            self._handle(message, payload)
        self._loop.call_soon(self._on_readable)

    def _handle(self, message: Message, frames: Sequence[Frame]) -> None:
        match message:
            case wire.Answers():
                self._received += len(frames[0])
                self._wake(self._table.answered(message, frames[0]))
            case wire.Failures():
                self._wake(self._table.failed(message.failures))
            case wire.Models():
                self._on_models(message)
            case wire.Stats():
                self.stats = message
                self._stats_answered.set()
                self._stats_answered = asyncio.Event()
                if message.families:
                    self._families = message.families
                    self._families_answered.set()
                    self._families_answered = asyncio.Event()
            case wire.Welcome():
                self._on_welcome(message)
            case wire.Who():
                # It has forgotten this frontend, and with it all that is unanswered.
                self._away()
                self._hello()
            case wire.Goodbye():
                log.warning("the broker says goodbye: %s: %s", message.code.name, message.text)
                self._away()

    def _on_welcome(self, message: wire.Welcome) -> None:
        log.info("connected to broker %s, epoch %x", self._config.broker, message.epoch)
        self._epoch = message.epoch
        self._received = 0
        self._door.max_wait_s = message.max_wait_ms / 1000
        # The models follow, and with them all that is unanswered is sent again.
        self.models = {}
        self._welcomed_at = time.monotonic()
        self._heartbeat_s, self._liveness_s = message.heartbeat_ms / 1000, message.liveness_ms / 1000
        self._notify()

    def _on_models(self, message: wire.Models) -> None:
        """Models that the broker has come to know: send it the requests that wait for them."""
        new = {model.name for model in message.models} - set(self.models)
        self.models = {model.name: model for model in message.models}
        self.states = {state.name: state for state in message.states}
        self._seen_models |= set(self.models)
        again = [one for one in self._table.unanswered() if one.model in new]
        if again:
            self._submit(again)
        self._notify()

    def _send(self, message: Message, frames: Sequence[Frame] = ()) -> None:
        try:
            self._socket.send_multipart(wire.encode(message, frames), zmq.NOBLOCK)
        except zmq.Again:
            log.debug("not sent, the broker is away: %s", type(message).__name__)
        self._loop.call_soon(self._on_readable)


def _with_budget(pending: Pending, now: float) -> wire.Submission:
    """The submission with what is left of its time."""
    budget_ms = max(0, int((pending.deadline - now) * 1000))
    return msgspec.structs.replace(pending.submission, budget_ms=budget_ms)


def broker_away() -> ApiError:
    """The broker cannot be reached."""
    return ApiError(
        503, "the broker cannot be reached", kind="server_error", code="broker_unavailable", retry_after_s=5
    )
