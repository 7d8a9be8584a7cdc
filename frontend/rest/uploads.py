"""Uploads of files: forms that are written to the file store as they arrive, with bounded memory."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from sanic import Request
from sanic.exceptions import PayloadTooLarge

from frontend.api.errors import ApiError
from frontend.api.file_requests import Upload, clean_filename, parse_upload, too_large_file
from frontend.batches.contents import Contents
from frontend.batches.contents import Upload as OpenUpload
from frontend.batches.errors import TooLargeError
from frontend.config import Config
from frontend.rest import metrics
from frontend.rest.incoming_bodies import Decoder
from frontend.rest.multipart import FormReader, PartBegin, PartData
from frontend.rest.upload_slots import Slot, UploadSlots

#: Bytes of a form beyond its file, and of all values of its fields.
MAX_OVERHEAD_BYTES, MAX_FIELD_BYTES = 1024 * 1024, 64 * 1024
#: Memory of one upload, for the limit on uploads at a time: what obstore holds for S3.
UPLOAD_MEMORY_BYTES = 16 * 1024 * 1024


class Received(NamedTuple):
    """Form whose file is in the file store."""

    form: Upload
    bytes: int


class Uploads:
    """Uploads of one process."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._slots = UploadSlots(max(1, config.max_incoming_bytes // UPLOAD_MEMORY_BYTES), time.monotonic)

    async def receive(self, request: Request, contents: Contents, key: str, client: str) -> Received:
        """Write the file of a form to the file store under a key. `client` shares the room for uploads with others.

        Raise `ApiError` if the form is invalid, too large or too slow, and `StoreError` if it cannot be stored. Then,
        or if the client leaves, the object does not exist.
        """
        slot = self._slots.open(client)
        metrics.open_uploads.inc()
        try:
            return await self._receive_form(request, contents, key, slot)
        except PayloadTooLarge:
            raise too_large_file(self._config.max_file_bytes) from None
        finally:
            self._slots.close(slot)
            metrics.open_uploads.dec()

    async def _receive_form(self, request: Request, contents: Contents, key: str, slot: Slot) -> Received:
        max_bytes = self._config.max_file_bytes
        reader = FormReader(request.headers.get("content-type", ""))
        async with contextlib.AsyncExitStack() as stack:
            form = _Form(contents, key, max_bytes, stack)
            async for content in self._read_body(request, max_bytes + MAX_OVERHEAD_BYTES, slot):
                for event in reader.feed(content):
                    await form.take(event)
            reader.finish()
            # Within the context, so that the object of an invalid form is removed.
            received = form.finish()
        return received

    async def _read_body(self, request: Request, max_bytes: int, slot: Slot) -> AsyncIterator[bytes]:
        """Yield the decoded parts of the body. Raise `ApiError` 408 if the client pauses or is too slow.

        A client may take `--body-timeout-s` for each `--max-body-bytes`, so that large files have more time. The
        time in which the caller handles a block, for example because the store is slow, does not count.
        """
        config, stream, clock = self._config, _get_stream(request), asyncio.get_running_loop().time
        if (stream.request_bytes_left or 0) > max_bytes:
            raise PayloadTooLarge
        # The parser of heads expects no body of this size, and would not ask the client for it.
        stream.expecting_continue = request.headers.get("expect", "").lower() == "100-continue"
        decoder = Decoder(request.headers.getall("content-encoding", []), max_bytes)
        spent_s, received = 0.0, 0
        while not slot.refusal:
            allowed_s = config.body_timeout_s * max(1.0, received / config.max_body_bytes)
            began = clock()
            try:
                async with asyncio.timeout(min(config.request_timeout_s, allowed_s - spent_s)) as slot.waiting:
                    part = await stream.read()
            except TimeoutError:
                if slot.refusal:
                    break
                stream.keep_alive, stream.request_body = False, None
                text = f"the file did not arrive in time ({received} bytes so far); send it faster and without pauses"
                raise ApiError(408, text, code="request_timeout") from None
            finally:
                slot.waiting = None
            spent_s += clock() - began
            if part is None:
                decoder.finish()
                return
            received += len(part)
            slot.received_bytes = received
            if received > max_bytes:
                raise PayloadTooLarge
            metrics.file_bytes.labels("upload").inc(len(part))
            for block in decoder.decode(part):
                yield block
        assert slot.refusal
        raise slot.refusal


class _Form:
    """Fields of a form, and its file on the way to the store."""

    def __init__(self, contents: Contents, key: str, max_bytes: int, stack: contextlib.AsyncExitStack) -> None:
        self._contents, self._key, self._max_bytes, self._stack = contents, key, max_bytes, stack
        self._fields: dict[str, bytes] = {}
        self._field_bytes = 0
        #: Name of the field that is being read; None while the file is.
        self._field: str | None = ""
        self._filename = ""
        self._upload: OpenUpload | None = None

    async def take(self, event: PartBegin | PartData) -> None:
        """Take the next event of the form. Raise `ApiError` if the form is invalid."""
        if isinstance(event, PartBegin):
            await self._begin_part(event)
        elif self._field is not None:
            self._field_bytes += len(event.content)
            if self._field_bytes > MAX_FIELD_BYTES:
                raise ApiError(
                    400, f"the fields of the form have more than {MAX_FIELD_BYTES} bytes", code="invalid_form"
                )
            self._fields[self._field] += event.content
        elif self._upload:
            try:
                await self._upload.write(event.content)
            except TooLargeError:
                raise too_large_file(self._max_bytes) from None

    async def _begin_part(self, part: PartBegin) -> None:
        if part.name != "file":
            self._field = part.name
            self._fields.setdefault(part.name, b"")
            return
        if self._upload:
            raise ApiError(400, "the form has more than one file; send each in a request", param="file")
        self._field, self._filename = None, clean_filename(part.filename or "")
        if "purpose" in self._fields:
            # Refuse an invalid form before its file arrives.
            self._parse()
        self._upload = await self._stack.enter_async_context(self._contents.upload(self._key, self._max_bytes))

    def _parse(self) -> Upload:
        fields = {name: value.decode(errors="replace").strip() for name, value in self._fields.items()}
        return parse_upload(fields, self._filename)

    def finish(self) -> Received:
        """Return the complete form. Raise `ApiError` 400 if it is invalid."""
        if self._upload is None:
            raise ApiError(400, "file is missing; send it as a part of the form with the name file", param="file")
        if not self._upload.bytes:
            raise ApiError(400, "the file is empty; send at least one byte", param="file", code="empty_file")
        return Received(self._parse(), self._upload.bytes)


def discard_rest(request: Request, config: Config) -> None:
    """Let a client that still sends its file finish, so that it reads the answer; then close the connection."""
    stream = _get_stream(request)
    # Not the truth value of the stream, which is whether a request is being handled.
    if stream is not None and stream.request_body:
        stream.keep_alive = False
        stream.request_max_size = stream.protocol.request_max_size = config.max_file_bytes + MAX_OVERHEAD_BYTES


def _get_stream(request: Request) -> Any:
    return request.stream
