"""One batch from its claim to its files: validation, chunks, finalization. The database has all progress.

A chunk's output and errors are objects of the file store, written before the transaction that commits the chunk. Two
parts run at a time, so that the workers have work while one is committed; a crash repeats at most these two.
"""

import asyncio
import collections
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec

from frontend.batches import metrics
from frontend.batches.answering import Answer, Answerer, Line, make_options, render_skipped
from frontend.batches.errors import MissingContentError, StoreError
from frontend.batches.leased_batch import LeasedBatch, LeaseLostError
from frontend.batches.model_search import ModelSearch
from frontend.batches.pace import FIRST_PART_LINES, adapt_part_lines
from frontend.batches.reading import InputFile
from frontend.batches.rows import Batch, BatchError, Chunk, File, FilePart, make_id
from frontend.batches.sending import PAUSES, Part, Sender, Stop
from frontend.batches.store import Store
from frontend.batches.validation import Validator
from frontend.config import ANSWER_SETTINGS, Config
from frontend.session.broker_client import BrokerClient

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Code and message of lines that did not run before the batch expired, as in OpenAI's error files.
_EXPIRED = BatchError("batch_expired", "This request could not be executed before the completion window expired.")


class BatchRun:
    """A batch that this runner has claimed."""

    def __init__(self, store: Store, broker: BrokerClient, config: Config, batch: Batch, holder: str) -> None:
        self._contents, self._broker = store.contents, broker
        # Answers are those of the frontend that has accepted the batch, which may have other settings than this runner.
        known = {name: batch.settings[name] for name in ANSWER_SETTINGS if name in batch.settings}
        config = self._config = msgspec.structs.replace(config, **known)
        self._batch = batch
        self._leased = LeasedBatch(store, batch, holder)
        self._sender = Sender(self._answer)
        self._answerer = Answerer(broker, config, batch.id, batch.endpoint, batch.revision)
        #: Whether the batch ends without the rest of its input, because the file store is away.
        self._unread = False
        #: When the batch expires, by the monotonic clock.
        self._expiry = time.monotonic() + batch.expires_at - time.time()

    @property
    def owner(self) -> str:
        """Client whose batch this is."""
        return self._batch.owner

    @property
    def id(self) -> str:
        """Id of the batch."""
        return self._batch.id

    @property
    def waits(self) -> bool:
        """Whether the batch has given up its slot because it waits."""
        return self._sender.stopped == Stop.WAIT

    def drain(self) -> None:
        """Send no further line, and commit those that are with the broker."""
        self._sender.stop(Stop.DRAIN)
        self._leased.leave()

    async def run(self) -> None:
        """Work on the batch until it ends, or until another runner must go on."""
        keeper = asyncio.create_task(self._leased.keep(self._sender.stop))
        wait_s = max(0.0, self._expiry - time.monotonic())
        expiry = asyncio.get_running_loop().call_later(wait_s, self._sender.stop, Stop.EXPIRE)
        if self._batch.status == "cancelling":
            self._sender.stop(Stop.CANCEL)
        faulty = False
        try:
            await self._run_steps()
        except LeaseLostError:
            log.warning("%s: another runner has this batch now", self._batch.id)
        except StoreError as error:
            log.warning("%s: left to another runner: %s", self._batch.id, error)
        except Exception:
            log.exception("%s: failed, and is tried again when the lease runs out", self._batch.id)
            faulty = True
        finally:
            keeper.cancel()
            expiry.cancel()
            await self._sender.close()
        if faulty:
            await self._handle_fault()
        else:
            await self._leased.release(waits=self.waits)

    async def _handle_fault(self) -> None:
        """Leave the batch for a while, or end it with the files of its committed lines after several faults."""
        try:
            if await self._leased.record_fault():
                self._batch = self._leased.batch
                text = "the server failed to process this batch; its log has the reason"
                await self._fail([BatchError("internal_error", text)])
        except (LeaseLostError, StoreError) as error:
            log.warning("%s: left to another runner: %s", self.id, error)
        except Exception:
            log.exception("%s: ends without its files", self.id)
            with contextlib.suppress(Exception):
                await self._leased.end()

    async def _run_steps(self) -> None:
        parts = await self._leased.list_parts()
        file = InputFile(self._contents, parts, self._config.max_body_bytes)
        try:
            if not parts:
                raise MissingContentError("the content of the input file is missing")
            if self._batch.status == "validating" and not await self._validate(file):
                return
            if self._batch.status != "finalizing" and not await self._run_lines(file):
                return
        except MissingContentError as error:
            if self._sender.stopped != Stop.CANCEL:
                await self._fail([BatchError("input_file_missing", f"the input cannot be read: {error}")])
                return
        await self._finish()

    # --- validation --------------------------------------------------------------------------------------------------

    async def _validate(self, file: InputFile) -> bool:
        """Check the input file and begin to run it. Return False if another runner must go on, or if it failed."""
        batch = self._batch
        errors = [] if batch.names else await self._check_file(file)
        errors = errors or await ModelSearch(batch, self._broker, self._sender).run()
        if self._sender.stopped == Stop.WAIT:
            # The next claim need not read the file again.
            await self._leased.save()
        if self._sender.stopped in PAUSES:
            return False
        if errors:
            await self._fail(errors)
            return False
        batch.status, batch.in_progress_at = "in_progress", int(time.time())
        await self._leased.save()
        return True

    async def _check_file(self, file: InputFile) -> list[BatchError]:
        """Read the whole file, and note its models and number of requests if it is valid. Return its errors."""
        began = time.monotonic()
        validator = await self._read(lambda: self._check_lines(file))
        if validator is None or self._sender.stopped in (*PAUSES, Stop.CANCEL):
            return []
        validator.finish()
        if not validator.errors:
            self._batch.names, self._batch.total = validator.models, validator.requests
            log.info("%s: %d requests validated in %.1f s", self.id, validator.requests, time.monotonic() - began)
        return validator.errors

    async def _read(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """Return what a call reads of the input; None if the batch has stopped and the input cannot be read."""
        try:
            return await self._leased.insist(call, self._sender.stop_event)
        except MissingContentError:
            raise
        except StoreError as error:
            if self._sender.stopped not in (Stop.CANCEL, Stop.EXPIRE, Stop.REPLACE):
                raise
            log.warning("%s: ends without the rest of its input: %s", self.id, error)
            self._unread = True
            return None

    async def _check_lines(self, file: InputFile) -> Validator:
        validator = Validator(self._batch.endpoint, self._config.max_batch_inputs, file.max_line_bytes)
        async for line in file.read_lines():
            validator.add_line(line)
            if validator.complete or self._sender.stopped in (*PAUSES, Stop.CANCEL):
                break
        return validator

    # --- lines -------------------------------------------------------------------------------------------------------

    async def _run_lines(self, file: InputFile) -> bool:
        """Run the lines that are not committed. Return False if another runner must go on."""
        chunks = await self._leased.list_chunks()
        last = chunks[-1] if chunks else Chunk(batch="", number=-1, first_line=0, end_line=0, input_offset_end=0)
        if last.skipped:
            # The runner before has committed that no further line runs.
            self._sender.stop(Stop.EXPIRE if last.skipped == _EXPIRED else Stop.REPLACE, last.skipped.message)
        number, committed = last.number, last.end_line
        offset, lines, part_lines = last.input_offset_end, last.end_line, FIRST_PART_LINES
        self._answerer = Answerer(
            self._broker, self._config, self._batch.id, self._batch.endpoint, self._batch.revision
        )
        parts: collections.deque[Part] = collections.deque()
        more, began = True, time.monotonic()
        while True:
            while more and len(parts) < 2 and self._sender.stopped not in (*PAUSES, Stop.CANCEL):
                found = await self._read(
                    lambda: file.read_part(self._answerer, offset, lines, part_lines)  # noqa: B023  called at once
                )
                more = bool(found)
                if found:
                    offset, lines = found[-1].end, found[-1].number
                    parts.append(Part(found))
                    self._sender.send(parts[-1])
            if not parts:
                break
            part = parts.popleft()
            await part.settled.wait()
            done, skipped = self._list_answers(part)
            if done:
                number += 1
                await self._commit(number, committed, part.lines[: len(done)], done, skipped)
                committed = part.lines[len(done) - 1].number
            if len(done) < len(part.lines):
                break
            if len(done) == part_lines:
                part_lines = adapt_part_lines(part_lines, time.monotonic() - began)
            began = time.monotonic()
        if self._sender.stopped == Stop.LOST:
            raise LeaseLostError
        return self._sender.stopped not in PAUSES

    async def _answer(self, line: Line) -> Answer:
        return await self._answerer.answer(line, make_options(self._batch, self._expiry))

    def _list_answers(self, part: Part) -> tuple[list[Answer], BatchError | None]:
        """Return the answers to commit: all of them, or those before the first line that did not run.

        Return as well why lines did not run if they get an error as their answer.
        """
        skipped = self._explain_skips()
        answers: list[Answer] = []
        complete = None not in part.answers
        for line, answer in zip(part.lines, part.answers, strict=True):
            if answer is None:
                if not skipped:
                    break
                answer = render_skipped(line, skipped.code, skipped.message)
            answers.append(answer)
        return answers, None if complete else skipped

    def _explain_skips(self) -> BatchError | None:
        """Return the error of lines that never ran; None if another runner goes on, or if the batch is cancelled."""
        replaced = BatchError("model_replaced", self._sender.stop_reason, "model")
        return {Stop.EXPIRE: _EXPIRED, Stop.REPLACE: replaced}.get(self._sender.stopped or Stop.DRAIN)

    async def _commit(
        self,
        number: int,
        first_line: int,
        lines: Sequence[Line],
        answers: Sequence[Answer],
        skipped: BatchError | None,
    ) -> None:
        """Write the objects of a chunk, then commit it. Raise `LeaseLostError` if another runner has the batch."""
        chunk = Chunk(
            batch=self._batch.id,
            number=number,
            first_line=first_line,
            end_line=lines[-1].number,
            input_offset_end=lines[-1].end,
            completed=sum(answer.succeeded for answer in answers),
            failed=sum(not answer.succeeded for answer in answers),
            tokens=sum(answer.tokens for answer in answers),
            skipped=skipped,
        )
        # With the holder, so that a runner that was frozen cannot replace what the next holder has committed.
        key = f"batches/{self._batch.id}/{number:06}-{self._leased.holder[:8]}"
        if output := b"".join(answer.line for answer in answers if answer.succeeded):
            chunk.output_key, chunk.output_bytes = f"{key}-output", len(output)
            await self._leased.put(chunk.output_key, output)
        if errors := b"".join(answer.line for answer in answers if not answer.succeeded):
            chunk.error_key, chunk.error_bytes = f"{key}-errors", len(errors)
            await self._leased.put(chunk.error_key, errors)
        await self._leased.commit(chunk)
        metrics.lines.labels("completed").inc(chunk.completed)
        metrics.lines.labels("failed").inc(chunk.failed)
        log.debug("%s: chunk %d committed, lines up to %d", self._batch.id, number, chunk.end_line)

    # --- the end -----------------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        """Make the output and the error file of the committed chunks, and end the batch."""
        batch, stop, now = self._batch, self._sender.stopped, int(time.time())
        if stop is None and batch.status != "finalizing":
            batch.status, batch.finalizing_at = "finalizing", now
            await self._leased.save()
        chunks = await self._leased.list_chunks()
        skipped = next((one.skipped for one in chunks if one.skipped), self._explain_skips() if self._unread else None)
        if stop == Stop.CANCEL:
            batch.status, batch.cancelled_at = "cancelled", now
        elif skipped is None:
            batch.status, batch.completed_at = "completed", now
        elif skipped == _EXPIRED:
            batch.status, batch.expired_at = "expired", now
        else:
            batch.status, batch.failed_at, batch.errors = "failed", now, [skipped]
        await self._end(chunks)

    async def _end(self, chunks: Sequence[Chunk]) -> None:
        """Save the row of a batch that has ended, and its files of the committed chunks."""
        output = self._make_file("output", [(one.output_key, one.output_bytes) for one in chunks])
        errors = self._make_file("error", [(one.error_key, one.error_bytes) for one in chunks])
        self._batch.output_file_id = output[0].id if output else None
        self._batch.error_file_id = errors[0].id if errors else None
        await self._leased.end([file for file in (output, errors) if file])

    def _make_file(self, kind: str, objects: list[tuple[str, int]]) -> tuple[File, list[FilePart]] | None:
        """Return a file of these objects, or None if none has any bytes."""
        objects = [(key, size) for key, size in objects if size]
        if not objects:
            return None
        batch, now = self._batch, int(time.time())
        file = File(
            id=make_id("file-", time.time_ns(), secrets.token_bytes(8)),
            owner=batch.owner,
            bytes=sum(size for _, size in objects),
            created_at=now,
            expires_at=now + batch.output_expires_after_s if batch.output_expires_after_s else None,
            filename=f"{batch.id}_{kind}.jsonl",
            purpose="batch_output",
        )
        return file, [FilePart(file.id, number, key, size) for number, (key, size) in enumerate(objects)]

    async def _fail(self, errors: list[BatchError]) -> None:
        batch = self._batch
        batch.status, batch.failed_at, batch.errors = "failed", int(time.time()), errors
        await self._end(await self._leased.list_chunks())
