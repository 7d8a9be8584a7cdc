"""From a batch to its vectors, in threads: one tokenises, sorts and cuts, one per infer request runs the device.

Interactive batches overtake bulk ones, between any two micro-batches, but not for ever.
There is one infer request more than the device has streams, so that the next inference is already queued when one
ends. Sockets belong to the service's thread; finished batches wait in `finished` and the service is woken by `wake`.
"""

import collections
import itertools
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np

from broker.wire import protocol as wire
from workers.engine.backend import Backend, Ids, Vectors
from workers.engine.batch_inputs import BatchInputs


class Work:
    """One batch on its way. Rows of `vectors` are written by several threads, each its own rows."""

    def __init__(self, batch: wire.Batch, frame: wire.Frame) -> None:
        self.batch = batch
        self.frame = frame
        #: None until it is tokenised, and when that failed.
        self.inputs: BatchInputs | None = None
        #: Of the accepted jobs, in their order.
        self.vectors: Vectors = np.empty((0, 0), np.float32)
        #: From the start of its first micro-batch to the end of its last.
        self.inference_s = 0.0
        #: Tokens that its micro-batches ran beside those of its jobs.
        self.padding = 0
        self.error = ""
        self._lock = threading.Lock()
        self._open = 0
        self._begun = math.inf

    def expect(self, micro_batches: Sequence[Sequence[int]], lengths: Sequence[int]) -> None:
        """Its micro-batches, before the first of them is run."""
        self._open = len(micro_batches)
        self.padding = sum(len(rows) * lengths[rows[0]] for rows in micro_batches) - sum(lengths)

    def done(self, begun: float, ended: float, error: str) -> bool:
        """A micro-batch has run; True for the last one."""
        with self._lock:
            self._begun = min(self._begun, begun)
            self.inference_s = max(self.inference_s, ended - self._begun)
            self.error = self.error or error
            self._open -= 1
            return self._open == 0

    def rows(self) -> tuple[wire.Frame, bytes]:
        """The frame of all rows, and the column of their sizes, which is empty when all are vectors."""
        vectors = self.vectors.reshape(-1).view("u1").data
        if self.inputs is None or not self.inputs.tokenised:
            return vectors, b""
        width = self.vectors.shape[1] * self.vectors.itemsize
        each = [vectors[at : at + width] for at in range(0, len(vectors), width)]
        rows = self.inputs.rows(each)
        return b"".join(rows), wire.pack_u32(map(len, rows))


MicroBatch = tuple[Work, list[int], list[Ids]]
T = TypeVar("T")


#: So many interactive items overtake a bulk one that came before them. The broker keeps the lanes' shares only while
#: both wait there; what it has leased must come to its turn here, long before its lease is over.
MAX_OVERTAKES = 16


class LanePriorityQueue(Generic[T]):
    """A queue in which interactive items overtake bulk ones, and none its own lane; its end comes last."""

    def __init__(self) -> None:
        self._queue: queue.PriorityQueue[tuple[float, int, T | None]] = queue.PriorityQueue()
        self._numbers = itertools.count()

    def put(self, lane: wire.Lane, item: T) -> None:
        """Wait in a lane."""
        number = next(self._numbers)
        self._queue.put((number - (MAX_OVERTAKES if lane == wire.Lane.INTERACTIVE else 0), number, item))

    def end(self) -> None:
        """One `get` finds nothing more."""
        self._queue.put((math.inf, next(self._numbers), None))

    def get(self) -> T | None:
        """Wait for the next; None at the end."""
        return self._queue.get()[2]


class Pipeline:
    """The threads between `submit` and `finished`. A thread that dies takes the process with it (see __main__)."""

    def __init__(self, backend: Backend, wake: Callable[[], None]) -> None:
        self._backend = backend
        self._wake = wake
        self._batches: LanePriorityQueue[Work] = LanePriorityQueue()
        self._micro_batches: LanePriorityQueue[MicroBatch] = LanePriorityQueue()
        self.finished: collections.deque[Work] = collections.deque()
        self._threads = [
            threading.Thread(target=self._prepare, name="tokenise", daemon=True),
            *(
                threading.Thread(target=self._infer, args=(number,), name=f"infer-{number}", daemon=True)
                for number in range(backend.requests)
            ),
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def submit(self, work: Work) -> None:
        """Take a batch; it comes out of `finished`."""
        self._batches.put(work.batch.lane, work)

    def stop(self) -> None:
        """End the threads; call it when nothing is under way."""
        self._batches.end()
        for _ in range(self._backend.requests):
            self._micro_batches.end()
        for thread in self._threads:
            thread.join()

    def _prepare(self) -> None:
        while (work := self._batches.get()) is not None:
            try:
                work.inputs = BatchInputs(
                    self._ids(work), work.batch.options or bytes(len(work.batch.kinds)), self._backend
                )
            except Exception as error:  # whatever a tokenizer raises: the batch fails, and is then run job by job
                # Not its repr, which for undecodable text holds the text.
                work.error = f"tokenizer: {type(error).__name__}: {error}"
                self._finish(work)
                continue
            accepted = work.inputs.accepted
            work.vectors = np.empty((len(accepted), self._backend.dimension), np.float32)
            lengths = [len(ids) for ids in accepted]
            micro_batches = split_micro_batches(lengths, self._backend.micro_batch_tokens, self._backend.requests - 1)
            if not micro_batches:
                self._finish(work)
            work.expect(micro_batches, lengths)
            for rows in micro_batches:
                self._micro_batches.put(work.batch.lane, (work, rows, [accepted[row] for row in rows]))

    def _ids(self, work: Work) -> list[Ids]:
        jobs = wire.split(work.frame, wire.unpack_u32(work.batch.lengths))
        kinds = work.batch.kinds
        written = [str(job, "utf-8") for job, kind in zip(jobs, kinds, strict=True) if kind == wire.Kind.TEXT]
        texts = iter(self._backend.tokenise_texts(written))
        return [
            next(texts) if kind == wire.Kind.TEXT else np.frombuffer(job, np.uint32).astype(np.int64)
            for job, kind in zip(jobs, kinds, strict=True)
        ]

    def _infer(self, number: int) -> None:
        while (item := self._micro_batches.get()) is not None:
            work, rows, ids = item
            started = time.monotonic()
            error = ""
            try:
                vectors = self._backend.run_inference(number, ids)
                if vectors.shape != (len(rows), self._backend.dimension):
                    # numpy would repeat a single row, or a single column, where more are wanted.
                    raise ValueError(f"the device gave vectors of the shape {vectors.shape} for {len(rows)} inputs")
                # The only copy of a vector: the device's output is overwritten by the next inference.
                work.vectors[rows] = vectors
                self._undo_normalisation(work, rows, number)
                if not np.isfinite(work.vectors[rows]).all():
                    error = "the device gave a vector that is not finite"
            except Exception as caught:  # whatever a device plugin raises fails the batch, not the worker
                error = f"device: {type(caught).__name__}: {caught}"
                # Unless the device fails on what it could do before: then this thread dies, and the worker with it.
                self._backend.verify_device(number)
            if work.done(started, time.monotonic(), error):
                self._finish(work)

    def _undo_normalisation(self, work: Work, rows: Sequence[int], number: int) -> None:
        """Of those rows that the last inference has made and that want it."""
        raw = work.inputs.raw if work.inputs else set()
        if not raw or (divisors := self._backend.get_divisors(number)) is None:
            return
        for row, divisor in zip(rows, divisors, strict=True):
            if row in raw:
                work.vectors[row] *= divisor

    def _finish(self, work: Work) -> None:
        self.finished.append(work)
        self._wake()


def split_micro_batches(lengths: Sequence[int], budget: int, streams: int) -> list[list[int]]:
    """Micro-batches as lists of row numbers: similar lengths together, none above `budget` padded tokens.

    A micro-batch holds at least one row, whatever its length. With few rows each stream still gets some, for two
    half batches side by side end sooner than a whole one on one stream. Longest first: what is left to the end, when
    streams run dry one by one, is short.
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
