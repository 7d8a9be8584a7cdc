"""Child processes that are kept running: what `--processes` above 1 and scripts/serve share. Does no HTTP.

Sanic's own manager does not start a process again that was killed, so it is not used.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from prometheus_client.multiprocess import mark_process_dead

ROOT = Path(__file__).resolve().parent.parent
#: Delay of the first restart, its highest value, and how long a child must live for it to start anew, in seconds.
FIRST_DELAY_S, MAX_DELAY_S, HEALTHY_S = 0.25, 10.0, 30.0
#: Exit status of our programs for what no restart mends: a model, device or address they cannot use; a wrong flag.
REFUSED = 2
_PR_SET_PDEATHSIG = 1


class Child:
    """A process that is started again when it ends."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        say: Callable[[str], None],
        fds: Sequence[int] = (),
        on_end: Callable[[int], None] = lambda pid: None,
    ) -> None:
        self.name = name
        self.command = command
        self.process: subprocess.Popen[bytes] | None = None
        self._say = say
        self._fds = fds
        self._on_end = on_end
        self._starts = 0
        self._started = 0.0
        self._delay = FIRST_DELAY_S
        self._due = 0.0

    @property
    def refused(self) -> bool:
        """Whether its first start has ended because what it was asked to do cannot be done.

        A later one is tried again whatever it ends with: a file that was right may be half written at that moment.
        """
        return self._starts == 1 and self.process is not None and self.process.poll() == REFUSED

    def keep_running(self, now: float) -> None:
        """Start it if it does not run and its delay is over."""
        if self.process and self.process.poll() is None:
            return
        if self.process:
            self._note_end(self.process.returncode, now)
        if now >= self._due:
            self._start(now)

    def _start(self, now: float) -> None:
        self._started = now
        self._starts += 1
        try:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, preexec_fn=_die_with_parent, process_group=0, pass_fds=self._fds
            )
        except (OSError, subprocess.SubprocessError) as error:
            # No memory, no process left, or the interpreter is being replaced.
            self._postpone(now, f"cannot be started: {error}")

    def terminate(self) -> None:
        """Ask it to drain, if it runs."""
        if self.process and self.process.poll() is None:
            self.process.terminate()

    def reload(self) -> None:
        """Ask it by SIGHUP to read its keys anew, if it runs."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGHUP)

    def wait(self, until: float) -> None:
        """Wait for its end until then, and kill whatever is left of it."""
        if self.process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(max(0.0, until - time.monotonic()))
            self.kill()

    def kill(self) -> None:
        """Kill whatever is left of it and of its own children."""
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def _note_end(self, status: int, now: float) -> None:
        self.kill()
        if self.process:
            self._on_end(self.process.pid)
        self.process = None
        self._postpone(now, f"ended with status {status}")

    def _postpone(self, now: float, why: str) -> None:
        self._delay = FIRST_DELAY_S if now - self._started > HEALTHY_S else min(MAX_DELAY_S, self._delay * 2)
        self._due = now + self._delay
        self._say(f"{self.name} {why}; starting it again in {self._delay:.1f} s")


def reload_all(children: Iterable[Child]) -> None:
    """Pass SIGHUP on to all of them that run."""
    for child in children:
        child.reload()


def _die_with_parent() -> None:
    """In the child: be ended when the parent ends, even by SIGKILL. A drain is bounded, so SIGTERM will do."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    # Until it has a handler: what it has not read yet, it need not read anew.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def share_port(number: int, listening: socket.socket, arguments: Sequence[str], drain_s: float) -> int:
    """Run so many frontends on one listening socket until SIGTERM or SIGINT; the exit status. SIGHUP is passed on.

    The socket belongs to this process, so that a connection that comes while one of them is started again waits.
    """
    descriptor = listening.fileno()
    command = [sys.executable, "-m", "frontend", *arguments, "--processes", "1", "--listen-fd", str(descriptor)]
    # Where they count together: prometheus_client looks for this when it is imported.
    folder = os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="vecmill-metrics-")
    children = [
        Child(f"frontend {one}", command, print_status, [descriptor], on_end=mark_process_dead)
        for one in range(1, number + 1)
    ]
    stopping: list[int] = []
    for wanted in (signal.SIGTERM, signal.SIGINT):
        signal.signal(wanted, lambda received, _: stopping.append(received))
    signal.signal(signal.SIGHUP, lambda *_: reload_all(children))
    # Blocked, so that the loop can wait for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while not stopping and not any(child.refused for child in children):
        for child in children:
            child.keep_running(time.monotonic())
        signal.sigtimedwait({signal.SIGCHLD}, 0.5)
    # Who connects from now on is refused, instead of waiting for a process that is not there.
    listening.close()
    for child in children:
        child.terminate()
    until = time.monotonic() + drain_s
    for child in children:
        child.wait(until)
    shutil.rmtree(folder, ignore_errors=True)
    return 0 if stopping else REFUSED


def print_status(text: str) -> None:
    """Tell the person at the terminal, if it is still there."""
    with contextlib.suppress(OSError):
        print(f"vecmill: {text}", file=sys.stderr, flush=True)
