"""Process of a worker: its socket loop, its clock, and the threads of its pipeline."""

import itertools
import logging
import math
import os
import signal
import time
from typing import NoReturn

import zmq

from broker.shared.exit import HUNG_STATUS
from broker.shared.health import HealthFile
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode, RemoteProtocolError
from broker.wire.protocol import Frame, Message
from broker.wire.sockets import ConnectionMonitor, open_dealer
from workers.config import Config
from workers.engine.pipeline import Pipeline
from workers.engine.work import Work
from workers.session.model_keeper import ModelKeeper
from workers.session.session import Session

log = logging.getLogger(__name__)

#: Longest drain after SIGTERM, in seconds: the longest lease of a batch, and some more.
DRAIN_S = 65.0
#: Longest time to send the goodbye after the drain, in milliseconds.
GOODBYE_MS = 500
#: Seconds between two warnings that no broker is connected.
WARN_S = 10.0


class Service:
    """One worker on one connection to the broker."""

    def __init__(self, config: Config, session: Session, pipeline: Pipeline, keeper: ModelKeeper, wakeup: int) -> None:
        """Take the parts of the worker, whose threads write to the eventfd `wakeup` when they have a result.

        Raise `KeyFileError` if a key cannot be used.
        """
        self.config = config
        self._session = session
        self._pipeline = pipeline
        self._keeper = keeper
        self._wakeup = wakeup
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = open_dealer(self._context, config.keys, "worker")
        # Created before the connection, so that it reports the first handshake.
        self._monitor = ConnectionMonitor(self._socket, config.broker, "worker", config.keys)
        self._poller = zmq.Poller()
        for readable in (self._socket, self._monitor.socket, wakeup):
            self._poller.register(readable, zmq.POLLIN)
        self._stopping = False
        self._drain_deadline = math.inf
        self._health = HealthFile(config.health_file)
        self._next_warning = time.monotonic() + WARN_S
        self._last_goodbye = ""
        self._batch_numbers = itertools.count(1)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain, leave the broker, and end the threads."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._socket.connect(self.config.broker)
        self._pipeline.start()
        try:
            while not self._stopping:
                self._run_turn()
            self._drain()
        except Exception:
            if self._session.held:
                log.exception("the worker failed while batches were running")
                self._exit_hung("batches were running")
            raise
        finally:
            self._close_sockets()
        if self._session.held:
            self._exit_hung("batches were still running at the drain timeout")
        self._pipeline.stop()

    def _drain(self) -> None:
        """Finish the held batches and leave the broker."""
        # 1. The broker stops sending batches.
        self._send(*self._session.drain())
        log.info("draining: %d batches to finish", len(self._session.held))
        # 2. The held batches are finished and answered. Heartbeats go on, so that the broker does not evict the worker.
        self._drain_deadline = time.monotonic() + DRAIN_S
        while self._session.held and time.monotonic() < self._drain_deadline:
            self._run_turn()
        # 3. The broker requeues what was not answered, without blame.
        self._send(wire.WorkerGoodbye())
        log.info("drained with %d batches unfinished", len(self._session.held))

    def _close_sockets(self) -> None:
        self._monitor.close()
        self._socket.close(linger=GOODBYE_MS)
        self._context.term()

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _run_turn(self) -> None:
        """Wait for an event or a deadline, and handle everything that has come."""
        ready = dict(self._poller.poll(self._compute_timeout_ms()))
        if self._monitor.socket in ready:
            self._handle_handshakes()
        if self._socket in ready:
            self._receive_messages()
        if self._wakeup in ready:
            os.eventfd_read(self._wakeup)
        while self._pipeline.finished:
            self._answer_batch(self._pipeline.finished.popleft())
        now = time.monotonic()
        if self._session.is_hung(now):
            self._exit_hung("a batch has run for longer than its lease")
        self._send(*self._keeper.run(now))
        self._send(*self._session.due(now))
        self._report_state(now)

    def _compute_timeout_ms(self) -> int:
        deadline = min(
            self._session.next_deadline(), self._keeper.next_deadline(), self._next_warning, self._drain_deadline
        )
        return max(0, int((deadline - time.monotonic()) * 1000) + 1)

    def _handle_handshakes(self) -> None:
        """Send a hello on a new connection, because the broker has a new routing id for it."""
        for connected in self._monitor.read_changes():
            if connected:
                self._send(self._session.make_hello(time.monotonic()))

    def _receive_messages(self) -> None:
        while True:
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message, frames = wire.decode(wire.TO_WORKER, parts)
            except RemoteProtocolError as error:
                log.warning("ignored a malformed message: %s", error)
                continue
            self._log_message(message)
            if isinstance(message, wire.Goodbye) and message.code == ErrorCode.LEASE_EXPIRED:
                self._exit_hung("the lease of a batch expired at the broker")
            now = time.monotonic()
            batch, replies = self._session.handle(message, now)
            self._keeper.handle(message, now)
            if batch:
                self._pipeline.submit(Work(batch, frames[0]))
            self._send(*replies)

    def _log_message(self, message: Message) -> None:
        if isinstance(message, wire.Welcome):
            log.info("connected to the broker at %s, epoch %x", self.config.broker, message.epoch)
            for name in message.unused:
                log.warning("%s gets no requests, because other workers serve another revision of it", name)
        elif isinstance(message, wire.Goodbye):
            if message.text != self._last_goodbye:
                log.warning("the broker closed the session: %s: %s", message.code.name, message.text)
            self._last_goodbye = message.text

    def _answer_batch(self, work: Work) -> None:
        batch, inputs = work.batch, work.inputs
        if work.error or inputs is None:
            log.error("batch %d failed: %s", batch.batch, work.error, extra=describe_origins(batch))
            self._send(self._session.make_error(batch, ErrorCode.DEVICE, ErrorCode.DEVICE.text))
            return
        if next(self._batch_numbers) == 1:
            log.info("first batch answered: %d jobs", len(inputs.tokens))
        log.debug("batch %d answered: %d jobs", batch.batch, len(inputs.tokens), extra=describe_origins(batch))
        frame, sizes = work.build_frame()
        result = self._session.make_result(
            batch,
            work.vectors.shape[1],
            wire.pack_u32(inputs.tokens),
            inputs.failures,
            int(work.inference_s * 1e6),
            truncated=wire.pack_u32(inputs.truncated) if any(inputs.truncated) else b"",
            sizes=sizes,
            padding=work.padding,
            micro_batches=work.micro_batches,
            micro_batch_inputs=len(work.vectors),
        )
        self._send(result, frames=[frame])

    def _send(self, *messages: Message, frames: list[Frame] | None = None) -> None:
        """Send messages if the broker is connected. Otherwise drop them, because the broker requeues their batches."""
        for message in messages:
            try:
                self._socket.send_multipart(wire.encode(message, frames or []), zmq.NOBLOCK, copy=not frames)
            except zmq.Again:
                log.debug("dropped a %s because no broker is connected", type(message).__name__)

    def _report_state(self, now: float) -> None:
        """Touch the health file while the broker is connected, and warn from time to time while it is not."""
        if self._session.welcomed:
            self._next_warning = now + WARN_S
            self._health.touch(now, self._session.precisions)
        elif now >= self._next_warning:
            self._next_warning = now + WARN_S
            log.warning("not connected to the broker at %s, retrying", self.config.broker)

    def _exit_hung(self, reason: str) -> NoReturn:
        """End the process, because no call ends a thread in an inference. A supervisor starts another worker."""
        log.critical("exiting: %s", reason)
        os._exit(HUNG_STATUS)

    def _on_signal(self, number: int, _: object) -> None:
        self._stopping = True
        os.eventfd_write(self._wakeup, 1)


def describe_origins(batch: wire.Batch) -> dict[str, object]:
    """Return fields of a log record that show which requests the batch's jobs belong to."""
    traces = [origin.trace_id for origin in batch.origins if origin.trace_id]
    return {
        "batch": batch.batch,
        "model": batch.model,
        "request_ids": [origin.request_id for origin in batch.origins],
        "trace_ids": traces,
    }
