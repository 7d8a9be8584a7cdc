"""What all three processes log, and how: lines of text, or a JSON object a line, on standard error.

Whatever a record holds, of a request or a library, cannot forge a line: characters that are not printable are escaped,
and the lines of a traceback are indented, which the beginning of no record is.
"""

import logging
import sys
from typing import Any

from pythonjsonlogger.json import JsonFormatter

INDENT = "    "


def set_up(role: str, level: str, kind: str) -> None:
    """Log what is at least of this level. `kind`: text or json."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(role, kind))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def formatter(role: str, kind: str) -> logging.Formatter:
    """Return the formatter of a process's log."""
    if kind == "text":
        return _TextFormatter(f"%(asctime)s %(levelname)s {role}: %(message)s")
    # The time is RFC 3339 in UTC; what a call gives as `extra` comes behind.
    return _ObjectFormatter(
        "%(levelname)s %(message)s",
        timestamp="time",
        rename_fields={"levelname": "level"},
        static_fields={"role": role},
        json_default=lambda value: escape(str(value)),
    )


def escape(text: str) -> str:
    """Return the text with its control, format and surrogate characters, and its separators of lines, as escapes."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def indent(text: str) -> str:
    """Return the lines of a traceback, escaped one by one and indented."""
    return "\n".join(INDENT + escape(line) for line in text.split("\n"))


class _TextFormatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  its name in logging
        return escape(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return indent(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        return indent(super().formatStack(stack_info))


class _ObjectFormatter(JsonFormatter):
    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        return {name: indent(value) if _is_trace(name, value) else _escaped(value) for name, value in log_data.items()}


def _is_trace(name: str, value: object) -> bool:
    return name in ("exc_info", "stack_info") and isinstance(value, str)


def _escaped(value: Any) -> Any:
    """Return the value with all texts in it escaped."""
    match value:
        case str():
            return escape(value)
        case dict():
            return {_escaped(key): _escaped(one) for key, one in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_escaped(one) for one in value]
    return value
