"""Sanic's connections and requests, with limits on slow clients.

`unread_answers.py` decides which clients read too slowly. It uses the kernel's counters of each connection, because
they count what a client has acknowledged, with and without TLS.

This module uses private attributes of Sanic. `pyproject.toml` pins Sanic's minor version, and
`tests/unit/frontend/test_http_protocol.py` fails if one of them changes.
"""

import asyncio
import fcntl
import math
import socket
import struct
import sys
import termios
import time
from typing import Any, NamedTuple

from sanic import Request
from sanic.exceptions import BadURL, RequestCancelled, RequestTimeout, ServiceUnavailable
from sanic.http import Stage
from sanic.server.protocols.http_protocol import HttpProtocol

from broker.shared.descriptors import DescriptorWatch
from frontend.api.errors import ApiError
from frontend.rest.incoming_bodies import Decoder
from frontend.rest.metrics import scarce_descriptors
from frontend.rest.strict_http import StrictHttp
from frontend.rest.tcp_info import read_tcp_info

#: Interval, in seconds, at which a closing TLS connection is checked for unread bytes.
_CHECK_INTERVAL_S = 0.05
#: Seconds of one turn of the event loop in which the parts of a body that have arrived are read.
_TURN_S = 0.01
#: Seconds by which the kernel's limit on unread bytes exceeds ours, so that ours comes first and is counted.
_KERNEL_MARGIN_S = 5.0
#: Seconds for which a connection outlives the configured idle time, so that a request sent at its end is answered.
IDLE_MARGIN_S = 1.0

_descriptors = DescriptorWatch()


def limit_unread(listening: socket.socket, limit_s: float) -> None:
    """Let the kernel end an accepted connection if its client acknowledges no bytes for this many seconds.

    This covers connections that are closed in this process while the kernel still has their last bytes.
    """
    limit_ms = math.ceil((limit_s + _KERNEL_MARGIN_S) * 1000)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit_ms)


class SendProgress(NamedTuple):
    """Where the bytes are that were written to a connection."""

    #: Acknowledged by the client's kernel.
    acked_bytes: int
    #: In this kernel's send queue.
    queued_bytes: int
    #: In this process. Under TLS the event loop may have more than it reports.
    buffered_bytes: int


class Connection(HttpProtocol):
    """Sanic connection, registered with its application.

    It ends if the client sends the head of a request too slowly, and closes when the client has the answer.
    """

    __slots__ = ("_closing", "_idle_s")
    HTTP_CLASS = StrictHttp

    def connection_made(self, transport: Any) -> None:
        """Register the connection with the application."""
        self._closing: asyncio.TimerHandle | None = None
        self._idle_s = self.app.config.KEEP_ALIVE_TIMEOUT + IDLE_MARGIN_S
        super().connection_made(transport)  # type: ignore[no-untyped-call]
        # The first request must begin within the request time-out. Sanic would wait for the keep-alive time-out.
        self.keep_alive_timeout = self.request_timeout
        self.app.ctx.connections.add(self)
        if _descriptors.is_scarce(transport.get_extra_info("socket").fileno(), time.monotonic()):
            scarce_descriptors.inc()

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection from the application's list."""
        if self._closing:
            self._closing.cancel()
        self.app.ctx.connections.discard(self)
        super().connection_lost(exc)  # type: ignore[no-untyped-call]

    def data_received(self, data: bytes) -> None:
        """Handle received bytes without restarting the time-out of a head, or of a body that is discarded.

        Sanic restarts both at each byte; otherwise a client that sends one byte a minute is never timed out.
        """
        before, http = self._time, self.http
        super().data_received(data)
        # Not its truth value, which is whether a request is being handled.
        stage = Stage.IDLE if http is None else http.stage
        discarding = stage is Stage.IDLE and getattr(http, "request_body", None)
        if discarding or stage is Stage.REQUEST:
            self._time = before
        self.keep_alive_timeout = self.request_timeout if discarding else self._idle_s

    def check_timeouts(self) -> None:
        """End the connection if a time-out has passed, and otherwise check again when one may have passed.

        Sanic checks at half of the shortest time-out only, and closes a connection whose next request has arrived.
        """
        http, loop = self.http, self.loop
        if not self._task or http is None:
            return
        limits_s = {Stage.IDLE: self.keep_alive_timeout, Stage.REQUEST: self.request_timeout}
        rest_s = self._time + limits_s.get(http.stage, self.response_timeout) - time.monotonic()
        if rest_s <= 0 and http.stage is Stage.IDLE and not http.request_body and self._has_unread_bytes():
            rest_s = _CHECK_INTERVAL_S
        if rest_s > 0:
            # The next state of the connection may have a shorter time-out.
            shortest_s = min(self.app.config.KEEP_ALIVE_TIMEOUT, self.request_timeout, self.response_timeout)
            self._callback_check_timeouts = loop.call_later(min(rest_s, shortest_s / 2), self.check_timeouts)
            return
        if http.stage is not Stage.IDLE:
            late = http.stage is Stage.REQUEST
            http.exception = RequestTimeout("Request Timeout") if late else ServiceUnavailable("Response Timeout")
        self._task.cancel()

    def _has_unread_bytes(self) -> bool:
        """Return whether the kernel has received bytes that the event loop has not read."""
        if self.transport is None or self.transport.is_closing():
            return False
        descriptor = self.transport.get_extra_info("socket").fileno()
        return bool(int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, b"\0\0\0\0"), sys.byteorder))

    def abort(self) -> None:
        """End the connection, and let its task notice.

        Sanic would drop the transport, and then fail to log a request without a complete head.
        """
        if self.transport is not None:
            self.transport.abort()

    def close_if_incomplete(self) -> None:
        """Close the connection if it has received only a part of a head."""
        if self.http is not None and self.http.stage is Stage.REQUEST:
            self.close()

    def close(self, timeout: float | None = None) -> None:
        """Close the connection after all written bytes are sent.

        Sanic would allow 5 s, however fast the client reads. Under TLS it would allow no time, because it does not see
        TLS's buffer.
        """
        if self.transport is None or self.transport.is_closing() or self._closing:
            return
        if self.transport.get_extra_info("ssl_object"):
            self._close_when_sent(None)
            return
        if self._callback_check_timeouts:
            self._callback_check_timeouts.cancel()
        self.transport.close()

    def _close_when_sent(self, before: SendProgress | None) -> None:
        """Close a TLS connection when its queue is empty and has not changed since the last check.

        Bytes that the event loop still has would have moved to the queue by then.
        """
        now = self.measure_progress()
        if now is None or self.transport is None or self.transport.is_closing():
            return
        if now.queued_bytes or now != before:
            self._closing = self.loop.call_later(_CHECK_INTERVAL_S, self._close_when_sent, now)
        else:
            super().close()

    def measure_progress(self) -> SendProgress | None:
        """Return where the written bytes are, or None if the connection has ended."""
        if self.transport is None or self.conn_info is None or self.conn_info.lost:
            return None
        if self.transport.is_closing() and self.transport.get_extra_info("ssl_object"):
            # TLS closes after all bytes are sent, and closes the socket before it calls `connection_lost`.
            return None
        info = read_tcp_info(self.transport.get_extra_info("socket"))
        return SendProgress(info.acked_bytes, info.queued_bytes, self.transport.get_write_buffer_size())

    def has_left(self) -> bool:
        """Return whether the client closed its side. Without this check, a connection that is not read misses it."""
        if self.transport is None or self.transport.is_closing() or self.transport.is_reading():
            return False
        return not read_tcp_info(self.transport.get_extra_info("socket")).is_established

    async def wait_until_writable(self) -> None:
        """Wait until nearly all written bytes are sent. Raise `RequestCancelled` if the connection has ended."""
        if not self._can_write.is_set():
            await self._can_write.wait()
        if self.transport is None or self.transport.is_closing():
            raise RequestCancelled

    def reset_connection(self) -> None:
        """End the connection, and let the kernel drop its send queue."""
        if self.transport is not None:
            linger = struct.pack("ii", 1, 0)
            try:
                self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            finally:
                self.transport.abort()


class TimedRequest(Request):
    """Sanic's request with a limit on each pause in the body. Sanic counts these pauses as time to answer."""

    #: Path with at most one slash at its end. Sanic's router strips slashes one by one, each in a nested call, so that
    #: a thousand of them exceed the recursion limit.
    path: str = ""

    def __init__(self, url_bytes: bytes, headers: Any, version: str, method: str, *more: Any, **named: Any) -> None:
        """Accept a bad URL without a method: Sanic builds such a request to answer unparsable input."""
        try:
            super().__init__(url_bytes, headers, version, method, *more, **named)
        except BadURL:
            if method != "NONE":
                raise
            super().__init__(b"*", headers, version, method, *more, **named)
        path = str(super().path)
        self.path = path.rstrip("/") + "/" if path.endswith("//") else path

    async def receive_body(self) -> None:
        """Read and decode the body.

        Raise `ApiError` 408, and discard the rest, if the client pauses for too long or the body takes too long.
        """
        stream: Any = self.stream
        if "content-encoding" not in self.headers and (received := stream.take_received_body()) is not None:
            self.body = received
        else:
            await self._receive_parts(stream)
        # Sanic stops reading when 64 KiB are buffered, and resumes for the next request only. Without reading, it does
        # not notice that the client closes the connection.
        if transport := stream.protocol.transport:
            transport.resume_reading()

    async def _receive_parts(self, stream: Any) -> None:
        context = self.app.ctx
        limit_s: float = self.app.config.REQUEST_TIMEOUT
        decoder = Decoder(self.headers.getall("content-encoding", []), stream.request_max_size)
        clock = asyncio.get_running_loop().time
        ends = clock() + context.config.body_timeout_s
        turn_ends = 0.0
        waiting = asyncio.timeout(min(limit_s, context.config.body_timeout_s))
        body = context.incoming.open(waiting)
        try:
            async with waiting:
                async for part in stream:
                    for block in decoder.decode(part):
                        context.incoming.append(body, block)
                    # Many small parts that have arrived must not block the event loop.
                    if time.monotonic() >= turn_ends:
                        waiting.reschedule(min(clock() + limit_s, ends))
                        await asyncio.sleep(0)
                        turn_ends = time.monotonic() + _TURN_S
                decoder.finish()
        except TimeoutError:
            # Otherwise Sanic answers and then waits for the rest.
            stream.keep_alive, stream.request_body = False, None
            if body.refusal:
                raise body.refusal from None
            if clock() >= ends:
                text = f"the request body did not arrive within {context.config.body_timeout_s:g} s; send it faster"
                raise ApiError(408, text, code="request_timeout") from None
            raise RequestTimeout from None
        finally:
            context.incoming.close(body)
        self.body = bytes(body.content)
