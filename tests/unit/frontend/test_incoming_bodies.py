"""Bodies that are coming in: their memory and their compression."""

import asyncio
import gzip

import pytest
from sanic.exceptions import PayloadTooLarge

from frontend.api.errors import ApiError
from frontend.rest.incoming_bodies import _STEP_BYTES, Decoder, IncomingBodies


async def wait_for_end(bodies: IncomingBodies, size: int) -> ApiError | None:
    """Receive a body that stops after some bytes, and return why the server ended it."""
    waiting = asyncio.timeout(60)
    body = bodies.open(waiting)
    try:
        async with waiting:
            bodies.append(body, b"x" * size)
            await asyncio.Event().wait()
    except TimeoutError:
        assert body.content == b""
    finally:
        bodies.close(body)
    return body.refusal


async def start(bodies: IncomingBodies, size: int) -> asyncio.Task[ApiError | None]:
    """Start to receive a body."""
    task = asyncio.create_task(wait_for_end(bodies, size))
    await asyncio.sleep(0)
    return task


def test_oldest_body_is_ended_without_memory() -> None:
    async def run() -> None:
        bodies = IncomingBodies(100)
        oldest, second, newest = [await start(bodies, size) for size in (40, 60, 30)]
        refusal = await oldest
        assert refusal is not None
        assert (refusal.status, refusal.code, refusal.retry_after_s) == (503, "overloaded", 1.0)
        assert not second.done()
        assert not newest.done()
        bodies.end_all()
        assert [refusal and refusal.code for refusal in (await second, await newest)] == ["shutting_down"] * 2

    asyncio.run(run())


def test_body_beyond_all_memory_is_refused() -> None:
    async def run() -> None:
        bodies = IncomingBodies(100)
        with pytest.raises(ApiError, match="send it again"):
            await wait_for_end(bodies, 101)
        # Its memory is free again.
        whole = await start(bodies, 100)
        assert not whole.done()
        bodies.end_all()
        await whole

    asyncio.run(run())


def test_ended_body_takes_no_more_parts() -> None:
    async def run() -> None:
        bodies = IncomingBodies(100)
        async with asyncio.timeout(60) as waiting:
            body = bodies.open(waiting)
            bodies.end_all()
            waiting.reschedule(None)
            with pytest.raises(ApiError):
                bodies.append(body, b"x")
        assert body.content == b""

    asyncio.run(run())


def test_gzip_is_decoded_in_parts() -> None:
    decoder = Decoder(["GZIP"], 300)
    packed = gzip.compress(b"text" * 75)
    assert b"".join(block for byte in packed for block in decoder.decode(bytes([byte]))) == b"text" * 75
    decoder.finish()


def test_gzip_bomb_is_refused_early() -> None:
    with pytest.raises(PayloadTooLarge):
        list(Decoder(["gzip"], 1000).decode(gzip.compress(b"0" * 10_000_000)))


@pytest.mark.parametrize("size", [0, 1, _STEP_BYTES, _STEP_BYTES + 1, 10_000_000])
def test_gzip_is_decoded_in_small_blocks(size: int) -> None:
    decoder = Decoder(["gzip"], size)
    blocks = list(decoder.decode(gzip.compress(b"0" * size)))
    decoder.finish()
    assert b"".join(blocks) == b"0" * size
    assert max(map(len, blocks)) <= _STEP_BYTES


@pytest.mark.parametrize("packed", [b"{}", gzip.compress(b"{}")[:-1], gzip.compress(b"{}") + b"{}", b""])
def test_damaged_gzip_is_refused(packed: bytes) -> None:
    decoder = Decoder(["x-gzip"], 1000)
    with pytest.raises(ApiError, match="not valid gzip"):  # noqa: PT012
        list(decoder.decode(packed))
        decoder.finish()


@pytest.mark.parametrize("codings", [[], [""], ["identity"], ["Identity, identity"]])
def test_plain_body_is_left_alone(codings: list[str]) -> None:
    decoder = Decoder(codings, 1)
    assert list(decoder.decode(b"text")) == [b"text"]
    decoder.finish()


@pytest.mark.parametrize("codings", [["br"], ["deflate"], ["gzip, gzip"], ["gzip", "br"]])
def test_other_codings_are_refused(codings: list[str]) -> None:
    with pytest.raises(ApiError) as caught:
        Decoder(codings, 1)
    assert caught.value.status == 415
