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
from collections.abc import AsyncIterator, Iterable

from sanic import HTTPResponse, Request
from sanic.response import raw

from broker.wire.errors import ErrorCode
from frontend.api.errors import from_failure
from frontend.config import Config
from frontend.rest import metrics
from frontend.rest.http_protocol import Connection
from frontend.rest.slow_readers import Limits, Readers, Reason

log = logging.getLogger(__name__)

#: Answers above this size wait for room and are written piece by piece, in pieces of this size.
PIECE = 128 * 1024
#: How often it is looked what clients have taken, in seconds, and how many times within a time-out at least.
LOOK_S, LOOKS = 0.25, 4
#: How often the log tells of clients that were ended, in seconds.
TELL_S = 10.0


class Reservation:
    """An answer's share of the memory. Before its text is made, `size` is an estimate."""

    __slots__ = ("given", "size", "unwritten", "waiting")

    def __init__(self, waiting: int, size: int) -> None:
        #: Bytes that it holds while it waits.
        self.waiting = waiting
        self.size = size
        #: Bytes of the text that have not been written to the connection yet.
        self.unwritten = size
        self.given: asyncio.Future[None] | None = None


class UnreadAnswers:
    """The unread answers of one process."""

    def __init__(self, config: Config) -> None:
        self._max = config.max_unread_bytes
        self._look_s = min(LOOK_S, config.send_timeout_s / LOOKS)
        self._readers: Readers[Connection] = Readers(Limits(config.send_timeout_s, config.min_read_rate))
        #: Connections that may have something unread, and the answers that are being written to them.
        self._watched: dict[Connection, Reservation | None] = {}
        self._rooms: set[Reservation] = set()
        self._queue: list[Reservation] = []
        self._ended: Counter[Reason] = Counter()
        #: What happened when a connection could not be looked at or ended, until the log tells it.
        self._failure: Exception | None = None
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
        """Look after the connection of this request from now on: an answer is about to be written to it."""
        if request.stream:
            self._watched.setdefault(_connection(request))

    # --- room --------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def reserve_room(self, size: int, until: float, *, waiting: int = 0) -> AsyncIterator[Reservation]:
        """Wait until there is room for an answer of about this size, and keep it until the context ends.

        `waiting`: bytes that the answer holds while it waits. Raise ApiError: 503 if too much waits already, 504 if
        there is no room before `until`.
        """
        room = Reservation(waiting, size)
        try:
            if size > PIECE:
                await self._enter(room, until)
            yield room
        finally:
            self._rooms.discard(room)
            self._give()

    async def _enter(self, room: Reservation, until: float) -> None:
        # Half as much again may wait, or one answer of any size.
        if self._queue and sum(one.waiting for one in self._queue) + room.waiting > self._max // 2:
            text = "too many answers wait for other clients to read theirs"
            raise from_failure(ErrorCode.OVERLOADED, text, 1000)
        room.given = asyncio.get_running_loop().create_future()
        self._queue.append(room)
        self._give()
        try:
            # Not wait_for: a client that leaves in the turn in which its answer gets room would not be noticed.
            async with asyncio.timeout(until - time.monotonic()):
                await room.given
        except TimeoutError:
            text = "the request's deadline passed while other clients did not read their answers"
            raise from_failure(ErrorCode.DEADLINE, text, 1000) from None
        finally:
            if room in self._queue:
                self._queue.remove(room)

    def _give(self) -> None:
        """Give room to the answers whose turn it is. When no other has room, the first gets it whatever its size."""
        while self._queue and (not self._rooms or self._size(self._rooms) + self._queue[0].size <= self._max):
            room = self._queue.pop(0)
            assert room.given
            if not room.given.done():
                room.given.set_result(None)
                self._rooms.add(room)

    def _size(self, rooms: Iterable[Reservation]) -> int:
        """Return the size of these rooms. One larger than the maximum comes alone, and counts as the maximum."""
        return sum(min(room.size, self._max) for room in rooms)

    # --- writing -----------------------------------------------------------------------------------------------------

    async def send(
        self, request: Request, room: Reservation, body: bytes, headers: dict[str, str], content_type: str
    ) -> None:
        """Write an answer as its client takes it. Sanic would hold all of it a second time, with the head before it."""
        connection = _connection(request)
        # Raises if the client has gone: Sanic fails on an answer of which it has written only the head.
        await connection.until_writable()
        length = {"content-length": str(len(body))}
        head = HTTPResponse(headers=headers | length, content_type=content_type)
        response = await request.respond(head)
        room.size = room.unwritten = len(body)
        self._watched[connection] = room
        # What the estimate was too high by may be enough for the next.
        self._give()
        # How long it takes is for the readers' limits to say, not for the limit on making an answer.
        limit_s, connection.response_timeout = connection.response_timeout, math.inf
        try:
            for at in range(0, len(body), PIECE):
                # A copy: what is written and not taken yet would keep all of the body.
                await response.send(body[at : at + PIECE])
                room.unwritten = max(0, len(body) - at - PIECE)
                # The event loop writes at its end, and knows only then if the client takes no more.
                await asyncio.sleep(0)
        finally:
            connection.response_timeout = limit_s
            if connection in self._watched:
                self._watched[connection] = None

    # --- clients -----------------------------------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        for connection in list(self._watched):
            try:
                self._note(connection, now)
            except Exception as error:
                # The kernel still ends its client if that takes nothing, and the others keep all their limits.
                self._failure = error
        for connection, reason in self._readers.too_slow(now).items():
            self._end(connection, reason)
        self._press(now)
        metrics.unread_bytes.set(self._readers.held(self._watched))
        self._tell(now)

    def _note(self, connection: Connection, now: float) -> None:
        """Note what a client has taken, or forget it when it has all or has gone."""
        outgoing, room = connection.outgoing(), self._watched[connection]
        if outgoing is None or not (room or outgoing.sent or outgoing.buffered):
            self._forget(connection)
            return
        rest = outgoing.sent + outgoing.buffered
        held = rest
        if room:
            held, rest = room.size, rest + room.unwritten
        self._readers.note(connection, now, taken=outgoing.taken, sent=outgoing.sent, held=held, rest=rest)

    def _press(self, now: float) -> None:
        """End slow clients whose bytes are needed.

        Answers that are being written have rooms: their clients are pressed when another answer waits for room. What
        is left of answers that are written to the end has none: their clients are pressed when it exceeds the maximum.
        """
        with_room = {connection for connection, room in self._watched.items() if room}
        without = self._watched.keys() - with_room
        chosen = self._readers.slowest(now, self._readers.held(without) - self._max, without)
        if self._queue:
            wanted = min(self._max, self._size(self._queue))
            chosen += self._readers.slowest(now, self._size(self._rooms) + wanted - self._max, with_room)
        for connection in chosen:
            self._end(connection, Reason.PRESSED)

    def _end(self, connection: Connection, reason: Reason) -> None:
        """End a connection. One that cannot be ended is tried again at the next look."""
        try:
            connection.reset()
        except Exception as error:
            self._failure = error
            return
        self._forget(connection)
        metrics.readers_ended.labels(reason.value).inc()
        self._ended[reason] += 1

    def _forget(self, connection: Connection) -> None:
        """Forget a connection that has ended, or whose client has everything.

        Its room counts as free at once, so that no other client is ended for the same bytes. Its request ends in the
        event loop's next turn, and gives the room to the next answer.
        """
        room = self._watched.pop(connection)
        self._readers.forget(connection)
        if room:
            self._rooms.discard(room)

    def _tell(self, now: float) -> None:
        if now < self._told_at + TELL_S or not (self._ended or self._failure):
            return
        if self._ended:
            counts = ", ".join(f"{reason} {number}" for reason, number in sorted(self._ended.items()))
            log.warning("ended connections whose clients do not read their answers: %s", counts)
            self._ended.clear()
        if self._failure:
            log.error("cannot look after a client that reads slowly", exc_info=self._failure)
            self._failure = None
        self._told_at = now


def _connection(request: Request) -> Connection:
    connection = request.stream.protocol if request.stream else None
    assert isinstance(connection, Connection)
    return connection


async def send_answer(
    request: Request, room: Reservation, body: bytes, headers: dict[str, str], content_type: str
) -> HTTPResponse | None:
    """Return a small answer for Sanic to write. Write a large one, and return None."""
    if len(body) <= PIECE:
        return raw(body, headers=headers, content_type=content_type)
    await request.app.ctx.unread.send(request, room, body, headers, content_type)
    return None
