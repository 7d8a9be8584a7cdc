"""Messages between frontends and the broker. Pure. Tags 1-15 go to the broker, 16-31 to the frontend."""

from typing import Annotated

import msgspec

from broker.wire.columns import (
    U8,
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
from broker.wire.common import Caching, Kind, Lane, Message, ModelInfo, ModelState, Origin
from broker.wire.errors import ErrorCode

# --- frontend to broker ----------------------------------------------------------------------------------------------


class FrontendHello(Message, tag=1):
    """First message of a connection, and the answer to `Who`."""

    protocol_min: int
    protocol_max: int
    #: Version of Vecmill (`broker.shared.version`).
    build: Name
    uuid: Uuid
    host: Name
    pid: int


class Submission(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """One request. Its raw frame holds the inputs one after another."""

    #: Counts up in one frontend process; a resend after a restart of the broker carries the same number.
    request: U63
    model: Name
    lane: Lane
    #: Client that takes turns with other clients; empty: the frontend itself.
    client: Name
    #: Time until the deadline.
    budget_ms: U32
    kind: Kind
    #: Bytes of each input.
    lengths: U32Column
    #: `Option` bits of all jobs.
    options: U8 = 0
    origin: Origin = Origin()
    #: Limits of the client's key in open jobs, and in tokens per minute; 0: no limit.
    client_jobs: U32 = 0
    client_tokens: U63 = 0
    #: Address of a client without a key, which is limited like a client; empty: unknown, or the client has a key.
    address: Name = ""
    #: Revision of the model that the request was prepared for; empty: the current one.
    revision: Name = ""
    caching: Caching = Caching.USE


class Submit(Message, tag=2):
    """Submissions of one turn of a frontend's event loop, with one raw frame each."""

    submissions: list[Submission]

    def frame_sizes(self) -> list[int]:
        """See `Message`."""
        return [sum(unpack_u32(submission.lengths)) for submission in self.submissions]


class Cancel(Message, tag=3):
    """Cancel requests; their answers are no longer needed."""

    requests: U64Column
    #: Requests among these that a disconnected client abandoned; the frontend itself ended the others.
    abandoned: U64Column = b""

    def frame_sizes(self) -> list[int]:
        """See `Message`."""
        unpack_u64(self.requests)
        unpack_u64(self.abandoned)
        return []


class FrontendHeartbeat(Message, tag=4):
    """Heartbeat, sent every `Welcome.heartbeat_ms`; the broker answers with `Stats`."""

    #: Bytes of vectors received since `Welcome`; -1: not counted.
    received: Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)] = -1


class FrontendGoodbye(Message, tag=5):
    """The frontend shuts down and has no open request."""


class ReloadModels(Message, tag=6):
    """Let all workers read their configurations again; the broker answers with `ModelsReloaded`."""

    number: U63


# --- broker to frontend ----------------------------------------------------------------------------------------------


class Models(Message, tag=20):
    """All known models, sent after `Welcome` and after each change. A model without workers has `workers` 0."""

    models: list[ModelInfo]
    #: States of all models in `models`, and of models that no worker has served yet.
    states: list[ModelState] = msgspec.field(default_factory=list)
    #: Models in `models` that were removed: they still answer requests, but take no new ones.
    removed: list[Name] = msgspec.field(default_factory=list)


class Answers(Message, tag=21):
    """Rows of one batch that belong to this frontend, with one entry for each row in every column.

    Raw frame: the rows, each `dimension` float32 values, little-endian; with `sizes`, rows of those sizes.
    """

    requests: U64Column
    positions: U32Column
    tokens: U32Column
    dimension: U32
    #: Longest queueing time of these jobs, and inference time of the batch, in microseconds.
    queue_us: U63
    inference_us: U63
    #: Revision of the model that computed the vectors.
    revision: Name
    #: Tokens truncated from each input; empty: none.
    truncated: U32Column = b""
    #: Bytes of each row; empty: every row is a vector.
    sizes: U32Column = b""
    #: `Source` of each row; empty: all were computed.
    sources: U8Column = b""

    def frame_sizes(self) -> list[int]:
        """See `Message`."""
        rows = len(unpack_u64(self.requests))
        require_same_length(rows, self.sources or self.positions[::4])
        columns = [self.positions, self.tokens, *([self.truncated] if self.truncated else [])]
        require_same_length(rows, *map(unpack_u32, columns))
        return [sum_row_sizes(rows, self.dimension, self.sizes)]


class Failure(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """End of a job without a vector; at position -1, of the whole request."""

    request: U63
    position: int
    code: ErrorCode
    text: Text
    retry_after_ms: U32 = 0


class Failures(Message, tag=22):
    """Jobs and requests that end without a vector."""

    failures: list[Failure]


class WorkerStats(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """One connected worker, for `/health`."""

    name: Name
    device: Name
    models: list[Name]
    leased_batches: int
    answered_batches: int
    answered_jobs: int
    #: Precision of each model; see `ModelInfo`.
    precisions: dict[Name, Name] = {}


class Stats(Message, tag=23):
    """Answer to a frontend's heartbeat: totals since the broker's start, and numbers of the moment."""

    counters: dict[str, int]
    workers: list[WorkerStats]
    open_jobs: int
    queued_jobs: int


class ModelsReloaded(Message, tag=24):
    """All workers have answered a `ReloadModels`, or are gone. `failure`: what could not be read or loaded."""

    number: U63
    changed: bool
    failure: Text = ""
