"""When the broker's shell lets time pass, which is when peers may be judged silent."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from broker.shell.config import Config
from broker.shell.service import FRONTEND, LATE_S, WORKER, Service
from tests.harness.core import Core


class Shell(Service):
    """A service whose sockets and clock a test plays."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(Config())
        self.core = Core()
        self.scheduler = self.core.scheduler
        self.now = 1000.0
        monkeypatch.setattr("broker.shell.service.time.monotonic", lambda: self.now)
        #: What each socket does when it is read; whether there is no more to read.
        self.read: dict[bytes, Callable[[], bool]] = {WORKER: lambda: True, FRONTEND: lambda: True}

    def _receive(self, role: bytes) -> bool:
        return self.read[role]()


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """A broker that has one worker, which is silent, and one frontend."""
    shell = Shell(monkeypatch)
    shell.core.frontend()
    shell.core.worker()
    monkeypatch.setattr(shell, "_send", lambda sends: None)
    yield shell
    shell._context.term()


def test_worker_is_judged_when_all_that_workers_sent_has_been_read(shell: Shell) -> None:
    shell.now += 3.6
    shell.read[WORKER] = lambda: False
    shell._tick()
    assert shell.scheduler.state.pool.workers
    shell.read[WORKER] = lambda: True
    shell._tick()
    assert not shell.scheduler.state.pool.workers


def test_heartbeat_that_came_during_a_long_turn_counts(shell: Shell) -> None:
    def read() -> bool:
        shell.scheduler.state.pool.workers[b"W1"].last_heard = shell.now
        return True

    shell.now += 3.6
    shell.read[WORKER] = read
    shell._tick()
    assert shell.scheduler.state.pool.workers


def test_frontend_is_judged_when_all_that_frontends_sent_has_been_read(shell: Shell) -> None:
    shell.now += 3.6
    shell.read[FRONTEND] = lambda: False
    shell._tick()
    assert shell.scheduler.state.ledger.by_peer
    shell.read[FRONTEND] = lambda: True
    shell._tick()
    assert not shell.scheduler.state.ledger.by_peer


def test_nobody_is_judged_right_after_the_process_did_not_run(shell: Shell) -> None:
    shell.now += 3.5 + LATE_S + 1
    shell._tick()
    assert shell.scheduler.state.pool.workers
    timeout_ms = shell._timeout_ms()
    assert timeout_ms is not None
    assert 0 < timeout_ms <= LATE_S * 1000 + 1
    shell.now += LATE_S
    shell._tick()
    assert not shell.scheduler.state.pool.workers


class Recorded:
    """A socket, or a monitor of one, that notes what becomes of it."""

    def __init__(self, events: list[str]) -> None:
        self._events = events

    def disable_monitor(self) -> None:
        self._events.append("monitoring ends")

    def close(self, linger: int | None = None) -> None:
        self._events.append("socket closes" if linger else "monitor closes")


def test_monitoring_ends_before_a_monitor_closes(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else libzmq waits for ever when a peer leaves in between, and the broker with it."""
    events: list[str] = []
    sockets: dict[Any, Any] = {role: Recorded(events) for role in (FRONTEND, WORKER)}
    monkeypatch.setattr(shell, "_sockets", sockets)
    monkeypatch.setattr(shell, "_monitors", {Recorded(events): role for role in sockets})
    shell._close()
    assert events == ["monitoring ends"] * 2 + ["monitor closes"] * 2 + ["socket closes"] * 2
