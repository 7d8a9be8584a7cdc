"""Children that are kept running, also when a later start of one is refused."""

import argparse
import importlib.util
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from frontend import processes
from frontend.processes import REFUSED, Child
from tests.harness.processes import ROOT, until

#: Serves while the file "good" is there; else it is refused, as for a file that is half written.
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
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start again without much delay."""
    monkeypatch.setattr(processes, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(processes, "MAX_DELAY_S", 0.05)


@pytest.fixture
def supervise() -> ModuleType:
    """scripts/supervise.py."""
    spec = importlib.util.spec_from_file_location("supervise", ROOT / "scripts" / "supervise.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Serving:
    """A child, what it has said, and a file that it needs to serve."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.said: list[str] = []
        self.child = Child(folder.name, [sys.executable, "-c", SERVE, str(folder)], self.said.append)
        (folder / "good").touch()

    @property
    def pid(self) -> int:
        """Its process, 0 if there is none."""
        return self.child.process.pid if self.child.process else 0

    @property
    def starts(self) -> int:
        """How often it was started."""
        path = self.folder / "starts"
        return len(path.read_text()) if path.exists() else 0

    def break_and_kill(self) -> None:
        """End it, after which it will be refused."""
        (self.folder / "good").unlink()
        (self.folder / "serving").unlink()
        self.child.kill()

    def end(self) -> None:
        """End it for good."""
        self.child.kill()
        if self.child.process:
            self.child.process.wait()

    def serves(self) -> bool:
        """Whether it has come so far."""
        return (self.folder / "serving").exists()


def keep(one: Serving, until_this: Callable[[], bool]) -> None:
    """Keep the child until then."""
    now = iter(range(10**9))

    def turn() -> bool:
        one.child.keep_running(next(now))
        return until_this()

    until(turn)


def test_only_the_first_start_can_be_refused(tmp_path: Path) -> None:
    bad, good = Serving(tmp_path / "bad"), Serving(tmp_path / "good")
    (bad.folder / "good").unlink()
    bad.child.keep_running(0.0)
    until(lambda: bad.child.refused)
    keep(good, good.serves)
    good.break_and_kill()
    keep(good, lambda: good.starts > 3)
    assert not good.child.refused
    assert any(f"ended with status {REFUSED}; starting it again" in text for text in good.said)
    (good.folder / "good").touch()
    keep(good, good.serves)
    good.end()


def test_child_without_a_handler_is_not_ended_by_a_reload(tmp_path: Path) -> None:
    one = Serving(tmp_path / "one")
    one.child.reload()
    keep(one, one.serves)
    assert one.child.process
    one.child.reload()
    one.child.terminate()
    # By the first, if that ends it.
    assert one.child.process.wait() == -signal.SIGTERM
    one.child.reload()


def test_child_that_cannot_be_started_is_tried_again_later_and_later() -> None:
    said: list[str] = []
    child = Child("child", ["/nonexistent/python"], said.append)
    for now in (0.0, 1.0, 2.0):
        child.keep_running(now)
        child.keep_running(now)
    assert len(said) == 3
    assert "child cannot be started: [Errno 2] No such file or directory" in said[0]
    assert not child.refused
    child.wait(0.0)


def test_serve_goes_on_when_a_later_start_is_refused(
    tmp_path: Path, supervise: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before the first answer: the broker and the frontend have served, while the worker still loads."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    one, other = Serving(tmp_path / "one"), Serving(tmp_path / "other")
    monkeypatch.setattr(supervise, "is_ready", lambda url: False)
    stopping: list[int] = []
    status: list[int] = []
    options = argparse.Namespace(host="127.0.0.1", port=1)

    def run() -> None:
        status.append(supervise.supervise(options, "model", [[one.child], [other.child]], stopping))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        until(lambda: one.serves() and other.serves())
        neighbour = other.pid
        one.break_and_kill()
        until(lambda: one.starts > 3)
        assert thread.is_alive()
        (one.folder / "good").touch()
        until(one.serves)
        assert other.pid == neighbour
    finally:
        stopping.append(signal.SIGTERM)
        thread.join()
        one.end()
        other.end()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    assert status == [0]


def test_serve_ends_when_the_first_start_is_refused(
    tmp_path: Path, supervise: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Serving(tmp_path / "one")
    (one.folder / "good").unlink()
    monkeypatch.setattr(supervise, "is_ready", lambda url: False)
    options = argparse.Namespace(host="127.0.0.1", port=1)
    assert supervise.supervise(options, "model", [[one.child]], []) == 1
    assert one.starts == 1
