"""Processes that tests start, wait for and kill."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")


def free_port() -> int:
    """Return a free TCP port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], T], within_s: float = 20.0, what: str = "the condition") -> T:
    """Return the first true value of a condition; raise AssertionError if it stays false."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"waited {within_s} s in vain for {what}")


def descendants(pid: int) -> list[int]:
    """Return the ids of all descendants of a process."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found


def alive(pid: int) -> bool:
    """Return whether a process runs and is not a zombie."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


class Program:
    """Process in its own session, with its output in a file."""

    def __init__(self, name: str, command: list[str], log: Path, environ: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.log = log
        environ = {**os.environ, **(environ or {})}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True, env=environ
            )

    @property
    def output(self) -> str:
        """Output so far."""
        return self.log.read_text()

    def signal(self, number: int) -> None:
        """Send a signal to the process but not to its children."""
        self.process.send_signal(number)

    def wait(self, within_s: float = 20.0) -> int:
        """Wait for the end of the process and return its exit status."""
        return self.process.wait(within_s)

    def close(self) -> None:
        """Kill the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Cluster:
    """Broker, workers and frontend on sockets in a folder and on a free port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.metrics_bind = f"127.0.0.1:{free_port()}"
        self.programs: list[Program] = []
        self.endpoints = {"frontend": f"ipc://{folder}/frontends.sock", "worker": f"ipc://{folder}/workers.sock"}

    def broker(self, *flags: str) -> Program:
        """Start the broker; without `--cache-bytes` it computes every input."""
        binds = ("--frontend-bind", self.endpoints["frontend"], "--worker-bind", self.endpoints["worker"])
        return self._start("broker", *binds, "--metrics-bind", self.metrics_bind, "--cache-bytes", "0", *flags)

    def worker(self, *flags: str, **fakery: int | str) -> Program:
        """Start a fake worker; `fakery` sets fields of `Fakery`, its backend's properties."""
        environ = {f"FAKE_{name.upper()}": str(value) for name, value in fakery.items()}
        environ["FAKE_FOLDER"] = str(self.folder)
        return self._start("tests.harness.fake_worker", "--broker", self.endpoints["worker"], *flags, environ=environ)

    def real_worker(self, *flags: str, environ: Mapping[str, str] | None = None) -> Program:
        """Start a worker with the real engine."""
        return self._start("workers", "--broker", self.endpoints["worker"], *flags, environ=environ)

    def frontend(self, *flags: str, environ: Mapping[str, str] | None = None) -> Program:
        """Start a frontend on the cluster's port."""
        known = ("--broker", self.endpoints["frontend"], "--port", str(self.port))
        return self._start("frontend", *known, *flags, environ=environ)

    def runner(self, *flags: str) -> Program:
        """Start a runner of the batches in the folder `data`, for which a frontend needs `--data` too."""
        known = ("--broker", self.endpoints["frontend"], "--data", str(self.folder / "data"))
        return self._start("frontend.batches", *known, *flags)

    def all(self, workers: int = 1, **fakery: int) -> tuple[Program, list[Program], Program]:
        """Start the broker, fake workers and a frontend, and wait until the workers have joined."""
        started = self.broker(), [self.worker(**fakery) for _ in range(workers)], self.frontend()
        self.until_workers(workers)
        return started

    def until_workers(self, number: int) -> None:
        """Wait until the frontend reports this number of workers."""
        until(lambda: self.health().get("workers") == number, what=f"{number} workers")

    def health(self) -> dict[str, object]:
        """Return GET /health, or an empty object while no frontend listens."""
        with contextlib.suppress(httpx.TransportError):
            answer: dict[str, object] = httpx.get(f"{self.url}/health", timeout=5).json()
            return answer
        return {}

    def counters(self) -> dict[str, int]:
        """Return the broker's counters, as in the frontend's last heartbeat."""
        counters = self.health()["counters"]
        assert isinstance(counters, dict)
        return counters

    def count(self, name: str) -> int:
        """Return one of the broker's counters."""
        return self.counters().get(name, 0)

    def number(self, name: str) -> int:
        """Return a number of /health, such as open_jobs."""
        number = self.health()[name]
        assert isinstance(number, int)
        return number

    def workers(self) -> list[dict[str, Any]]:
        """Return the broker's list of workers."""
        listed = self.health()["worker_list"]
        assert isinstance(listed, list)
        return listed

    def close(self) -> None:
        """Kill all processes that still run."""
        for program in self.programs:
            program.close()

    def _start(self, module: str, *flags: str, environ: Mapping[str, str] | None = None) -> Program:
        log = self.folder / f"{module}-{len(self.programs)}.log"
        program = Program(module, [sys.executable, "-m", module, *flags], log, environ)
        self.programs.append(program)
        return program
