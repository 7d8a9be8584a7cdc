"""The broker's poll loop: sockets, clock, signals and log around the pure scheduler."""

import gc
import logging
import secrets
import signal
import time
from collections.abc import Iterable
from typing import Any

import zmq

from broker.core.outbox import Send
from broker.core.scheduler import Scheduler
from broker.shared.health import HealthFile
from broker.shell.config import METRICS_BIND, Config
from broker.shell.message_log import MessageLog
from broker.shell.metrics_server import MetricsServer
from broker.shell.routers import FRONTEND, WORKER, ConfigError, Routers
from broker.shell.wakeup import Wakeup
from broker.wire import protocol as wire
from broker.wire.curve import KeyFileError
from broker.wire.errors import ErrorCode, RemoteProtocolError

log = logging.getLogger(__name__)

#: New objects, and collections of the younger generation, after which each generation is collected (gc.set_threshold).
GC_THRESHOLDS = (20_000, 20, 20)
#: How long messages of one socket are handled before the other socket's, in seconds. The last message may take a few
#: milliseconds longer, if it is the largest that a frontend sends.
TURN_S = 0.005
#: A deadline that is missed by this much, in seconds, was missed because the process was stopped or starved.
LATE_S = 0.25
#: A turn that begins this many seconds after the previous one shows that the process was stopped: peers send a
#: heartbeat every second. libzmq in the peers ends the connections after 3 s (`broker.wire.sockets`).
STOPPED_S = 2.0
#: How long admitted jobs may take to be answered after SIGTERM, in seconds: as long as a batch may run, and a margin.
DRAIN_S = 65.0
#: When peers are probed after a connection has ended, in seconds. libzmq may report the end before its own socket knows
#: it, and then the first probe finds no lost peer (4 of 40 kills; no second probe failed 5 ms later).
PROBES_S = (0.0, 0.02, 0.2)


class Service:
    """One broker. `run` calls `start_up`, `main_loop` and `shut_down`, and returns after a drain."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.scheduler = Scheduler(secrets.randbits(63), config)
        self._routers = Routers(config)
        self._wakeup = Wakeup()
        self._poller = zmq.Poller()
        self._metrics_server: MetricsServer | None = None
        self._message_log = MessageLog(self.scheduler.find_worker_name)
        self._health = HealthFile(config.health_file)
        #: When peers are probed, and the role of the peers.
        self._probes: list[tuple[float, bytes]] = []
        #: When the loop ends at the latest; None while the broker does not drain.
        self._drain_until: float | None = None
        #: Until then no peer is judged silent or lost, because this process has not run for a while.
        self._judge_from = 0.0
        self._turned_at = time.monotonic()

    def run(self) -> None:
        """Serve until drained after SIGTERM or SIGINT. Raise the errors of `start_up`."""
        try:
            self.start_up()
            self.main_loop()
        finally:
            self.shut_down()

    def start_up(self) -> None:
        """Catch signals, bind the sockets, and serve metrics.

        Raise ConfigError if the configuration cannot be used, and the errors of `Routers.open`.
        """
        self._wakeup.catch_signals((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
        self._poller.register(self._wakeup, zmq.POLLIN)
        self._routers.open(self._poller)
        if self.config.metrics_bind:
            self._metrics_server = self._open_metrics_server(self.config.metrics_bind)
        # Nearly all objects are freed without the garbage collector, which took 5 % of the time.
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        log.info("frontends connect to %s, workers to %s", self.config.frontend_bind, self.config.worker_bind)

    def _open_metrics_server(self, bind: str) -> MetricsServer | None:
        """Return the server of the metrics; None if the default address is taken, such as by another broker."""
        is_default = bind == "auto"
        try:
            server = MetricsServer(METRICS_BIND if is_default else bind, self._wakeup.wake_loop)
        except ValueError as error:
            raise ConfigError(f"--metrics-bind {error}") from None
        except OSError as error:
            if is_default:
                text = "no metrics, because %s cannot be used: %s; choose another address with --metrics-bind"
                log.info(text, METRICS_BIND, error.strerror)
                return None
            text = f"cannot serve metrics on {bind}: {error.strerror}; choose another --metrics-bind, or '' for none"
            raise ConfigError(text) from None
        server.start()
        log.info("serving metrics at %s", server.url)
        return server

    def main_loop(self) -> None:
        """Take turns until drained."""
        while not self._is_drained():
            self._take_turn(dict(self._poller.poll(self._compute_timeout_ms())))
        log.info("drained with %d jobs open: %s", self.scheduler.open_jobs, self.scheduler.count_totals())

    def shut_down(self) -> None:
        """Close everything, after the last messages have left."""
        if self._metrics_server:
            self._metrics_server.close()
        self._routers.close()
        self._wakeup.close()

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _is_drained(self) -> bool:
        if self._drain_until is None:
            return False
        return not self.scheduler.open_jobs or time.monotonic() >= self._drain_until

    def _compute_timeout_ms(self) -> int | None:
        times = [time for time in (self.scheduler.next_deadline(), self._drain_until) if time is not None]
        times += [due for due, _ in self._probes]
        if self.config.health_file:
            times.append(self._health.due)
        if not times:
            return None
        return max(0, int((max(min(times), self._judge_from) - time.monotonic()) * 1000) + 1)

    def _take_turn(self, ready: dict[Any, int]) -> None:
        now = time.monotonic()
        if now >= self._turned_at + STOPPED_S:
            # Peers may have ended their connections. Their new hellos, which end the old sessions, are on the way.
            self._judge_from = now + LATE_S
        self._turned_at = now
        if self._wakeup.fileno() in ready:
            for number in self._wakeup.take_signals():
                self._handle_signal(number)
        for role in self._routers.find_readable(ready):
            self._receive(role)
        for role in self._routers.take_disconnects(ready):
            self._schedule_probes(role)
        self._probe_due()
        self._tick()
        if self._metrics_server:
            self._metrics_server.answer_scrapes(self.scheduler.collect_metrics)
        self._health.touch(time.monotonic())

    def _handle_signal(self, number: signal.Signals) -> None:
        if number == signal.SIGHUP:
            self._reload_keys()
        elif self._drain_until is None:
            log.info("%s: draining", number.name)
            self._drain_until = time.monotonic() + DRAIN_S
            self.scheduler.drain()

    def _tick(self) -> None:
        """Advance the scheduler's time when something is due.

        A peer is judged silent only after all messages of its role have been read, because its heartbeat may have
        arrived during a long turn. If this process did not run for a while, no peer is judged at once, because what
        arrived in the meantime is still on its way through libzmq's thread.
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

    # --- messages ----------------------------------------------------------------------------------------------------

    def _receive(self, role: bytes) -> bool:
        """Handle messages of one role for up to `TURN_S`. Return whether all have been read."""
        decoder: Any = wire.FROM_FRONTEND if role == FRONTEND else wire.FROM_WORKER
        until = time.monotonic() + TURN_S
        while time.monotonic() < until:
            received = self._routers.receive(role)
            if received is None:
                return True
            try:
                message, frames = wire.decode(decoder, received.frames)
            except RemoteProtocolError as error:
                self._message_log.log_malformed(error, self.scheduler.record_malformed())
                continue
            if not self._routers.accept_key(received.peer, received.key):
                if isinstance(message, wire.FrontendHello | wire.WorkerHello):
                    self._send([Send(received.peer, wire.Goodbye(ErrorCode.REVOKED, ErrorCode.REVOKED.text))])
                continue
            self._message_log.log_received(received.peer, message)
            self._send(self.scheduler.handle(received.peer, message, time.monotonic(), frames))
        return False

    def _send(self, sends: Iterable[Send]) -> None:
        """Send all messages, and those that the scheduler returns for peers that turn out to be disconnected."""
        lost = []
        for peer, message, frames in sends:
            self._message_log.log_sent(peer, message)
            if not self._routers.send(peer, message, frames):
                lost.append(peer)
        for peer in lost:
            if time.monotonic() < self._judge_from:
                self._schedule_probes(peer[:1])
            else:
                self._send(self.scheduler.lost(peer, time.monotonic()))

    # --- connections -------------------------------------------------------------------------------------------------

    def _schedule_probes(self, role: bytes) -> None:
        """Probe the peers of a role soon, because a connection of one of them has ended."""
        now = time.monotonic()
        self._probes = [probe for probe in self._probes if probe[1] != role]
        self._probes += [(now + delay_s, role) for delay_s in PROBES_S]

    def _probe_due(self) -> None:
        """Send a message to each peer of a role that is due, which finds the disconnected peers."""
        now = time.monotonic()
        if now < self._judge_from:
            return
        for due, role in [probe for probe in self._probes if probe[0] <= now]:
            self._probes.remove((due, role))
            self._send(self.scheduler.build_probes(peer for peer in self.scheduler.peers if peer.startswith(role)))
            self._routers.keep_keys(self.scheduler.trusted_peers)

    def _reload_keys(self) -> None:
        """Read the allow-lists again, and close the sessions of removed keys."""
        if not self.config.keys:
            return
        try:
            revoked = self._routers.reload_keys()
        except KeyFileError as error:
            log.error("could not reload keys, keeping the old ones: %s", error)
            return
        log.info("keys reloaded; revoked %d connections", len(revoked))
        for peer in revoked:
            self._send([Send(peer, wire.Goodbye(ErrorCode.REVOKED, ErrorCode.REVOKED.text))])
            self._send(self.scheduler.revoke(peer, time.monotonic()))
