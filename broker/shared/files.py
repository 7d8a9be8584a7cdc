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

    Raise OSError if it cannot be read and ValueError if it is something else or too large. Never wait: opening a FIFO
    would, without O_NONBLOCK, until somebody writes to it.
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


def explain(error: Exception) -> str:
    """Return why a file cannot be used, without its path, which the caller names."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


@contextlib.contextmanager
def make_scratch_folder(parent: Path) -> Iterator[Path]:
    """Yield an empty folder in `parent`, closed to other users, and remove it at the end.

    A process that is killed or interrupted leaves the folder to `remove_scratch_folders`.
    """
    path = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}-", dir=parent))
    try:
        yield path
    except Exception:
        shutil.rmtree(path, ignore_errors=True)
        raise
    shutil.rmtree(path)


def remove_scratch_folders(root: Path) -> None:
    """Remove the scratch folders at any depth below `root`; the caller holds a lock, so their processes are gone."""
    for path in list(root.rglob(f"{SCRATCH}*")):
        shutil.rmtree(path, ignore_errors=True)


def move_into_place(source: Path, target: Path) -> None:
    """Rename a file or folder from a scratch folder to `target`, and replace what is there.

    The content is on the disk before the name is, so that no crash leaves half of it under the name `target`.
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
