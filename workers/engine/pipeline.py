"""Threads that turn batches into vectors: one tokenizes and splits, and one per infer request runs the device.

Interactive batches overtake bulk batches between any two micro-batches, up to a limit. The thread of the service owns
the sockets: finished batches wait in `Pipeline.finished`, and `wake` wakes the service.
"""

import collections
import itertools
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from broker.wire import protocol as wire
from workers.engine.backend import Backend, Ids, Vectors
from workers.engine.batch_inputs import BatchInputs, sort_inputs

#: How many interactive items may overtake one bulk item. The broker divides the lanes only while both wait there; a
#: leased bulk batch must run here long before its lease expires.
MAX_OVERTAKES = 16

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Work:
    """One batch in the pipeline. Several threads write `vectors`, each its own rows."""

    batch: wire.Batch
    frame: wire.Frame = field(repr=False)
    #: None before the batch is tokenized, and after that failed.
    inputs: BatchInputs | None = None
    #: Rows of the accepted jobs in their order, float32 `[accepted, dimension]`.
    vectors: Vectors = field(default_factory=lambda: np.empty((0, 0), np.float32), repr=False)
    #: Time from the start of the first micro-batch to the end of the last.
    inference_s: float = 0.0
    #: Padding tokens in all micro-batches.
    padding: int = 0
    #: Why the batch failed, or "".
    error: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    #: Micro-batches that have not ended.
    _open: int = 0
    _started: float = math.inf

    def expect_micro_batches(self, micro_batches: Sequence[Sequence[int]], lengths: Sequence[int]) -> None:
        """Record the micro-batches, as lists of row numbers, before the first of them runs."""
        self._open = len(micro_batches)
        self.padding = sum(len(rows) * lengths[rows[0]] for rows in micro_batches) - sum(lengths)

    def finish_micro_batch(self, started: float, ended: float, error: str) -> bool:
        """Record the end of a micro-batch. Return whether it was the last."""
        with self._lock:
            self._started = min(self._started, started)
            self.inference_s = max(self.inference_s, ended - self._started)
            self.error = self.error or error
            self._open -= 1
            return self._open == 0

    def build_frame(self) -> tuple[wire.Frame, bytes]:
        """Return the frame of all rows and the column of their sizes, which is empty if all rows are vectors."""
        vectors = self.vectors.reshape(-1).view("u1").data
        if self.inputs is None or not self.inputs.tokenized:
            return vectors, b""
        width = self.vectors.shape[1] * self.vectors.itemsize
        rows = self.inputs.merge_rows([vectors[start : start + width] for start in range(0, len(vectors), width)])
        return b"".join(rows), wire.pack_u32(map(len, rows))


class LanePriorityQueue(Generic[T]):
    """Queue in which interactive items overtake bulk items, at most `MAX_OVERTAKES` each. A lane keeps its order."""

    def __init__(self) -> None:
        self._queue: queue.PriorityQueue[tuple[float, int, T | None]] = queue.PriorityQueue()
        self._numbers = itertools.count()

    def put(self, lane: wire.Lane, item: T) -> None:
        """Append an item to a lane."""
        number = next(self._numbers)
        self._queue.put((number - (MAX_OVERTAKES if lane == wire.Lane.INTERACTIVE else 0), number, item))

    def put_end(self) -> None:
        """Make one `get` return None after all items."""
        self._queue.put((math.inf, next(self._numbers), None))

    def get(self) -> T | None:
        """Wait for the next item and return it, or None at the end."""
        return self._queue.get()[2]


@dataclass(slots=True, eq=False)
class MicroBatch:
    """Inputs that one inference runs."""

    work: Work
    #: Rows of `work.vectors` that the inference fills.
    rows: list[int]
    ids: list[Ids] = field(repr=False)


class Pipeline:
    """Threads between `submit` and `finished`. If a thread dies, the process ends (see `workers/__main__.py`)."""

    def __init__(self, backend: Backend, wake: Callable[[], None]) -> None:
        """Create the threads; they call `wake` after each batch that they append to `finished`."""
        self._backend = backend
        self._wake = wake
        self._batches: LanePriorityQueue[Work] = LanePriorityQueue()
        self._micro_batches: LanePriorityQueue[MicroBatch] = LanePriorityQueue()
        self.finished: collections.deque[Work] = collections.deque()
        self._threads = [
            threading.Thread(target=self._prepare_batches, name="tokenize", daemon=True),
            *(
                threading.Thread(target=self._run_micro_batches, args=(request,), name=f"infer-{request}", daemon=True)
                for request in range(backend.requests)
            ),
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def submit(self, work: Work) -> None:
        """Queue a batch, which will be appended to `finished` with its vectors or an error."""
        self._batches.put(work.batch.lane, work)

    def stop(self) -> None:
        """End the threads. All submitted batches must have finished."""
        self._batches.put_end()
        for _ in range(self._backend.requests):
            self._micro_batches.put_end()
        for thread in self._threads:
            thread.join()

    def _prepare_batches(self) -> None:
        """Tokenize batches and split them into micro-batches, until the end of the queue."""
        while (work := self._batches.get()) is not None:
            try:
                options = work.batch.options or bytes(len(work.batch.kinds))
                inputs = work.inputs = sort_inputs(self._read_ids(work), options, self._backend)
            except Exception as error:  # whatever a tokenizer raises: the broker runs the jobs of a failed batch alone
                # Not the error's repr, because that of a UnicodeDecodeError has the input in it.
                work.error = f"tokenizer: {type(error).__name__}: {error}"
                self._finish_batch(work)
                continue
            answer_bytes = inputs.count_answer_bytes(self._backend.dimension)
            if answer_bytes > wire.MAX_FRAME_BYTES:
                # The broker runs the jobs of a failed batch alone, and the answer to one job is small enough.
                work.error = f"tokenizer: an answer of {answer_bytes} bytes is longer than a frame"
                self._finish_batch(work)
                continue
            work.vectors = np.empty((len(inputs.accepted), self._backend.dimension), np.float32)
            lengths = [len(ids) for ids in inputs.accepted]
            split = split_micro_batches(lengths, self._backend.micro_batch_tokens, self._backend.requests - 1)
            work.expect_micro_batches(split, lengths)
            if not split:
                self._finish_batch(work)
            for rows in split:
                micro_batch = MicroBatch(work, rows, [inputs.accepted[row] for row in rows])
                self._micro_batches.put(work.batch.lane, micro_batch)

    def _read_ids(self, work: Work) -> list[Ids]:
        """Return the ids of each job: tokenize its text, or take its ids as they are."""
        jobs = wire.split_frame(work.frame, wire.unpack_u32(work.batch.lengths))
        kinds = work.batch.kinds
        texts = [str(job, "utf-8") for job, kind in zip(jobs, kinds, strict=True) if kind == wire.Kind.TEXT]
        text_ids = iter(self._backend.tokenize_texts(texts))
        return [
            next(text_ids) if kind == wire.Kind.TEXT else np.frombuffer(job, np.uint32).astype(np.int64)
            for job, kind in zip(jobs, kinds, strict=True)
        ]

    def _run_micro_batches(self, request: int) -> None:
        """Run micro-batches on one infer request, until the end of the queue."""
        while (item := self._micro_batches.get()) is not None:
            started = time.monotonic()
            try:
                error = self._fill_rows(item, request)
            except Exception as caught:  # whatever a device plugin raises fails the batch, not the worker
                error = f"device: {type(caught).__name__}: {caught}"
                # If the device also fails on an input that worked before, this thread dies, and the worker with it.
                self._backend.verify_device(request)
            if item.work.finish_micro_batch(started, time.monotonic(), error):
                self._finish_batch(item.work)

    def _fill_rows(self, item: MicroBatch, request: int) -> str:
        """Run a micro-batch and write its rows. Return why the vectors are invalid, or "".

        Raise `ValueError` if the vectors have the wrong shape, and whatever the device raises.
        """
        work, rows = item.work, item.rows
        vectors = self._backend.run_inference(request, item.ids)
        if vectors.shape != (len(rows), self._backend.dimension):
            # numpy would repeat a single row or column to fill the others.
            raise ValueError(f"the device returned vectors of shape {vectors.shape} for {len(rows)} inputs")
        # The only copy of a vector, because the next inference overwrites the device's output.
        work.vectors[rows] = vectors
        self._undo_normalization(work, rows, request)
        return "" if np.isfinite(work.vectors[rows]).all() else "the device returned a vector that is not finite"

    def _undo_normalization(self, work: Work, rows: Sequence[int], request: int) -> None:
        """Multiply the rows of jobs with `Option.RAW` by their divisors."""
        raw = work.inputs.raw if work.inputs else set()
        if not raw or (divisors := self._backend.get_divisors(request)) is None:
            return
        for row, divisor in zip(rows, divisors, strict=True):
            if row in raw:
                work.vectors[row] *= divisor

    def _finish_batch(self, work: Work) -> None:
        self.finished.append(work)
        self._wake()


def split_micro_batches(lengths: Sequence[int], budget: int, streams: int) -> list[list[int]]:
    """Return micro-batches as lists of row numbers, with similar lengths together and the longest rows first.

    A micro-batch has at most `budget` tokens with padding, or a single row. If there are few rows, each stream still
    gets some, because two half batches on two streams end sooner than a whole batch on one. The longest rows run first
    so that the last micro-batches, when streams run out of work, are short.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    share = -(-sum(lengths) // max(1, streams))
    budget = max(1, min(budget, share))
    micro_batches: list[list[int]] = []
    for row in order:
        longest = lengths[micro_batches[-1][0]] if micro_batches else 0
        if micro_batches and longest * (len(micro_batches[-1]) + 1) <= budget:
            micro_batches[-1].append(row)
        else:
            micro_batches.append([row])
    return micro_batches
