"""Row of a batch that this runner has leased: calls of the store that wait until the store can be used."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from frontend.batches import metrics
from frontend.batches.errors import MissingContentError, StoreError, StoreFullError
from frontend.batches.rows import Batch, Chunk, File, FilePart
from frontend.batches.sending import Stop
from frontend.batches.store import Store
from frontend.batches.threads import call_database

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Duration of a lease and interval of its renewals, in seconds.
LEASE_S, RENEW_S = 6.0, 1.5
#: First and longest pause before a failed call is repeated, in seconds.
FIRST_PAUSE_S, MAX_PAUSE_S = 0.25, 10.0
#: Faults of this program after which a batch fails, and longest pause after a fault, in seconds: 11 minutes in all.
MAX_FAULTS, MAX_FAULT_PAUSE_S = 8, 300.0
#: Repetitions of a failed read of the input after the batch was cancelled or has expired.
LATE_TRIES = 8


class LeaseLostError(Exception):
    """Another runner has the batch."""


class LeasedBatch:
    """A batch and its store.

    Methods repeat a call while the store cannot be used, for example because the disk is full. They raise
    `LeaseLostError` if another runner has the batch, and `StoreError` if the store cannot be used after `leave`.
    """

    def __init__(self, store: Store, batch: Batch, holder: str) -> None:
        self._store = store
        #: The row, which `save` and `end` write.
        self.batch = batch
        self.holder = holder
        self._left = asyncio.Event()

    def leave(self) -> None:
        """Stop to wait for the store, because another runner goes on."""
        self._left.set()

    async def list_parts(self) -> list[FilePart]:
        """Return the parts of the input file."""
        return await self._ask(self._store.database.list_parts, self.batch.input_file_id)

    async def list_chunks(self) -> list[Chunk]:
        """Return the committed chunks."""
        return await self._ask(self._store.database.list_chunks, self.batch.id)

    async def put(self, key: str, content: bytes) -> None:
        """Write an object."""
        await self.insist(lambda: self._store.contents.put(key, content))

    async def commit(self, chunk: Chunk) -> None:
        """Commit a chunk after its objects."""
        if not await self._ask(self._store.database.commit_chunk, chunk, self.holder):
            raise LeaseLostError

    async def save(self) -> None:
        """Save the row."""
        if not await self._ask(self._store.database.save_batch, self.batch, self.holder):
            raise LeaseLostError

    async def end(self, files: Sequence[tuple[File, Sequence[FilePart]]] = ()) -> None:
        """Save the row of a batch that has ended, and add its files."""
        ended = await self._ask(self._store.database.finish_batch, self.batch, self.holder, files)
        if ended is None:
            raise LeaseLostError
        self.batch = ended
        log.info("%s: %s", self.batch.id, self.batch.status)

    async def keep(self, stop: Callable[[Stop], None]) -> None:
        """Renew the lease until the call is cancelled. Call `stop` if the lease is lost or the batch is cancelled."""
        reason = ""
        while True:
            await asyncio.sleep(RENEW_S)
            try:
                row = await asyncio.to_thread(
                    self._store.database.renew_lease, self.batch.id, self.holder, time.time(), LEASE_S
                )
            except StoreError as error:
                # If the lease runs out meanwhile, the next commit finds out whether another runner has claimed it.
                if str(error) != reason:
                    reason = str(error)
                    log.warning("%s: could not renew the lease: %s", self.batch.id, reason)
                continue
            reason = ""
            if row is None:
                stop(Stop.LOST)
                self.leave()
            elif row.status == "cancelling":
                stop(Stop.CANCEL)

    async def record_fault(self) -> bool:
        """Count a fault of this program, and return whether the batch must end.

        Otherwise keep its lease for a while, twice as long each time, so that the fault is not repeated at once.
        `batch` becomes the row as it was saved last.
        """
        now, lease_s = time.time(), min(MAX_FAULT_PAUSE_S, LEASE_S * 2**self.batch.faults)
        row = await self._ask(self._store.database.renew_lease, self.batch.id, self.holder, now, lease_s)
        if row is None:
            raise LeaseLostError
        self.batch = row
        row.faults += 1
        if row.faults >= MAX_FAULTS or now >= row.expires_at:
            return True
        await self.save()
        return False

    async def release(self, *, waits: bool = False) -> None:
        """Let another runner go on at once if the batch has not ended; if it `waits`, after other batches."""
        turn = time.time() if waits else 0.0
        try:
            await asyncio.to_thread(self._store.database.release_lease, self.batch.id, self.holder, turn)
        except StoreError as error:
            log.warning("%s: could not release the lease, which ends by itself: %s", self.batch.id, error)

    async def insist(self, call: Callable[[], Awaitable[T]], end: asyncio.Event | None = None) -> T:
        """Return the result of a call, repeated while it raises `StoreError`, at most `LATE_TRIES` times after `end`.

        Raise `MissingContentError` at once.
        """
        pause_s, reason, late = FIRST_PAUSE_S, "", 0
        while True:
            try:
                result = await call()
            except StoreError as error:
                metrics.store_errors.labels("full" if isinstance(error, StoreFullError) else "unavailable").inc()
                late += end is not None and end.is_set()
                if self._left.is_set() or late > LATE_TRIES or isinstance(error, MissingContentError):
                    raise
                if str(error) != reason:
                    reason = str(error)
                    log.error("%s: waits for the store: %s", self.batch.id, reason)
                await wait_for(self._left, pause_s)
                pause_s = FIRST_PAUSE_S if late else min(MAX_PAUSE_S, pause_s * 2)
            else:
                if reason:
                    log.info("%s: the store works again", self.batch.id)
                return result

    async def _ask(self, method: Callable[..., T], *arguments: object) -> T:
        """Call a method of the database, which blocks."""
        return await self.insist(lambda: call_database(method, *arguments))


async def wait_for(event: asyncio.Event, timeout_s: float) -> None:
    """Wait for an event, but at most this long."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), timeout_s)
