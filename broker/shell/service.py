"""The broker's shell: two ROUTER sockets, one poll loop, the clock and the log around the pure scheduler."""

import contextlib
import ipaddress
import logging
import pathlib
import secrets
import signal
import time
from collections.abc import Iterable
from socket import socketpair
from typing import Any
from urllib.parse import urlsplit

import msgspec
import zmq

from broker.core.outbox import Send
from broker.core.scheduler import Scheduler
from broker.shared.health import HealthFile
from broker.shell.config import Config
from broker.shell.curve_auth import Gate
from broker.shell.metrics_server import MetricsServer
from broker.wire import protocol as wire
from broker.wire.curve import KeyFileError
from broker.wire.errors import ErrorCode, RemoteProtocolError
from broker.wire.sockets import open_router

log = logging.getLogger(__name__)

#: First byte of a scheduler's peer: on which socket its routing id is known.
FRONTEND, WORKER = b"F", b"W"
#: The folder of keys, and ZAP's domain, of each.
DOMAINS = {FRONTEND: "frontends", WORKER: "workers"}
#: How long messages are taken from one socket before the other gets its turn, in seconds. One message more is begun
#: before it is over, which takes a few milliseconds for the largest that a frontend sends.
TURN_S = 0.005
#: What is due so much too late, in seconds, is due because this process did not run: it was stopped, or starved.
LATE_S = 0.25
#: How long SIGTERM lets admitted jobs be answered: as long as a batch may run, and a little.
DRAIN_S = 65.0
#: How long the last messages may take to leave.
LAST_WORDS_MS = 2000
#: Of malformed messages the first so many are logged, and then one in as many.
LOGGED_MALFORMED = 100
#: From this size on a frame is sent without a copy; below it the copy is cheaper (zeromq-worker-pools.md P9).
ZERO_COPY_BYTES = 65536


#: When a connection that ended is looked for, in seconds after its event: libzmq may tell of the end before its own
#: socket knows, and then the first look finds nothing (4 of 40 kills; none was missed 5 ms later).
PROBES_S = (0.0, 0.02, 0.2)


class ConfigError(Exception):
    """The configuration asks for something the broker refuses to do."""


class Service:
    """One broker. `run` returns when it has drained after SIGTERM or SIGINT."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.scheduler = Scheduler(secrets.randbits(63), config)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets: dict[bytes, zmq.Socket[bytes]] = {}
        self._monitors: dict[zmq.Socket[bytes], bytes] = {}
        self._gate: Gate | None = None
        self._metrics_server: MetricsServer | None = None
        #: The key of each connection that has said hello, where there are keys.
        self._keys: dict[bytes, str] = {}
        #: When to look for connections that have ended, and on which socket.
        self._probes: list[tuple[float, bytes]] = []
        self._reload_requested = False
        self._drain_until: float | None = None
        self._health = HealthFile(config.health_file)
        #: Until then no peer is judged, because this process has not run for a while.
        self._judge_from = 0.0

    def run(self) -> None:
        """Serve until drained."""
        #: Signals and scrapes write to the second end, which wakes the poll loop.
        self._wakeup, self._wakeup_sender = socketpair()
        self._wakeup.setblocking(False)
        self._wakeup_sender.setblocking(False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        signal.set_wakeup_fd(self._wakeup_sender.fileno())
        try:
            self._open()
            poller = zmq.Poller()
            for socket in (*self._sockets.values(), *self._monitors):
                poller.register(socket, zmq.POLLIN)
            poller.register(self._wakeup, zmq.POLLIN)
            log.info("frontends connect to %s, workers to %s", self.config.frontend_bind, self.config.worker_bind)
            while not self._done():
                ready = dict(poller.poll(self._timeout_ms()))
                if self._wakeup.fileno() in ready:
                    self._wakeup.recv(4096)
                self._turn(ready)
            log.info("drained with %d jobs open: %s", self.scheduler.open_jobs, self.scheduler.count_totals())
        finally:
            signal.set_wakeup_fd(-1)
            self._close()
            self._wakeup.close()
            self._wakeup_sender.close()

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _turn(self, ready: dict[Any, int]) -> None:
        for role in (WORKER, FRONTEND):
            if self._sockets[role] in ready:
                self._receive(role)
        for monitor, role in self._monitors.items():
            if monitor in ready:
                self._note_end(role, monitor)
        for due, role in [probe for probe in self._probes if probe[0] <= time.monotonic()]:
            self._probes.remove((due, role))
            self._probe(role)
        if self._reload_requested:
            self._reload_keys()
        self._tick()
        if self._metrics_server:
            self._metrics_server.answer_scrapes(self.scheduler.collect_metrics)
        self._health.touch(time.monotonic())

    def _tick(self) -> None:
        """Let time pass in the scheduler when something is due.

        A peer is judged silent only when all that its side has sent has been read: this turn may have taken long, and
        the peer's heartbeat may have come meanwhile. Nor is it judged at once when this process did not run for a
        while, because what came meanwhile is still on its way through libzmq's thread.
        """
        now = time.monotonic()
        deadline = self.scheduler.next_deadline()
        if deadline is None or now < deadline:
            return
        if now >= max(deadline, self._judge_from) + LATE_S:
            self._judge_from = now + LATE_S
        if now >= self._judge_from and self._receive(WORKER):
            frontends_read = self._receive(FRONTEND)
            self._send(self.scheduler.tick(now, frontends_read=frontends_read))

    def _receive(self, role: bytes) -> bool:
        """Handle messages of one socket for a while. Return whether there are no more."""
        decoder: Any = wire.FROM_FRONTEND if role == FRONTEND else wire.FROM_WORKER
        until = time.monotonic() + TURN_S
        while time.monotonic() < until:
            try:
                address, *parts = self._sockets[role].recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return True
            try:
                message, frames = wire.decode(decoder, [part.buffer for part in parts])
            except RemoteProtocolError as error:
                self._count_malformed(error)
                continue
            peer = role + address.bytes
            if isinstance(message, wire.FrontendHello | wire.WorkerHello):
                log.info("%s %s/%d says hello", type(message).__name__, message.host, message.pid)
                if not self._knows_key(peer, address):
                    continue
            self._note_result(peer, message)
            self._send(self.scheduler.handle(peer, message, time.monotonic(), frames))
        return False

    def _knows_key(self, peer: bytes, address: zmq.Frame) -> bool:
        """Remember whose connection this is; a key that has been taken off the list is told so and not served."""
        if not self._gate:
            return True
        key = str(address.get("User-Id"))
        if not self._gate.allows(DOMAINS[peer[:1]], key):
            self._send([Send(peer, wire.Goodbye(ErrorCode.REVOKED, "this key has been taken off the list"))])
            return False
        self._keys[peer] = key
        return True

    def _reload_keys(self) -> None:
        """Read the allow-lists anew, and end the service of connections whose key is gone."""
        self._reload_requested = False
        if not self._gate:
            return
        try:
            self._gate.reload()
        except KeyFileError as error:
            log.error("the keys are as before: %s", error)
            return
        gone = [peer for peer, key in self._keys.items() if not self._gate.allows(DOMAINS[peer[:1]], key)]
        log.info("keys read anew; %d connections have none any more", len(gone))
        for peer in gone:
            del self._keys[peer]
            self._send([Send(peer, wire.Goodbye(ErrorCode.REVOKED, "this key has been taken off the list"))])
            self._send(self.scheduler.lost(peer, time.monotonic()))

    def _count_malformed(self, error: RemoteProtocolError) -> None:
        number = self.scheduler.record_malformed()
        if number <= LOGGED_MALFORMED or number % LOGGED_MALFORMED == 0:
            log.warning("ignored a malformed message (%d so far): %s", number, error)

    def _note_end(self, role: bytes, monitor: "zmq.Socket[bytes]") -> None:
        """A connection of this role has ended."""
        try:
            while True:
                monitor.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            pass
        now = time.monotonic()
        self._probes = [probe for probe in self._probes if probe[1] != role]
        self._probes += [(now + after, role) for after in PROBES_S]

    def _probe(self, role: bytes) -> None:
        """Find the peers whose connection has ended. The event does not say whose: a send to each tells."""
        self._send(self.scheduler.build_probes(peer for peer in self.scheduler.peers if peer.startswith(role)))
        known = self.scheduler.peers
        self._keys = {peer: key for peer, key in self._keys.items() if peer in known}

    def _send(self, sends: Iterable[Send]) -> None:
        """Send all; a peer that turns out to be gone is reported to the scheduler, whose answer is sent too."""
        lost = []
        for peer, message, frames in sends:
            if isinstance(message, wire.Goodbye):
                level = logging.INFO if message.code == ErrorCode.DRAINING else logging.WARNING
                log.log(level, "goodbye to a peer: %s: %s", message.code.name, message.text)
            self._note_batch(peer, message)
            parts = [peer[1:], *wire.encode(message, frames)]
            try:
                large = any(len(frame) >= ZERO_COPY_BYTES for frame in frames)
                self._sockets[peer[:1]].send_multipart(parts, zmq.NOBLOCK, copy=not large)
            except zmq.ZMQError as error:
                if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                    raise
                lost.append(peer)
        for peer in lost:
            self._send(self.scheduler.lost(peer, time.monotonic()))

    def _note_batch(self, peer: bytes, message: wire.Message) -> None:
        """Log a batch that is dispatched, and whose jobs are in it."""
        if isinstance(message, wire.Batch) and log.isEnabledFor(logging.DEBUG):
            fields = {
                "batch": message.batch,
                "model": message.model,
                "worker": self._worker(peer),
                "jobs": len(message.kinds),
                "request_ids": [origin.request_id for origin in message.origins],
                "trace_ids": [origin.traceparent[3:35] for origin in message.origins if origin.traceparent],
            }
            log.debug("batch %d of %d jobs to %s", message.batch, len(message.kinds), fields["worker"], extra=fields)

    def _note_result(self, peer: bytes, message: wire.Message) -> None:
        """Log how a batch has ended."""
        if isinstance(message, wire.BatchError):
            fields = {"batch": message.batch, "worker": self._worker(peer)}
            log.warning("batch %d failed: %s: %s", message.batch, message.code.name, message.text, extra=fields)
        elif isinstance(message, wire.BatchResult) and log.isEnabledFor(logging.DEBUG):
            fields = {"batch": message.batch, "worker": self._worker(peer), "inference_us": message.inference_us}
            log.debug("batch %d answered", message.batch, extra=fields)

    def _worker(self, peer: bytes) -> str:
        return self.scheduler.find_worker_name(peer)

    def _timeout_ms(self) -> int | None:
        times = [time for time in (self.scheduler.next_deadline(), self._drain_until) if time is not None]
        times += [due for due, _ in self._probes]
        if self.config.health_file:
            times.append(self._health.due)
        if not times:
            return None
        return max(0, int((max(min(times), self._judge_from) - time.monotonic()) * 1000) + 1)

    def _on_signal(self, number: int, _: object) -> None:
        if number == signal.SIGHUP:
            self._reload_requested = True
        elif self._drain_until is None:
            log.info("%s: draining", signal.Signals(number).name)
            self._drain_until = time.monotonic() + DRAIN_S
            self.scheduler.drain()

    def _done(self) -> bool:
        if self._drain_until is None:
            return False
        return not self.scheduler.open_jobs or time.monotonic() >= self._drain_until

    # --- sockets -----------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        binds = {FRONTEND: self.config.frontend_bind, WORKER: self.config.worker_bind}
        if not self.config.keys:
            for endpoint in binds.values():
                if not is_local(endpoint):
                    raise ConfigError(f"{endpoint} can be reached from other hosts: give --keys (see scripts/keys)")
        else:
            self._gate = Gate(self._context, pathlib.Path(self.config.keys))
            self._gate.start()
        for role, domain in DOMAINS.items():
            socket = self._sockets[role] = open_router(self._context)
            if self._gate:
                self._gate.secure(socket, domain)
            self._monitors[socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)] = role
            socket.bind(binds[role])
            if self._gate:
                self._gate.try_stranger(socket)
        if self.config.metrics_bind:
            self._metrics_server = self._serve_metrics(self.config.metrics_bind)

    def _serve_metrics(self, bind: str) -> MetricsServer:
        try:
            server = MetricsServer(bind, self._wake)
        except ValueError as error:
            raise ConfigError(f"--metrics-bind {error}") from None
        except OSError as error:
            text = f"cannot serve metrics on {bind}: {error.strerror}; choose another --metrics-bind, or '' for none"
            raise ConfigError(text) from None
        server.start()
        log.info("serving metrics at %s", server.url)
        return server

    def _wake(self) -> None:
        """Make the poll loop take its next turn at once. Called by other threads."""
        with contextlib.suppress(OSError):
            # A full buffer wakes the loop too, and a closed socket has no loop.
            self._wakeup_sender.send(b"\0")

    def _close(self) -> None:
        if self._metrics_server:
            self._metrics_server.close()
        # Before their ends are closed: libzmq would wait for ever to tell a monitor without one that a peer is gone.
        for socket in self._sockets.values():
            socket.disable_monitor()
        for monitor in self._monitors:
            monitor.close()
        for socket in self._sockets.values():
            # LINGER is 0 for ends that do not matter; the last answers of a drain do.
            socket.close(linger=LAST_WORDS_MS)
        if self._gate:
            self._gate.stop()
        self._context.term()


def is_local(endpoint: str) -> bool:
    """Whether only this host can connect to the endpoint."""
    parts = urlsplit(endpoint)
    if parts.scheme != "tcp":
        return parts.scheme in ("ipc", "inproc")
    try:
        return parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def describe(config: Config) -> str:
    """The configuration in one line for the log."""
    return " ".join(f"{name}={value}" for name, value in msgspec.structs.asdict(config).items() if value != "")
