"""The run of `scripts/embed`: parts are read in a thread, embedded by concurrent requests, and committed in order.

A row counts only after the server has confirmed the model's revision once more: before rows go into a journal or a
part, GET /v1/models must have the revision of the manifest.
"""

import asyncio
import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from embed_client import Client, Fault, Model, RequestError
from embed_errors import AwayError, ErrorLimitError, RefusedError, SignalError, StopError
from embed_inputs import Part
from embed_options import Options
from embed_pace import Next, Pace, choose_delay_s, choose_next, is_permanent
from embed_part import OpenPart
from embed_plan import Answer, Manifest, RowError, cut_requests, drop_rows, halve
from embed_progress import Progress
from embed_store import Store

#: Seconds between two commits, which is the work that a crash can lose besides the open requests.
COMMIT_S = 0.5
#: Most parts in memory that are not complete.
MAX_OPEN_PARTS = 2
#: Seconds that open requests get after a signal.
FINISH_S = 10.0
#: Tries of a row or request whose answer blames the server (500), before the row gets the error.
MAX_TRIES = 3


class Run:
    """One run over all parts."""

    def __init__(
        self, options: Options, manifest: Manifest, model: Model, store: Store, client: Client, progress: Progress
    ) -> None:
        self._options, self._manifest, self._model = options, manifest, model
        self._store, self._client, self._progress = store, client, progress
        self._pace = Pace(options.in_flight)
        self._gate = asyncio.Condition()
        self._parts: list[OpenPart] = []
        self._sending: set[asyncio.Task[None]] = set()
        self._reason: StopError | BaseException | None = None
        self._part_done = asyncio.Event()
        self._answered = time.monotonic()
        self._open = self._pauses = self._failures = 0
        self._ending = False
        #: Rows of all parts.
        self.rows = 0

    def stop(self, reason: BaseException) -> None:
        """End the run, for the first of several reasons."""
        self._reason = self._reason or reason
        self._part_done.set()
        asyncio.ensure_future(self._notify())  # noqa: RUF006  it ends at once

    async def run(self, parts: Iterator[Part]) -> None:
        """Embed all rows that no earlier run has embedded. Raise `StopError` if the run ends before."""
        feed = _start_feed(parts)
        committing = asyncio.create_task(self._commit_all())
        try:
            while not self._reason and (part := await self._get_part(feed)) is not None:
                await self._start_part(part)
            while (self._sending or self._parts) and not self._reason:
                await self._wait(lambda: bool(self._reason) or not (self._sending or self._parts))
        except StopError as reason:
            self.stop(reason)
        finally:
            await self._finish(committing)
        if self._reason:
            raise self._reason

    async def _get_part(self, feed: "asyncio.Queue[Part | BaseException | None]") -> Part | None:
        getting = asyncio.ensure_future(feed.get())
        stopped = asyncio.ensure_future(self._wait(lambda: bool(self._reason)))
        await asyncio.wait([getting, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not getting.done():
            getting.cancel()
            return None
        found = getting.result()
        if isinstance(found, BaseException):
            raise found
        return found

    async def _start_part(self, part: Part) -> None:
        """Send the requests of a part, unless the part is complete."""
        rows = len(part.texts)
        self.rows += rows
        errors = await asyncio.to_thread(self._store.check_part, part, retry=self._options.retry_errors)
        if errors is not None:
            self._progress.skip(rows, errors)
            return
        await self._wait(lambda: bool(self._reason) or len(self._parts) < MAX_OPEN_PARTS)
        opened = await asyncio.to_thread(self._store.open_part, part, self._manifest.dimension, self._options.dtype)
        if not self._parts:
            # `--patience` does not count the time before, in which there was no request to send.
            self._answered = time.monotonic()
        self._parts.append(opened)
        pending = opened.list_pending()
        missing = len(part.problems)
        self._progress.skip(rows - len(pending) - missing, len(opened.errors), missing)
        self._check_errors()
        if not pending:
            self._part_done.set()
        for request in cut_requests(opened.texts, pending, self._options.batch):
            if not await self._enter():
                return
            task = asyncio.create_task(self._send_guarded(opened, request))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    # --- requests ----------------------------------------------------------------------------------------------------

    async def _send_guarded(self, part: OpenPart, rows: list[int]) -> None:
        try:
            await self._send(part, rows)
        except Exception as error:
            self.stop(error)
        finally:
            await self._notify()

    async def _send(self, part: OpenPart, rows: list[int]) -> None:
        """Send a request that has entered, and try its rows again until all are done."""
        tries = 0
        while rows:
            texts = [part.texts[row] or "" for row in rows]
            try:
                answer = await self._client.embed(self._model, rows, texts, self._manifest.dimension)
            except RequestError as failure:
                tries += 1
                await self._leave()
                todo = _choose(failure, tries, len(rows))
                if todo is Next.REFUSE:
                    raise RefusedError(f"the server refuses the request: {failure}") from None
                if todo is Next.SPLIT:
                    await self._split(part, rows, failure)
                    return
                await self._pause(failure)
            else:
                await self._leave()
                tries += 1
                rows = self._keep(part, answer, tries, sum(map(len, texts)))
                if rows:
                    await self._pause(RequestError(503, Fault(next(iter(answer.errors.values())).message)))
            if rows and not await self._enter():
                return

    async def _split(self, part: OpenPart, rows: list[int], failure: RequestError) -> None:
        if len(rows) == 1:
            answer = Answer(rows, bytes(4 * self._manifest.dimension))
            answer.errors = {rows[0]: RowError(failure.code, str(failure))}
            self._add(part, answer)
            return
        if failure.status == 504:
            self._pace.slow_down()
        for half in halve(rows):
            if not await self._enter():
                return
            await self._send(part, half)

    def _keep(self, part: OpenPart, answer: Answer, tries: int, work: int) -> list[int]:
        """Keep the rows that are done, and return those to try again."""
        again = [
            row
            for row, error in answer.errors.items()
            if not is_permanent(error.code) and not (error.code == "internal_error" and tries >= MAX_TRIES)
        ]
        if len(again) == len(answer.rows):
            return again
        self._answered, self._failures = time.monotonic(), 0
        self._pace.finish_request(work, self._answered)
        self._progress.in_flight = self._pace.limit
        self._progress.cache_hits = self._client.cache_hits
        self._add(part, drop_rows(answer, set(again)) if again else answer)
        return again

    def _add(self, part: OpenPart, answer: Answer) -> None:
        part.add(answer)
        part.unsaved.append(answer)
        self._progress.add(len(answer.rows), answer.tokens, answer.truncated, len(answer.errors))
        self._check_errors()
        if part.complete:
            # No journal needs them any more.
            part.unsaved.clear()
            self._part_done.set()

    def _check_errors(self) -> None:
        most = self._options.max_errors
        if most is not None and self._progress.errors > most:
            number = f"more than {most:,} {'row has an error' if most == 1 else 'rows have errors'}"
            raise ErrorLimitError(
                f"{number if most else 'a row has an error'}; see the error file, or raise --max-errors"
            )

    async def _pause(self, failure: RequestError) -> None:
        """Let no request start for a while. Raise `AwayError` if the server has not answered for too long."""
        waited = time.monotonic() - self._answered
        if waited > self._options.patience_s:
            self._raise_away(str(failure))
        if not self._pauses:
            self._pace.slow_down()
            self._failures += 1
        self._progress.note = f"waiting for the server: {failure}"
        self._pauses += 1
        try:
            await asyncio.sleep(min(choose_delay_s(self._failures, failure.retry_after_s), self._options.patience_s))
        finally:
            self._pauses -= 1
            if not self._pauses:
                self._progress.note = ""
            await self._notify()

    def _raise_away(self, reason: str) -> NoReturn:
        text = f"the server has not answered for {self._options.patience_s:g} s: {reason}"
        raise AwayError(f"{text}; run the same command again when it is back")

    # --- gate --------------------------------------------------------------------------------------------------------

    async def _enter(self) -> bool:
        """Wait until another request may be open; return False if the run has ended."""
        await self._wait(lambda: bool(self._reason) or (self._open < self._pace.limit and not self._pauses))
        if self._reason:
            return False
        self._open += 1
        return True

    async def _leave(self) -> None:
        self._open -= 1
        await self._notify()

    async def _wait(self, condition: Callable[[], bool]) -> None:
        async with self._gate:
            await self._gate.wait_for(condition)

    async def _notify(self) -> None:
        async with self._gate:
            self._gate.notify_all()

    # --- commits -----------------------------------------------------------------------------------------------------

    async def _commit_all(self) -> None:
        """Commit each time that a part is complete, and at least every `COMMIT_S`."""
        try:
            while not self._ending:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._part_done.wait(), COMMIT_S)
                self._part_done.clear()
                if not await self._commit():
                    if time.monotonic() - self._answered > self._options.patience_s:
                        self._raise_away("GET /v1/models fails")
                    await asyncio.sleep(COMMIT_S)
        except Exception as error:
            self.stop(error)

    async def _commit(self) -> bool:
        """Write complete parts, and the new rows of others to their journals; return False if the server is away."""
        found = [(part, part.complete, len(part.unsaved)) for part in self._parts]
        found = [one for one in found if one[1] or one[2]]
        if not found:
            return True
        if not await self._confirm_revision():
            return False
        for part, complete, count in found:
            if complete:
                await asyncio.to_thread(self._store.write_part, part, self._options.dtype)
                self._parts.remove(part)
                await self._notify()
            else:
                await asyncio.to_thread(self._store.save_rows, part, count)
        return True

    async def _confirm_revision(self) -> bool:
        """Return whether the server has the model now. Raise `RefusedError` if it has another revision."""
        try:
            models = await self._client.list_models()
        except RequestError:
            return False
        found = next((model for model in models if model.id == self._model.id), None)
        if found is None:
            return False
        if found.revision != self._manifest.revision:
            text = f"the server has replaced {found.id} by revision {found.revision}"
            raise RefusedError(
                f"{text}, but the output has vectors of {self._manifest.revision}; choose another output"
            )
        self._answered = time.monotonic()
        return True

    async def _finish(self, committing: "asyncio.Task[None]") -> None:
        """Wait for the open requests, and commit their rows unless the revision cannot be confirmed."""
        # A commit in a thread cannot be cancelled.
        self._ending = True
        self._part_done.set()
        await asyncio.wait([committing])
        if self._sending:
            await asyncio.wait(self._sending, timeout=FINISH_S if isinstance(self._reason, SignalError) else 0)
        for task in list(self._sending):
            task.cancel()
        try:
            await self._commit()
        except Exception as error:
            self._reason = self._reason or error


def _choose(failure: RequestError, tries: int, rows: int) -> Next:
    todo = choose_next(failure.status, failure.code, failure.param)
    if failure.status == 500 and tries >= MAX_TRIES:
        return Next.SPLIT
    if failure.status == 504 and rows == 1:
        return Next.RETRY
    return todo


def _start_feed(parts: Iterator[Part]) -> "asyncio.Queue[Part | BaseException | None]":
    """Read parts in a thread, one ahead. The end is None, or the exception that ended the reading."""
    loop = asyncio.get_running_loop()
    feed: asyncio.Queue[Part | BaseException | None] = asyncio.Queue(1)

    def put(item: Part | BaseException | None) -> None:
        # The loop is closed if the run has ended early.
        if not loop.is_closed():
            asyncio.run_coroutine_threadsafe(feed.put(item), loop).result()

    def read() -> None:
        end: BaseException | None = None
        try:
            for part in parts:
                put(part)
        except concurrent.futures.CancelledError:
            return
        except Exception as error:
            end = error
        with contextlib.suppress(concurrent.futures.CancelledError):
            put(end)

    # A daemon, because a read from stdin cannot be interrupted.
    threading.Thread(target=read, name="reader", daemon=True).start()
    return feed
