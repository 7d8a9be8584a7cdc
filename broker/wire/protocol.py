"""The wire between the broker and its peers: messages, and the codec that turns frames into them.

A message is one msgpack header frame, a tagged union with integer tags, followed by raw frames. Vectors, texts and
token ids travel only in raw frames; numbers that belong to each job of a list travel as packed columns
(32 jobs cost 0.6 µs to encode as packed columns, 2.4 µs as a list of structs). Fields are only ever appended, with a
default. Nothing here opens a socket, reads a clock, or logs; importing it loads only msgspec and the standard library.

Tags: 1-15 frontend to broker, 16-31 broker to any peer, 32-47 worker to broker, 48-63 broker to worker.
"""

import array
import enum
import itertools
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, TypeVar

import msgspec

from broker.wire.errors import ErrorCode, RemoteProtocolError

#: The versions this build speaks, lowest and highest.
PROTOCOL_MIN = 1
PROTOCOL_MAX = 1

#: Longest frame a peer may send, in bytes; libzmq ends the connection of one that sends more.
MAX_FRAME_BYTES = 64 * 1024 * 1024

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("the wire is little-endian and so must be the machine")

U8 = Annotated[int, msgspec.Meta(ge=0, lt=2**8)]
U32 = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
U63 = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Name = Annotated[str, msgspec.Meta(max_length=512)]
Text = Annotated[str, msgspec.Meta(max_length=4096)]
Uuid = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
#: One u32 (u64) per job, packed little-endian.
U32Column = Annotated[bytes, msgspec.Meta(max_length=4 * 65536)]
U64Column = Annotated[bytes, msgspec.Meta(max_length=8 * 65536)]
U8Column = Annotated[bytes, msgspec.Meta(max_length=65536)]

Frame = bytes | memoryview


class Lane(enum.IntEnum):
    """Which of the two queues a request waits in."""

    INTERACTIVE = 0
    BULK = 1


class Kind(enum.IntEnum):
    """What the bytes of a job are: UTF-8 text, or u32 token ids."""

    TEXT = 0
    TOKENS = 1


class Option(enum.IntFlag):
    """What a job wants, as bits of a byte. None: the vector as the model makes it, and no input that is too long."""

    #: Cut an input that is too long at its end, or at its start.
    TRUNCATE_END = 1
    TRUNCATE_START = 2
    #: The vector as it is before normalisation.
    RAW = 4
    #: Token ids, u32 each, instead of a vector, of whatever length.
    TOKENISE = 8


class State(enum.IntEnum):
    """How a model is doing, over all workers: the best that any of them has of it."""

    AVAILABLE = 0
    LOADING = 1
    FAILED = 2
    UNLOADING = 3
    END = 4


def pack_u32(values: Iterable[int]) -> bytes:
    """Numbers to a packed column."""
    return array.array("I", values).tobytes()


def pack_u64(values: Iterable[int]) -> bytes:
    """Numbers to a packed column of 64 bits each."""
    return array.array("Q", values).tobytes()


def unpack_u32(column: bytes) -> "memoryview[int]":
    """A packed column as a sequence of numbers, without a copy; RemoteProtocolError when it is not one."""
    return _cast(column, "I", 4)


def unpack_u64(column: bytes) -> "memoryview[int]":
    """As `unpack_u32`, for 64 bits each."""
    return _cast(column, "Q", 8)


def _cast(column: bytes, code: Any, size: int) -> "memoryview[int]":
    if len(column) % size:
        raise RemoteProtocolError(f"a column of {len(column)} bytes does not hold {size}-byte numbers")
    return memoryview(column).cast(code)


def split(frame: Frame, lengths: Sequence[int]) -> list[memoryview]:
    """The jobs of a frame that holds their bytes one after another; `lengths` in bytes, summing to the frame's."""
    view = memoryview(frame)
    ends = list(itertools.accumulate(lengths))
    return [view[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _rows_size(rows: int, dimension: int, sizes: bytes) -> int:
    """Bytes of a frame of rows, whose sizes are told where not all are vectors."""
    if not sizes:
        return rows * dimension * 4
    each = unpack_u32(sizes)
    if len(each) != rows:
        raise RemoteProtocolError("columns of different lengths")
    return sum(each)


class Message(msgspec.Struct, array_like=True, gc=False):
    """Base of all: says which raw frames must follow the header."""

    def frame_sizes(self) -> list[int]:
        """Sizes in bytes of the raw frames; RemoteProtocolError when the header contradicts itself."""
        return []


# --- frontend to broker ---------------------------------------------------------------------------------------------


class FrontendHello(Message, tag=1):
    """The first message of a connection, and the answer to `Who`."""

    protocol_min: int
    protocol_max: int
    #: The version of Vecmill (`broker.shared.version`).
    build: Name
    uuid: Uuid
    host: Name
    pid: int


class Origin(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """Where jobs come from, for logs: the HTTP request's id, and its W3C traceparent, empty without one."""

    request_id: Name = ""
    traceparent: Name = ""


class Submission(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """One request's jobs. Its raw frame holds the inputs one after another."""

    #: Counts up in one frontend process; a resend after the broker's restart carries the same number.
    request: U63
    model: Name
    lane: Lane
    #: The client that takes turns with others for this request; empty: the frontend connection.
    client: Name
    budget_ms: U32
    kind: Kind
    #: Bytes of each input.
    lengths: U32Column
    #: `Option` bits of all its jobs.
    options: U8 = 0
    origin: Origin = Origin()
    #: What its client may have open, in jobs, and use, in tokens a minute; 0: as much as any.
    client_jobs: U32 = 0
    client_tokens: U63 = 0
    #: The address of the client, when many clients may be one: it is bounded as a client is. Empty: not told.
    address: Name = ""


class Submit(Message, tag=2):
    """All submissions of one turn of a frontend's event loop; one raw frame each."""

    submissions: list[Submission]

    def frame_sizes(self) -> list[int]:
        return [sum(unpack_u32(submission.lengths)) for submission in self.submissions]


class Cancel(Message, tag=3):
    """Nobody waits for these requests any more."""

    requests: U64Column
    #: Those of them whose client has gone away. The others the frontend has ended by itself.
    abandoned: U64Column = b""

    def frame_sizes(self) -> list[int]:
        unpack_u64(self.requests)
        unpack_u64(self.abandoned)
        return []


class FrontendHeartbeat(Message, tag=4):
    """Sent every `Welcome.heartbeat_ms`; the broker answers `Stats`."""

    #: Bytes of vectors received since `Welcome`; -1: a frontend that does not say.
    received: Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)] = -1


class FrontendGoodbye(Message, tag=5):
    """The frontend has nothing unanswered and leaves."""


# --- broker to any peer ---------------------------------------------------------------------------------------------


class Welcome(Message, tag=16):
    """The answer to a hello: the connection is in service."""

    protocol: int
    #: Random per start of the broker; results that carry another one are ignored.
    epoch: U63
    heartbeat_ms: U32
    #: Silence after which either side takes the other for dead.
    liveness_ms: U32
    #: Longest time a batch may run; a worker ends itself when one does not come back.
    lease_ms: U32
    #: The number of the worker's hello that this answers; 0 for a frontend's.
    hello: U63 = 0
    #: The longest wait that a request may expect when it is admitted.
    max_wait_ms: U32 = 2**32 - 1


class Who(Message, tag=17):
    """The broker does not know this connection: say hello (again)."""


class Goodbye(Message, tag=19):
    """The broker ends the connection's service, and says why."""

    code: ErrorCode
    text: Text


# --- broker to frontend ---------------------------------------------------------------------------------------------


class ModelInfo(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """A model as its workers announce it."""

    name: Name
    #: Hash of weights, tokenizer, pooling, normalisation and precision.
    revision: Name
    dimension: U32
    max_tokens: U32
    #: Live workers that serve it; a worker's own announcement leaves it at 0.
    workers: U32 = 0
    #: Token ids are below this; 0: not told.
    vocabulary: U32 = 0
    #: What a shorter input is filled up with.
    pad_id: U32 = 0
    #: Ids that the tokenizer puts before and after every text.
    before: list[U32] = []
    after: list[U32] = []
    #: Whether its vectors have length 1.
    normalized: bool = False
    #: Texts to put before an input, by name, and the name of the one for inputs that ask for none.
    prompts: dict[Name, Text] = {}
    default_prompt: Name = ""
    #: Whether the model declares that its vectors may be cut, and the lengths that it names for it, if any.
    matryoshka: bool = False
    matryoshka_dimensions: list[U32] = []


class ModelState(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """How a model is doing; the text says why it failed."""

    name: Name
    state: State
    text: Text = ""


class Models(Message, tag=20):
    """Every model the broker knows, sent after `Welcome` and whenever it changes. Unserved ones have 0 workers."""

    models: list[ModelInfo]
    #: Of every model in `models`, and of those that no worker has served yet.
    states: list[ModelState] = []


class Answers(Message, tag=21):
    """All of one batch's rows that belong to this frontend; a column entry and a row each.

    Raw frame: the rows, float32 little-endian, `dimension` values each, unless `sizes` says otherwise.
    """

    requests: U64Column
    positions: U32Column
    tokens: U32Column
    dimension: U32
    #: Longest wait in the queue among these jobs, and the inference time of the batch, in microseconds.
    queue_us: U63
    inference_us: U63
    #: Of the model that made the vectors.
    revision: Name
    #: Tokens cut off each input; empty: none.
    cut: U32Column = b""
    #: Bytes of each row; empty: all are vectors.
    sizes: U32Column = b""

    def frame_sizes(self) -> list[int]:
        rows = len(unpack_u64(self.requests))
        if len(unpack_u32(self.positions)) != rows or len(unpack_u32(self.tokens)) != rows:
            raise RemoteProtocolError("columns of different lengths")
        if self.cut and len(unpack_u32(self.cut)) != rows:
            raise RemoteProtocolError("columns of different lengths")
        return [_rows_size(rows, self.dimension, self.sizes)]


class Failure(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """One job's end without a vector. Position -1: the whole request was refused."""

    request: U63
    position: int
    code: ErrorCode
    text: Text
    retry_after_ms: U32 = 0


class Failures(Message, tag=22):
    """Jobs and requests that end without a vector."""

    failures: list[Failure]


class WorkerStats(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """One live worker as operators see it."""

    name: Name
    device: Name
    models: list[Name]
    leased_batches: int
    answered_batches: int
    answered_jobs: int


class Stats(Message, tag=23):
    """The answer to a frontend's heartbeat: what the broker counted since its start, and what it holds now."""

    counters: dict[str, int]
    workers: list[WorkerStats]
    open_jobs: int
    queued_jobs: int


# --- worker to broker -----------------------------------------------------------------------------------------------


class WorkerHello(Message, tag=32):
    """The first message of a worker whose models have each completed an inference, and the answer to `Who`."""

    protocol_min: int
    protocol_max: int
    build: Name
    uuid: Uuid
    incarnation: U63
    host: Name
    pid: int
    device: Name
    models: list[ModelInfo]
    #: How much one batch should hold, in tokens, by the worker's own measurement.
    batch_tokens: Annotated[int, msgspec.Meta(gt=0, lt=2**32)]
    #: How fast it is, by the same measurement.
    tokens_per_s: Annotated[int, msgspec.Meta(gt=0, lt=2**32)]
    #: How many batches the worker takes now: an absolute number, so that a lost or repeated message leaks nothing.
    credit: U32
    #: Counts the hellos of one process. What comes before the answer to its last one was meant for an earlier one.
    number: U63 = 0
    #: Inferences that run side by side on the device.
    streams: U32 = 0


class WorkerHeartbeat(Message, tag=33):
    """Sent at every heartbeat interval, and when the credit changes without a result."""

    credit: U32
    #: The newest batch the worker has received; `credit` counts from after it. 0: none yet.
    seen: U63


class JobFailure(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """One job of a batch that has no vector, by its position in the batch."""

    position: U32
    code: ErrorCode
    text: Text


class BatchResult(Message, tag=34):
    """A batch's answers. Raw frame: a row for each job that did not fail, in the batch's order: a vector in float32,
    or what its options ask for instead."""

    epoch: U63
    batch: U63
    dimension: U32
    #: Exact token count of every job of the batch.
    tokens: U32Column
    failures: list[JobFailure]
    inference_us: U63
    credit: U32
    seen: U63
    #: Tokens cut off each job of the batch, which `tokens` does not count; empty: none.
    cut: U32Column = b""
    #: Bytes of each row; empty: all are vectors.
    sizes: U32Column = b""
    #: Tokens that its inferences ran beside those of its jobs.
    padding: U63 = 0

    def frame_sizes(self) -> list[int]:
        jobs = len(unpack_u32(self.tokens))
        failed = {failure.position for failure in self.failures}
        if len(failed) != len(self.failures) or any(position >= jobs for position in failed):
            raise RemoteProtocolError("failures that name no job of the batch")
        if self.cut and len(unpack_u32(self.cut)) != jobs:
            raise RemoteProtocolError("columns of different lengths")
        return [_rows_size(jobs - len(failed), self.dimension, self.sizes)]


class BatchError(Message, tag=35):
    """The batch as a whole failed, and the worker lives."""

    epoch: U63
    batch: U63
    code: ErrorCode
    text: Text
    credit: U32
    seen: U63


class WorkerDrain(Message, tag=36):
    """The worker takes nothing new, gives these batches back unstarted, and finishes the others."""

    unstarted: U64Column

    def frame_sizes(self) -> list[int]:
        unpack_u64(self.unstarted)
        return []


class WorkerGoodbye(Message, tag=37):
    """The worker holds no batch and leaves."""


class WorkerLoading(Message, tag=38):
    """A process that is not a worker yet prepares a model, or has failed to; sent at every heartbeat interval, without
    a hello and without an answer."""

    uuid: Uuid
    host: Name
    pid: int
    model: Name
    #: Why it cannot be served; empty: it is still loading.
    failure: Text = ""


# --- broker to worker -----------------------------------------------------------------------------------------------


class Heartbeat(Message, tag=49):
    """The answer to a worker's heartbeat: the broker lives."""


class Batch(Message, tag=48):
    """Jobs of one model, leased to the worker. Raw frame: their bytes one after another."""

    epoch: U63
    #: Counts up from 1 in one epoch.
    batch: U63
    model: Name
    kinds: U8Column
    lengths: U32Column
    #: Of all its jobs. An interactive batch runs before the bulk ones that the worker holds.
    lane: Lane = Lane.BULK
    #: `Option` bits of each job; empty: none has any.
    options: U8Column = b""
    #: Of its jobs, each once.
    origins: list[Origin] = []

    def frame_sizes(self) -> list[int]:
        lengths = unpack_u32(self.lengths)
        if len(self.kinds) != len(lengths) or len(self.options) not in (0, len(lengths)):
            raise RemoteProtocolError("columns of different lengths")
        return [sum(lengths)]


FromFrontend = FrontendHello | Submit | Cancel | FrontendHeartbeat | FrontendGoodbye
FromWorker = WorkerHello | WorkerHeartbeat | BatchResult | BatchError | WorkerDrain | WorkerGoodbye | WorkerLoading
ToFrontend = Welcome | Who | Goodbye | Models | Answers | Failures | Stats
ToWorker = Welcome | Who | Heartbeat | Goodbye | Batch

# One decoder per direction, so that a peer cannot even say what is not its to say.
FROM_FRONTEND: msgspec.msgpack.Decoder[FromFrontend] = msgspec.msgpack.Decoder(FromFrontend)
FROM_WORKER: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)
TO_FRONTEND: msgspec.msgpack.Decoder[ToFrontend] = msgspec.msgpack.Decoder(ToFrontend)
TO_WORKER: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)

_encode = msgspec.msgpack.Encoder().encode
M = TypeVar("M", bound=Message)


def encode(message: Message, frames: Sequence[Frame] = ()) -> list[Frame]:
    """A message and its raw frames as the frames to send."""
    return [_encode(message), *frames]


def decode(decoder: "msgspec.msgpack.Decoder[M]", frames: Sequence[Frame]) -> tuple[M, list[Frame]]:
    """Received frames as a message and its raw frames, whose number and sizes fit the header.

    Whatever is wrong with them is one error, RemoteProtocolError: msgspec raises DecodeError, but also
    UnicodeDecodeError and RecursionError, and one bad byte must never end a process.
    """
    if not frames:
        raise RemoteProtocolError("no frame")
    try:
        message = decoder.decode(frames[0])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"malformed header: {error}") from error
    payload = list(frames[1:])
    if [len(frame) for frame in payload] != message.frame_sizes():
        raise RemoteProtocolError(f"the raw frames of a {type(message).__name__} do not fit its header")
    return message, payload
