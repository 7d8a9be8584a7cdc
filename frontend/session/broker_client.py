"""Requests to the broker as awaitable calls: the pure session, its socket, and a future for each request."""

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
from broker.wire.errors import ErrorCode
from broker.wire.protocol import Frame, Kind, Lane, Message, ModelInfo, ModelState
from frontend.api.errors import from_failure
from frontend.api.schemas import RequestOptions
from frontend.config import Config
from frontend.session.link import Link
from frontend.session.pending import Pending
from frontend.session.session import Session, Step

log = logging.getLogger(__name__)

#: How much longer than its deadline a request waits for the broker to say that it is over.
DEADLINE_SLACK_S = 2.0
#: How long /health waits for the broker's counts.
STATS_WAIT_S = 1.0


class BrokerClient:
    """One for each frontend process. All methods run on the event loop's thread."""

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
        self._session = Session(hello, config.broker_grace_s, time.monotonic())
        self._link = Link(config, self._on_connect, self._on_disconnect, self._on_message)
        self._futures: dict[int, asyncio.Future[None]] = {}
        self._flushing = False
        #: Set and replaced whenever the connection or the models change, and whenever stats come.
        self._changed, self._stats_came = asyncio.Event(), asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether the broker is there, as far as can be told."""
        return self._session.connected

    @property
    def models(self) -> dict[str, ModelInfo]:
        """Every model that the broker knows."""
        return self._session.models

    @property
    def states(self) -> dict[str, ModelState]:
        """The state of each model, including models that no worker has served yet."""
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
        """Return a row for each input (with `per_item`: or its failure). Cancelling the call cancels the jobs.

        Raise ApiError when the request, or without `per_item` an input of it, fails.
        """
        lane = self._choose_lane(inputs) if request_options.lane is None else request_options.lane
        now = time.monotonic()
        wait_s = self._session.door.refuses(model, lane, request_options.client, deadline - now, now)
        if wait_s:
            text = f"the queue is {wait_s:.3g} s long"
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
        )
        frame = b"".join(inputs)
        pending = self._session.submit(submission, frame, deadline, per_item=per_item, max_tokens=max_tokens)
        future = self._futures[pending.number] = self._loop.create_future()
        self._flush_soon()
        try:
            await asyncio.wait_for(future, deadline - time.monotonic() + DEADLINE_SLACK_S)
        except TimeoutError:
            text = "the request's deadline passed before it was answered"
            raise from_failure(ErrorCode.DEADLINE, text, 5000) from None
        except asyncio.CancelledError:
            pending.abandoned = True
            raise
        finally:
            del self._futures[pending.number]
            self._session.finish(pending)
            if self._session.has_outgoing:
                self._flush_soon()
        self._session.door.note(pending, time.monotonic())
        if pending.failure:
            raise from_failure(pending.failure.code, pending.failure.text, pending.failure.retry_after_ms)
        return pending

    def _choose_lane(self, inputs: Sequence[bytes]) -> Lane:
        """Choose by a request's size: a search has few and short inputs."""
        config = self._config
        small = len(inputs) <= config.interactive_inputs and sum(map(len, inputs)) <= config.interactive_bytes
        return Lane.INTERACTIVE if small else Lane.BULK

    async def find_model(self, name: str) -> ModelInfo:
        """Return the model, also after the moment that a start or a loss takes.

        Raise ApiError when the broker does not know it, or has no worker for it yet.
        """
        asked_at = time.monotonic()
        while not isinstance(found := self._session.find_model(name, asked_at, time.monotonic()), ModelInfo):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), found - time.monotonic())
        return found

    async def fresh_stats(self) -> wire.Stats | None:
        """Return the broker's counts as of now; the last ones when it does not answer at once, None when it is away."""
        if self.connected:
            came = self._stats_came
            self._link.send(self._session.heartbeat())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(came.wait(), STATS_WAIT_S)
        return self._session.stats

    # --- the connection ----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect, without waiting for the broker. Call it on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._link.open()
        self._timer = self._loop.call_soon(self._on_timer)

    def close(self) -> None:
        """Say goodbye and close; what is still unanswered is cancelled by it."""
        self._timer.cancel()
        if self.connected:
            self._link.send(wire.FrontendGoodbye())
        self._link.close()

    def _on_connect(self) -> None:
        self._advance(self._session.connect)

    def _on_disconnect(self) -> None:
        self._advance(lambda: self._session.disconnect(time.monotonic()))

    def _on_message(self, message: Message, frames: Sequence[Frame]) -> None:
        self._advance(lambda: self._session.handle(message, frames, time.monotonic()))
        match message:
            case wire.Goodbye():
                log.warning("the broker ended the session: %s: %s", message.code.name, message.text)
            case wire.Stats():
                self._stats_came.set()
                self._stats_came = asyncio.Event()

    def _on_timer(self) -> None:
        self._advance(lambda: self._session.due(time.monotonic()))
        delay_s = max(0.0, self._session.next_deadline() - time.monotonic())
        self._timer = self._loop.call_later(delay_s, self._on_timer)

    def _flush_soon(self) -> None:
        """Send all that one turn of the event loop submits and cancels together."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self._advance(lambda: self._session.flush(time.monotonic()))

    def _advance(self, call: Callable[[], Step]) -> None:
        """Make a call of the session, and do what it asks for."""
        connected, models = self.connected, self._session.models
        step = call()
        for message, frames in step.sends:
            self._link.send(message, frames)
        for pending in step.ended:
            future = self._futures.get(pending.number)
            if future and not future.done():
                future.set_result(None)
        if connected != self.connected:
            self._log_connection()
        if connected != self.connected or models is not self._session.models:
            self._changed.set()
            self._changed = asyncio.Event()
        if self._session.has_outgoing:
            self._flush_soon()

    def _log_connection(self) -> None:
        if self.connected:
            log.info("connected to broker %s", self._config.broker)
        else:
            waiting = self._session.unanswered
            log.warning("the broker at %s is away; %d requests wait for it", self._config.broker, waiting)
