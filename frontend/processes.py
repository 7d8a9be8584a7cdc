"""Child processes that are restarted when they end, for `--processes` and `scripts/serve`.

Sanic's own manager does not restart a process that was killed.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.multiprocess import mark_process_dead

from broker.shared.exit import REFUSED_STATUS
from frontend.run_folder import create_run_folder

ROOT = Path(__file__).resolve().parent.parent
#: Seconds: the minimum delay of a restart, the maximum, and the lifetime that resets the delay to the minimum.
FIRST_DELAY_S, MAX_DELAY_S, HEALTHY_S = 0.25, 10.0, 30.0
#: `PR_SET_PDEATHSIG` of linux/prctl.h.
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True, eq=False)
class Child:
    """Process that is restarted when it ends."""

    name: str
    command: Sequence[str]
    #: Called with a message when the process ends.
    report: Callable[[str], None]
    #: Descriptors that the process inherits.
    fds: Sequence[int] = ()
    #: Called with the process id when the process ends.
    on_end: Callable[[int], object] = lambda pid: None
    process: subprocess.Popen[bytes] | None = None
    _starts: int = 0
    _started: float = 0.0
    _delay_s: float = FIRST_DELAY_S
    #: When to start the process.
    _due: float = 0.0

    @property
    def refused(self) -> bool:
        """Whether the first process has ended because it cannot use its settings.

        Later processes are restarted whatever their status, because a file may be half written for a moment.
        """
        return self._starts == 1 and self.process is not None and self.process.poll() == REFUSED_STATUS

    def keep_running(self, now: float) -> None:
        """Start the process if it does not run and the delay is over."""
        if self.process and self.process.poll() is None:
            return
        if self.process:
            self._handle_end(self.process, now)
        if now >= self._due:
            self._start_process(now)

    def _start_process(self, now: float) -> None:
        self._started = now
        self._starts += 1
        try:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, preexec_fn=_die_with_parent, process_group=0, pass_fds=self.fds
            )
        except (OSError, subprocess.SubprocessError) as error:
            # The system is out of memory or processes, or the interpreter is being replaced.
            self._schedule_restart(now, f"cannot be started: {error}")

    def terminate(self) -> None:
        """Send SIGTERM, with which the process drains, if it runs."""
        if self.process:
            self.process.terminate()

    def reload(self) -> None:
        """Send SIGHUP, with which the process reloads its keys, if it runs."""
        if self.process:
            self.process.send_signal(signal.SIGHUP)

    def wait(self, until: float) -> None:
        """Wait until a monotonic time for the process to end, and then kill it and its children."""
        if self.process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(max(0.0, until - time.monotonic()))
            self.kill()

    def kill(self) -> None:
        """Kill the process and its children."""
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def _handle_end(self, ended: subprocess.Popen[bytes], now: float) -> None:
        self.kill()
        self.on_end(ended.pid)
        self.process = None
        self._schedule_restart(now, f"(pid {ended.pid}) ended with status {ended.returncode}")

    def _schedule_restart(self, now: float, reason: str) -> None:
        self._delay_s = FIRST_DELAY_S if now - self._started > HEALTHY_S else min(MAX_DELAY_S, self._delay_s * 2)
        self._due = now + self._delay_s
        self.report(f"{self.name} {reason}; restarting in {self._delay_s:.1f} s")


def reload_all(children: Iterable[Child]) -> None:
    """Send SIGHUP to all children."""
    for child in children:
        child.reload()


def _die_with_parent() -> None:
    """In the child, request SIGTERM when the parent ends, even by SIGKILL. A drain takes a bounded time."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    # Until the child installs its handler. It has not read any file by then.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def share_port(count: int, sockets: Sequence[socket.socket], arguments: Sequence[str], drain_s: float) -> int:
    """Run several frontends on the same listening sockets until SIGTERM or SIGINT, and return the exit status.

    SIGHUP is forwarded to them. This process owns the sockets, so that new connections wait during a restart.
    """
    descriptors = [listening.fileno() for listening in sockets]
    command = [sys.executable, "-m", "frontend", *arguments, "--processes", "1"]
    command += ["--listen-fds", ",".join(map(str, descriptors))]
    # The frontends' common metrics. prometheus_client reads the variable when it is imported.
    folder = os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(create_run_folder(""))
    children = [
        Child(f"frontend {number}", command, print_status, descriptors, on_end=mark_process_dead)
        for number in range(1, count + 1)
    ]
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: stopping.append(received))
    signal.signal(signal.SIGHUP, lambda *_: reload_all(children))
    # `sigtimedwait` below requires a blocked signal.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while not stopping and not any(child.refused for child in children):
        for child in children:
            child.keep_running(time.monotonic())
        signal.sigtimedwait({signal.SIGCHLD}, 0.5)
    # From now on the kernel rejects new connections, which would wait for a process that is gone.
    for listening in sockets:
        listening.close()
    for child in children:
        child.terminate()
    until = time.monotonic() + drain_s
    for child in children:
        child.wait(until)
    shutil.rmtree(folder, ignore_errors=True)
    return 0 if stopping else REFUSED_STATUS


def print_status(text: str) -> None:
    """Print to standard error, if it is still open."""
    with contextlib.suppress(OSError):
        print(f"vecmill: {text}", file=sys.stderr, flush=True)
