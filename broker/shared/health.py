"""Health file: its modification time shows that the process works, to a container's engine or scripts/serve."""

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
        #: Content that was written last.
        self._content = ""

    def touch(self, now: float, content: str = "") -> None:
        """Touch the file if that is due, and write the content if that has changed.

        Errors are logged once, until the file can be touched again.
        """
        if not self._path or now < self.due:
            return
        self.due = now + INTERVAL_S
        try:
            if content != self._content:
                Path(self._path).write_text(content)
                self._content = content
            else:
                Path(self._path).touch()
        except OSError as error:
            if not self._failing:
                log.error("cannot touch the health file %s, retrying: %s", self._path, error.strerror)
            self._failing = True
        else:
            if self._failing:
                log.info("can touch the health file %s again", self._path)
            self._failing = False
