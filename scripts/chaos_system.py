"""The processes under `scripts/chaos`: started, kept running, struck, watched; and the tally of what happened."""

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

#: How long a request may take, as the frontends are told, and how much later its answer counts as a hang, in seconds.
DEADLINE_S, SLACK_S = 30.0, 10.0
#: How old a worker is before it counts as there.
WORKER_START_S = 1.5
#: How long a process may take to start, in seconds.
START_S = 5.0
#: The mean time until a process that ended is started again, by its role, and the longest.
RESTART_S, MAX_RESTART_S = {"broker": 2.0, "worker": 0.7, "frontend": 0.7}, 8.0
#: Number of the system call on x86-64 and arm64.
PIDFD_GETFD = 438
HEALTHY_WITHIN_S, DRAIN_S = 45.0, 75.0


def say(text: str) -> None:
    """Tell the person at the terminal."""
    print(f"chaos: {text}", file=sys.stderr, flush=True)


@dataclasses.dataclass
class Tally:
    """What has happened."""

    started: float = dataclasses.field(default_factory=time.monotonic)
    #: Chaotic requests by their end.
    ends: Counter[str] = dataclasses.field(default_factory=Counter)
    #: Strikes by role and signal.
    strikes: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    jobs: int = 0
    longest_s: float = 0.0
    #: The broker's counters in each of its lives, by its process id, as last seen.
    lives: dict[int, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    #: A line of each process's memory.
    memory: list[tuple[str, float, float]] = dataclasses.field(default_factory=list)
    faults: list[str] = dataclasses.field(default_factory=list)

    def fault(self, text: str) -> None:
        """Something that must not be."""
        self.faults.append(f"at {time.monotonic() - self.started:.1f} s: {text}")
        say(f"FAULT {self.faults[-1]}")


class Member:
    """A process that is started again a little after its end; an end that nobody caused is a fault."""

    def __init__(self, name: str, command: list[str], log: Path, tally: Tally, dice: random.Random) -> None:
        self.name = name
        # The shell gives it its log and becomes it.
        self._command = ["/bin/sh", "-c", 'exec "$@" >>"$0" 2>&1', str(log), sys.executable, "-m", *command]
        self._tally, self._dice = tally, dice
        self._due = self._started = 0.0
        self.frozen = False
        #: The signal that ends it, once sent.
        self.doom: signal.Signals | None = None
        self._doomed_early = False
        self._child = Child(name, self._command, say)

    @property
    def pid(self) -> int:
        """Its process id; 0 while there is none."""
        process = self._child.process
        return process.pid if process and process.poll() is None else 0

    @property
    def steady(self) -> bool:
        """Whether it runs, and nothing has been done to it."""
        return bool(self.pid) and not self.frozen and self.doom is None

    @property
    def age_s(self) -> float:
        """How long it has run."""
        return time.monotonic() - self._started

    def keep(self, now: float) -> None:
        """Start it if it is to run and does not."""
        if self.pid:
            return
        if self._child.process:
            self._note_end(self._child.process.returncode)
            self._child = Child(self.name, self._command, say)
            self._due = now + min(MAX_RESTART_S, self._dice.expovariate(1 / RESTART_S[self.name.split()[0]]))
            self.frozen, self.doom = False, None
        if now >= self._due:
            self._started = now
            self._child.keep_running(now)

    def send(self, number: signal.Signals) -> None:
        """Signal it."""
        if self.pid:
            os.kill(self.pid, number)
        self.frozen = number == signal.SIGSTOP
        if number in (signal.SIGKILL, signal.SIGTERM):
            self.doom, self._doomed_early = number, self.age_s < START_S

    async def drained(self) -> None:
        """Wait for its end after SIGTERM."""
        until = time.monotonic() + DRAIN_S
        while self.pid and time.monotonic() < until:
            await asyncio.sleep(0.02)
        if self.pid:
            self._tally.fault(f"{self.name} does not end after SIGTERM")
        elif self._child.process:
            self._note_end(self._child.process.returncode)

    def kill(self) -> None:
        """Kill whatever is left of it."""
        self._child.kill()

    def _note_end(self, status: int) -> None:
        wanted = {signal.SIGKILL: {-signal.SIGKILL}, signal.SIGTERM: {0}}
        if self._doomed_early:
            # Python was still starting: there was nothing to drain, and nobody yet to handle the signal.
            wanted[signal.SIGTERM].add(-signal.SIGTERM)
        if self.doom is None or status not in wanted[self.doom]:
            self._tally.fault(f"{self.name} ended with status {status} after {self.doom or 'no signal'}")


class System:
    """The broker, the workers and the frontend, on endpoints in a folder of their own."""

    def __init__(self, folder: Path, workers: int, tally: Tally, dice: random.Random) -> None:
        self.folder, self.tally, self.port = folder, tally, free_port()
        frontends, wire = f"ipc://{folder}/frontends", f"ipc://{folder}/workers"

        def member(name: str, *command: str) -> Member:
            return Member(name, list(command), folder / f"{name.replace(' ', '-')}.log", tally, dice)

        self.broker = member("broker", "broker", "--frontend-bind", frontends, "--worker-bind", wire, "--metrics-bind=")
        self.workers = [
            member(f"worker {one}", "tests.harness.fake_worker", "--broker", wire) for one in range(1, workers + 1)
        ]
        flags = ("--broker", frontends, "--port", str(self.port), "--processes", "2", "--deadline-s", str(DEADLINE_S))
        self.frontend = member("frontend", "frontend", *flags)
        #: Ports of clients whose connection went down with a killed frontend process.
        self.cut: set[int] = set()
        #: When the broker or all workers were last seen to be away, and when any process was.
        self.troubled_at = self.touched_at = time.monotonic()

    @property
    def members(self) -> list[Member]:
        """All that is started from here."""
        return [self.broker, *self.workers, self.frontend]

    async def keep(self) -> None:
        """Keep everything running, and note when the broker or all workers are away."""
        while True:
            now = time.monotonic()
            for member in self.members:
                member.keep(now)
            self.note_trouble()
            await asyncio.sleep(0.05)

    def note_trouble(self) -> None:
        """Remember who is away now."""
        there = [one.steady and one.age_s > WORKER_START_S for one in self.workers]
        if not (self.broker.steady and any(there)):
            self.troubled_at = time.monotonic()
        if not (self.broker.steady and all(there)):
            self.touched_at = time.monotonic()

    def serving(self) -> list[int]:
        """The frontend's processes that serve."""
        return descendants(self.frontend.pid) if self.frontend.pid else []

    async def kill_serving(self, pid: int) -> None:
        """Kill one of them, and know whose connections that ends: stopped, it takes no new ones."""
        os.kill(pid, signal.SIGSTOP)
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "TZ":
            await asyncio.sleep(0.001)
        self.cut |= set(client_ports(pid, self.port))
        os.kill(pid, signal.SIGKILL)

    def left(self) -> list[int]:
        """Processes that still run: the folder is in each one's command."""
        return [pid for pid, command in commands() if str(self.folder) in command and alive(pid)]

    def memory(self) -> dict[tuple[str, int], float]:
        """MiB of the broker and of the frontend's processes, by name and process id."""
        pids = [("broker", self.broker.pid), ("frontend", self.frontend.pid)]
        pids += [("frontend that serves", pid) for pid in self.serving()]
        return {(name, pid): resident_mib(pid) for name, pid in pids}

    async def stop(self) -> None:
        """SIGTERM to all, frontends first; whatever is left then is a fault."""
        for group in ([self.frontend], self.workers, [self.broker]):
            for member in group:
                member.send(signal.SIGTERM)
            for member in group:
                await member.drained()
        if left := self.left():
            self.tally.fault(f"processes are left after SIGTERM to all: {left}")

    def close(self) -> None:
        """Kill whatever is left."""
        for member in self.members:
            member.kill()
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def commands() -> Iterator[tuple[int, str]]:
    """Every process's id and command."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry.name), (entry / "cmdline").read_text().replace("\0", " ")


def resident_mib(pid: int) -> float:
    """A process's resident memory."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def client_ports(pid: int, port: int) -> Iterator[int]:
    """The ports at the other ends of a stopped process's connections on this port of its own.

    From its descriptors, not from /proc/net/tcp: that is read in pieces, and a connection can be missing between them.
    """
    whole = os.pidfd_open(pid)
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if os.readlink(entry).startswith("socket:"):
            descriptor = ctypes.CDLL(None).syscall(PIDFD_GETFD, whole, int(entry.name), 0)
            with socket.socket(fileno=descriptor) as copy, contextlib.suppress(OSError):
                if copy.family == socket.AF_INET and copy.getsockname()[1] == port:
                    yield copy.getpeername()[1]
    os.close(whole)
