"""Cost of one request: time at most proportional to its length, and memory of its size."""

import asyncio
import time
import tracemalloc
from collections.abc import AsyncIterator
from types import SimpleNamespace

import numpy as np
import pytest
from sanic.compat import Header

from broker.wire.protocol import ModelInfo
from frontend.api.errors import ApiError, unknown_model
from frontend.api.rendering import render_tokens
from frontend.api.schemas import parse_embeddings, parse_tokenize
from frontend.api.submission import build_submission
from frontend.config import Config
from frontend.rest.http_protocol import TimedRequest
from frontend.rest.incoming_bodies import IncomingBodies
from tests.harness import hostile
from tests.harness.hostile import LONGEST

#: The slowest body takes a tenth of this on one core of a small machine.
MAX_S = 2.0
MODEL = ModelInfo("fake", "r", 8, 256, vocabulary=30_000)


def measure_rejection(body: bytes) -> float:
    """Return the seconds of CPU time until a body is rejected."""
    started = time.thread_time()
    try:
        request = parse_embeddings(body, 2048)
        build_submission(request, MODEL, "warn", 300_000)
        error = unknown_model(request.model)
    except ApiError as caught:
        error = caught
    assert error.status in (400, 404)
    assert len(error.body()) < 10_000
    return time.thread_time() - started


BODIES = hostile.BODIES | {
    "lone surrogates": lambda size: b'{"input":"a","model":"' + b"\\ud83d" * (size // 6 - 6) + b'"}',
    "a lone surrogate behind backslashes": lambda size: (
        b'{"input":"a","model":"%s\\ud83d"}' % (b"\\\\" * (size // 2 - 20))
    ),
    "a lone surrogate behind pairs": lambda size: (
        b'{"input":"a","model":"%s\\ude00"}' % (b"\\ud83d\\ude00" * (size // 12 - 5))
    ),
    "a lone surrogate before quotes": lambda size: b'{"input":"a","model":"\\ud83d%s"}' % (b'\\"' * (size // 2 - 20)),
}


@pytest.mark.parametrize("kind", BODIES)
def test_rejection_time_is_proportional_to_length(kind: str) -> None:
    # From small to large, so that time that grows faster fails soon.
    for doubled in range(14, 24):
        body = BODIES[kind](2**doubled)
        assert 2**doubled / 2 < len(body) <= 2**doubled <= LONGEST
        assert measure_rejection(body) < MAX_S


def test_longest_text_is_tokenized_in_time() -> None:
    row = memoryview(np.full(LONGEST, 999, "<u4").tobytes())
    request = parse_tokenize(b'{"model": "fake", "text": "a"}', 1)
    started = time.thread_time()
    assert len(render_tokens(request, [row], MODEL)) == LONGEST * 4 + 12
    assert time.thread_time() - started < MAX_S


# --- bodies in many parts --------------------------------------------------------------------------------------------


class Transport:
    """A connection that Sanic has stopped reading."""

    reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Stream:
    """A body that arrives in parts."""

    request_max_size = 8 * 1024 * 1024

    def __init__(self, parts: AsyncIterator[bytes]) -> None:
        self._parts = parts
        self.protocol = SimpleNamespace(transport=Transport())

    def take_received_body(self) -> None:
        """Return None, because the body has not arrived."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._parts


def build_request(parts: AsyncIterator[bytes]) -> TimedRequest:
    """Return a request whose body arrives in these parts."""
    request = TimedRequest.__new__(TimedRequest)
    request.headers = Header()
    context = SimpleNamespace(config=Config(), incoming=IncomingBodies(LONGEST))
    request.app = SimpleNamespace(ctx=context, config=SimpleNamespace(REQUEST_TIMEOUT=30.0))  # type: ignore[assignment]
    request.stream = Stream(parts)  # type: ignore[assignment]
    return request


def test_body_in_tiny_parts_takes_little_memory() -> None:
    async def parts() -> AsyncIterator[bytes]:
        for number in range(200_000):
            yield b"%02d" % (number % 100)

    request = build_request(parts())
    tracemalloc.start()
    try:
        asyncio.run(request.receive_body())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(request.body) == 400_000
    assert request.stream.protocol.transport.reading  # type: ignore[union-attr]
    assert peak < 4 * len(request.body)


def test_body_in_tiny_parts_yields_to_others() -> None:
    turns: list[int] = []

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(3_000_000):
            if turns:
                return
            yield b"x"

    async def both() -> None:
        asyncio.get_running_loop().call_soon(turns.append, 1)
        await build_request(parts()).receive_body()
        assert turns

    asyncio.run(both())
