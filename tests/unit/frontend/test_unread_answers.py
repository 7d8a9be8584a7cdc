"""Memory of large answers: which answers wait, and for how long."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from frontend.api.errors import ApiError
from frontend.config import Config
from frontend.rest.unread_answers import PIECE_BYTES, UnreadAnswers

MB = 1024 * 1024
LONG_S = 60.0


def run_story(story: Callable[[UnreadAnswers], Awaitable[None]]) -> None:
    """Run a test with memory for 8 MiB of answers."""

    async def play() -> None:
        await story(UnreadAnswers(Config(max_unread_bytes=8 * MB)))

    asyncio.run(play())


class Answer:
    """Answer that has memory from `entered` until `leave` is set."""

    def __init__(self, unread: UnreadAnswers, size: int, waiting: int = 0, within_s: float = LONG_S) -> None:
        self.entered, self.leave = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._live(unread, size, waiting, within_s))

    async def _live(self, unread: UnreadAnswers, size: int, waiting: int, within_s: float) -> None:
        async with unread.reserve_room(size, time.monotonic() + within_s, waiting=waiting):
            self.entered.set()
            await self.leave.wait()


async def run_event_loop() -> None:
    """Run the event loop until all tasks wait."""
    for _ in range(30):
        await asyncio.sleep(0)


def test_answers_wait_for_memory_in_order() -> None:
    async def story(unread: UnreadAnswers) -> None:
        first, second, third, small = (Answer(unread, size) for size in (5 * MB, 5 * MB, 2 * MB, PIECE_BYTES))
        await run_event_loop()
        assert [answer.entered.is_set() for answer in (first, second, third, small)] == [True, False, False, True]
        first.leave.set()
        await run_event_loop()
        assert second.entered.is_set()
        assert third.entered.is_set()
        for answer in (second, third, small):
            answer.leave.set()
            await answer.task

    run_story(story)


def test_answer_above_maximum_is_granted_alone() -> None:
    async def story(unread: UnreadAnswers) -> None:
        small, large = Answer(unread, MB), Answer(unread, 20 * MB)
        await run_event_loop()
        assert not large.entered.is_set()
        small.leave.set()
        await run_event_loop()
        assert large.entered.is_set()
        next_answer = Answer(unread, MB)
        await run_event_loop()
        assert not next_answer.entered.is_set()
        for answer in (large, next_answer):
            answer.leave.set()
            await answer.task

    run_story(story)


def test_no_memory_before_deadline_is_504() -> None:
    async def story(unread: UnreadAnswers) -> None:
        first, late, next_answer = Answer(unread, 8 * MB), Answer(unread, MB, within_s=0.01), Answer(unread, MB)
        with pytest.raises(ApiError) as error:
            await late.task
        assert (error.value.status, error.value.code) == (504, "deadline_exceeded")
        first.leave.set()
        await next_answer.entered.wait()
        next_answer.leave.set()
        await next_answer.task

    run_story(story)


def test_too_many_waiting_answers_are_503() -> None:
    async def story(unread: UnreadAnswers) -> None:
        first = Answer(unread, 8 * MB)
        waiting = [Answer(unread, 6 * MB, waiting=size) for size in (2 * MB, 2 * MB)]
        await run_event_loop()
        with pytest.raises(ApiError) as error:
            await Answer(unread, MB, waiting=1).task
        assert (error.value.status, error.value.code) == (503, "overloaded")
        assert int(error.value.headers()["Retry-After"]) >= 1
        for answer in (first, *waiting):
            answer.leave.set()
            await answer.task

    run_story(story)


@pytest.mark.parametrize("waiting_first", [True, False])
def test_cancelled_answer_releases_its_memory(waiting_first: bool) -> None:
    async def story(unread: UnreadAnswers) -> None:
        first, cancelled, last = (Answer(unread, 8 * MB) for _ in range(3))
        await run_event_loop()
        for answer in (cancelled, first) if waiting_first else (first, cancelled):
            answer.task.cancel()
        await run_event_loop()
        assert cancelled.task.cancelled()
        assert last.entered.is_set()
        last.leave.set()
        await last.task

    run_story(story)
