"""Request bodies that are still coming in: their memory over all connections of a process, and their compression."""

import asyncio
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from sanic.exceptions import PayloadTooLarge

from broker.wire.errors import ErrorCode
from frontend.api.errors import ApiError, from_failure

#: `wbits` of zlib for one gzip member.
_GZIP = 16 + zlib.MAX_WBITS
#: Bytes that are decoded at a time. A part of 64 KiB may decode to 64 MiB.
_STEP_BYTES = 256 * 1024


@dataclass(slots=True, eq=False)
class IncomingBody:
    """Body of one request, as far as it has arrived."""

    #: Ends the wait for the next part.
    waiting: asyncio.Timeout
    content: bytearray = field(default_factory=bytearray, repr=False)
    #: Why the server has ended the body.
    refusal: ApiError | None = None

    def end(self, refusal: ApiError) -> None:
        """Free the memory, and wake up the request's task."""
        self.refusal, self.content = refusal, bytearray()
        if not self.waiting.expired():
            self.waiting.reschedule(asyncio.get_running_loop().time())


class IncomingBodies:
    """Bodies of one process that are coming in. If they need more memory than allowed, the oldest is ended."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        #: In the order of arrival.
        self._bodies: dict[IncomingBody, None] = {}

    def open(self, waiting: asyncio.Timeout) -> IncomingBody:
        """Return a new body, whose wait for parts can be ended by the timeout."""
        body = IncomingBody(waiting)
        self._bodies[body] = None
        return body

    def append(self, body: IncomingBody, part: bytes) -> None:
        """Add a part, and end the oldest bodies if there is no memory. Raise `ApiError` if this one has been ended."""
        if body.refusal is None:
            body.content += part
            self._bytes += len(part)
        while self._bytes > self._max_bytes:
            text = "too many request bodies arrive at once, and this one has taken the longest; send it again"
            self._end(next(iter(self._bodies)), from_failure(ErrorCode.OVERLOADED, text, 1000))
        if body.refusal:
            raise body.refusal

    def close(self, body: IncomingBody) -> None:
        """Stop counting a body, which is complete or has failed."""
        if body in self._bodies:
            del self._bodies[body]
            self._bytes -= len(body.content)

    def end_all(self) -> None:
        """End all bodies, because the process stops."""
        for body in list(self._bodies):
            self._end(body, from_failure(ErrorCode.DRAINING, retry_after_ms=1000))

    def _end(self, body: IncomingBody, refusal: ApiError) -> None:
        self.close(body)
        body.end(refusal)


class Decoder:
    """Content coding of a body: gzip or none. Raises `PayloadTooLarge` if the decoded body exceeds a maximum."""

    def __init__(self, codings: Iterable[str], max_bytes: int) -> None:
        """Raise `ApiError` 415 for other codings, given as the values of Content-Encoding."""
        names = [name for value in codings for name in value.lower().replace(" ", "").split(",")]
        names = [name for name in names if name not in ("", "identity")]
        if names not in ([], ["gzip"], ["x-gzip"]):
            text = "the Content-Encoding is not supported; send the body with gzip, or without compression"
            raise ApiError(415, text, code="unsupported_content_encoding", headers={"Accept-Encoding": "gzip"})
        self._gzip = zlib.decompressobj(_GZIP) if names else None
        self._rest_bytes = max_bytes

    def decode(self, part: bytes) -> Iterator[bytes]:
        """Yield the decoded part in blocks, so that it needs little memory. Raise `ApiError` 400 if it is damaged."""
        if self._gzip is None:
            yield part
            return
        complete = False
        while not complete:
            try:
                block = self._gzip.decompress(part, _STEP_BYTES)
            except zlib.error:
                raise self._damaged() from None
            self._rest_bytes -= len(block)
            if self._rest_bytes < 0:
                raise PayloadTooLarge("Request body exceeds the size limit")
            if self._gzip.unused_data:
                raise self._damaged()
            part = self._gzip.unconsumed_tail
            # zlib may keep decoded bytes of a part that it has read completely.
            complete = not part and len(block) < _STEP_BYTES
            yield block

    def finish(self) -> None:
        """Raise `ApiError` 400 if the body has ended too early."""
        if self._gzip is not None and not self._gzip.eof:
            raise self._damaged()

    def _damaged(self) -> ApiError:
        text = "the body is not valid gzip with one member; compress it again, or send it without Content-Encoding"
        return ApiError(400, text, code="bad_request")
