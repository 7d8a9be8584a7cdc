"""Limit of open descriptors, of which each connection takes one."""

import contextlib
import resource


def raise_descriptor_limit() -> None:
    """Raise the soft limit to the hard one. Shells and systemd set 1,024, for programs that call select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS refuses an infinite limit.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
