"""Threads that turn batches into vectors: one tokenizes and cuts, and the others run the device.

There is one for each infer request of the model with the most of them, and thread 0 for those of all models that only
interactive batches use.

Interactive batches overtake bulk batches between two micro-batches, up to a limit, also those of other models, and have
an infer request of their own. While no inference runs, an interactive input runs on all CPUs. The thread of the service
owns the sockets: finished batches wait in `finished`.
"""

import collections
import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from broker.wire import protocol as wire
from broker.wire.protocol import ModelKey
from workers.engine.backend import Backend, Ids
from workers.engine.batch_inputs import sort_inputs
from workers.engine.cpus import NICE
from workers.engine.lane_queue import LanePriorityQueue
from workers.engine.micro_batches import cut_micro_batches
from workers.engine.work import MicroBatch, Numbers, Served, Work

#: Limit of bulk micro-batches relative to that of the costs, if interactive inputs do not wait for them.
BULK_LIMITS = 3.0
#: Seconds for which the free infer requests of streams are kept while the busy ones are awaited for a comparison.
BORROW_S = 0.5


class Pipeline:
    """Threads between `submit` and `finished`. If a thread dies, the process ends (see `workers/__main__.py`)."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """Create a pipeline without models. Its threads call `wake` after each batch that they append to `finished`."""
        self._wake = wake
        self._models: dict[ModelKey, Served] = {}
        self._batches: LanePriorityQueue[Work] = LanePriorityQueue()
        self._micro_batches: LanePriorityQueue[MicroBatch] = LanePriorityQueue()
        self.finished: collections.deque[Work] = collections.deque()
        self._tokenizing = threading.Thread(target=self._prepare_batches, name="tokenize", daemon=True)
        self._inferring: list[threading.Thread] = []
        self._opening: list[threading.Thread] = []
        #: Whether thread 0 waits for a micro-batch, or looks for one.
        self._spare_waits = False
        #: Micro-batches with an infer request.
        self._running: set[MicroBatch] = set()

    def start(self) -> None:
        """Start to tokenize."""
        self._tokenizing.start()

    def add_model(self, key: ModelKey, backend: Backend) -> None:
        """Accept batches of a model. There is a thread for each infer request of the model with the most of them."""
        served = self._models[key] = Served(backend)
        for request in range(backend.requests):
            served.free.put(request)
        for number in range(len(self._inferring), backend.requests + 1):
            name = f"infer-{number}"
            thread = threading.Thread(target=self._run_micro_batches, args=(number,), name=name, daemon=True)
            self._inferring.append(thread)
            thread.start()

    def remove_model(self, key: ModelKey) -> None:
        """Accept no more batches of a model. The batches that were submitted still run, and then free its memory."""
        self._models.pop(key, None)

    def submit(self, work: Work) -> None:
        """Queue a batch, which will be appended to `finished` with its vectors or an error."""
        served = self._models.get(work.batch.key)
        if served is None:
            work.error = f"the worker does not serve revision {work.batch.revision} of {work.batch.model}"
            self._finish_batch(work)
            return
        work.served = served
        if work.batch.lane == wire.Lane.BULK:
            self._open_once(served, "spare")
        elif len(work.batch.kinds) == 1 and not self._running and time.monotonic() >= served.wide_at:
            # While others run, the measurement of its speed would be wrong.
            self._open_once(served, "wide")
        self._batches.put(work.batch.lane, work)

    def _open_once(self, served: Served, name: str) -> None:
        """Start to open an infer request for interactive batches, `spare` or `wide`, unless that has been done."""
        if name in served.opened:
            return
        served.opened.add(name)
        target = self._open_spare if name == "spare" else self._open_wide
        thread = threading.Thread(target=target, args=(served,), name=f"open-{name}", daemon=True)
        self._opening = [*filter(threading.Thread.is_alive, self._opening), thread]
        thread.start()

    def _open_spare(self, served: Served) -> None:
        request = served.backend.open_spare_request()
        if request is not None:
            served.spare.put(request)
            served.has_spare = True
            self._micro_batches.retry()

    def _open_wide(self, served: Served) -> None:
        request = served.backend.open_wide_request(lambda: self._borrow_requests(served))
        if request is not None:
            served.wide.put(request)
            self._micro_batches.retry()
            return
        # Other processes may have used the CPUs during the comparison.
        served.wide_at = time.monotonic() + served.wide_pause_s
        served.wide_pause_s *= 2
        served.opened.discard("wide")

    @contextlib.contextmanager
    def _borrow_requests(self, served: Served) -> Iterator[list[int]]:
        """Reserve the infer requests of all streams, or none of them if they are not free within `BORROW_S`."""
        requests: list[int] = []
        deadline = time.monotonic() + BORROW_S
        try:
            with contextlib.suppress(queue.Empty):
                for _ in range(served.backend.requests):
                    requests.append(served.free.get(timeout=max(0.0, deadline - time.monotonic())))
            yield requests if len(requests) == served.backend.requests else []
        finally:
            for request in requests:
                served.free.put(request)
            self._micro_batches.retry()

    def stop(self) -> None:
        """End the threads. All submitted batches must have finished."""
        self._batches.put_end()
        for _ in self._inferring:
            self._micro_batches.put_end()
        for thread in (self._tokenizing, *self._inferring, *self._opening):
            thread.join()

    def _prepare_batches(self) -> None:
        """Tokenize batches and queue their micro-batches, until the end of the queue."""
        while (work := self._batches.get()) is not None:
            self._queue_micro_batches(work)
            # While the thread waits, it must not keep the memory of a model that was removed.
            del work

    def _queue_micro_batches(self, work: Work) -> None:
        try:
            split = self._prepare_batch(work, work.served.backend)
        except Exception as error:  # whatever a tokenizer raises: the broker runs the jobs of a failed batch alone
            # Not the error's repr, because that of a UnicodeDecodeError has the input in it.
            work.error = f"tokenizer: {type(error).__name__}: {error}"
            split = []
        if not split:
            self._finish_batch(work)
        for micro_batch in split:
            self._micro_batches.put(work.batch.lane, micro_batch)

    def _prepare_batch(self, work: Work, backend: Backend) -> list[MicroBatch]:
        """Return the micro-batches of a batch; none if no input is to run, or if `work.error` is set."""
        options = work.batch.options or bytes(len(work.batch.kinds))
        ids, prompt_tokens = self._read_ids(work, options, backend)
        inputs = work.inputs = sort_inputs(ids, prompt_tokens, options, backend)
        answer_bytes = inputs.count_answer_bytes(backend.dimension)
        if answer_bytes > wire.MAX_FRAME_BYTES:
            # The broker runs the jobs of a failed batch alone, and the answer to one job is small enough.
            work.error = f"tokenizer: an answer of {answer_bytes} bytes is longer than a frame"
            return []
        work.vectors = np.empty((len(inputs.accepted), backend.dimension), np.float32)
        lengths = [len(ids) for ids in inputs.accepted]
        limit_ms = backend.costs.limit_ms
        if work.batch.lane == wire.Lane.BULK and work.served.has_spare:
            limit_ms *= BULK_LIMITS
        split = cut_micro_batches(lengths, backend.costs, backend.streams, limit_ms)
        work.expect_micro_batches(split, lengths, pads=backend.costs.pads)
        return [
            MicroBatch(work, rows, [inputs.accepted[row] for row in rows], [inputs.prompt_tokens[row] for row in rows])
            for rows in split
        ]

    def _read_ids(self, work: Work, options: Sequence[int], backend: Backend) -> tuple[list[Ids], list[int]]:
        """Return the ids of each job, of its text or as they are, and how many of them the pooling leaves out."""
        jobs = wire.split_frame(work.frame, wire.unpack_u32(work.batch.lengths))
        kinds = work.batch.kinds
        texts = [str(job, "utf-8") for job, kind in zip(jobs, kinds, strict=True) if kind == wire.Kind.TEXT]
        text_ids = iter(backend.tokenize_texts(texts))
        ids = [
            next(text_ids) if kind == wire.Kind.TEXT else np.frombuffer(job, np.uint32).astype(np.int64)
            for job, kind in zip(jobs, kinds, strict=True)
        ]
        return ids, [
            backend.count_prompt_tokens(job) if option & wire.Option.PROMPT else 0
            for job, option in zip(jobs, options, strict=True)
        ]

    def _run_micro_batches(self, number: int) -> None:
        """Run micro-batches until the end of the queue: thread 0 as `_claim_interactive`, others as `_claim_free`."""
        # A device with a single stream runs in this thread.
        os.nice(NICE if number else 0)
        while (item := self._get_micro_batch(number)) is not None:
            self._run_micro_batch(item)
            # As above.
            del item

    def _get_micro_batch(self, number: int) -> MicroBatch | None:
        """Wait for a micro-batch that a thread can run, and return it, or None at the end."""
        if number:
            return self._micro_batches.get(self._claim_free)
        self._spare_waits = True
        item = self._micro_batches.get(self._claim_interactive)
        # This thread is busy now, so the others need not leave items to it.
        self._micro_batches.retry()
        return item

    # The queue calls claims one after another.

    def _claim_free(self, item: MicroBatch) -> bool:
        """Reserve an infer request of a stream. Leave to thread 0 what it can run at once."""
        if self._spare_waits and self._list_interactive(item):
            return False
        return self._claim(item, [item.work.served.free])

    def _claim_interactive(self, item: MicroBatch) -> bool:
        """Reserve an infer request that only interactive batches use."""
        claimed = self._claim(item, self._list_interactive(item))
        self._spare_waits = not claimed
        return claimed

    def _claim(self, item: MicroBatch, sources: Sequence[Numbers]) -> bool:
        claimed = any(item.claim(numbers) for numbers in sources)
        if claimed:
            self._running.add(item)
            if not item.is_interactive:
                # An interactive batch that waits may use the spare one now.
                self._micro_batches.retry()
        return claimed

    def _list_interactive(self, item: MicroBatch) -> list[Numbers]:
        """Return the infer requests only for interactive batches that can run a micro-batch now, the best first.

        One inference on all CPUs takes less time than on one, but more CPU time, and slows those that run at once.
        """
        if not item.is_interactive:
            return []
        served, suitable = item.work.served, []
        if item.is_whole_batch and not self._running:
            suitable.append(served.wide)
        # While only interactive batches run, one more inference would just slow them.
        if not all(running.is_interactive for running in self._running.copy()):
            suitable.append(served.spare)
        return [numbers for numbers in suitable if not numbers.empty()]

    def _run_micro_batch(self, item: MicroBatch) -> None:
        backend, request = item.work.served.backend, item.request
        started = time.monotonic()
        try:
            error = self._fill_rows(item, backend, request)
        except Exception as caught:  # whatever a device plugin raises fails the batch, not the worker
            error = f"device: {type(caught).__name__}: {caught}"
            # If the device also fails on an input that worked before, this thread dies, and the worker with it.
            backend.verify_device(request)
        self._running.discard(item)
        item.release_request()
        self._micro_batches.retry()
        if item.work.finish_micro_batch(started, time.monotonic(), error):
            self._finish_batch(item.work)

    def _fill_rows(self, item: MicroBatch, backend: Backend, request: int) -> str:
        """Run a micro-batch and write its rows. Return why the vectors are invalid, or "".

        Raise `ValueError` if the vectors have the wrong shape, and whatever the device raises.
        """
        work, rows = item.work, item.rows
        vectors = backend.run_inference(request, item.ids, item.prompt_tokens)
        if vectors.shape != (len(rows), backend.dimension):
            # numpy would repeat a single row or column to fill the others.
            raise ValueError(f"the device returned vectors of shape {vectors.shape} for {len(rows)} inputs")
        # The only copy of a vector, because the next inference overwrites the device's output.
        work.vectors[rows] = vectors
        self._undo_normalization(item, backend, request)
        return "" if np.isfinite(work.vectors[rows]).all() else "the device returned a vector that is not finite"

    def _undo_normalization(self, item: MicroBatch, backend: Backend, request: int) -> None:
        """Multiply the rows of jobs with `Option.RAW` by their divisors."""
        work = item.work
        raw = work.inputs.raw if work.inputs else set()
        if not raw or (divisors := backend.get_divisors(request)) is None:
            return
        for row, divisor in zip(item.rows, divisors, strict=True):
            if row in raw:
                work.vectors[row] *= divisor

    def _finish_batch(self, work: Work) -> None:
        self.finished.append(work)
        self._wake()
