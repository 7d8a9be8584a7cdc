"""Wake-up of the poll loop by signals and other threads."""

import contextlib
import signal
import socket
from collections.abc import Iterable


class Wakeup:
    """A socket pair. The poll loop polls one end; signals and other threads write to the other end."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._signals: list[signal.Signals] = []

    def fileno(self) -> int:
        """Return the descriptor to poll for input."""
        return self._reader.fileno()

    def catch_signals(self, numbers: Iterable[signal.Signals]) -> None:
        """Record these signals from now on instead of their default action. Call in the main thread."""
        for number in numbers:
            signal.signal(number, lambda received, _: self._signals.append(signal.Signals(received)))
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)

    def wake_loop(self) -> None:
        """Make the poll return. Any thread may call this, also after `close`."""
        # A full buffer has woken the loop already; a closed socket has no loop.
        with contextlib.suppress(OSError):
            self._writer.send(b"\0")

    def take_signals(self) -> list[signal.Signals]:
        """Clear the wake-up and return the signals recorded since the last call, oldest first."""
        with contextlib.suppress(BlockingIOError):
            while self._reader.recv(4096):
                pass
        signals, self._signals = self._signals, []
        return signals

    def close(self) -> None:
        """Close both ends. Signals are still recorded, so that none ends the process while it closes its sockets."""
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()
