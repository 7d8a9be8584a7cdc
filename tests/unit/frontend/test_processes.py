"""Child processes that are restarted when they end."""

import importlib.util
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from broker.shared.exit import REFUSED_STATUS
from frontend import processes
from frontend.processes import Child
from tests.harness.processes import ROOT, until

#: Program that serves while the file "good" exists, and otherwise exits as refused, as for a file that is half written.
SERVE = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
with (folder / "starts").open("a") as starts:
    starts.write("x")
if not (folder / "good").exists():
    sys.exit(2)
(folder / "serving").touch()
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def shorten_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restart without much delay."""
    monkeypatch.setattr(processes, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(processes, "MAX_DELAY_S", 0.05)


@pytest.fixture
def supervise() -> ModuleType:
    """Return the module scripts/supervise.py."""
    spec = importlib.util.spec_from_file_location("supervise", ROOT / "scripts" / "supervise.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Serving:
    """Child process, its reports, and a file that it needs to serve."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.reported: list[str] = []
        self.child = Child(folder.name, [sys.executable, "-c", SERVE, str(folder)], self.reported.append)
        (folder / "good").touch()

    @property
    def pid(self) -> int:
        """The process id, or 0 without a process."""
        return self.child.process.pid if self.child.process else 0

    @property
    def starts(self) -> int:
        """Number of starts."""
        path = self.folder / "starts"
        return len(path.read_text()) if path.exists() else 0

    def break_and_kill(self) -> None:
        """End the process, so that its next starts are refused."""
        (self.folder / "good").unlink()
        (self.folder / "serving").unlink()
        self.child.kill()

    def end(self) -> None:
        """End the process and do not restart it."""
        self.child.kill()
        if self.child.process:
            self.child.process.wait()

    def serves(self) -> bool:
        """Return whether the process serves."""
        return (self.folder / "serving").exists()


def keep_running_until(first: Serving, until_this: Callable[[], bool]) -> None:
    """Keep the child running until a condition is true."""
    now = iter(range(10**9))

    def turn() -> bool:
        first.child.keep_running(next(now))
        return until_this()

    until(turn)


def test_only_first_start_can_be_refused(tmp_path: Path) -> None:
    bad, good = Serving(tmp_path / "bad"), Serving(tmp_path / "good")
    (bad.folder / "good").unlink()
    bad.child.keep_running(0.0)
    until(lambda: bad.child.refused)
    keep_running_until(good, good.serves)
    good.break_and_kill()
    keep_running_until(good, lambda: good.starts > 3)
    assert not good.child.refused
    assert any(f") ended with status {REFUSED_STATUS}; restarting" in text for text in good.reported)
    (good.folder / "good").touch()
    keep_running_until(good, good.serves)
    good.end()


def test_sighup_does_not_end_child_without_handler(tmp_path: Path) -> None:
    first = Serving(tmp_path / "first")
    first.child.reload()
    keep_running_until(first, first.serves)
    assert first.child.process
    first.child.reload()
    first.child.terminate()
    # SIGHUP would have ended the process first.
    assert first.child.process.wait() == -signal.SIGTERM
    first.child.reload()


def test_failed_start_is_retried_with_backoff() -> None:
    reported: list[str] = []
    child = Child("child", ["/nonexistent/python"], reported.append)
    for now in (0.0, 1.0, 2.0):
        child.keep_running(now)
        child.keep_running(now)
    assert len(reported) == 3
    assert "child cannot be started: [Errno 2] No such file or directory" in reported[0]
    assert not child.refused
    child.wait(0.0)


def test_serve_survives_refused_restart(tmp_path: Path, supervise: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even before the first answer: the worker has served."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    first, second = Serving(tmp_path / "first"), Serving(tmp_path / "second")
    monkeypatch.setattr(supervise, "is_ready", lambda url: False)
    stopping: list[int] = []
    status: list[int] = []
    (tmp_path / "health").touch()
    served = supervise.Served("model", "http://127.0.0.1:1", False, [tmp_path / "health"])

    def run() -> None:
        status.append(supervise.supervise(served, [[second.child], [first.child], []], stopping))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        until(lambda: first.serves() and second.serves())
        neighbour = second.pid
        first.break_and_kill()
        until(lambda: first.starts > 3)
        assert thread.is_alive()
        (first.folder / "good").touch()
        until(first.serves)
        assert second.pid == neighbour
    finally:
        stopping.append(signal.SIGTERM)
        thread.join()
        first.end()
        second.end()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    assert status == [0]


def test_serve_ends_when_first_start_is_refused(
    tmp_path: Path, supervise: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Serving(tmp_path / "first")
    (first.folder / "good").unlink()
    monkeypatch.setattr(supervise, "is_ready", lambda url: False)
    served = supervise.Served("model", "http://127.0.0.1:1", False, [tmp_path / "health"])
    assert supervise.supervise(served, [[], [first.child], []], []) == REFUSED_STATUS
    assert first.starts == 1


@pytest.mark.parametrize(("connected", "shown"), [(1, "with only 1 of 2 workers in f32"), (2, "with 2 workers in f32")])
def test_serve_reports_how_many_workers_are_ready(
    tmp_path: Path,
    supervise: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    connected: int,
    shown: str,
) -> None:
    files = [tmp_path / "worker-1", tmp_path / "worker-2"]
    for file in files[:connected]:
        file.write_text("f32")
    stopping: list[int] = []
    print_ready = supervise.print_ready

    def print_and_stop(*arguments: object) -> None:
        print_ready(*arguments)
        stopping.append(signal.SIGTERM)

    monkeypatch.setattr(supervise, "is_ready", lambda url: True)
    monkeypatch.setattr(supervise, "print_ready", print_and_stop)
    monkeypatch.setattr(supervise, "ALL_WORKERS_S", 0.2 if connected == 1 else 1000.0)
    served = supervise.Served("m", "http://a:1", False, files, "ipc://workers")
    first, second = Serving(tmp_path / "first"), Serving(tmp_path / "second")
    assert supervise.supervise(served, [[], [first.child, second.child], []], stopping) == 0
    first.end()
    second.end()
    printed = capsys.readouterr().err
    assert f"m at http://a:1 {shown}\n" in printed
    assert "python -m workers --broker ipc://workers\n" in printed
