"""Health file: its modification time shows a container's engine that the process works."""

import logging
from pathlib import Path

log = logging.getLogger(__name__)

#: How often the file is touched, in seconds.
INTERVAL_S = 1.0


class HealthFile:
    """A file that is touched once per second. An error only makes the process look unhealthy; it does not end it."""

    def __init__(self, path: str) -> None:
        """Use this path; empty: no file."""
        self._path = path
        #: Time of the next touch.
        self.due = 0.0
        self._failing = False

    def touch(self, now: float) -> None:
        """Touch the file if that is due. Errors are logged once, until the file can be touched again."""
        if not self._path or now < self.due:
            return
        self.due = now + INTERVAL_S
        try:
            Path(self._path).touch()
        except OSError as error:
            if not self._failing:
                log.error("cannot touch the health file %s, retrying: %s", self._path, error.strerror)
            self._failing = True
        else:
            if self._failing:
                log.info("can touch the health file %s again", self._path)
            self._failing = False
