"""Reading small files that people write, whatever is there in their place."""

import os
import stat
from pathlib import Path


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
