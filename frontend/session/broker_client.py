"""Awaitable requests to the broker: the pure session, its socket, and a future for each request."""

import asyncio
import contextlib
import logging
import math
import os
import socket
import time
import uuid
from collections.abc import Callable, Sequence

from broker.shared.version import VERSION
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode, describe_queue
from broker.wire.protocol import Frame, Kind, Lane, Message, ModelInfo, ModelState
from frontend.api.errors import from_failure, name_input
from frontend.api.schemas import RequestOptions
from frontend.config import Config
from frontend.session.link import Link
from frontend.session.pending import Pending
from frontend.session.session import Session, Step

log = logging.getLogger(__name__)

#: Seconds after its deadline for which a request waits at least for the broker's failure, which names the reason.
DEADLINE_SLACK_S = 2.0
#: Seconds for which /health waits for the broker's stats.
STATS_WAIT_S = 1.0


class BrokerClient:
    """The broker, as the handlers of one frontend process call it. All methods run on the event loop's thread."""

    def __init__(self, config: Config) -> None:
        self._config = config
        hello = wire.FrontendHello(
            protocol_min=wire.PROTOCOL_MIN,
            protocol_max=wire.PROTOCOL_MAX,
            build=VERSION,
            uuid=uuid.uuid4().bytes,
            host=socket.gethostname(),
            pid=os.getpid(),
        )
        # The mutable state of a client is
        # - the session, which has the requests, the models and the state of the connection;
        self._session = Session(hello, config.broker_grace_s, time.monotonic())
        # - the socket;
        self._link = Link(config, self._on_connect, self._on_disconnect, self._on_message, self._on_malformed)
        # - each call of `run` that has not returned, by the request's number: until when it waits, and its future;
        self._waiting: dict[int, tuple[float, asyncio.Future[None]]] = {}
        # - whether the event loop is about to call `_flush`;
        self._flush_scheduled = False
        # - events that wake the waiting calls. They are set and replaced when the connection or the models change, and
        #   when stats or the result of a reload arrive.
        self._changed, self._stats_came, self._reloaded = asyncio.Event(), asyncio.Event(), asyncio.Event()
        # - the text of the last goodbye, which is logged once.
        self._last_goodbye = ""

    @property
    def connected(self) -> bool:
        """Whether the broker has welcomed this frontend and has not been silent for too long since."""
        return self._session.connected

    @property
    def models(self) -> dict[str, ModelInfo]:
        """The broker's models, by name."""
        return self._session.models

    @property
    def states(self) -> dict[str, ModelState]:
        """The state of each model by name, including models that no worker has served yet."""
        return self._session.states

    # --- requests ----------------------------------------------------------------------------------------------------

    async def run(
        self,
        model: str,
        kind: Kind,
        inputs: Sequence[bytes],
        request_options: RequestOptions,
        deadline: float,
        *,
        options: int = 0,
        per_item: bool = False,
        max_tokens: float = math.inf,
    ) -> Pending:
        """Return the request with a row for each input; with `per_item`, some inputs may have failures instead.

        `inputs` are UTF-8 texts or packed token ids, and `deadline` is a monotonic time in seconds. Cancelling the call
        cancels the jobs. Raise `ApiError` if the request fails, or, without `per_item`, if any of its inputs fails.
        """
        lane = self._choose_lane(inputs) if request_options.lane is None else request_options.lane
        now = time.monotonic()
        wait_s = self._session.refusals.find_wait(model, lane, request_options.client, deadline - now, now)
        if wait_s:
            text = describe_queue(wait_s)
            raise from_failure(ErrorCode.OVERLOADED, text, int(wait_s * 1000))
        submission = wire.Submission(
            0,
            model,
            lane,
            request_options.client,
            0,
            kind,
            wire.pack_u32(map(len, inputs)),
            options,
            request_options.origin,
            request_options.client_jobs,
            request_options.client_tokens,
            request_options.address,
            caching=request_options.caching,
        )
        frame = b"".join(inputs)
        pending = self._session.submit(submission, frame, deadline, per_item=per_item, max_tokens=max_tokens)
        future = self._loop.create_future()
        self._waiting[pending.number] = deadline + DEADLINE_SLACK_S, future
        self._schedule_flush()
        try:
            await future
        except TimeoutError:
            raise from_failure(ErrorCode.DEADLINE, retry_after_ms=5000) from None
        except asyncio.CancelledError:
            pending.abandoned = True
            raise
        finally:
            del self._waiting[pending.number]
            self._session.finish(pending)
            if self._session.has_outgoing:
                self._schedule_flush()
        self._session.refusals.record_answer(pending, time.monotonic())
        if pending.failure:
            error = from_failure(pending.failure.code, pending.failure.text, pending.failure.retry_after_ms)
            raise name_input(error, pending.failure.position, len(inputs), embeds=not options & wire.Option.TOKENIZE)
        return pending

    def _choose_lane(self, inputs: Sequence[bytes]) -> Lane:
        """Return the interactive lane for few and short inputs, as a search has, and else the bulk lane."""
        config = self._config
        small = len(inputs) <= config.interactive_inputs and sum(map(len, inputs)) <= config.interactive_bytes
        return Lane.INTERACTIVE if small else Lane.BULK

    async def find_model(self, name: str) -> ModelInfo:
        """Return a model, after waiting for the broker or the model for at most the grace period.

        Raise `ApiError` if the model is unknown, if it has no worker, or if the broker stays away.
        """
        asked_at = time.monotonic()
        while not isinstance(found := self._session.find_model(name, asked_at, time.monotonic()), ModelInfo):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), found - time.monotonic())
        return found

    async def reload_models(self, timeout_s: float) -> wire.ModelsReloaded | None:
        """Let all workers read their configurations again. Return what came of it; None if there is no broker.

        The answer comes when all models are loaded. If some are still loading after the timeout, that is the failure.
        """
        if not self.connected:
            return None
        message = self._session.begin_reload()
        self._link.send(message)
        until = time.monotonic() + timeout_s
        try:
            while not (result := self._session.take_reloaded(message.number)) and self.connected:
                await asyncio.wait_for(self._reloaded.wait(), until - time.monotonic())
        except TimeoutError:
            text = f"Models are still loading after {timeout_s:g} s; see GET /v1/config for their states."
            return wire.ModelsReloaded(message.number, changed=False, failure=text)
        finally:
            self._session.take_reloaded(message.number, give_up=True)
        return result

    async def fresh_stats(self) -> wire.Stats | None:
        """Return the broker's current stats, or the last ones if it does not answer in time, or None if it is away."""
        if self.connected:
            came = self._stats_came
            self._link.send(self._session.heartbeat())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(came.wait(), STATS_WAIT_S)
        return self._session.stats

    # --- the connection ----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Start to connect. Must be called on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._link.open()
        self._timer = self._loop.call_soon(self._on_timer)

    def close(self) -> None:
        """Send a goodbye, with which the broker cancels this frontend's jobs, and close the socket."""
        self._timer.cancel()
        if self.connected:
            self._link.send(wire.FrontendGoodbye())
        self._link.close()

    def _on_connect(self) -> None:
        self._run_step(self._session.connect)

    def _on_disconnect(self) -> None:
        self._run_step(lambda: self._session.disconnect(time.monotonic()))

    def _on_message(self, message: Message, frames: Sequence[Frame]) -> None:
        self._run_step(lambda: self._session.handle(message, frames, time.monotonic()))
        match message:
            case wire.Goodbye():
                if message.text != self._last_goodbye:
                    log.warning("broker closed the session: %s: %s", message.code.name, message.text)
                self._last_goodbye = message.text
            case wire.Stats():
                self._stats_came.set()
                self._stats_came = asyncio.Event()
            case wire.ModelsReloaded():
                self._wake_reloads()

    def _on_malformed(self) -> None:
        self._run_step(lambda: self._session.handle_malformed(time.monotonic()))

    def _on_timer(self) -> None:
        try:
            self._run_step(lambda: self._session.due(time.monotonic()))
            self._end_late_calls(time.monotonic())
        finally:
            # Without heartbeats, a fault in one turn would lose the broker for good.
            delay_s = max(0.0, self._session.next_deadline() - time.monotonic())
            self._timer = self._loop.call_later(delay_s, self._on_timer)

    def _end_late_calls(self, now: float) -> None:
        """End the calls of `run` that the broker has left without an answer. A timer for each would take 5 µs."""
        for until, future in self._waiting.values():
            if now >= until and not future.done():
                future.set_exception(TimeoutError())

    def _schedule_flush(self) -> None:
        """Flush at the end of this turn of the event loop, so that its submissions leave in one message."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        self._run_step(lambda: self._session.flush(time.monotonic()))

    def _run_step(self, call: Callable[[], Step]) -> None:
        """Call the session. Send the messages, wake the requests that have ended, and log a change of connection."""
        connected, models = self.connected, self._session.models
        step = call()
        for message, frames in step.sends:
            self._link.send(message, frames)
        for pending in step.ended:
            _, future = self._waiting.get(pending.number, (0.0, None))
            if future and not future.done():
                future.set_result(None)
        if connected != self.connected:
            self._log_connection()
            self._wake_reloads()
        if connected != self.connected or models is not self._session.models:
            self._changed.set()
            self._changed = asyncio.Event()
        if self._session.has_outgoing:
            self._schedule_flush()

    def _wake_reloads(self) -> None:
        self._reloaded.set()
        self._reloaded = asyncio.Event()

    def _log_connection(self) -> None:
        if self.connected:
            log.info("connected to broker %s", self._config.broker)
        else:
            count = self._session.unanswered_count
            log.warning("lost broker %s; %d requests wait for it to return", self._config.broker, count)
