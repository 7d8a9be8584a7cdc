"""Uploads at a time: clients share them, and slow uploads make room."""

import asyncio

import pytest

from frontend.api.errors import ApiError
from frontend.rest.upload_slots import SLOW_AGE_S, SLOW_BYTES_PER_S, Slot, UploadSlots


class Clock:
    """Clock that tests set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def fill(slots: UploadSlots, clients: int = 4) -> list[Slot]:
    return [slots.open(f"client {number}") for number in range(clients) for _ in range(2)]


def test_client_has_a_share_of_the_uploads() -> None:
    slots = UploadSlots(8, Clock())
    first, _ = slots.open("one"), slots.open("one")
    with pytest.raises(ApiError, match=r"^this client uploads more than 2 files at once; send this one again later$"):
        slots.open("one")
    slots.open("other")
    slots.close(first)
    slots.open("one")


def test_only_upload_is_allowed() -> None:
    slots = UploadSlots(1, Clock())
    slots.open("one")
    with pytest.raises(ApiError, match=r"^too many files are uploaded at once; send this one again$"):
        slots.open("other")


async def wait(slot: Slot) -> None:
    """Wait for the next part of an upload until the server ends the upload."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as slot.waiting:
            await asyncio.Event().wait()


def test_slowest_upload_makes_room() -> None:
    clock = Clock()
    slots = UploadSlots(8, clock)

    async def check() -> None:
        opened = fill(slots)
        tasks = [asyncio.create_task(wait(slot)) for slot in opened]
        await asyncio.sleep(0)
        for number, slot in enumerate(opened):
            slot.received_bytes = 1000 + abs(number - 3)
        clock.now += SLOW_AGE_S
        with pytest.raises(ApiError):
            slots.open("new")
        clock.now += 0.1
        slots.open("new")
        await tasks[3]
        assert [slot for slot in opened if slot.refusal] == [opened[3]]
        assert "arrives the most slowly" in str(opened[3].refusal)
        # The end of the upload frees no other room.
        slots.close(opened[3])
        for slot in opened:
            slot.received_bytes += int(SLOW_BYTES_PER_S * 10)
        with pytest.raises(ApiError):
            slots.open("newer")

    asyncio.run(check())


def test_ended_upload_wakes_up() -> None:
    clock = Clock()
    slots = UploadSlots(1, clock)

    async def check() -> None:
        slot = slots.open("one")
        task = asyncio.create_task(wait(slot))
        await asyncio.sleep(0)
        clock.now += SLOW_AGE_S + 1
        slots.open("other")
        await task
        assert slot.refusal
        assert slot.refusal.status == 503

    asyncio.run(check())
