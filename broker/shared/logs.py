"""Set-up of the log of all three programs: lines of text, or one JSON object per line, on standard error.

No content of a record, from a request or a library, can forge a line: characters that are not printable are escaped,
and the lines of a traceback are indented, unlike the first line of a record.
"""

import contextlib
import functools
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from pythonjsonlogger.json import JsonFormatter

INDENT = "    "


def set_up(role: str, level: str, kind: str) -> None:
    """Log messages of at least this level. `kind` is text or json."""
    handler = LineHandler(sys.stderr)
    handler.setFormatter(build_formatter(role, kind))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # What no format shows is not collected (https://docs.python.org/3/howto/logging.html#optimization).
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None


class LineHandler(logging.StreamHandler[TextIO]):
    """Handler that writes records at once, and formatted lines together: with the next record, or at `flush`."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: list[str] = []

    @property
    def shows_fields(self) -> bool:
        """Whether lines have the fields of their records."""
        return not isinstance(self.formatter, _TextFormatter)

    def add_line(self, level: str, message: str, fields: Mapping[str, object]) -> None:
        """Add a line, as `logging` would write it for a level, a message and an `extra` of these fields.

        A call of `logging` takes four times as long, because it makes a record and writes it at once.
        """
        if isinstance(self.formatter, _TextFormatter):
            line = self.formatter.format_line(time.time(), level, message)
        else:
            line = self.format(logging.makeLogRecord({"levelname": level, "msg": message, **fields}))
        self._lines.append(line + self.terminator)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the lines that wait, and a record."""
        self._write_lines()
        super().emit(record)

    def flush(self) -> None:
        """Write the lines that wait."""
        self._write_lines()
        super().flush()

    def _write_lines(self) -> None:
        lines, self._lines = self._lines, []
        # A stream that is closed or full must end no request.
        with contextlib.suppress(OSError, ValueError):
            self.stream.write("".join(lines))


def build_formatter(role: str, kind: str) -> logging.Formatter:
    """Return the formatter for a role and a kind of log, text or json."""
    if kind == "text":
        return _TextFormatter(role)
    # The time is RFC 3339 in UTC. The fields of a call's `extra` follow.
    return _ObjectFormatter(
        "%(levelname)s %(message)s",
        timestamp="time",
        rename_fields={"levelname": "level"},
        static_fields={"role": role},
        json_default=lambda value: escape_text(str(value)),
    )


def escape_text(text: str) -> str:
    """Return the text with control, format and surrogate characters and line separators replaced by escapes."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def indent_lines(text: str) -> str:
    """Return the lines of a traceback, each escaped and indented."""
    return "\n".join(INDENT + escape_text(line) for line in text.split("\n"))


@functools.lru_cache(1)
def _format_second(time_s: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_s))


class _TextFormatter(logging.Formatter):
    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  its name in logging
        return self.format_line(record.created, record.levelname, record.message)

    def format_line(self, time_s: float, level: str, message: str) -> str:
        """Return a line, without its end."""
        second = int(time_s)
        time_text = f"{_format_second(second)},{int((time_s - second) * 1000):03d}"
        return escape_text(f"{time_text} {level} {self._role}: {message}")

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return indent_lines(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        return indent_lines(super().formatStack(stack_info))


class _ObjectFormatter(JsonFormatter):
    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        return {
            name: indent_lines(value) if _is_traceback(name, value) else _escape_value(value)
            for name, value in log_data.items()
        }


def _is_traceback(name: str, value: object) -> bool:
    return name in ("exc_info", "stack_info") and isinstance(value, str)


def _escape_value(value: Any) -> Any:
    """Return the value with all strings in it escaped."""
    match value:
        case str():
            return escape_text(value)
        case dict():
            return {_escape_value(key): _escape_value(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_escape_value(item) for item in value]
    return value
