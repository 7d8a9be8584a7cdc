"""Codec: a message decodes to what was encoded, and every other input raises `RemoteProtocolError`."""

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode, RemoteProtocolError
from broker.wire.protocol import Kind, Lane, Message

UUID = b"0123456789abcdef"
DECODERS: list[Any] = [wire.FROM_FRONTEND, wire.FROM_WORKER, wire.TO_FRONTEND, wire.TO_WORKER]
U64 = wire.pack_u64([1])
MODEL = wire.ModelInfo("m", "r", 2, 256, 1)
SUBMISSION = wire.Submission(5, "m", Lane.BULK, "key", 1000, Kind.TEXT, wire.pack_u32([1, 2]))

MESSAGES: list[tuple[Any, Message, list[bytes]]] = [
    (wire.FROM_FRONTEND, wire.FrontendHello(1, 1, "b", UUID, "h", 4), []),
    (wire.FROM_FRONTEND, wire.Submit([SUBMISSION, SUBMISSION]), [b"abc", b"def"]),
    (wire.FROM_FRONTEND, wire.Cancel(wire.pack_u64([1, 2**40])), []),
    (wire.FROM_FRONTEND, wire.FrontendHeartbeat(), []),
    (wire.FROM_FRONTEND, wire.FrontendGoodbye(), []),
    (wire.TO_FRONTEND, wire.Welcome(1, 2**63 - 1, 1000, 3500, 20_000), []),
    (wire.TO_FRONTEND, wire.Who(), []),
    (wire.TO_FRONTEND, wire.Goodbye(ErrorCode.PROTOCOL, "text"), []),
    (wire.TO_FRONTEND, wire.Models([MODEL]), []),
    (wire.TO_FRONTEND, wire.Answers(U64, wire.pack_u32([0]), wire.pack_u32([7]), 2, 10, 20, "r"), [b"12345678"]),
    (wire.TO_FRONTEND, wire.Failures([wire.Failure(1, -1, ErrorCode.DEADLINE, "late", 5)]), []),
    (wire.TO_FRONTEND, wire.Stats({"a": 1}, [wire.WorkerStats("w", "CPU", ["m"], 0, 1, 2)], 3, 4), []),
    (wire.FROM_WORKER, wire.WorkerHello(1, 1, "b", UUID, 3, "h", 4, "CPU", [MODEL], 100, 1000, 2), []),
    (wire.FROM_WORKER, wire.WorkerHeartbeat(1, 9), []),
    (
        wire.FROM_WORKER,
        wire.BatchResult(1, 2, 1, wire.pack_u32([3, 4]), [wire.JobFailure(1, ErrorCode.TOO_LONG, "x")], 5, 1, 2),
        [b"1234"],
    ),
    (wire.FROM_WORKER, wire.BatchError(1, 2, ErrorCode.DEVICE, "x", 1, 2), []),
    (wire.FROM_WORKER, wire.WorkerDrain(wire.pack_u64([3])), []),
    (wire.FROM_WORKER, wire.WorkerGoodbye(), []),
    (wire.TO_WORKER, wire.Heartbeat(), []),
    (wire.TO_WORKER, wire.Heartbeat(3), []),
    (wire.FROM_WORKER, wire.WorkerModels(1, [MODEL], [wire.ModelState("n", wire.Availability.LOADING)]), []),
    (wire.TO_WORKER, wire.Batch(1, 2, "m", bytes([0, 1]), wire.pack_u32([1, 4])), [b"a1234"]),
    (wire.TO_WORKER, wire.Load("m", "r"), []),
    (wire.TO_WORKER, wire.Release("m", "r", 1), []),
]  # fmt: skip


@pytest.mark.parametrize(("decoder", "message", "frames"), MESSAGES, ids=lambda value: type(value).__name__)
def test_decoded_message_equals_encoded_message(decoder: Any, message: Message, frames: list[bytes]) -> None:
    assert wire.decode(decoder, wire.encode(message, frames)) == (message, frames)


@pytest.mark.parametrize(("decoder", "message", "frames"), MESSAGES, ids=lambda value: type(value).__name__)
def test_wrong_number_or_size_of_frames_raises(decoder: Any, message: Message, frames: list[bytes]) -> None:
    wrong = [[*frames, b"more"]] + ([frames[:-1], [*frames[:-1], frames[-1] + b"x"]] if frames else [])
    for payload in wrong:
        with pytest.raises(RemoteProtocolError):
            wire.decode(decoder, wire.encode(message, payload))


@pytest.mark.parametrize(
    "message",
    [
        wire.Cancel(b"1234567"),
        wire.WorkerDrain(b"1"),
        wire.Answers(wire.pack_u64([1]), b"", b"", 1, 0, 0, "r"),
        wire.BatchResult(1, 1, 1, b"123", [], 0, 0, 0),
        wire.BatchResult(1, 1, 1, wire.pack_u32([1]), [wire.JobFailure(1, ErrorCode.TOO_LONG, "")], 0, 0, 0),
        wire.BatchResult(1, 1, 1, wire.pack_u32([1]), [wire.JobFailure(0, ErrorCode.TOO_LONG, "")] * 2, 0, 0, 0),
        wire.Batch(1, 1, "m", b"", wire.pack_u32([1])),
        wire.Batch(1, 1, "m", b"\0", wire.pack_u32([1]), options=b"\0\0"),
        wire.Answers(
            wire.pack_u64([1]), wire.pack_u32([1]), wire.pack_u32([1]), 1, 0, 0, "r", truncated=wire.pack_u32([1, 2])
        ),
        wire.BatchResult(1, 1, 1, wire.pack_u32([1]), [], 0, 0, 0, truncated=wire.pack_u32([1, 2])),
        wire.BatchResult(1, 1, 1, wire.pack_u32([1]), [], 0, 0, 0, sizes=wire.pack_u32([1, 2])),
    ],
    ids=lambda value: type(value).__name__,
)
def test_contradictory_header_raises(message: Message) -> None:
    (decoder,) = [decoder for decoder, other, _ in MESSAGES if type(other) is type(message)]
    with pytest.raises(RemoteProtocolError):
        wire.decode(decoder, wire.encode(message))


def test_message_of_other_role_raises() -> None:
    with pytest.raises(RemoteProtocolError):
        wire.decode(wire.FROM_FRONTEND, wire.encode(wire.WorkerGoodbye()))


def test_appended_fields_are_ignored() -> None:
    header = msgspec.msgpack.encode([33, 1, 9, 0, "new"])
    assert wire.decode(wire.FROM_WORKER, [header])[0] == wire.WorkerHeartbeat(1, 9)


@pytest.mark.parametrize("frames", [[], [b""], [b"\xc1"], [b"\xff" * 40], [b"\x91" * 100_000]])
def test_malformed_frames_raise(frames: list[bytes]) -> None:
    for decoder in DECODERS:
        with pytest.raises(RemoteProtocolError):
            wire.decode(decoder, frames)


@settings(max_examples=300)
@given(st.sampled_from(MESSAGES), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=8))
def test_mutated_message_decodes_or_raises(
    entry: tuple[Any, Message, list[bytes]], changes: list[tuple[int, int]]
) -> None:
    decoder, message, frames = entry
    header, *payload = map(bytearray, wire.encode(message, frames))
    for place, value in changes:
        header[place % len(header)] = value
    with contextlib.suppress(RemoteProtocolError):
        wire.decode(decoder, [bytes(header), *map(bytes, payload)])


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=60), max_size=4))
def test_random_frames_decode_or_raise(frames: list[bytes]) -> None:
    for decoder in DECODERS:
        with contextlib.suppress(RemoteProtocolError):
            wire.decode(decoder, frames)


def test_frame_is_split_into_parts() -> None:
    assert [bytes(part) for part in wire.split_frame(b"aabccc", [2, 0, 1, 3])] == [b"aa", b"", b"b", b"ccc"]


def test_keys_of_batches_and_models_are_equal() -> None:
    batch = wire.Batch(1, 2, MODEL.name, b"", b"", revision=MODEL.revision)
    assert batch.key == MODEL.key == wire.ModelKey(MODEL.name, MODEL.revision)
