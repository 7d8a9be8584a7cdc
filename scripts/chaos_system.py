"""Processes of `scripts/chaos`, which are started, struck and restarted, and the tally of a run."""

import asyncio
import contextlib
import ctypes
import dataclasses
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from frontend.processes import Child  # noqa: E402  after the path is set
from tests.harness.processes import alive, descendants, free_port  # noqa: E402

#: `--deadline-s` of the frontends, and the seconds after it until a request counts as hanging.
DEADLINE_S, SLACK_S = 30.0, 10.0
#: Seconds after which a started worker counts as available.
WORKER_START_S = 1.5
#: Seconds for which SIGTERM may end a starting process before it handles signals.
START_S = 5.0
#: Mean seconds until an ended process is restarted, by role, and the maximum.
RESTART_S, MAX_RESTART_S = {"broker": 2.0, "worker": 0.7, "frontend": 0.7}, 8.0
#: System call number of pidfd_getfd on x86-64 and arm64.
PIDFD_GETFD = 438
HEALTHY_WITHIN_S, DRAIN_S = 45.0, 75.0


def log_event(text: str) -> None:
    """Print a line to standard error."""
    print(f"chaos: {text}", file=sys.stderr, flush=True)


@dataclasses.dataclass
class Tally:
    """Counts and faults of a run."""

    started: float = dataclasses.field(default_factory=time.monotonic)
    #: Number of requests by how they ended.
    ends: Counter[str] = dataclasses.field(default_factory=Counter)
    #: Number of strikes by role and signal.
    strikes: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    jobs: int = 0
    longest_s: float = 0.0
    #: Last counters of each incarnation of the broker, by process id.
    incarnations: dict[int, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    #: Name of each process with its MiB after the first and the second burst.
    memory: list[tuple[str, float, float]] = dataclasses.field(default_factory=list)
    faults: list[str] = dataclasses.field(default_factory=list)

    def add_fault(self, text: str) -> None:
        """Record and print a fault."""
        self.faults.append(f"at {time.monotonic() - self.started:.1f} s: {text}")
        log_event(f"FAULT {self.faults[-1]}")


class Member:
    """Process that is restarted after its end; an end without a strike is a fault."""

    def __init__(self, name: str, command: list[str], log: Path, tally: Tally, dice: random.Random) -> None:
        self.name = name
        # The shell redirects the output and is replaced by the program.
        self._command = ["/bin/sh", "-c", 'exec "$@" >>"$0" 2>&1', str(log), sys.executable, "-m", *command]
        self._tally, self._dice = tally, dice
        self._due = self._started = 0.0
        self.frozen = False
        #: Signal that was sent to end the process.
        self.end_signal: signal.Signals | None = None
        self._signalled_early = False
        self._child = Child(name, self._command, log_event)

    @property
    def pid(self) -> int:
        """Process id, or 0 while no process runs."""
        process = self._child.process
        return process.pid if process and process.poll() is None else 0

    @property
    def steady(self) -> bool:
        """Return whether the process runs and has not been struck."""
        return bool(self.pid) and not self.frozen and self.end_signal is None

    @property
    def age_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def keep(self, now: float) -> None:
        """Start the process if it does not run and its restart is due."""
        if self.pid:
            return
        if self._child.process:
            self._judge_end(self._child.process.returncode)
            self._child = Child(self.name, self._command, log_event)
            self._due = now + min(MAX_RESTART_S, self._dice.expovariate(1 / RESTART_S[self.name.split()[0]]))
            self.frozen, self.end_signal = False, None
        if now >= self._due:
            self._started = now
            self._child.keep_running(now)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it runs."""
        if self.pid:
            os.kill(self.pid, number)
        self.frozen = number == signal.SIGSTOP
        if number in (signal.SIGKILL, signal.SIGTERM):
            self.end_signal, self._signalled_early = number, self.age_s < START_S

    async def wait_drained(self) -> None:
        """Wait for the end of the process after SIGTERM."""
        until = time.monotonic() + DRAIN_S
        while self.pid and time.monotonic() < until:
            await asyncio.sleep(0.02)
        if self.pid:
            self._tally.add_fault(f"{self.name} does not end after SIGTERM")
        elif self._child.process:
            self._judge_end(self._child.process.returncode)

    def kill(self) -> None:
        """Kill the process group."""
        self._child.kill()

    def _judge_end(self, status: int) -> None:
        allowed = {signal.SIGKILL: {-signal.SIGKILL}, signal.SIGTERM: {0}}
        if self._signalled_early:
            # Python was still starting and had not installed its signal handler.
            allowed[signal.SIGTERM].add(-signal.SIGTERM)
        if self.end_signal is None or status not in allowed[self.end_signal]:
            self._tally.add_fault(f"{self.name} ended with status {status} after {self.end_signal or 'no signal'}")


class System:
    """Broker, workers and a frontend with two processes, on endpoints in one folder."""

    def __init__(self, folder: Path, workers: int, tally: Tally, dice: random.Random) -> None:
        self.folder, self.tally, self.port = folder, tally, free_port()
        frontends, wire = f"ipc://{folder}/frontends", f"ipc://{folder}/workers"

        def create_member(name: str, *command: str) -> Member:
            return Member(name, list(command), folder / f"{name.replace(' ', '-')}.log", tally, dice)

        self.broker = create_member(
            *("broker", "broker", "--frontend-bind", frontends, "--worker-bind", wire, "--metrics-bind="),
            *("--cache-bytes", "0"),
        )
        self.workers = [
            create_member(f"worker {number}", "tests.harness.fake_worker", "--broker", wire)
            for number in range(1, workers + 1)
        ]
        flags = ("--broker", frontends, "--port", str(self.port), "--processes", "2", "--deadline-s", str(DEADLINE_S))
        self.frontend = create_member("frontend", "frontend", *flags)
        #: When each port of a client lost its connection with a killed frontend process.
        self.lost_ports: dict[int, float] = {}
        #: When the broker or all workers were last away, and when the broker or any worker was.
        self.absent_at = self.partly_absent_at = time.monotonic()

    @property
    def members(self) -> list[Member]:
        """All members in start order."""
        return [self.broker, *self.workers, self.frontend]

    async def keep_running(self) -> None:
        """Restart members and note their absence until cancelled."""
        while True:
            now = time.monotonic()
            for member in self.members:
                member.keep(now)
            self.note_absence()
            await asyncio.sleep(0.05)

    def note_absence(self) -> None:
        """Note the time if the broker or workers are away now."""
        available = [worker.steady and worker.age_s > WORKER_START_S for worker in self.workers]
        if not (self.broker.steady and any(available)):
            self.absent_at = time.monotonic()
        if not (self.broker.steady and all(available)):
            self.partly_absent_at = time.monotonic()

    def list_serving(self) -> list[int]:
        """Return the ids of the frontend's serving processes."""
        return descendants(self.frontend.pid) if self.frontend.pid else []

    async def kill_serving(self, pid: int) -> None:
        """Kill a serving process and record its connections, while it is stopped and accepts no new ones."""
        os.kill(pid, signal.SIGSTOP)
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "TZ":
            await asyncio.sleep(0.001)
        self.lost_ports |= dict.fromkeys(list_client_ports(pid, self.port), time.monotonic())
        os.kill(pid, signal.SIGKILL)

    def list_leftovers(self) -> list[int]:
        """Return the processes that still run, found by the folder in their commands."""
        return [pid for pid, command in list_commands() if str(self.folder) in command and alive(pid)]

    def measure_memory(self) -> dict[tuple[str, int], float]:
        """Return the MiB of the broker and of the frontend's processes, by name and process id."""
        pids = [("broker", self.broker.pid), ("frontend", self.frontend.pid)]
        pids += [("serving frontend", pid) for pid in self.list_serving()]
        return {(name, pid): measure_memory_mib(pid) for name, pid in pids}

    async def stop(self) -> None:
        """Send SIGTERM to frontends, workers and the broker, in this order; fault processes that still run."""
        for group in ([self.frontend], self.workers, [self.broker]):
            for member in group:
                member.send(signal.SIGTERM)
            for member in group:
                await member.wait_drained()
        if leftovers := self.list_leftovers():
            self.tally.add_fault(f"processes still run after SIGTERM: {leftovers}")

    def kill_all(self) -> None:
        """Kill all processes that still run."""
        for member in self.members:
            member.kill()
        for pid in self.list_leftovers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def list_commands() -> Iterator[tuple[int, str]]:
    """Yield the id and the command of every process."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry.name), (entry / "cmdline").read_text().replace("\0", " ")


def measure_memory_mib(pid: int) -> float:
    """Return the resident memory of a process."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def list_client_ports(pid: int, port: int) -> Iterator[int]:
    """Yield the remote ports of a stopped process's connections on this local port.

    Read the process's descriptors, because /proc/net/tcp is read in pieces and can miss a connection between them.
    """
    process = os.pidfd_open(pid)
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if os.readlink(entry).startswith("socket:"):
            descriptor = ctypes.CDLL(None).syscall(PIDFD_GETFD, process, int(entry.name), 0)
            with socket.socket(fileno=descriptor) as copy, contextlib.suppress(OSError):
                if copy.family == socket.AF_INET and copy.getsockname()[1] == port:
                    yield copy.getpeername()[1]
    os.close(process)
