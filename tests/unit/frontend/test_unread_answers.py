"""Room for large answers: who waits for it, and for how long."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from frontend.api.errors import ApiError
from frontend.config import Config
from frontend.rest.unread_answers import PIECE, UnreadAnswers

MB = 1024 * 1024
LONG_S = 60.0


def played(story: Callable[[UnreadAnswers], Awaitable[None]]) -> None:
    """Let a story happen with room for 8 MiB."""

    async def play() -> None:
        await story(UnreadAnswers(Config(max_unread_bytes=8 * MB)))

    asyncio.run(play())


class Answer:
    """An answer that has room, once it `entered`, until it is told to `leave`."""

    def __init__(self, unread: UnreadAnswers, size: int, waiting: int = 0, within_s: float = LONG_S) -> None:
        self.entered, self.leave = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._live(unread, size, waiting, within_s))

    async def _live(self, unread: UnreadAnswers, size: int, waiting: int, within_s: float) -> None:
        async with unread.reserve_room(size, time.monotonic() + within_s, waiting=waiting):
            self.entered.set()
            await self.leave.wait()


async def turns() -> None:
    """Let everything happen that can."""
    for _ in range(30):
        await asyncio.sleep(0)


def test_answers_wait_their_turn() -> None:
    async def story(unread: UnreadAnswers) -> None:
        first, second, third, small = (Answer(unread, size) for size in (5 * MB, 5 * MB, 2 * MB, PIECE))
        await turns()
        assert [one.entered.is_set() for one in (first, second, third, small)] == [True, False, False, True]
        first.leave.set()
        await turns()
        assert second.entered.is_set()
        assert third.entered.is_set()
        for one in (second, third, small):
            one.leave.set()
            await one.task

    played(story)


def test_answer_larger_than_all_room_comes_alone() -> None:
    async def story(unread: UnreadAnswers) -> None:
        small, large = Answer(unread, MB), Answer(unread, 20 * MB)
        await turns()
        assert not large.entered.is_set()
        small.leave.set()
        await turns()
        assert large.entered.is_set()
        next_one = Answer(unread, MB)
        await turns()
        assert not next_one.entered.is_set()
        for one in (large, next_one):
            one.leave.set()
            await one.task

    played(story)


def test_no_room_before_the_deadline_is_504() -> None:
    async def story(unread: UnreadAnswers) -> None:
        first, late, next_one = Answer(unread, 8 * MB), Answer(unread, MB, within_s=0.01), Answer(unread, MB)
        with pytest.raises(ApiError) as error:
            await late.task
        assert (error.value.status, error.value.code) == (504, "deadline_exceeded")
        first.leave.set()
        await next_one.entered.wait()
        next_one.leave.set()
        await next_one.task

    played(story)


def test_too_much_that_waits_is_503() -> None:
    async def story(unread: UnreadAnswers) -> None:
        first = Answer(unread, 8 * MB)
        waiting = [Answer(unread, 6 * MB, waiting=size) for size in (2 * MB, 2 * MB)]
        await turns()
        with pytest.raises(ApiError) as error:
            await Answer(unread, MB, waiting=1).task
        assert (error.value.status, error.value.code) == (503, "overloaded")
        assert int(error.value.headers()["Retry-After"]) >= 1
        for one in (first, *waiting):
            one.leave.set()
            await one.task

    played(story)


@pytest.mark.parametrize("waiting_first", [True, False])
def test_client_that_goes_away_gives_its_place_and_its_room_back(waiting_first: bool) -> None:
    async def story(unread: UnreadAnswers) -> None:
        first, gone, last = (Answer(unread, 8 * MB) for _ in range(3))
        await turns()
        for one in (gone, first) if waiting_first else (first, gone):
            one.task.cancel()
        await turns()
        assert gone.task.cancelled()
        assert last.entered.is_set()
        last.leave.set()
        await last.task

    played(story)
