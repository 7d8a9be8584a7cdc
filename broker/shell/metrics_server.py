"""The broker's /metrics: an HTTP server in threads of its own, which gets snapshots from the poll loop.

Only the poll loop reads the scheduler. A thread that serves a scrape wakes the loop, waits for a snapshot, and renders
it. A scrape that gets no snapshot in time is answered with 503.
"""

import contextlib
import itertools
import logging
import math
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from broker.core.metrics import Family
from broker.shared.exposition import choose_encoder

log = logging.getLogger(__name__)

PREFIX = "vecmill_"
#: How long a scrape waits for the poll loop, in seconds: well below Prometheus' default scrape timeout of 10 s.
SNAPSHOT_WAIT_S = 2.0
#: How long a client may pause while it sends its request or reads the answer, in seconds.
CLIENT_TIMEOUT_S = 5.0
#: How long a connection may take in all, in seconds.
CONNECTION_S = 10.0
#: How long a snapshot is used again, in seconds: a busy loop collects one a second at most, however many scrape.
REUSE_S = 1.0
#: Connections served at the same time; further ones are closed.
MAX_CONNECTIONS = 16
#: How often the accepting thread checks for shutdown, in seconds.
ACCEPT_POLL_S = 0.2


class MetricsServer:
    """HTTP server for `GET /metrics`. All methods are called by the thread of the poll loop."""

    def __init__(self, bind: str, wake_loop: Callable[[], None]) -> None:
        """Listen on `bind`, HOST:PORT. Raise ValueError if it is malformed, OSError if it cannot be bound.

        `wake_loop` must make the poll loop call `answer_scrapes`; it is called in other threads.
        """
        self._snapshots = _Snapshots(wake_loop)
        self._server = _Server(parse_bind(bind), self._snapshots)
        arguments = {"poll_interval": ACCEPT_POLL_S}
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs=arguments, daemon=True)

    @property
    def url(self) -> str:
        """The address to scrape."""
        host, port = map(str, self._server.server_address[:2])
        return f"http://[{host}]:{port}/metrics" if ":" in host else f"http://{host}:{port}/metrics"

    def start(self) -> None:
        """Start to accept connections."""
        self._thread.start()

    def answer_scrapes(self, collect: Callable[[], list[Family]]) -> None:
        """Give all waiting scrapes one snapshot."""
        self._snapshots.answer(collect)

    def close(self) -> None:
        """Stop. Scrapes that wait for a snapshot are answered with 503."""
        self._snapshots.close()
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


class _Snapshots:
    """The last snapshot, and whether a scrape waits for the next one."""

    def __init__(self, wake_loop: Callable[[], None]) -> None:
        self._wake_loop = wake_loop
        #: Guards the fields below, and is notified when they change.
        self._changed = threading.Condition()
        self._taken_at = -math.inf
        self._families: list[Family] = []
        self._is_wanted = self._is_closed = False

    def take(self) -> list[Family] | None:
        """Return a snapshot, or None if the loop gives none in time. Called by a thread that serves a scrape."""
        asked_at = time.monotonic()
        with self._changed:
            if self._taken_at < asked_at - REUSE_S:
                self._is_wanted = True
                self._wake_loop()
                self._changed.wait_for(lambda: self._taken_at >= asked_at or self._is_closed, SNAPSHOT_WAIT_S)
            return self._families if self._taken_at >= asked_at - REUSE_S else None

    def answer(self, collect: Callable[[], list[Family]]) -> None:
        """Collect once for all scrapes that wait now, if any."""
        if not self._is_wanted:
            return
        with self._changed:
            self._families, self._taken_at, self._is_wanted = collect(), time.monotonic(), False
            self._changed.notify_all()

    def close(self) -> None:
        """Give up all scrapes that wait, and those that come later."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


class _Server(socketserver.ThreadingTCPServer):
    """TCP server with a bounded number of threads. `HTTPServer` would wait for a reverse DNS lookup when it binds."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int], snapshots: _Snapshots) -> None:
        self.snapshots = snapshots
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread, or close it if too many are open."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection, and end it after `CONNECTION_S`, however slowly its client sends or reads."""
        end = threading.Timer(CONNECTION_S, _end_connection, (request,))
        end.daemon = True
        end.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            end.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a connection that failed, such as one that its client closed early."""
        log.debug("a connection to /metrics failed", exc_info=True)


def _end_connection(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = CLIENT_TIMEOUT_S

    def do_GET(self) -> None:
        """Answer /metrics. HEAD calls this too, and `_answer` omits the body."""
        if urlsplit(self.path).path != "/metrics":
            return self._answer(HTTPStatus.NOT_FOUND, b"not found; metrics are at /metrics\n")
        families = self.server.snapshots.take()
        if families is None:
            text = f"the broker's loop did not respond within {SNAPSHOT_WAIT_S:g} s; retry\n"
            return self._answer(HTTPStatus.SERVICE_UNAVAILABLE, text.encode())
        body, content_type = render(families, self.headers.get("Accept", ""))
        return self._answer(HTTPStatus.OK, body, content_type)

    def _refuse_method(self) -> None:
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET and HEAD are allowed\n")

    do_HEAD = do_GET  # noqa: N815
    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse_method  # noqa: N815

    def _answer(self, status: HTTPStatus, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        return "vecmill"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  its name in http.server
        log.debug(format, *args)


class _Collector:
    """Adapter from a snapshot to prometheus_client."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """Yield all families in the types of prometheus_client."""
        return map(convert_family, self._families)


def render(families: Iterable[Family], accept: str) -> tuple[bytes, str]:
    """Return the exposition of a snapshot and its content type, in the format that the Accept header prefers."""
    encode, content_type = choose_encoder(accept)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(families))
    return encode(registry), content_type


def convert_family(family: Family) -> Metric:
    """Return a family in the type of prometheus_client."""
    name = PREFIX + family.name
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(name, family.text, labels=family.labels)
        bounds = [*map(str, family.bounds), "+Inf"]
        for sample in family.samples:
            cumulated = map(float, itertools.accumulate(sample.buckets))
            histogram.add_metric(sample.labels, list(zip(bounds, cumulated, strict=True)), sample.value)
        return histogram
    kind: Any = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric: Metric = kind(name, family.text, labels=family.labels)
    for sample in family.samples:
        metric.add_metric(sample.labels, sample.value)  # type: ignore[attr-defined]
    return metric


def parse_bind(bind: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT or [IPv6]:PORT. Raise ValueError if it is neither."""
    try:
        parts = urlsplit(f"//{bind}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or port is None or any(character in "@/?# " for character in bind):
        raise ValueError(f"{bind!r} is not HOST:PORT, such as 127.0.0.1:7412 or [::1]:7412")
    return host, port
