"""Access log: a line for each request, with fields for `--log-format json`, the most important of them also as text.

The lines of one turn of the event loop are written together, at the end of the turn.
"""

import asyncio
import functools
import logging
import re
from typing import Any

from sanic import Request

from broker.shared.logs import LineHandler
from broker.wire.protocol import Origin

_log = logging.getLogger("access")

#: Paths that probes and Prometheus request every few seconds. The access log has them at level debug.
_PROBES = re.compile(r"/v2/health/(live|ready)|/v2/models/.*/ready|/health|/metrics")
#: Fields that the text has too.
_SHOWN = ("model", "inputs", "client", "request_id")


@functools.lru_cache(1000)
def _is_probe(path: str) -> bool:
    return _PROBES.fullmatch(path) is not None


class AccessLog:
    """Access log of one process. All methods run on the event loop's thread."""

    def __init__(self) -> None:
        handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, LineHandler)]
        self._handler = handlers[0] if handlers else None
        self._logs_requests, self._logs_probes = _log.isEnabledFor(logging.INFO), _log.isEnabledFor(logging.DEBUG)
        self._flush_scheduled = False

    def log_request(self, request: Request, status: int, seconds: float) -> None:
        """Log an answered request with the fields that its handlers have noted in `request.ctx.log`."""
        if not self._handler or not self._logs_requests:
            return
        method, path, context = request.method, request.path, request.ctx
        is_probe = _is_probe(path)
        if is_probe and not self._logs_probes:
            return
        fields: dict[str, Any] = {
            **context.log,
            "client": context.key.name if context.key else "",
            "request_id": context.request_id,
        }
        shown = " ".join([f"{name}={value}" for name in _SHOWN if (value := fields.get(name))])
        text = f"{method} {path} {status} {seconds * 1000:.1f} ms {shown}"
        if self._handler.shows_fields:
            fields |= {"method": method, "path": path, "status": status, "ms": round(seconds * 1000, 3)}
            fields["trace_id"] = Origin(traceparent=context.traceparent).trace_id if context.traceparent else ""
        self._handler.add_line("DEBUG" if is_probe else "INFO", text, fields)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Write the lines of this turn."""
        self._flush_scheduled = False
        if self._handler:
            self._handler.flush()
