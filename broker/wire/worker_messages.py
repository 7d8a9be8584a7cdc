"""Messages between workers and the broker. Pure. Tags 32-47 go to the broker, 48-63 to the worker."""

from typing import Annotated

import msgspec

from broker.wire.columns import (
    U32,
    U63,
    Name,
    Text,
    U8Column,
    U32Column,
    U64Column,
    Uuid,
    require_same_length,
    sum_row_sizes,
    unpack_u32,
    unpack_u64,
)
from broker.wire.common import Lane, Message, ModelInfo, ModelKey, ModelState, Origin
from broker.wire.errors import ErrorCode, RemoteProtocolError

# --- worker to broker ------------------------------------------------------------------------------------------------


class WorkerHello(Message, tag=32):
    """First message of a worker, after each of its models has completed an inference, and the answer to `Who`."""

    protocol_min: int
    protocol_max: int
    build: Name
    uuid: Uuid
    #: Start time of the process in ns: a hello with the same uuid and incarnation is a reconnection.
    incarnation: U63
    host: Name
    pid: int
    device: Name
    models: list[ModelInfo]
    #: Best size of a batch in tokens, measured by the worker.
    batch_tokens: Annotated[int, msgspec.Meta(gt=0, lt=2**32)]
    #: Throughput in that measurement.
    tokens_per_s: Annotated[int, msgspec.Meta(gt=0, lt=2**32)]
    #: Batches that the worker accepts now: an absolute number, so that a lost or repeated message does no harm.
    credit: U32
    #: Counts the hellos of one process. The worker ignores messages before the answer to its latest hello.
    number: U63 = 0
    #: Inferences that run in parallel on the device.
    streams: U32 = 0


class WorkerHeartbeat(Message, tag=33):
    """Heartbeat, also sent when the credit changes without a result; the broker answers with `Heartbeat`.

    With a `ping`, it is an answer itself, and the broker sends none.
    """

    credit: U32
    #: Newest batch that the worker has received; `credit` counts from there. 0: none yet.
    seen: U63
    #: `Heartbeat.ping` that this message answers; 0: none.
    ping: U63 = 0


class JobFailure(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """A job without a vector, by its position in the batch."""

    position: U32
    code: ErrorCode
    text: Text


class BatchResult(Message, tag=34):
    """Result of a batch.

    Raw frame: a row for each job that did not fail, in the batch's order: a float32 vector, or the token ids of a
    tokenize-only job.
    """

    epoch: U63
    batch: U63
    dimension: U32
    #: Exact number of tokens of every job of the batch.
    tokens: U32Column
    failures: list[JobFailure]
    inference_us: U63
    credit: U32
    seen: U63
    #: Truncated tokens of every job, which `tokens` does not count; empty: none.
    truncated: U32Column = b""
    #: Bytes of each row; empty: every row is a vector.
    sizes: U32Column = b""
    #: Padding tokens that the inferences ran.
    padding: U63 = 0
    #: Number of the inferences, and of the inputs that they ran.
    micro_batches: U32 = 0
    micro_batch_inputs: U32 = 0

    def frame_sizes(self) -> list[int]:
        """See `Message`."""
        jobs = len(unpack_u32(self.tokens))
        failed = {failure.position for failure in self.failures}
        if len(failed) != len(self.failures) or any(position >= jobs for position in failed):
            raise RemoteProtocolError("a failure names no job of the batch, or two name the same")
        if self.truncated:
            require_same_length(jobs, unpack_u32(self.truncated))
        return [sum_row_sizes(jobs - len(failed), self.dimension, self.sizes)]


class BatchError(Message, tag=35):
    """The whole batch failed, and the worker continues."""

    epoch: U63
    batch: U63
    code: ErrorCode
    text: Text
    credit: U32
    seen: U63


class WorkerDrain(Message, tag=36):
    """The worker drains: it returns these batches unstarted, finishes the others and accepts no new ones."""

    unstarted: U64Column

    def frame_sizes(self) -> list[int]:
        """See `Message`."""
        unpack_u64(self.unstarted)
        return []


class WorkerGoodbye(Message, tag=37):
    """The worker shuts down and holds no batch."""


class WorkerLoading(Message, tag=38):
    """Notice that a process is loading a model, or failed to; sent every second before the hello, without an answer."""

    uuid: Uuid
    host: Name
    pid: int
    #: Empty while the process reads its configuration.
    model: Name
    #: Error of a failed model; empty while the model is loading.
    failure: Text = ""


class WorkerModels(Message, tag=39):
    """All models of a worker, sent after a change.

    A model that is no longer listed, or is now listed as unloaded, stays in the worker's memory until the broker's
    `Release`, because the worker may get more batches of it. A new revision of a listed name replaces the old one.
    """

    #: Counts the changes of one process.
    number: U63
    models: list[ModelInfo]
    #: States of models that the worker is loading or failed to load.
    states: list[ModelState] = msgspec.field(default_factory=list)


class Reloaded(Message, tag=40):
    """The worker has read its configuration again. `failure`: what cannot be read or loaded; that stays as it was."""

    number: U63
    changed: bool
    failure: Text = ""


# --- broker to worker ------------------------------------------------------------------------------------------------


class Heartbeat(Message, tag=49):
    """Answer to a worker's heartbeat, or a question whether the worker is alive."""

    #: Number that the worker sends back at once in `WorkerHeartbeat`; 0: none.
    ping: U63 = 0


class Load(Message, tag=50):
    """Load a model that the worker listed as unloaded, because requests wait for it."""

    model: Name
    revision: Name


class Release(Message, tag=51):
    """The worker will get no further batch of this model, so that it can free the model's memory."""

    model: Name
    revision: Name
    #: Number of the latest `WorkerModels` that the broker has handled.
    number: U63


class Reload(Message, tag=52):
    """Read the configuration again, and answer with `Reloaded` when all models are loaded."""

    number: U63


class Batch(Message, tag=48):
    """Jobs of one model and one lane, leased to the worker. Raw frame: the inputs one after another."""

    epoch: U63
    #: Counts up from 1 in one epoch.
    batch: U63
    model: Name
    kinds: U8Column
    lengths: U32Column
    #: Lane of all jobs. An interactive batch runs before the bulk batches that the worker holds.
    lane: Lane = Lane.BULK
    #: `Option` bits of each job; empty: none.
    options: U8Column = b""
    #: Origins of the requests, for logs.
    origins: list[Origin] = msgspec.field(default_factory=list)
    #: Revision of the model.
    revision: Name = ""

    @property
    def key(self) -> ModelKey:
        """Name and revision of the model."""
        return ModelKey(self.model, self.revision)

    def frame_sizes(self) -> list[int]:
        """See `Message`."""
        lengths = unpack_u32(self.lengths)
        require_same_length(len(lengths), self.kinds, self.options or self.kinds)
        return [sum(lengths)]
