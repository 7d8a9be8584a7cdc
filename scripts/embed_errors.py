"""Why `scripts/embed` stops before its end, with the exit status of each reason."""

DONE, ROW_ERRORS, REFUSED, AWAY, INTERRUPTED = 0, 1, 2, 3, 130


class StopError(Exception):
    """End of a run, with a message for the user."""

    status = REFUSED


class RefusedError(StopError):
    """The run cannot be done as ordered, and running the same command again cannot help."""


class ErrorLimitError(StopError):
    """More rows have errors than `--max-errors`."""

    status = ROW_ERRORS


class AwayError(StopError):
    """The server or the disk cannot be used now; the same command goes on later."""

    status = AWAY


class SignalError(StopError):
    """A signal stopped the run."""

    status = INTERRUPTED
