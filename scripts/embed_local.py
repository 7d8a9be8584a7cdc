"""A server of its own for a run of `scripts/embed --local`."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from embed_errors import AwayError, RefusedError

ROOT = Path(__file__).resolve().parent.parent
#: `PR_SET_PDEATHSIG` of linux/prctl.h.
_PR_SET_PDEATHSIG = 1
#: Variables that would make the server require keys, which only this run can reach.
_KEY_VARIABLES = ("API_KEY", "VECMILL_FRONTEND_API_KEYS")
#: In the first of the messages about a server that is ready.
_READY = b"ready after"
#: Seconds for the end of the server after SIGTERM. It drains within 70 s for each kind of process.
END_S = 220.0


@contextlib.contextmanager
def serve_locally(model: str) -> Iterator[str]:
    """Start scripts/serve on a free port, wait until it is ready, yield its URL, and end it.

    The server's messages are shown until it is ready, and the later ones only if it ends or does not answer. Raise
    `RefusedError` if it cannot start.
    """
    port = _find_free_port()
    command = [str(ROOT / "scripts" / "serve"), "--port", f"127.0.0.1:{port}", "--metrics-bind", "", "--data", "none"]
    command += ["--model", model] * bool(model)
    environ = {name: value for name, value in os.environ.items() if name not in _KEY_VARIABLES}
    # Not a pipe, which would break if this process were killed before the server.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as messages:
        # A session of its own, so that Ctrl-C in a terminal ends the server only after the open requests.
        server = subprocess.Popen(
            command, stdout=output, stderr=messages, env=environ, start_new_session=True, preexec_fn=_end_with_parent
        )
        shown = 0
        try:
            url = f"http://127.0.0.1:{port}"
            while not _is_ready(url):
                shown = show_messages(messages.fileno(), shown, _READY)
                if server.poll() is not None:
                    raise RefusedError(f"scripts/serve ended with status {server.returncode}; its messages are above")
                time.sleep(0.1)
            yield url
        except AwayError:
            shown = show_messages(messages.fileno(), shown)
            raise
        finally:
            if server.poll() is not None:
                show_messages(messages.fileno(), shown)
            server.terminate()
            try:
                server.wait(END_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def show_messages(descriptor: int, start: int, until: bytes = b"") -> int:
    """Copy the messages in a file from `start` on to stderr, up to the line with `until`; return where they end."""
    data = os.pread(descriptor, os.fstat(descriptor).st_size - start, start)
    if until and until in data:
        data = data[: data.rfind(b"\n", 0, data.index(until)) + 1]
    sys.stderr.buffer.write(data)
    sys.stderr.flush()
    return start + len(data)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_ready(url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{url}/v2/health/ready", timeout=1):
            return True
    except OSError:
        return False
