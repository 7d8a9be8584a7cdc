"""What one request may cost: time that grows with its length and no faster, and memory of its size."""

import asyncio
import time
import tracemalloc
from collections.abc import AsyncIterator
from types import SimpleNamespace

import numpy as np
import pytest

from broker.wire.protocol import ModelInfo
from frontend.api.errors import ApiError, unknown_model
from frontend.api.rendering import render_tokens
from frontend.api.schemas import parse_embeddings, parse_tokenize
from frontend.api.submission import build_submission
from frontend.rest.http_protocol import TimedRequest
from tests.harness.hostile import BODIES, LONGEST

#: The slowest takes a tenth of it on one core of a small machine.
MOST_S = 2.0
MODEL = ModelInfo("fake", "r", 8, 256, vocabulary=30_000)


def refuse(body: bytes) -> float:
    """Read a body that is refused; the seconds that it took."""
    started = time.thread_time()
    try:
        wanted = parse_embeddings(body, 2048)
        build_submission(wanted, MODEL, "warn", 300_000)
        error = unknown_model(wanted.model)
    except ApiError as caught:
        error = caught
    assert error.status in (400, 404)
    assert len(error.body()) < 10_000
    return time.thread_time() - started


@pytest.mark.parametrize("kind", BODIES)
def test_body_is_refused_in_a_time_that_grows_with_its_length(kind: str) -> None:
    # From small to large: what grows faster fails soon.
    for doubled in range(14, 24):
        body = BODIES[kind](2**doubled)
        assert 2**doubled / 2 < len(body) <= 2**doubled <= LONGEST
        assert refuse(body) < MOST_S


def test_token_ids_of_the_longest_text_are_told_in_time() -> None:
    row = memoryview(np.full(LONGEST, 999, "<u4").tobytes())
    wanted = parse_tokenize(b'{"model": "fake", "text": "a"}', 1)
    started = time.thread_time()
    assert len(render_tokens(wanted, [row], MODEL)) == LONGEST * 4 + 12
    assert time.thread_time() - started < MOST_S


# --- bodies in many parts --------------------------------------------------------------------------------------------


class Transport:
    """A connection that Sanic has stopped reading."""

    reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Stream:
    """A body that comes in parts."""

    def __init__(self, parts: AsyncIterator[bytes]) -> None:
        self._parts = parts
        self.protocol = SimpleNamespace(transport=Transport())

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._parts


def receiving(parts: AsyncIterator[bytes]) -> TimedRequest:
    """A request whose body comes in these parts."""
    request = TimedRequest.__new__(TimedRequest)
    request.app = SimpleNamespace(config=SimpleNamespace(REQUEST_TIMEOUT=30.0))  # type: ignore[assignment]
    request.stream = Stream(parts)  # type: ignore[assignment]
    return request


def test_body_in_tiny_parts_takes_the_memory_of_its_bytes() -> None:
    async def parts() -> AsyncIterator[bytes]:
        for number in range(200_000):
            yield b"%02d" % (number % 100)

    request = receiving(parts())
    tracemalloc.start()
    try:
        asyncio.run(request.receive_body())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(request.body) == 400_000
    assert request.stream.protocol.transport.reading  # type: ignore[union-attr]
    assert peak < 4 * len(request.body)


def test_body_in_tiny_parts_leaves_others_their_turn() -> None:
    turns: list[int] = []

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(3_000_000):
            if turns:
                return
            yield b"x"

    async def both() -> None:
        asyncio.get_running_loop().call_soon(turns.append, 1)
        await receiving(parts()).receive_body()
        assert turns

    asyncio.run(both())
