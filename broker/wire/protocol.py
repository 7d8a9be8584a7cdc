"""The protocol between the broker and its peers: all messages, and the codec between messages and frames. Pure.

A message is one msgpack header frame, a tagged union with integer tags, followed by raw frames. Vectors, texts and
token ids travel only in raw frames, and numbers of each job of a list as packed columns. Within a protocol version,
fields are only appended, with a default.

All names are imported from here (`pyproject.toml` exports them for mypy).

A new message gets the next free tag of its direction, a place in the union below, and a handler in
`broker/core/scheduler.py` or in the peer's session.
"""

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from broker.wire.columns import Frame, pack_u32, pack_u64, split_frame, unpack_u32, unpack_u64
from broker.wire.common import (
    Availability,
    Caching,
    Goodbye,
    Kind,
    Lane,
    Message,
    ModelInfo,
    ModelKey,
    ModelState,
    Option,
    Origin,
    Source,
    Welcome,
    Who,
)
from broker.wire.errors import RemoteProtocolError
from broker.wire.frontend_messages import (
    Answers,
    Cancel,
    Failure,
    Failures,
    FrontendGoodbye,
    FrontendHeartbeat,
    FrontendHello,
    Models,
    ModelsReloaded,
    ReloadModels,
    Stats,
    Submission,
    Submit,
    WorkerStats,
)
from broker.wire.worker_messages import (
    Batch,
    BatchError,
    BatchResult,
    Heartbeat,
    JobFailure,
    Load,
    Release,
    Reload,
    Reloaded,
    WorkerDrain,
    WorkerGoodbye,
    WorkerHeartbeat,
    WorkerHello,
    WorkerLoading,
    WorkerModels,
)

#: Lowest and highest protocol version of this build.
PROTOCOL_MIN = 1
PROTOCOL_MAX = 1

#: Longest frame that a peer may send, in bytes; libzmq disconnects a peer that sends a longer one.
MAX_FRAME_BYTES = 64 * 1024 * 1024

FromFrontend = FrontendHello | Submit | Cancel | FrontendHeartbeat | FrontendGoodbye | ReloadModels
FromWorker = (
    WorkerHello
    | WorkerHeartbeat
    | BatchResult
    | BatchError
    | WorkerDrain
    | WorkerGoodbye
    | WorkerLoading
    | WorkerModels
    | Reloaded
)
ToFrontend = Welcome | Who | Goodbye | Models | Answers | Failures | Stats | ModelsReloaded
ToWorker = Welcome | Who | Heartbeat | Goodbye | Batch | Load | Release | Reload

# One decoder for each direction rejects messages that the peer may not send.
FROM_FRONTEND: msgspec.msgpack.Decoder[FromFrontend] = msgspec.msgpack.Decoder(FromFrontend)
FROM_WORKER: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)
TO_FRONTEND: msgspec.msgpack.Decoder[ToFrontend] = msgspec.msgpack.Decoder(ToFrontend)
TO_WORKER: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)

_encode = msgspec.msgpack.Encoder().encode
M = TypeVar("M", bound=Message)


def encode(message: Message, frames: Sequence[Frame] = ()) -> list[Frame]:
    """Return the frames to send for a message and its raw frames."""
    return [_encode(message), *frames]


def decode(decoder: "msgspec.msgpack.Decoder[M]", frames: Sequence[Frame]) -> tuple[M, list[Frame]]:
    """Return the message and its raw frames from received frames.

    Raise `RemoteProtocolError` for any malformed input. msgspec raises DecodeError, UnicodeDecodeError or
    RecursionError, depending on the bytes, and none of them may end a process.
    """
    if not frames:
        raise RemoteProtocolError("no frame")
    try:
        message = decoder.decode(frames[0])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"malformed header: {error}") from error
    payload = list(frames[1:])
    if [len(frame) for frame in payload] != message.frame_sizes():
        raise RemoteProtocolError(f"the raw frames of a {type(message).__name__} do not match its header")
    return message, payload
