"""Settings of the C library's allocator."""

import contextlib
import ctypes

#: `M_TRIM_THRESHOLD` and `M_MMAP_THRESHOLD` of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: Minimum size in bytes of the blocks that return to the system when they are freed.
_LARGE_BYTES = 1024 * 1024


def return_freed_memory() -> None:
    """Return large blocks to the system when they are freed.

    By default glibc raises the threshold to the size of the largest block freed so far, up to 32 MiB (mallopt(3)).
    Then answers of many megabytes are allocated in the heap, and the heap's holes stay with the process. Setting the
    threshold disables this adjustment.
    """
    # Other C libraries have no mallopt.
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)
