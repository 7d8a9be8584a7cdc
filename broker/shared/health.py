"""The file that tells a container's engine, by the time of its last change, that a process is well."""

import logging
from pathlib import Path

log = logging.getLogger(__name__)

#: How often it is touched, in seconds.
INTERVAL_S = 1.0


class HealthFile:
    """A file that is touched once a second. One that cannot be touched ends nothing: it only looks unwell."""

    def __init__(self, path: str) -> None:
        """`path`: empty for none."""
        self._path = path
        #: When it is next touched.
        self.due = 0.0
        self._fails = False

    def touch(self, now: float) -> None:
        """Touch it if it is time to. A failure is logged once, until it works again."""
        if not self._path or now < self.due:
            return
        self.due = now + INTERVAL_S
        try:
            Path(self._path).touch()
        except OSError as error:
            if not self._fails:
                log.error("the health file %s cannot be touched: %s; trying again", self._path, error.strerror)
            self._fails = True
        else:
            if self._fails:
                log.info("the health file %s is touched again", self._path)
            self._fails = False
