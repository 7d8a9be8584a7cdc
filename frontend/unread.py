"""Answers that clients have not read yet: how much memory they may take, and the end of clients that do not read.

A large answer waits for room, still as float32, before it becomes text; then it is written piece by piece as its client
takes it. So a connection has one answer's text at most, and a process `--max-unread-bytes` of it.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator

from sanic import HTTPResponse, Request
from sanic.response import raw

from broker.errors import ErrorCode
from frontend import metrics
from frontend.config import Config
from frontend.connection import Connection
from frontend.errors import from_failure
from frontend.readers import Limits, Readers, Reason

log = logging.getLogger(__name__)

#: Answers above this size wait for room and are written piece by piece, in pieces of this size.
PIECE = 128 * 1024
#: How often it is looked what clients have taken, in seconds, and how many times within a time-out at least.
LOOK_S, LOOKS = 0.25, 4
#: How often the log tells of clients that were ended, in seconds.
TELL_S = 10.0


class Room:
    """An answer's share of the memory. Before its text is made, `size` is an estimate."""

    __slots__ = ("given", "size", "waiting")

    def __init__(self, waiting: int, size: int) -> None:
        #: Bytes that it holds while it waits.
        self.waiting = waiting
        self.size = size
        self.given: asyncio.Future[None] | None = None


class Unread:
    """The unread answers of one process."""

    def __init__(self, config: Config) -> None:
        self._max = config.max_unread_bytes
        self._look_s = min(LOOK_S, config.send_timeout_s / LOOKS)
        self._readers: Readers[Connection] = Readers(Limits(config.send_timeout_s, config.min_read_rate))
        #: Connections that may have something unread, and the answers that are being written to them.
        self._watched: dict[Connection, Room | None] = {}
        self._rooms: set[Room] = set()
        self._queue: list[Room] = []
        self._ended: Counter[Reason] = Counter()
        self._told_at = -math.inf

    async def look(self) -> None:
        """Look after all clients, until cancelled."""
        while True:
            await asyncio.sleep(self._look_s)
            try:
                self._look(time.monotonic())
            except Exception:
                # The next look may be well, and without any there is no limit.
                log.exception("cannot look after clients that read slowly")

    async def begin(self, request: Request) -> None:
        """Wait until the client has read the answer to what it has asked before on the same connection."""
        if request.stream:
            await _connection(request).until_writable()

    def watch(self, request: Request) -> None:
        """Something is written in answer to this request."""
        if request.stream:
            self._watched.setdefault(_connection(request))

    # --- room --------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def room(self, size: int, until: float, *, waiting: int = 0) -> AsyncIterator[Room]:
        """Room for an answer of about this size. `waiting`: bytes that it holds until then. ApiError 503 when too much
        waits already, 504 when there is no room in time."""
        room = Room(waiting, size)
        try:
            if size > PIECE:
                await self._enter(room, until)
            yield room
        finally:
            self._rooms.discard(room)
            self._give()

    async def _enter(self, room: Room, until: float) -> None:
        # Half as much again may wait, or one answer of any size.
        if self._queue and sum(one.waiting for one in self._queue) + room.waiting > self._max // 2:
            text = "too many answers wait for other clients to read theirs"
            raise from_failure(ErrorCode.OVERLOADED, text, 1000)
        room.given = asyncio.get_running_loop().create_future()
        self._queue.append(room)
        self._give()
        try:
            await asyncio.wait_for(room.given, until - time.monotonic())
        except TimeoutError:
            text = "the request's deadline passed while other clients did not read their answers"
            raise from_failure(ErrorCode.DEADLINE, text, 1000) from None
        finally:
            if room in self._queue:
                self._queue.remove(room)

    def _give(self) -> None:
        """Give room to whose turn it is: to any when nothing else has room."""
        held = self._held()
        while self._queue and (not self._rooms or held + self._queue[0].size <= self._max):
            room = self._queue.pop(0)
            assert room.given
            if not room.given.done():
                room.given.set_result(None)
                self._rooms.add(room)
                held += room.size

    def _held(self) -> int:
        return sum(room.size for room in self._rooms)

    # --- writing -----------------------------------------------------------------------------------------------------

    async def send(self, request: Request, room: Room, body: bytes, headers: dict[str, str], content_type: str) -> None:
        """Write an answer as its client takes it. Sanic would hold all of it a second time, with the head before it."""
        connection = _connection(request)
        # After a look whether it is still there, for Sanic fails on an answer of which it has written only the head.
        await connection.until_writable()
        length = {"content-length": str(len(body))}
        head = HTTPResponse(headers=headers | length, content_type=content_type)
        response = await request.respond(head)
        room.size = len(body)
        self._watched[connection] = room
        # How long it takes is for the readers' limits to say, not for the limit on making an answer.
        limit_s, connection.response_timeout = connection.response_timeout, math.inf
        try:
            for at in range(0, len(body), PIECE):
                # A copy: what is written and not taken yet would keep all of the body.
                await response.send(body[at : at + PIECE])
                # The event loop writes at its end, and knows only then if the client takes no more.
                await asyncio.sleep(0)
        finally:
            connection.response_timeout = limit_s
            if connection in self._watched:
                self._watched[connection] = None

    # --- clients -----------------------------------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        for connection, room in list(self._watched.items()):
            outgoing = connection.outgoing()
            if outgoing is None or not (room or outgoing.sent or outgoing.buffered):
                del self._watched[connection]
                self._readers.forget(connection)
                continue
            unread = room.size if room else outgoing.buffered + outgoing.sent
            self._readers.note(connection, now, taken=outgoing.taken, sent=outgoing.sent, unread=unread)
        for connection, reason in self._readers.too_slow(now).items():
            self._end(connection, reason)
        unread = self._readers.unread()
        wanted = min(self._max, sum(room.size for room in self._queue)) + max(unread, self._held())
        for connection in self._readers.slowest(now, wanted - self._max):
            self._end(connection, Reason.PRESSED)
        metrics.unread_bytes.set(self._readers.unread())
        self._tell(now)

    def _end(self, connection: Connection, reason: Reason) -> None:
        """End a connection. Its room is free when its request has noticed, in the event loop's next turn."""
        self._watched.pop(connection, None)
        self._readers.forget(connection)
        connection.reset()
        metrics.readers_ended.labels(reason.value).inc()
        self._ended[reason] += 1

    def _tell(self, now: float) -> None:
        if self._ended and now >= self._told_at + TELL_S:
            counts = ", ".join(f"{reason} {number}" for reason, number in sorted(self._ended.items()))
            log.warning("ended connections whose clients do not read their answers: %s", counts)
            self._ended.clear()
            self._told_at = now


def _connection(request: Request) -> Connection:
    connection = request.stream.protocol if request.stream else None
    assert isinstance(connection, Connection)
    return connection


async def answer(
    request: Request, room: Room, body: bytes, headers: dict[str, str], content_type: str
) -> HTTPResponse | None:
    """The answer, for Sanic to write when it is small; None when it is written."""
    if len(body) <= PIECE:
        return raw(body, headers=headers, content_type=content_type)
    await request.app.ctx.unread.send(request, room, body, headers, content_type)
    return None
