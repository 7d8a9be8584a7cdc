"""A runner: claims batches, runs several at a time, and keeps the store clean."""

import asyncio
import contextlib
import functools
import logging
import time
import uuid
from collections import Counter

from broker.shared.health import HealthFile
from frontend.batches import metrics
from frontend.batches.batch_run import BatchRun
from frontend.batches.errors import DamagedRowError, StoreError
from frontend.batches.leased_batch import LEASE_S
from frontend.batches.pace import Deferrals
from frontend.batches.store import Store
from frontend.config import Config
from frontend.session.broker_client import BrokerClient

log = logging.getLogger(__name__)

#: Most batches that a runner works on at a time, and most of one client, so that a client leaves room for others.
MAX_BATCHES, MAX_CLIENT_BATCHES = 16, 4
#: Seconds between two looks for batches to claim, and for expired files.
CLAIM_INTERVAL_S, EXPIRY_INTERVAL_S = 0.5, 60.0
#: Seconds between two touches of the health file.
HEALTH_INTERVAL_S = 0.5
#: Seconds between two searches for objects without a row.
ORPHANS_INTERVAL_S = 3600.0
#: Seconds for which a draining runner waits for lines that are with the broker.
DRAIN_S = 60.0


class Runner:
    """Batches that this process works on."""

    def __init__(self, store: Store, broker: BrokerClient, config: Config, health_file: str) -> None:
        self._store, self._broker, self._config = store, broker, config
        self._health = HealthFile(health_file)
        self._runs: dict[BatchRun, asyncio.Task[None]] = {}
        self._deferrals = Deferrals()
        #: Batches that this release cannot read.
        self._damaged: set[str] = set()
        self._draining = asyncio.Event()
        #: Message of the last failed claim, to log each once.
        self._reason = ""

    def drain(self) -> None:
        """End `run` soon."""
        self._draining.set()

    async def run(self) -> None:
        """Claim and run batches until `drain` is called and the lines that are with the broker are committed."""
        tasks = [asyncio.create_task(self._clean()), asyncio.create_task(self._touch_health())]
        while not self._draining.is_set():
            await self._claim()
            metrics.running.set(len(self._runs))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._draining.wait(), CLAIM_INTERVAL_S)
        log.info("draining: %d batches", len(self._runs))
        tasks[0].cancel()
        for run in self._runs:
            run.drain()
        if self._runs:
            await asyncio.wait(self._runs.values(), timeout=DRAIN_S)
        tasks += self._runs.values()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _claim(self) -> None:
        """Claim batches while there are any and there is room."""
        database = self._store.database
        while len(self._runs) < MAX_BATCHES:
            counts = Counter(run.owner for run in self._runs)
            busy = [owner for owner, count in counts.items() if count >= MAX_CLIENT_BATCHES]
            deferred = [*self._damaged, *self._deferrals.list_deferred(time.monotonic())]
            # A new holder for each claim, so that this process cannot continue a batch twice after it lost the lease.
            holder = uuid.uuid4().hex
            try:
                await self._store.check_once()
                for status, count in (await asyncio.to_thread(database.count_open)).items():
                    metrics.batches.labels(status).set(count)
                batch = await asyncio.to_thread(database.claim_batch, holder, time.time(), LEASE_S, busy, deferred)
            except DamagedRowError as error:
                log.error("%s", error)
                self._damaged.add(error.batch)
                continue
            except StoreError as error:
                if str(error) != self._reason:
                    self._reason = str(error)
                    log.error("cannot look for batches: %s", error)
                return
            self._reason = ""
            if batch is None:
                return
            log.info("%s: claimed in status %s, with %d requests done", batch.id, batch.status, batch.completed)
            run = BatchRun(self._store, self._broker, self._config, batch, holder)
            task = self._runs[run] = asyncio.create_task(run.run())
            task.add_done_callback(functools.partial(self._forget, run))

    async def _touch_health(self) -> None:
        """Touch the health file while the event loop runs, however long the database takes."""
        while True:
            self._health.touch(time.monotonic())
            await asyncio.sleep(HEALTH_INTERVAL_S)

    def _forget(self, run: BatchRun, _: asyncio.Task[None]) -> None:
        del self._runs[run]
        if run.waits:
            self._deferrals.add(run.id, time.monotonic())
        else:
            self._deferrals.remove(run.id)

    async def _clean(self) -> None:
        """Remove expired files every minute, and objects without a row every hour."""
        orphans_at = time.monotonic()
        while True:
            try:
                if count := await self._store.remove_expired(time.time()):
                    log.info("removed %d objects of expired files", count)
                if time.monotonic() >= orphans_at:
                    orphans_at = time.monotonic() + ORPHANS_INTERVAL_S
                    if count := await self._store.remove_orphans():
                        log.info("removed %d objects that killed processes had left", count)
            except StoreError as error:
                log.error("cannot remove expired files: %s", error)
            await asyncio.sleep(EXPIRY_INTERVAL_S)
