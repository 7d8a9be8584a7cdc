"""Clients that read large answers: which are ended, and which are not."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import cast

import pytest
from sanic import Request
from sanic.exceptions import RequestCancelled

from frontend.rest.http_protocol import Connection, SendProgress
from frontend.rest.unread_answers import CHECK_INTERVAL_S, LOG_INTERVAL_S, PIECE_BYTES, UnreadAnswers
from tests.unit.frontend.test_unread_answers import LONG_S, MB, Answer, run_event_loop, run_story

#: Bytes that the kernel buffers of an answer that its client does not read.
IN_KERNEL = 2 * PIECE_BYTES


class Client(Connection):
    """Client that reads a number of bytes a second, on a connection without a network."""

    __slots__ = ("ended", "failing", "moved", "rate", "taken", "written")

    def __init__(self, rate: float = 0.0, *, written: int = 0) -> None:
        self.rate, self.written, self.taken = rate, written, 0.0
        self.ended = self.failing = False
        self.response_timeout = 0.0
        self.moved = asyncio.Event()

    def measure_progress(self) -> SendProgress | None:
        if self.failing:
            raise OSError("no such socket")
        waiting = self.written - int(self.taken)
        return (
            None if self.ended else SendProgress(int(self.taken), min(waiting, IN_KERNEL), max(0, waiting - IN_KERNEL))
        )

    def reset_connection(self) -> None:
        if self.failing:
            raise OSError("no such socket")
        self.ended = True
        self.moved.set()

    async def wait_until_writable(self) -> None:
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
        await self.wait_until_writable()
        self.written += len(part)

    async def respond(self, _: object) -> "Client":
        return self

    def make_request(self) -> Request:
        """Return a request of the connection."""
        return cast(Request, SimpleNamespace(stream=SimpleNamespace(protocol=self), respond=self.respond))


class Clock:
    """Time of the checks, and the clients that read between them."""

    def __init__(self, unread: UnreadAnswers) -> None:
        self.now, self._unread = 1000.0, unread
        self._clients: list[Client] = []
        self._sending: list[asyncio.Task[None]] = []

    async def answer(self, client: Client, size: int, estimate: int | None = None) -> None:
        """Begin to write a large answer to a client."""
        self._clients.append(client)
        self._sending.append(asyncio.create_task(self._send(client, size, estimate or size)))
        await run_event_loop()

    async def _send(self, client: Client, size: int, estimate: int) -> None:
        async with self._unread.reserve_room(estimate, time.monotonic() + LONG_S) as room:
            await self._unread.write_answer(client.make_request(), room, bytes(size), {}, "application/json")

    def leave(self, client: Client) -> None:
        """Watch a client with unread bytes of answers that are written."""
        self._clients.append(client)
        self._unread.watch_connection(client.make_request())

    async def go(self, seconds: float) -> None:
        for _ in range(round(seconds / CHECK_INTERVAL_S)):
            self.now += CHECK_INTERVAL_S
            for client in self._clients:
                client.take(CHECK_INTERVAL_S)
            await run_event_loop()
            self._unread._check_clients(self.now)
            await run_event_loop()

    async def end(self) -> None:
        for sending in self._sending:
            sending.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)


def run_with_clock(story: Callable[[UnreadAnswers, Clock], Awaitable[None]]) -> None:
    """Run a test with a clock, and with memory for 8 MiB of answers."""

    async def play(unread: UnreadAnswers) -> None:
        clock = Clock(unread)
        await story(unread, clock)
        await clock.end()

    run_story(play)


async def leave(*answers: Answer) -> None:
    for answer in answers:
        answer.task.cancel()
    await asyncio.gather(*(answer.task for answer in answers), return_exceptions=True)


@pytest.mark.parametrize("size", [8 * MB, 12 * MB])
def test_no_client_is_ended_while_no_answer_waits(size: int) -> None:
    """Not even with an answer above the maximum."""

    async def story(_: UnreadAnswers, clock: Clock) -> None:
        client = Client(MB / 2)
        await clock.answer(client, size)
        await clock.go(2 + size / (MB / 2))
        assert not client.ended
        assert client.taken == size

    run_with_clock(story)


def test_underestimated_answers_end_no_client() -> None:
    async def story(_: UnreadAnswers, clock: Clock) -> None:
        # Each has memory before it reads the previous answer, and so before the size of the other answer is known.
        clients = [Client(MB / 2, written=IN_KERNEL) for _ in range(2)]
        for client in clients:
            await clock.answer(client, 6 * MB, estimate=4 * MB)
        await clock.go(14)
        assert [client.taken for client in clients] == [IN_KERNEL + 6 * MB] * 2

    run_with_clock(story)


def test_overestimated_answer_frees_memory_at_once() -> None:
    """While there is memory, no client is ended for a minute."""

    async def story(unread: UnreadAnswers, clock: Clock) -> None:
        client = Client(MB, written=IN_KERNEL)
        await clock.answer(client, 4 * MB, estimate=6 * MB)
        waiting = Answer(unread, 4 * MB)
        await run_event_loop()
        assert not waiting.entered.is_set()
        # It reads the previous answer, and its own answer begins.
        client.take(1)
        await run_event_loop()
        assert waiting.entered.is_set()
        await leave(waiting)

    run_with_clock(story)


@pytest.mark.parametrize("size", [8 * MB, 12 * MB])
def test_slow_client_is_ended_when_answer_waits(size: int) -> None:
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

    run_with_clock(story)


@pytest.mark.parametrize(("after_s", "ended"), [(4, True), (8, False)])
def test_client_that_soon_finishes_stays(after_s: float, ended: bool) -> None:
    """The rest is 6 or 4 MiB, of which the client reads 5 MiB in time."""

    async def story(unread: UnreadAnswers, clock: Clock) -> None:
        client = Client(MB / 2)
        await clock.answer(client, 8 * MB)
        await clock.go(after_s)
        waiting = Answer(unread, 8 * MB)
        await clock.go(CHECK_INTERVAL_S)
        assert client.ended == ended
        await clock.go(8)
        assert waiting.entered.is_set()
        assert client.ended == ended
        await leave(waiting)

    run_with_clock(story)


def test_memory_of_ended_client_counts_as_free() -> None:
    async def story(unread: UnreadAnswers, clock: Clock) -> None:
        stalled, slow = Client(), Client(MB / 8)
        await clock.answer(stalled, 4 * MB)
        await clock.go(50)
        await clock.answer(slow, 4 * MB)
        # Until the check at which one client has stalled for a minute, and the other is old enough to be ended.
        while not stalled.ended:
            waiting = Answer(unread, 4 * MB) if clock.now == 1000 + 60 else None
            await clock.go(CHECK_INTERVAL_S)
        assert waiting
        assert waiting.entered.is_set()
        assert not slow.ended
        await leave(waiting)

    run_with_clock(story)


def test_memory_of_departed_client_counts_as_free() -> None:
    async def story(unread: UnreadAnswers, clock: Clock) -> None:
        departed, slow = Client(), Client(MB / 8)
        await clock.answer(departed, 4 * MB)
        await clock.answer(slow, 4 * MB)
        await clock.go(2)
        waiting = Answer(unread, 4 * MB)
        # Its handler has not been cancelled yet.
        departed.ended = True
        await clock.go(2)
        assert not slow.ended
        await leave(waiting)

    run_with_clock(story)


def test_written_answers_have_their_own_limit() -> None:
    async def story(unread: UnreadAnswers, clock: Clock) -> None:
        slow, slower, with_room = Client(MB / 8, written=4 * MB), Client(MB / 16, written=4 * MB), Client()
        clock.leave(slow)
        clock.leave(slower)
        await clock.answer(with_room, 8 * MB)
        await clock.go(2)
        assert [client.ended for client in (slow, slower, with_room)] == [False, False, False]
        slower.written += MB
        await clock.go(CHECK_INTERVAL_S)
        assert [client.ended for client in (slow, slower, with_room)] == [False, True, False]

    run_with_clock(story)


def test_written_answer_is_not_ended_for_waiting_one() -> None:
    """Its memory would not be granted to the waiting answer."""

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

    run_with_clock(story)


def test_failing_connection_leaves_limits_of_others(caplog: pytest.LogCaptureFixture) -> None:
    async def story(unread: UnreadAnswers, clock: Clock) -> None:
        failing, stalled = Client(), Client()
        for client in (failing, stalled):
            await clock.answer(client, 4 * MB)
            await clock.go(1)
        failing.failing = True
        await clock.go(61)
        assert stalled.ended
        assert not failing.ended
        # Ending it failed, and is tried again.
        failing.failing = False
        await clock.go(CHECK_INTERVAL_S)
        assert failing.ended

    run_with_clock(story)
    failures = [record for record in caplog.records if record.levelname == "ERROR"]
    assert 1 <= len(failures) <= 1 + 61 / LOG_INTERVAL_S
    assert failures[0].exc_info
