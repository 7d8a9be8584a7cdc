"""Connections and requests as Sanic has them, with limits on clients that are slow. Knows no path.

Which clients read their answers too slowly is for `unread_answers.py` to say, by what the kernel tells of each
connection: it alone sees what the client has taken, whether there is TLS above it or not.
"""

import asyncio
import fcntl
import math
import socket
import struct
import termios
import time
from typing import Any, NamedTuple

from sanic import Request
from sanic.exceptions import BadURL, RequestCancelled, RequestTimeout
from sanic.http import Stage
from sanic.server.protocols.http_protocol import HttpProtocol

#: How often a TLS connection that is to be closed is looked at, in seconds.
_LOOK_S = 0.05
#: The state of a connection whose two sides are open, of linux/tcp_states.h.
_ESTABLISHED = 1
#: How long what has come of a body may be read in one turn of the event loop, in seconds.
_TURN_S = 0.01
#: How much later than us the kernel ends a client that takes nothing, so that it is us who count it, in seconds.
_LATER_S = 5.0


def limit_unread(listening: socket.socket, limit_s: float) -> None:
    """Let the kernel end each connection of this socket whose client takes nothing of what waits for it for so long.

    This is for what we cannot see: a connection that is closed here and has its last bytes in the kernel.
    """
    limit_ms = math.ceil((limit_s + _LATER_S) * 1000)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit_ms)


class Outgoing(NamedTuple):
    """Where a connection's bytes are: with the client's kernel, which has taken them, on the way to it in ours, or
    still with us; under TLS the event loop may hold more than it tells."""

    taken: int
    sent: int
    buffered: int


class Connection(HttpProtocol):
    """Sanic's connection, known to its application, ended when its client is too slow in sending a request's head, and
    closed when the client has its answer."""

    __slots__ = ("_closing",)

    def connection_made(self, transport: Any) -> None:
        self._closing: asyncio.TimerHandle | None = None
        super().connection_made(transport)  # type: ignore[no-untyped-call]
        # The first request has to begin as soon as any has to go on; Sanic would wait as long as between two.
        self.keep_alive_timeout = self.request_timeout
        self.app.ctx.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._closing:
            self._closing.cancel()
        self.app.ctx.connections.discard(self)
        super().connection_lost(exc)  # type: ignore[no-untyped-call]

    def data_received(self, data: bytes) -> None:
        """Sanic counts the time of a request's head from its last byte, and so it does with what it throws away of the
        body of a request that it has answered; one byte a minute would be for ever."""
        before, http = self._time, self.http
        super().data_received(data)
        if http is None:
            return
        thrown_away = http.stage is Stage.IDLE and getattr(http, "request_body", None)
        if thrown_away or http.stage is Stage.REQUEST:
            self._time = before
        self.keep_alive_timeout = self.request_timeout if thrown_away else self.app.config.KEEP_ALIVE_TIMEOUT

    def close(self, timeout: float | None = None) -> None:
        """Close when all that was written has left. Sanic would give it 5 s, however well the client reads, and no time
        under TLS, whose buffer it does not see."""
        if self.transport is None or self.transport.is_closing() or self._closing:
            return
        if self.transport.get_extra_info("ssl_object"):
            self._close_when_taken(None)
            return
        if self._callback_check_timeouts:
            self._callback_check_timeouts.cancel()
        self.transport.close()

    def _close_when_taken(self, before: Outgoing | None) -> None:
        """Sanic's close, once nothing has waited and nothing has moved for a turn of the event loop: what is still
        above the kernel would have moved."""
        now = self.outgoing()
        if now is None or self.transport is None or self.transport.is_closing():
            return
        if now.sent or now != before:
            self._closing = self.loop.call_later(_LOOK_S, self._close_when_taken, now)
        else:
            super().close()

    def outgoing(self) -> Outgoing | None:
        """Return where the connection's bytes are, or None if it has ended."""
        if self.transport is None or self.conn_info is None or self.conn_info.lost:
            return None
        if self.transport.is_closing() and self.transport.get_extra_info("ssl_object"):
            # TLS is closed when all is taken, and its socket a moment before we hear of it.
            return None
        connected = self.transport.get_extra_info("socket")
        # struct tcp_info of linux/tcp.h: bytes that were answered.
        info = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
        (taken,) = struct.unpack_from("=Q", info, 120)
        (sent,) = struct.unpack("=i", fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, bytes(4)))
        return Outgoing(taken, sent, self.transport.get_write_buffer_size())

    def has_left(self) -> bool:
        """Return whether the client has closed its side, which goes unseen while this side does not read."""
        if self.transport is None or self.transport.is_closing() or self.transport.is_reading():
            return False
        info = self.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        return bool(info[0] != _ESTABLISHED)

    async def until_writable(self) -> None:
        """Wait until the client has taken nearly all that was written before. Raise RequestCancelled if it has gone."""
        await self._can_write.wait()
        if self.transport is None or self.transport.is_closing():
            raise RequestCancelled

    def reset(self) -> None:
        """End the connection, and let the kernel forget what its client has not taken."""
        if self.transport is not None:
            linger = struct.pack("ii", 1, 0)
            try:
                self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            finally:
                self.transport.abort()


class TimedRequest(Request):
    """Sanic's request, whose body must keep coming: Sanic itself counts reading it to the time of the answer."""

    def __init__(self, url_bytes: bytes, headers: Any, version: str, method: str, *more: Any, **named: Any) -> None:
        """Sanic makes one without a method to answer what is no request; its URL must not fail a second time."""
        try:
            super().__init__(url_bytes, headers, version, method, *more, **named)
        except BadURL:
            if method != "NONE":
                raise
            super().__init__(b"*", headers, version, method, *more, **named)

    async def receive_body(self) -> None:
        """Raise RequestTimeout, and give the rest of the body up, when its sender stops."""
        stream: Any = self.stream
        limit_s = self.app.config.REQUEST_TIMEOUT
        clock = asyncio.get_running_loop().time
        # Not a list of parts: a body of 8 MB may come in as many of them.
        body = bytearray()
        turn_ends = 0.0
        try:
            async with asyncio.timeout(limit_s) as waiting:
                async for part in stream:
                    body += part
                    # Small parts that are here already would keep others from their turn.
                    if time.monotonic() >= turn_ends:
                        waiting.reschedule(clock() + limit_s)
                        await asyncio.sleep(0)
                        turn_ends = time.monotonic() + _TURN_S
        except TimeoutError:
            # Else Sanic would answer, and wait for the rest.
            stream.keep_alive, stream.request_body = False, None
            raise RequestTimeout from None
        self.body = bytes(body)
        # Sanic stops reading when 64 KiB wait for it, and goes on only for the next request. Until then it would not
        # see that the client goes away.
        if transport := stream.protocol.transport:
            transport.resume_reading()
