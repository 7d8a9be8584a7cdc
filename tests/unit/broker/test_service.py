"""The broker's poll loop: when time advances and peers are judged, signals, start-up, the order of closing."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import zmq

from broker.core.outbox import Send
from broker.shell.config import Config
from broker.shell.routers import FRONTEND, WORKER, ConfigError, Received, Routers
from broker.shell.service import LATE_S, STOPPED_S, Service
from broker.shell.wakeup import Wakeup
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from tests.harness.core import Core


class Shell(Service):
    """A service with the sockets and the clock of a test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(Config())
        self.core = Core()
        self.scheduler = self.core.scheduler
        self.now = 1000.0
        monkeypatch.setattr("broker.shell.service.time.monotonic", lambda: self.now)
        #: What reading the messages of a role does, and whether all have been read.
        self.read: dict[bytes, Callable[[], bool]] = {WORKER: lambda: True, FRONTEND: lambda: True}

    def _receive(self, role: bytes) -> bool:
        return self.read[role]()


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """A broker with one silent worker and one frontend."""
    shell = Shell(monkeypatch)
    shell.core.frontend()
    shell.core.worker()
    monkeypatch.setattr(shell, "_send", lambda sends: None)
    yield shell
    shell.shut_down()


def test_worker_is_judged_after_all_was_read(shell: Shell) -> None:
    shell.now += 3.6
    shell.read[WORKER] = lambda: False
    shell._tick()
    assert shell.scheduler.state.pool.workers
    shell.read[WORKER] = lambda: True
    shell._tick()
    assert not shell.scheduler.state.pool.workers


def test_heartbeat_during_a_long_turn_counts(shell: Shell) -> None:
    def read() -> bool:
        shell.scheduler.state.pool.workers[b"W1"].last_heard = shell.now
        return True

    shell.now += 3.6
    shell.read[WORKER] = read
    shell._tick()
    assert shell.scheduler.state.pool.workers


def test_frontend_is_judged_after_all_was_read(shell: Shell) -> None:
    shell.now += 3.6
    shell.read[FRONTEND] = lambda: False
    shell._tick()
    assert shell.scheduler.state.ledger.by_peer
    shell.read[FRONTEND] = lambda: True
    shell._tick()
    assert not shell.scheduler.state.ledger.by_peer


def test_peers_are_spared_after_the_process_stopped(shell: Shell) -> None:
    shell.now += 3.5 + LATE_S + 1
    shell._tick()
    assert shell.scheduler.state.pool.workers
    timeout_ms = shell._compute_timeout_ms()
    assert timeout_ms is not None
    assert 0 < timeout_ms <= LATE_S * 1000 + 1
    shell.now += LATE_S
    shell._tick()
    assert not shell.scheduler.state.pool.workers


def test_lost_peers_are_spared_after_the_process_stopped(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer_heartbeat() -> bool:
        """Answer a heartbeat that was sent on the connection that has ended."""
        shell._send([Send(b"W1", wire.Heartbeat())])
        return True

    routers: Any = shell._routers
    monkeypatch.setattr(routers, "find_readable", lambda ready: [WORKER])
    monkeypatch.setattr(routers, "take_disconnects", lambda ready: [WORKER])
    monkeypatch.setattr(routers, "send", lambda *sent: False)
    monkeypatch.setattr(shell, "_send", lambda sends: Service._send(shell, sends))
    shell.now = shell._turned_at + STOPPED_S
    shell.scheduler.state.pool.workers[b"W1"].last_heard = shell.now
    shell.read[WORKER] = answer_heartbeat
    shell._take_turn({})
    assert b"W1" in shell.scheduler.peers
    timeout_ms = shell._compute_timeout_ms()
    assert timeout_ms is not None
    assert 0 < timeout_ms <= LATE_S * 1000 + 1
    shell.now += LATE_S
    shell._take_turn({})
    assert b"W1" not in shell.scheduler.peers


WORKER_HELLO = wire.WorkerHello(1, 1, "test", b"u" * 16, 1, "host", 1, "CPU", [], 1, 1, 1)
FROM_REVOKED: list[tuple[wire.Message, *tuple[bytes, ...]]] = [
    (wire.FrontendHello(1, 1, "test", b"u" * 16, "host", 1),),
    (wire.Submit([wire.Submission(1, "m", wire.Lane.BULK, "", 9, wire.Kind.TEXT, wire.pack_u32([1]))]), b"a"),
    (wire.Cancel(b""),),
    (wire.FrontendHeartbeat(),),
    (wire.FrontendGoodbye(),),
    (wire.ReloadModels(1),),
    (WORKER_HELLO,),
    (wire.WorkerHeartbeat(1, 0),),
    (wire.BatchResult(7, 1, 1, b"", [], 1, 1, 1), b""),
    (wire.BatchError(7, 1, ErrorCode.DEVICE, "failed", 1, 1),),
    (wire.WorkerDrain(b""),),
    (wire.WorkerGoodbye(),),
    (wire.WorkerLoading(b"u" * 16, "host", 1, "new"),),
    (wire.WorkerModels(1, []),),
    (wire.Reloaded(1, changed=True),),
]


def test_every_kind_of_message_is_tried() -> None:
    kinds = [type(message) for message, *_ in FROM_REVOKED]
    assert kinds == [*get_args(wire.FromFrontend), *get_args(wire.FromWorker)]


@pytest.mark.parametrize(("message", "frames"), [(message, frames) for message, *frames in FROM_REVOKED])
def test_revoked_key_changes_no_state(
    shell: Shell, message: wire.Message, frames: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    role = FRONTEND if isinstance(message, wire.FromFrontend) else WORKER
    parts = [memoryview(frame) for frame in wire.encode(message, frames)]
    received = [Received(role + b"1", "a removed key", parts)]
    monkeypatch.setattr(shell._routers, "receive", lambda role: received.pop() if received else None)
    monkeypatch.setattr(shell._routers, "accept_key", lambda peer, key: False)
    monkeypatch.setattr(shell.scheduler, "handle", lambda *call: pytest.fail("the message was handled"))
    sent: list[Send] = []
    monkeypatch.setattr(shell, "_send", sent.extend)
    assert Service._receive(shell, role)
    is_hello = isinstance(message, wire.FrontendHello | wire.WorkerHello)
    assert [getattr(send.message, "code", None) for send in sent] == [ErrorCode.REVOKED] * is_hello


class Recorded:
    """A socket, or its monitor, that records what is called."""

    def __init__(self, events: list[str]) -> None:
        self._events = events

    def disable_monitor(self) -> None:
        self._events.append("monitoring ends")

    def close(self, linger: int | None = None) -> None:
        self._events.append("socket closes" if linger else "monitor closes")


def test_monitoring_ends_before_monitors_close() -> None:
    """Otherwise libzmq waits forever if a peer leaves in between."""
    events: list[str] = []
    routers: Any = Routers(Config())
    routers._sockets = {role: Recorded(events) for role in (FRONTEND, WORKER)}
    routers._monitors = {Recorded(events): role for role in routers._sockets}
    routers.close()
    assert events == ["monitoring ends"] * 2 + ["monitor closes"] * 2 + ["socket closes"] * 2


# --- start-up, main loop, shut-down ----------------------------------------------------------------------------------


@pytest.fixture
def old_handlers() -> Iterator[None]:
    """Restore the handlers of signals."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A configuration with endpoints of its own."""
    binds = {role: f"ipc://{tmp_path}/{role}" for role in ("frontends", "workers")}
    return Config(frontend_bind=binds["frontends"], worker_bind=binds["workers"], metrics_bind="127.0.0.1:0")


@pytest.mark.usefixtures("old_handlers")
def test_signal_during_start_up_ends_the_main_loop(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    service = Service(config)
    service.start_up()
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGTERM)
    service.main_loop()
    service.shut_down()
    assert "SIGTERM: draining" in caplog.messages
    assert not [message for message in caplog.messages if "keys" in message]


@pytest.mark.usefixtures("old_handlers")
def test_failed_start_up_can_be_shut_down(config: Config) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        for wrong in ({"worker_bind": f"tcp://{taken}"}, {"metrics_bind": taken}, {"metrics_bind": "7412"}):
            values = {name: getattr(config, name) for name in config.__struct_fields__}
            with pytest.raises(ConfigError, match=r"cannot listen on|cannot serve metrics on|is not HOST:PORT"):
                Service(Config(**values | wrong)).run()


@pytest.mark.usefixtures("old_handlers")
def test_taken_default_metrics_port_ends_no_broker(
    config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        monkeypatch.setattr("broker.shell.service.METRICS_BIND", taken)
        service = Service(msgspec.structs.replace(config, metrics_bind="auto"))
        service.start_up()
        os.kill(os.getpid(), signal.SIGTERM)
        service.main_loop()
        service.shut_down()
    (record,) = [record for record in caplog.records if "no metrics" in record.getMessage()]
    assert f"because {taken} cannot be used: Address already in use" in record.getMessage()
    assert record.levelname == "INFO"


@pytest.mark.usefixtures("old_handlers")
def test_wakeup_ends_a_poll() -> None:
    wakeup, poller = Wakeup(), zmq.Poller()
    poller.register(wakeup, zmq.POLLIN)
    assert poller.poll(0) == []
    wakeup.catch_signals([signal.SIGHUP])
    for _ in range(100_000):
        wakeup.wake_loop()
    os.kill(os.getpid(), signal.SIGHUP)
    assert dict(poller.poll(0)) == {wakeup.fileno(): zmq.POLLIN}
    assert wakeup.take_signals() == [signal.SIGHUP]
    assert wakeup.take_signals() == []
    assert poller.poll(0) == []
    wakeup.close()
    wakeup.wake_loop()
