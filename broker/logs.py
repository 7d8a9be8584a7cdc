"""Where the log goes and what a line looks like."""

import logging
import sys

from pythonjsonlogger.json import JsonFormatter

from broker.config import Config

ROLE = "broker"


def set_up(config: Config) -> None:
    """Log to standard error: lines of text, or one JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(config.log_format))
    logging.basicConfig(level=config.log_level.upper(), handlers=[handler])


def _formatter(kind: str) -> logging.Formatter:
    if kind == "text":
        return logging.Formatter(f"%(asctime)s %(levelname)s {ROLE}: %(message)s")
    # The time is RFC 3339 in UTC; what a call gives as `extra` comes behind.
    fields = {"levelname": "level"}
    return JsonFormatter(
        "%(levelname)s %(message)s", timestamp="time", rename_fields=fields, static_fields={"role": ROLE}
    )
