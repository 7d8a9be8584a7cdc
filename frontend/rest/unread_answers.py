"""Answers that clients have not read yet: their memory, and the end of clients that read too slowly.

A large answer waits for memory while its vectors are float32, and is rendered only then. It is written in pieces as its
client reads, so that a connection has the text of one answer at most, and a process `--max-unread-bytes` of text.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field

from sanic import HTTPResponse, Request
from sanic.response import raw

from broker.wire.errors import ErrorCode
from frontend.api.errors import from_failure
from frontend.config import Config
from frontend.rest import metrics
from frontend.rest.http_protocol import Connection
from frontend.rest.slow_readers import Readers, ReadLimits, Reason

log = logging.getLogger(__name__)

#: Answers above this size, in bytes, wait for memory and are written in pieces of this size.
PIECE_BYTES = 128 * 1024
#: Longest interval in seconds between two checks of all clients, and the minimum number of checks within a time-out.
CHECK_INTERVAL_S, MIN_CHECKS = 0.25, 4
#: Minimum interval between two log messages about ended clients, in seconds.
LOG_INTERVAL_S = 10.0


@dataclass(slots=True, eq=False)
class Reservation:
    """Memory of an answer."""

    #: Bytes that the answer takes while it waits.
    waiting_bytes: int
    #: Bytes of the text. An estimate until the text is rendered.
    size_bytes: int
    #: Bytes of the text that are not written to the connection yet.
    unwritten_bytes: int
    #: Done when the memory is granted.
    granted: asyncio.Future[None] | None = field(default=None, repr=False)


class UnreadAnswers:
    """The unread answers of one process."""

    def __init__(self, config: Config) -> None:
        self._max_bytes = config.max_unread_bytes
        self._check_interval_s = min(CHECK_INTERVAL_S, config.send_timeout_s / MIN_CHECKS)
        self._readers: Readers[Connection] = Readers(ReadLimits(config.send_timeout_s, config.min_read_rate))
        #: Connections that may have unread bytes, each with the answer that is being written to it.
        self._watched: dict[Connection, Reservation | None] = {}
        self._granted: set[Reservation] = set()
        self._queue: list[Reservation] = []
        # What the next log message reports: ended clients, and the last error in checking or ending one.
        self._ended: Counter[Reason] = Counter()
        self._failure: Exception | None = None
        self._logged_at = -math.inf

    async def watch_clients(self) -> None:
        """Check all clients at an interval, until cancelled."""
        while True:
            await asyncio.sleep(self._check_interval_s)
            try:
                self._check_clients(time.monotonic())
            except Exception:
                # Without further checks there would be no limit.
                log.exception("could not check clients that read slowly")

    async def wait_for_previous(self, request: Request) -> None:
        """Wait until the client has read the previous answer of the request's connection."""
        if request.stream is not None:
            await _get_connection(request).wait_until_writable()

    def watch_connection(self, request: Request) -> None:
        """Check the request's connection from now on, because an answer is about to be written."""
        if request.stream is not None:
            self._watched.setdefault(_get_connection(request))

    # --- memory ------------------------------------------------------------------------------------------------------

    def reserve_room(self, size: int, until: float, *, waiting: int = 0) -> "Room":
        """Return a context that waits for the memory of an answer, and releases it at its end.

        Args:
            size: Estimated size of the answer, in bytes. Small answers do not wait.
            until: Monotonic time in seconds until which to wait.
            waiting: Bytes that the answer takes while it waits.

        Raises:
            ApiError: 503 if too many answers wait, or 504 if there is no memory before `until`.
        """
        return Room(self, Reservation(waiting, size, size), until)

    def release_room(self, room: Reservation) -> None:
        """Give the memory of an answer to those that wait."""
        self._granted.discard(room)
        self._grant_rooms()

    async def wait_for_room(self, room: Reservation, until: float) -> None:
        """Wait for the memory of an answer. Raise `ApiError` like `reserve_room`."""
        # Waiting answers may take half of the maximum in addition; a single one may have any size.
        waiting = sum(queued.waiting_bytes for queued in self._queue)
        if self._queue and waiting + room.waiting_bytes > self._max_bytes // 2:
            text = "too many answers wait until other clients have read theirs"
            raise from_failure(ErrorCode.OVERLOADED, text, 1000)
        room.granted = asyncio.get_running_loop().create_future()
        self._queue.append(room)
        self._grant_rooms()
        try:
            # Not `wait_for`, which ignores a cancellation in the turn in which the future is done.
            async with asyncio.timeout(until - time.monotonic()):
                await room.granted
        except TimeoutError:
            text = "the request's deadline passed while its answer waited until other clients had read theirs"
            raise from_failure(ErrorCode.DEADLINE, text, 1000) from None
        finally:
            if room in self._queue:
                self._queue.remove(room)

    def _grant_rooms(self) -> None:
        """Grant memory to waiting answers in order. The first is granted any size if no other answer has memory."""
        while self._queue:
            room = self._queue[0]
            if self._granted and self._sum_sizes(self._granted) + room.size_bytes > self._max_bytes:
                return
            self._queue.pop(0)
            assert room.granted
            if not room.granted.done():
                room.granted.set_result(None)
                self._granted.add(room)

    def _sum_sizes(self, rooms: Iterable[Reservation]) -> int:
        """Return the size of answers, in bytes. One above the maximum is granted alone, and counts as the maximum."""
        return sum(min(room.size_bytes, self._max_bytes) for room in rooms)

    # --- writing -----------------------------------------------------------------------------------------------------

    async def write_answer(
        self, request: Request, room: Reservation, body: bytes, headers: dict[str, str], content_type: str
    ) -> None:
        """Write an answer as its client reads. Sanic's own response would copy the body to put the head before it."""
        connection = _get_connection(request)
        # Raises if the client has left, because Sanic fails on an answer with only a head.
        await connection.wait_until_writable()
        length = {"content-length": str(len(body))}
        head = HTTPResponse(headers=headers | length, content_type=content_type)
        response = await request.respond(head)
        room.size_bytes = room.unwritten_bytes = len(body)
        self._watched[connection] = room
        # The answer may be smaller than its estimate.
        self._grant_rooms()
        # The limits on readers apply to writing, and Sanic's response time-out only to making the answer.
        limit_s, connection.response_timeout = connection.response_timeout, math.inf
        try:
            for begin in range(0, len(body), PIECE_BYTES):
                # A copy, because a slice of a memoryview would keep the whole body until it is sent.
                await response.send(body[begin : begin + PIECE_BYTES])
                room.unwritten_bytes = max(0, len(body) - begin - PIECE_BYTES)
                # The event loop writes at the end of its turn, and pauses this connection only then.
                await asyncio.sleep(0)
        finally:
            connection.response_timeout = limit_s
            if connection in self._watched:
                self._watched[connection] = None

    async def send_blocks(
        self,
        request: Request,
        blocks: AsyncGenerator[bytes, None],
        size: int,
        status: int,
        headers: dict[str, str],
        content_type: str,
    ) -> HTTPResponse | None:
        """Send an answer of `size` bytes as its client reads, of which one block at a time is in memory.

        An exception of the first block becomes an error's answer. One of a later block ends the connection, so that the
        client sees that the answer is incomplete.
        """
        first = await anext(blocks, b"")
        metrics.file_bytes.labels("download").inc(len(first))
        if len(first) == size:
            return raw(first, status=status, headers=headers, content_type=content_type)
        connection = _get_connection(request)
        await connection.wait_until_writable()
        head = HTTPResponse(headers=headers | {"content-length": str(size)}, status=status, content_type=content_type)
        response = await request.respond(head)
        limit_s, connection.response_timeout = connection.response_timeout, math.inf
        try:
            await response.send(first)
            async with contextlib.aclosing(blocks):
                async for block in blocks:
                    # The connection is forgotten when the client has read all blocks before this one.
                    self._watched.setdefault(connection)
                    metrics.file_bytes.labels("download").inc(len(block))
                    await response.send(block)
                    await asyncio.sleep(0)
        except Exception as error:
            log.error("ended a download: %s", error)
            connection.abort()
        finally:
            connection.response_timeout = limit_s
        return None

    # --- clients -----------------------------------------------------------------------------------------------------

    def _check_clients(self, now: float) -> None:
        for connection in list(self._watched):
            try:
                self._measure_client(connection, now)
            except Exception as error:
                # The kernel still limits this client's stalls, and the other clients keep all limits.
                self._failure = error
        for connection, reason in self._readers.find_slow(now).items():
            self._end_connection(connection, reason)
        self._free_memory(now)
        metrics.unread_bytes.set(self._readers.sum_held(self._watched))
        self._log_ended(now)

    def _measure_client(self, connection: Connection, now: float) -> None:
        """Record what a client has read, or forget the connection if it has ended or has no unread bytes."""
        progress, room = connection.measure_progress(), self._watched[connection]
        if progress is None or not (room or progress.queued_bytes or progress.buffered_bytes):
            self._forget_connection(connection)
            return
        rest = progress.queued_bytes + progress.buffered_bytes
        held = rest
        if room:
            held, rest = room.size_bytes, rest + room.unwritten_bytes
        taken, sent = progress.acked_bytes, progress.queued_bytes
        self._readers.record_state(connection, now, taken=taken, sent=sent, held=held, rest=rest)

    def _free_memory(self, now: float) -> None:
        """End slow clients if their memory is needed.

        An answer that is being written has a reservation; its client can be ended when another answer waits for memory.
        An answer that is written but not read has none; its client can be ended when such answers exceed the maximum.
        """
        with_room = {connection for connection, room in self._watched.items() if room}
        without = self._watched.keys() - with_room
        chosen = self._readers.choose_slowest(now, self._readers.sum_held(without) - self._max_bytes, without)
        if self._queue:
            wanted = min(self._max_bytes, self._sum_sizes(self._queue))
            needed = self._sum_sizes(self._granted) + wanted - self._max_bytes
            chosen += self._readers.choose_slowest(now, needed, with_room)
        for connection in chosen:
            self._end_connection(connection, Reason.PRESSED)

    def _end_connection(self, connection: Connection, reason: Reason) -> None:
        """End a connection. If that fails, the next check tries again."""
        try:
            connection.reset_connection()
        except Exception as error:
            self._failure = error
            return
        self._forget_connection(connection)
        metrics.readers_ended.labels(reason.value).inc()
        self._ended[reason] += 1

    def _forget_connection(self, connection: Connection) -> None:
        """Forget a connection that has ended or has no unread bytes.

        Its memory counts as free at once, so that no other client is ended for the same bytes. Its handler ends in the
        next turn of the event loop, and grants the memory to the next answer.
        """
        room = self._watched.pop(connection)
        self._readers.forget(connection)
        if room:
            self._granted.discard(room)

    def _log_ended(self, now: float) -> None:
        if now < self._logged_at + LOG_INTERVAL_S or not (self._ended or self._failure):
            return
        if self._ended:
            counts = ", ".join(f"{reason} {number}" for reason, number in sorted(self._ended.items()))
            log.warning("ended connections of slow readers: %s", counts)
            self._ended.clear()
        if self._failure:
            log.error("could not check or end a client that reads slowly", exc_info=self._failure)
            self._failure = None
        self._logged_at = now


class Room:
    """Context of an answer that has memory; see `UnreadAnswers.reserve_room`."""

    def __init__(self, answers: UnreadAnswers, room: Reservation, until: float) -> None:
        self._answers, self._room, self._until = answers, room, until

    async def __aenter__(self) -> Reservation:
        if self._room.size_bytes > PIECE_BYTES:
            try:
                await self._answers.wait_for_room(self._room, self._until)
            except BaseException:
                self._answers.release_room(self._room)
                raise
        return self._room

    async def __aexit__(self, *_: object) -> None:
        self._answers.release_room(self._room)


def _get_connection(request: Request) -> Connection:
    connection = request.stream.protocol if request.stream is not None else None
    assert isinstance(connection, Connection)
    return connection


async def send_answer(
    request: Request, room: Reservation, body: bytes, headers: dict[str, str], content_type: str
) -> HTTPResponse | None:
    """Return a small answer, which Sanic writes. Write a large one, and return None."""
    if len(body) <= PIECE_BYTES:
        return raw(body, headers=headers, content_type=content_type)
    await request.app.ctx.unread.write_answer(request, room, body, headers, content_type)
    return None
