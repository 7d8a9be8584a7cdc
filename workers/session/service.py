"""A worker's shell: the DEALER socket loop, the clock, and the pipeline's threads."""

import itertools
import logging
import math
import os
import signal
import time
from typing import Any

import zmq
import zmq.utils.monitor

from broker.shared.health import HealthFile
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode, RemoteProtocolError
from broker.wire.protocol import Frame, Message
from broker.wire.sockets import open_dealer
from workers.config import Config
from workers.engine.pipeline import Pipeline, Work
from workers.session.session import Session

log = logging.getLogger(__name__)

#: How long SIGTERM lets held batches be finished: as long as the broker leases a batch, and a little.
DRAIN_S = 65.0
#: Exit status of a worker whose inference hangs, as of one whose thread died.
HUNG_STATUS = 70
#: How often a worker says that no broker welcomes it.
WARN_S = 10.0


class Service:
    """One worker on one connection. `run` returns when it has drained after SIGTERM or SIGINT."""

    def __init__(self, config: Config, session: Session, pipeline: Pipeline, wakeup: int) -> None:
        self.config = config
        self._session = session
        self._pipeline = pipeline
        #: An eventfd: written by the pipeline when a batch is finished, and by signals.
        self._wakeup = wakeup
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._drain_until: float | None = None
        self._stop_requested = False
        self._last_goodbye = ""
        self._health = HealthFile(config.health_file)
        self._next_warning = time.monotonic() + WARN_S
        self._batches = itertools.count(1)

    def run(self) -> None:
        """Serve until drained."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        socket = open_dealer(self._context, self.config.keys, "worker")
        # Before the connection, for the first hello waits for this event.
        monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        socket.connect(self.config.broker)
        poller = zmq.Poller()
        for readable in (socket, monitor, self._wakeup):
            poller.register(readable, zmq.POLLIN)
        self._pipeline.start()
        try:
            while not self._done():
                ready = dict(poller.poll(self._timeout_ms()))
                self._turn(socket, monitor, ready)
            self._send(socket, wire.WorkerGoodbye())
            log.info("drained with %d batches unfinished", len(self._session.held))
        finally:
            socket.disable_monitor()
            monitor.close()
            # LINGER is 0 for ends that do not matter; this goodbye should leave if it can.
            socket.close(linger=500)
            self._context.term()
            if self._session.held:
                os._exit(HUNG_STATUS)
            self._pipeline.stop()

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _turn(self, socket: "zmq.Socket[bytes]", monitor: "zmq.Socket[bytes]", ready: dict[Any, int]) -> None:
        if monitor in ready:
            self._on_connection(socket, monitor)
        if socket in ready:
            self._receive(socket)
        if self._wakeup in ready:
            os.eventfd_read(self._wakeup)
        if self._stop_requested and self._drain_until is None:
            log.info("draining: %d batches to finish", len(self._session.held))
            self._drain_until = time.monotonic() + DRAIN_S
            self._send(socket, *self._session.drain())
        while self._pipeline.finished:
            self._answer(socket, self._pipeline.finished.popleft())
        now = time.monotonic()
        if self._session.is_hung(now):
            # The broker may have forgotten it: its connection has ended since, or the broker has.
            log.critical("a batch has run for longer than it may")
            os._exit(HUNG_STATUS)
        self._send(socket, *self._session.due(now))
        if self._session.welcomed:
            self._next_warning = now + WARN_S
        elif now >= self._next_warning:
            self._next_warning = now + WARN_S
            log.warning("no broker at %s welcomes this worker; it keeps trying", self.config.broker)
        if self._session.welcomed:
            self._health.touch(now)

    def _on_connection(self, socket: "zmq.Socket[bytes]", monitor: "zmq.Socket[bytes]") -> None:
        """A new connection has a new routing id at the broker, so it starts with a hello."""
        while monitor.poll(0):
            event = zmq.utils.monitor.recv_monitor_message(monitor)
            if event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._send(socket, self._session.make_hello(time.monotonic()))
            else:
                log.error("the broker at %s refuses this worker's key", self.config.broker)

    def _receive(self, socket: "zmq.Socket[bytes]") -> None:
        while True:
            try:
                parts = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message, frames = wire.decode(wire.TO_WORKER, parts)
            except RemoteProtocolError as error:
                log.warning("ignored a malformed message: %s", error)
                continue
            self._log(message)
            if isinstance(message, wire.Goodbye) and message.code == ErrorCode.LEASE_EXPIRED:
                # An inference that hangs cannot be ended; the process can, and its supervisor starts another.
                os._exit(HUNG_STATUS)
            batch, replies = self._session.handle(message, time.monotonic())
            if batch:
                self._pipeline.submit(Work(batch, frames[0]))
            self._send(socket, *replies)

    def _log(self, message: Message) -> None:
        if isinstance(message, wire.Welcome):
            log.info("serving broker %s, epoch %x", self.config.broker, message.epoch)
        elif isinstance(message, wire.Goodbye):
            if message.text != self._last_goodbye:
                log.warning("the broker says goodbye: %s: %s", message.code.name, message.text)
            self._last_goodbye = message.text

    def _answer(self, socket: "zmq.Socket[bytes]", work: Work) -> None:
        reading = work.inputs
        if work.error or reading is None:
            log.error("batch %d failed: %s", work.batch.batch, work.error, extra=origins(work.batch))
            text = "the device failed on this input"
            self._send(socket, self._session.make_error(work.batch, ErrorCode.DEVICE, text))
            return
        number = next(self._batches)
        if number == 1:
            log.info("first batch answered: %d jobs", len(reading.tokens))
        log.debug("batch %d answered: %d jobs", work.batch.batch, len(reading.tokens), extra=origins(work.batch))
        frame, sizes = work.build_frame()
        result = self._session.make_result(
            work.batch,
            work.vectors.shape[1],
            wire.pack_u32(reading.tokens),
            reading.failures,
            int(work.inference_s * 1e6),
            truncated=wire.pack_u32(reading.truncated) if any(reading.truncated) else b"",
            sizes=sizes,
            padding=work.padding,
        )
        self._send(socket, result, frames=[frame])

    def _send(self, socket: "zmq.Socket[bytes]", *messages: Message, frames: list[Frame] | None = None) -> None:
        """Send if the broker is there. If not, nothing is lost: it requeues what it gets no answer for."""
        for message in messages:
            try:
                socket.send_multipart(wire.encode(message, frames or []), zmq.NOBLOCK, copy=not frames)
            except zmq.Again:
                log.debug("not sent, the broker is away: %s", type(message).__name__)

    def _timeout_ms(self) -> int:
        first = min(self._session.next_deadline(), self._next_warning, self._drain_until or math.inf)
        return max(0, int((first - time.monotonic()) * 1000) + 1)

    def _on_signal(self, number: int, _: object) -> None:
        self._stop_requested = True
        os.eventfd_write(self._wakeup, 1)

    def _done(self) -> bool:
        if self._drain_until is None:
            return False
        return not self._session.held or time.monotonic() >= self._drain_until


def origins(batch: wire.Batch) -> dict[str, object]:
    """Fields of a log line: where a batch's jobs come from."""
    traces = [origin.traceparent[3:35] for origin in batch.origins if origin.traceparent]
    return {
        "batch": batch.batch,
        "model": batch.model,
        "request_ids": [origin.request_id for origin in batch.origins],
        "trace_ids": traces,
    }
