"""Limits on the uploads of files that run at a time in one process."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from broker.wire.errors import ErrorCode
from frontend.api.errors import ApiError, from_failure

#: A client may have 1 / SHARE of the uploads at a time, so that others find room.
SHARE = 4
#: Age, in seconds, and rate of an upload that makes room for another one if there is none.
SLOW_AGE_S, SLOW_BYTES_PER_S = 5.0, 256 * 1024


@dataclass(slots=True, eq=False)
class Slot:
    """Room of one upload."""

    #: Name of the API key, or address.
    client: str
    began: float
    received_bytes: int = 0
    #: Ends the wait for the next part of the body; None while the upload waits for the store.
    waiting: asyncio.Timeout | None = None
    #: Why the server has ended the upload.
    refusal: ApiError | None = None

    def end(self, refusal: ApiError) -> None:
        """End the upload, and wake up its task."""
        self.refusal = refusal
        if self.waiting and not self.waiting.expired():
            self.waiting.reschedule(asyncio.get_running_loop().time())


class UploadSlots:
    """Uploads that run at a time."""

    def __init__(self, max_open: int, clock: Callable[[], float]) -> None:
        self._max_open = max_open
        self._max_client = max(1, max_open // SHARE)
        self._clock = clock
        self._open: set[Slot] = set()

    def open(self, client: str) -> Slot:
        """Return the slot of a new upload. If all are in use, end the upload with the slowest client.

        An upload that waits for the store is not ended, because its memory would be free only after that wait.
        Raise `ApiError` 503 if there is no room.
        """
        if sum(slot.client == client for slot in self._open) >= self._max_client:
            text = f"this client uploads more than {self._max_client} files at once; send this one again later"
            raise from_failure(ErrorCode.OVERLOADED, text, 1000)
        now = self._clock()
        if len(self._open) >= self._max_open:
            self._end_slowest(now)
        slot = Slot(client, now)
        self._open.add(slot)
        return slot

    def _end_slowest(self, now: float) -> None:
        waiting = [slot for slot in self._open if slot.waiting and now - slot.began > SLOW_AGE_S]
        rates = {slot: slot.received_bytes / (now - slot.began) for slot in waiting}
        slowest = min(rates, key=rates.__getitem__, default=None)
        if slowest is None or rates[slowest] >= SLOW_BYTES_PER_S:
            text = "too many files are uploaded at once; send this one again"
            raise from_failure(ErrorCode.OVERLOADED, text, 1000)
        self.close(slowest)
        text = "too many files are uploaded at once, and this one arrives the most slowly; send it again"
        slowest.end(from_failure(ErrorCode.OVERLOADED, text, 1000))

    def close(self, slot: Slot) -> None:
        """Free the room of an upload."""
        self._open.discard(slot)
