"""Temporary folder of a supervisor, for sockets and metrics. The next start removes it if the supervisor was killed."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "vecmill-"
#: File in the folder that its process holds locked as long as it lives.
LOCK = "lock"
#: Maximum bytes of a Unix socket's path: `sun_path` of linux/un.h without its final zero.
MAX_SOCKET_BYTES = 107


def create_run_folder(longest_name: str) -> Path:
    """Return a new private folder that has room for a socket of this name, in TMPDIR if its path is short enough.

    Remove folders of processes that were killed. Raise `OSError` if no folder can be used.
    """
    parents = [tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp"]
    for parent in filter(None, parents):
        if len(os.fsencode(f"{parent}/{PREFIX}12345678/{longest_name}")) > MAX_SOCKET_BYTES:
            continue
        with contextlib.suppress(OSError):
            remove_left_folders(Path(parent))
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
            _lock_folder(folder)
            return folder
    raise OSError(
        f"no folder for sockets: {' and '.join(filter(None, parents))} cannot be written, or their paths are "
        "too long for a socket; set TMPDIR to a shorter path"
    )


def _lock_folder(folder: Path) -> None:
    """Lock the folder until this process ends. The lock has its name only when it is held."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    (folder / ".lock").rename(folder / LOCK)


def remove_left_folders(parent: Path) -> None:
    """Remove the folders of this user whose processes have ended."""
    for lock in parent.glob(f"{PREFIX}*/{LOCK}"):
        with contextlib.suppress(OSError):
            if lock.parent.lstat().st_uid != os.geteuid():
                continue
            descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
            finally:
                os.close(descriptor)
