"""Limit of open descriptors, of which each connection takes one."""

import contextlib
import logging
import math
import resource

log = logging.getLogger(__name__)

#: Free descriptors below which the table counts as full: enough to read files and to reconnect to the broker.
MARGIN = 16
#: Minimum interval between two warnings, in seconds.
LOG_INTERVAL_S = 10.0
ADVICE = "raise ulimit -n or systemd's LimitNOFILE, or start more frontends"


def raise_descriptor_limit() -> None:
    """Raise the soft limit to the hard one. Shells and systemd set 1,024, for programs that call select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS refuses an infinite limit.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class DescriptorWatch:
    """Finds that the table of descriptors is nearly full; then the kernel or the event loop resets new connections."""

    def __init__(self) -> None:
        self._logged_at = -math.inf

    def is_scarce(self, descriptor: int, now: float) -> bool:
        """Return whether fewer than `MARGIN` numbers are free above a new connection's, which is the lowest free one.

        Log a warning, at most once per LOG_INTERVAL_S.
        """
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if descriptor < soft - MARGIN:
            return False
        if now >= self._logged_at + LOG_INTERVAL_S:
            self._logged_at = now
            log.warning("nearly all of %d descriptors are in use, and more connections are reset; %s", soft, ADVICE)
        return True
