"""Clients that take large answers, looked at again and again: which of them are ended, and which are not."""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import cast

import pytest
from sanic import Request
from sanic.exceptions import RequestCancelled

from frontend.rest.http_protocol import Connection, Outgoing
from frontend.rest.unread_answers import LOOK_S, PIECE, TELL_S, UnreadAnswers
from tests.unit.frontend.test_unread_answers import LONG_S, MB, Answer, played, turns

#: How much the kernel takes of an answer whose client does not read.
IN_KERNEL = 2 * PIECE


class Client(Connection):
    """A client that takes so many bytes a second of what is written to it, on a connection without a network."""

    __slots__ = ("ended", "moved", "rate", "taken", "unwell", "written")

    def __init__(self, rate: float = 0.0, *, written: int = 0) -> None:
        self.rate, self.written, self.taken = rate, written, 0.0
        self.ended = self.unwell = False
        self.response_timeout = 0.0
        self.moved = asyncio.Event()

    def outgoing(self) -> Outgoing | None:
        if self.unwell:
            raise OSError("no such socket")
        waiting = self.written - int(self.taken)
        return None if self.ended else Outgoing(int(self.taken), min(waiting, IN_KERNEL), max(0, waiting - IN_KERNEL))

    def reset(self) -> None:
        if self.unwell:
            raise OSError("no such socket")
        self.ended = True
        self.moved.set()

    async def until_writable(self) -> None:
        while self.written - self.taken >= IN_KERNEL and not self.ended:
            self.moved.clear()
            await self.moved.wait()
        if self.ended:
            raise RequestCancelled

    def take(self, seconds: float) -> None:
        if not self.ended:
            self.taken = min(self.written, self.taken + self.rate * seconds)
            self.moved.set()

    async def send(self, part: bytes) -> None:
        await self.until_writable()
        self.written += len(part)

    async def respond(self, _: object) -> "Client":
        return self

    def asks(self) -> Request:
        """A request that has come on the connection."""
        return cast(Request, SimpleNamespace(stream=SimpleNamespace(protocol=self), respond=self.respond))


class Clock:
    """The time of the looks, and the clients that take something between them."""

    def __init__(self, unread: UnreadAnswers) -> None:
        self.now, self._unread = 1000.0, unread
        self._clients: list[Client] = []
        self._sending: list[asyncio.Task[None]] = []

    async def answer(self, client: Client, size: int, estimate: int | None = None) -> None:
        """Begin to write a large answer to a client."""
        self._clients.append(client)
        self._sending.append(asyncio.create_task(self._send(client, size, estimate or size)))
        await turns()

    async def _send(self, client: Client, size: int, estimate: int) -> None:
        async with self._unread.reserve_room(estimate, time.monotonic() + LONG_S) as room:
            await self._unread.send(client.asks(), room, bytes(size), {}, "application/json")

    def leave(self, client: Client) -> None:
        """Let a client have a rest that is not taken, of answers that are written."""
        self._clients.append(client)
        self._unread.watch(client.asks())

    async def go(self, seconds: float) -> None:
        for _ in range(round(seconds / LOOK_S)):
            self.now += LOOK_S
            for client in self._clients:
                client.take(LOOK_S)
            await turns()
            self._unread._look(self.now)
            await turns()

    async def end(self) -> None:
        for sending in self._sending:
            sending.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)


def looked_at(story: Callable[[UnreadAnswers, Clock], Awaitable[None]]) -> None:
    """Let a story with clients happen, with room for 8 MiB."""

    async def play(unread: UnreadAnswers) -> None:
        clock = Clock(unread)
        await story(unread, clock)
        await clock.end()

    played(play)


async def leave(*answers: Answer) -> None:
    for one in answers:
        one.task.cancel()
    await asyncio.gather(*(one.task for one in answers), return_exceptions=True)


@pytest.mark.parametrize("size", [8 * MB, 12 * MB])
def test_nobody_is_ended_for_room_while_nobody_waits(size: int) -> None:
    """Not even with an answer larger than all room."""

    async def story(_: UnreadAnswers, clock: Clock) -> None:
        client = Client(MB / 2)
        await clock.answer(client, size)
        await clock.go(2 + size / (MB / 2))
        assert not client.ended
        assert client.taken == size

    looked_at(story)


def test_nobody_is_ended_because_answers_became_larger_than_was_thought() -> None:
    async def story(_: UnreadAnswers, clock: Clock) -> None:
        # Each has room before it has taken what was written before, and so before the other's answer is known.
        clients = [Client(MB / 2, written=IN_KERNEL) for _ in range(2)]
        for client in clients:
            await clock.answer(client, 6 * MB, estimate=4 * MB)
        await clock.go(14)
        assert [client.taken for client in clients] == [IN_KERNEL + 6 * MB] * 2

    looked_at(story)


def test_waiting_answer_gets_room_when_another_is_smaller_than_was_thought() -> None:
    """At once: nobody may leave for a minute, and nobody is ended, for there is room."""

    async def story(unread: UnreadAnswers, clock: Clock) -> None:
        client = Client(MB, written=IN_KERNEL)
        await clock.answer(client, 4 * MB, estimate=6 * MB)
        waiting = Answer(unread, 4 * MB)
        await turns()
        assert not waiting.entered.is_set()
        # It has what was written before, and its answer begins.
        client.take(1)
        await turns()
        assert waiting.entered.is_set()
        await leave(waiting)

    looked_at(story)


@pytest.mark.parametrize("size", [8 * MB, 12 * MB])
def test_slow_client_is_ended_when_somebody_waits(size: int) -> None:
    async def story(unread: UnreadAnswers, clock: Clock) -> None:
        client = Client(MB / 4)
        await clock.answer(client, size)
        waiting = Answer(unread, MB)
        await clock.go(0.75)
        assert not client.ended
        assert not waiting.entered.is_set()
        await clock.go(0.5)
        assert client.ended
        assert waiting.entered.is_set()
        await leave(waiting)

    looked_at(story)


@pytest.mark.parametrize(("after_s", "ended"), [(4, True), (8, False)])
def test_client_that_soon_has_the_rest_stays_when_somebody_waits(after_s: float, ended: bool) -> None:
    """The rest is 6 MiB, or 4; half a megabyte a second makes 5 in time."""

    async def story(unread: UnreadAnswers, clock: Clock) -> None:
        client = Client(MB / 2)
        await clock.answer(client, 8 * MB)
        await clock.go(after_s)
        waiting = Answer(unread, 8 * MB)
        await clock.go(LOOK_S)
        assert client.ended == ended
        await clock.go(8)
        assert waiting.entered.is_set()
        assert client.ended == ended
        await leave(waiting)

    looked_at(story)


def test_room_of_a_client_that_is_ended_is_not_asked_of_others() -> None:
    async def story(unread: UnreadAnswers, clock: Clock) -> None:
        stalled, slow = Client(), Client(MB / 8)
        await clock.answer(stalled, 4 * MB)
        await clock.go(50)
        await clock.answer(slow, 4 * MB)
        # Until the look at which the one has taken nothing for a minute, and the other is old enough to be ended.
        while not stalled.ended:
            waiting = Answer(unread, 4 * MB) if clock.now == 1000 + 60 else None
            await clock.go(LOOK_S)
        assert waiting
        assert waiting.entered.is_set()
        assert not slow.ended
        await leave(waiting)

    looked_at(story)


def test_room_of_a_client_that_has_gone_is_not_asked_of_others() -> None:
    async def story(unread: UnreadAnswers, clock: Clock) -> None:
        gone, slow = Client(), Client(MB / 8)
        await clock.answer(gone, 4 * MB)
        await clock.answer(slow, 4 * MB)
        await clock.go(2)
        waiting = Answer(unread, 4 * MB)
        # Its request does not know yet.
        gone.ended = True
        await clock.go(2)
        assert not slow.ended
        await leave(waiting)

    looked_at(story)


def test_rests_of_answers_that_are_written_have_a_bound_of_their_own() -> None:
    async def story(unread: UnreadAnswers, clock: Clock) -> None:
        slow, slower, with_room = Client(MB / 8, written=4 * MB), Client(MB / 16, written=4 * MB), Client()
        clock.leave(slow)
        clock.leave(slower)
        await clock.answer(with_room, 8 * MB)
        await clock.go(2)
        assert [client.ended for client in (slow, slower, with_room)] == [False, False, False]
        slower.written += MB
        await clock.go(LOOK_S)
        assert [client.ended for client in (slow, slower, with_room)] == [False, True, False]

    looked_at(story)


def test_client_without_room_is_not_ended_for_one_that_waits() -> None:
    """The waiting answer would not have its bytes."""

    async def story(unread: UnreadAnswers, clock: Clock) -> None:
        rest, with_room = Client(written=5 * MB), Client(MB / 8)
        clock.leave(rest)
        await clock.answer(with_room, 8 * MB)
        waiting = Answer(unread, MB)
        await clock.go(2)
        assert waiting.entered.is_set()
        assert with_room.ended
        assert not rest.ended
        await leave(waiting)

    looked_at(story)


def test_connection_that_cannot_be_looked_at_is_no_end_of_the_limits(caplog: pytest.LogCaptureFixture) -> None:
    async def story(unread: UnreadAnswers, clock: Clock) -> None:
        unwell, stalled = Client(), Client()
        for client in (unwell, stalled):
            await clock.answer(client, 4 * MB)
            await clock.go(1)
        unwell.unwell = True
        await clock.go(61)
        assert stalled.ended
        assert not unwell.ended
        # Its end was tried, and is tried again.
        unwell.unwell = False
        await clock.go(LOOK_S)
        assert unwell.ended

    looked_at(story)
    failures = [record for record in caplog.records if record.levelname == "ERROR"]
    assert 1 <= len(failures) <= 1 + 61 / TELL_S
    assert failures[0].exc_info


def test_connection_whose_socket_fails_is_ended_all_the_same() -> None:
    failing, ends = socket.socket(), []
    failing.close()
    connection = Connection.__new__(Connection)
    transport = SimpleNamespace(get_extra_info=lambda _: failing, abort=lambda: ends.append("aborted"))
    connection.transport = cast(asyncio.Transport, transport)
    with pytest.raises(OSError, match="Bad file descriptor"):
        connection.reset()
    assert ends == ["aborted"]
