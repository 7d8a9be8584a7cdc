"""How the C library keeps memory that was freed."""

import contextlib
import ctypes

#: mallopt's numbers, of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: Blocks of this size and above go back to the system as soon as they are freed.
_LARGE = 1024 * 1024


def return_freed_memory() -> None:
    """Give large blocks back to the system when they are freed.

    By default glibc raises the size from which it does so to that of the largest block freed so far, up to 32 MiB. Then
    answers of many megabytes lie in its heap, and holes in the heap stay with the process. Once the size is set, glibc
    no longer raises it.
    """
    # Other C libraries have no mallopt.
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, _LARGE)
