"""Batches in a worker, the micro-batches that they are cut into, and the infer requests that run these."""

import contextlib
import math
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from broker.wire import protocol as wire
from workers.engine.backend import Backend, Ids, Vectors
from workers.engine.batch_inputs import BatchInputs

#: Numbers of infer requests that no thread uses.
Numbers = queue.SimpleQueue[int]


@dataclass(slots=True, eq=False)
class Served:
    """A model in the pipeline. A batch keeps its model until the batch has finished."""

    backend: Backend
    #: Requests of the streams.
    free: Numbers = field(default_factory=queue.SimpleQueue)
    #: Request that only interactive batches use, so that they do not wait for bulk inputs. Empty until it is opened.
    spare: Numbers = field(default_factory=queue.SimpleQueue)
    #: Whether it was opened.
    has_spare: bool = False
    #: Request that runs one inference on all CPUs, while no other runs. Empty until it is opened.
    wide: Numbers = field(default_factory=queue.SimpleQueue)
    #: When it may be opened, on the monotonic clock, and seconds until the next try if it is not faster than others.
    wide_at: float = 0.0
    wide_pause_s: float = 60.0
    #: Of `spare` and `wide`, those that were opened or are being opened.
    opened: set[str] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Work:
    """One batch in the pipeline. Several threads write `vectors`, each its own rows."""

    batch: wire.Batch
    frame: wire.Frame = field(repr=False)
    #: Model of the batch; set by `Pipeline.submit` if the pipeline has the model.
    served: Served = field(init=False, repr=False)
    #: None before the batch is tokenized, and after that failed.
    inputs: BatchInputs | None = None
    #: Rows of the accepted jobs in their order, float32 `[accepted, dimension]`.
    vectors: Vectors = field(default_factory=lambda: np.empty((0, 0), np.float32), repr=False)
    #: Time from the start of the first micro-batch to the end of the last.
    inference_s: float = 0.0
    #: Number of micro-batches, and padding tokens in all of them.
    micro_batches: int = 0
    padding: int = 0
    #: Why the batch failed, or "".
    error: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    #: Micro-batches that have not ended.
    _open: int = 0
    _started: float = math.inf

    def expect_micro_batches(
        self, micro_batches: Sequence[Sequence[int]], lengths: Sequence[int], *, pads: bool
    ) -> None:
        """Record the micro-batches, as lists of row numbers, before the first of them runs."""
        self.micro_batches = self._open = len(micro_batches)
        if pads:
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


@dataclass(slots=True, eq=False)
class MicroBatch:
    """Inputs that one inference runs."""

    work: Work
    #: Rows of `work.vectors` that the inference fills.
    rows: list[int]
    ids: list[Ids] = field(repr=False)
    #: Tokens at the start of each input that the pooling leaves out.
    prompt_tokens: list[int]
    #: Number of the infer request, and where it belongs; set by `claim`.
    request: int = -1
    _source: Numbers | None = None

    def claim(self, numbers: Numbers) -> bool:
        """Reserve one of these infer requests. Return whether there is a free one."""
        with contextlib.suppress(queue.Empty):
            self.request = numbers.get_nowait()
            self._source = numbers
            return True
        return False

    def release_request(self) -> None:
        """Make the infer request free again."""
        if self._source is not None:
            self._source.put(self.request)

    @property
    def is_interactive(self) -> bool:
        """Whether the batch is in the interactive lane."""
        return self.work.batch.lane == wire.Lane.INTERACTIVE

    @property
    def is_whole_batch(self) -> bool:
        """Whether the batch has no other micro-batch."""
        return self.work.micro_batches == 1
