"""Read small files that people write, and put files and folders into place complete or not at all."""

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

#: Start of the names of scratch folders.
SCRATCH = ".making"


def read_small_file(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file.

    Raise OSError if the file cannot be read, and ValueError if it is not a regular file or too large. Never block: an
    open without O_NONBLOCK would wait for a writer if the path is a FIFO.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is not a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(max_bytes + 1)
    finally:
        os.close(descriptor)
    if len(content) > max_bytes:
        raise ValueError(f"it is larger than {max_bytes} bytes")
    return content


def explain(error: BaseException) -> str:
    """Return why a file cannot be used, without the path, which the caller's message contains."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


@contextlib.contextmanager
def make_scratch_folder(parent: Path) -> Iterator[Path]:
    """Yield an empty, private folder in `parent`, and remove it at the end.

    If the process is killed, the folder stays until `remove_scratch_folders` is called.
    """
    path = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def remove_scratch_folders(root: Path) -> None:
    """Remove all scratch folders below `root`. The caller must hold the lock under which they are made."""
    for path in list(root.rglob(f"{SCRATCH}*")):
        shutil.rmtree(path, ignore_errors=True)


def move_into_place(source: Path, target: Path) -> None:
    """Rename a file or folder from a scratch folder to `target`, replacing what is there.

    The content is synced before the rename, so that a crash never leaves an incomplete `target`.
    """
    for path in (*source.rglob("*"), source):
        sync_path(path)
    if target.is_dir():
        # A rename replaces a file or an empty folder only.
        with make_scratch_folder(target.parent) as replaced:
            target.replace(replaced / target.name)
    source.replace(target)
    sync_path(target.parent)


def sync_path(path: Path) -> None:
    """Write a file's content or a folder's names to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
