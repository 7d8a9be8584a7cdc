"""Connections and requests as Sanic has them, with limits on clients that are slow. Knows no path."""

import asyncio
import socket
import struct
from typing import Any

from sanic import Request
from sanic.exceptions import BadURL, RequestTimeout
from sanic.http import Stage
from sanic.server.protocols.http_protocol import HttpProtocol

#: struct linger: on, for no time.
_FORGET = struct.pack("ii", 1, 0)


class Connection(HttpProtocol):
    """Sanic's connection, known to its application, and ended when its client is too slow: in sending a request's head,
    or in reading an answer."""

    __slots__ = ("_reading_check", "_unread")

    def connection_made(self, transport: Any) -> None:
        self._reading_check: asyncio.TimerHandle | None = None
        self._unread = 0
        super().connection_made(transport)  # type: ignore[no-untyped-call]
        self.app.ctx.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_check()
        self.app.ctx.connections.discard(self)
        super().connection_lost(exc)  # type: ignore[no-untyped-call]

    def data_received(self, data: bytes) -> None:
        """Sanic counts the time of a request's head from its last byte; one byte a minute would be for ever."""
        before, http = self._time, self.http
        super().data_received(data)
        if http is not None and http.stage is Stage.REQUEST:
            self._time = before

    def pause_writing(self) -> None:
        """The client does not read as fast as the answer is written."""
        super().pause_writing()  # type: ignore[no-untyped-call]
        self._check_later()

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()  # type: ignore[no-untyped-call]
        self._end_check()

    def _check_later(self) -> None:
        self._unread = self._buffered()
        self._reading_check = self.loop.call_later(self.app.ctx.config.send_timeout_s, self._check_reading)

    def _check_reading(self) -> None:
        """Abort when it has read nothing since the last look: a close would wait for it."""
        if self._buffered() >= self._unread and self.transport:
            # The kernel forgets the rest too, instead of offering it for minutes.
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _FORGET)
            self.abort()  # type: ignore[no-untyped-call]
        else:
            self._check_later()

    def _buffered(self) -> int:
        return self.transport.get_write_buffer_size() if self.transport else 0

    def _end_check(self) -> None:
        if self._reading_check:
            self._reading_check.cancel()
            self._reading_check = None


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
        parts = []
        try:
            async with asyncio.timeout(limit_s) as waiting:
                async for part in stream:
                    parts.append(part)
                    waiting.reschedule(clock() + limit_s)
        except TimeoutError:
            # Else Sanic would answer, and wait for the rest.
            stream.keep_alive, stream.request_body = False, None
            raise RequestTimeout from None
        self.body = b"".join(parts)
