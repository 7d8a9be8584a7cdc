"""Set-up of the log of all three programs: lines of text, or one JSON object per line, on standard error.

No content of a record, from a request or a library, can forge a line: characters that are not printable are escaped,
and the lines of a traceback are indented, unlike the first line of a record.
"""

import functools
import logging
import sys
import time
from typing import Any

from pythonjsonlogger.json import JsonFormatter

INDENT = "    "


def set_up(role: str, level: str, kind: str) -> None:
    """Log messages of at least this level. `kind` is text or json."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(build_formatter(role, kind))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # What no format shows is not collected (https://docs.python.org/3/howto/logging.html#optimization).
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None


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
        time_text = f"{_format_second(int(record.created))},{int(record.msecs):03d}"
        return escape_text(f"{time_text} {record.levelname} {self._role}: {record.message}")

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
