"""HTTP/1.1 requests as RFC 9110 and RFC 9112 define them.

Sanic's parser is lenient where another parser in front of it may disagree, which allows request smuggling, and refuses
some valid requests. `StrictHttp` checks heads and chunk sizes before Sanic's parser sees them.
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from sanic.exceptions import BadRequest, PayloadTooLarge
from sanic.http import Http, Stage
from sanic.http.http1 import HTTP_CONTINUE

from frontend.api.errors import ApiError

#: Maximum length of the line of a chunk's size, and of all trailer fields, in bytes.
MAX_CHUNK_LINE_BYTES, MAX_TRAILER_BYTES = 256, 8192

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rb"%s ([!-~]+) HTTP/(\d\.\d)" % _TOKEN)
#: First bytes of a request whose first line is incomplete.
_BEGIN = re.compile(rb"\r?\Z|%s(?: |\Z)" % _TOKEN)
_BARE_LF = re.compile(rb"(?<!\r)\n")
_FIELD = re.compile(rb"(%s):([\t -~\x80-\xff]*)" % _TOKEN)
_HOST = re.compile(rb"[!$%&'()*+,.:;=\[\]_~0-9A-Za-z-]*")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[\t -~\x80-\xff]*)?")


@dataclass(slots=True)
class Head:
    """Request line and header fields that have been checked."""

    version: bytes
    #: Values by name in lower case, without the blanks around them.
    fields: dict[bytes, list[bytes]]
    #: The head for Sanic's parser, without blanks around values, and with the transfer coding in lower case.
    text: bytes

    @property
    def keeps_connection(self) -> bool:
        """Whether the connection stays open after the answer (RFC 9112, section 9.3)."""
        options = {option.strip(b" \t").lower() for option in b",".join(self.fields[b"connection"]).split(b",")}
        return b"close" not in options and (self.version == b"1.1" or b"keep-alive" in options)


def parse_head(head: bytes) -> Head:
    """Return the checked head of a request, given without the empty line. Raise `ApiError` if it is invalid."""
    request_line, *lines = head.split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(request_line)
    if match is None:
        raise refuse("the request line is not valid HTTP/1.1; send METHOD, path and HTTP/1.1 with one space between")
    version = match[2]
    if version not in (b"1.0", b"1.1"):
        raise refuse(f"HTTP/{version.decode()} is not supported; use HTTP/1.1", 505)
    fields: dict[bytes, list[bytes]] = defaultdict(list)
    checked = [request_line]
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise refuse("a header line is not valid HTTP/1.1; send NAME: VALUE without control characters")
        name, value = field[1].lower(), field[2].strip(b" \t")
        if name == b"transfer-encoding":
            value = value.lower()
        fields[name].append(value)
        checked.append(name + b": " + value)
    _check_host(version, fields[b"host"])
    _check_framing(version, fields[b"content-length"], fields[b"transfer-encoding"])
    return Head(version, fields, b"\r\n".join(checked))


def _check_host(version: bytes, hosts: list[bytes]) -> None:
    if len(hosts) > 1 or (not hosts and version == b"1.1") or not all(map(_HOST.fullmatch, hosts)):
        raise refuse("the Host header is missing, repeated or invalid; send one with the server's name")


def _check_framing(version: bytes, lengths: list[bytes], codings: list[bytes]) -> None:
    """Raise `ApiError` if the end of the body is not certain (RFC 9112, section 6.3)."""
    if len(lengths) + len(codings) > 1:
        raise refuse("the request has more than one Content-Length or Transfer-Encoding; send one of them")
    if lengths and not lengths[0].isdigit():
        raise refuse("Content-Length is not a number; send the body's length in bytes as decimal digits")
    if not codings or (codings == [b"chunked"] and version == b"1.1"):
        return
    *others, last = (coding.strip(b" \t") for coding in codings[0].split(b","))
    known = version == b"1.1" and last == b"chunked" and b"chunked" not in others
    raise refuse("the Transfer-Encoding is not supported; send chunked alone, over HTTP/1.1", 501 if known else 400)


def refuse(text: str, status: int = 400) -> ApiError:
    """Return the error of a request that is not valid HTTP/1.1."""
    return ApiError(status, text, code="bad_request")


class StrictHttp(Http):
    """Sanic's parser, with checks of the head and of chunks."""

    __slots__ = ()
    #: "chunked", or True for a body with a length.
    request_body: Any
    request_bytes: Any
    request_bytes_left: Any

    async def http1_request_header(self) -> None:
        """Read, check and parse the head of a request. Raise `ApiError` or a Sanic exception if it is invalid."""
        end = await self._receive_head()
        head = parse_head(bytes(self.recv_buffer[:end]))
        self.recv_buffer[:end] = head.text
        await super().http1_request_header()  # type: ignore[no-untyped-call]
        self.keep_alive = head.keeps_connection
        # No route accepts WebSockets, and Sanic has no time-outs for them.
        self.upgrade_websocket = False
        if head.version == b"1.0" or self.request_bytes_left > self.request_max_size:
            self.expecting_continue = False

    async def _receive_head(self) -> int:
        """Wait for the whole head, and return its length without the empty line.

        Fail at the first byte that no head can have, such as those of a TLS handshake. Ignore empty lines before the
        head (RFC 9112, section 2.2).
        """
        buffer: bytearray = self.recv_buffer
        searched = 0
        while True:
            while buffer.startswith(b"\r\n"):
                del buffer[:2]
            self.stage = Stage.REQUEST if buffer else Stage.IDLE
            end = buffer.find(b"\r\n\r\n", searched)
            size = end if end >= 0 else len(buffer)
            if not _BEGIN.match(buffer) or _BARE_LF.search(buffer, searched, size):
                raise refuse("the request is not HTTP/1.1; use http:// unless the server has a certificate")
            if size >= self.HEADER_MAX_SIZE:
                raise PayloadTooLarge("Request header exceeds the size limit")
            if end >= 0:
                return end
            searched = max(0, len(buffer) - 3)
            await self._receive_more()

    async def head_response_ignored(  # type: ignore[override]
        self, data: bytes, end_stream: bool
    ) -> None:
        """Discard a part of the answer to HEAD. Sanic awaits this method, but has not made it a coroutine."""
        super().head_response_ignored(data, end_stream)

    async def read(self) -> bytes | None:
        """Return the next part of the body, or None at its end. Raise `BadRequest` if a chunk is invalid."""
        if self.request_body == "chunked" and not self.request_bytes_left:
            if self.expecting_continue:
                self.expecting_continue = False
                await self._send(HTTP_CONTINUE)
            # Sanic's parser leaves the line end of the head, and this one the line end of each chunk.
            line = None if await self._read_line() else _CHUNK_LINE.fullmatch(await self._read_line())
            if line is None:
                raise self._refuse_chunk()
            self.request_bytes_left = int(line[1], 16)
            self.request_bytes += self.request_bytes_left
            if not self.request_bytes_left:
                await self._skip_trailer()
                self.request_body = None
                return None
        part: bytes | None = await super().read()
        return part

    async def _skip_trailer(self) -> None:
        size = 0
        while line := await self._read_line(MAX_TRAILER_BYTES):
            size += len(line)
            if size > MAX_TRAILER_BYTES or not _FIELD.fullmatch(line):
                raise self._refuse_chunk()

    async def _read_line(self, max_bytes: int = MAX_CHUNK_LINE_BYTES) -> bytes:
        """Return the next line of the body, without the line end."""
        buffer: bytearray = self.recv_buffer
        while (end := buffer.find(b"\r\n", 0, max_bytes)) < 0:
            if len(buffer) >= max_bytes or b"\n" in buffer:
                raise self._refuse_chunk()
            await self._receive_more()
        line = bytes(buffer[:end])
        del buffer[: end + 2]
        return line

    def _refuse_chunk(self) -> BadRequest:
        # The end of the body is unknown, so Sanic must not look for it.
        self.keep_alive, self.request_body = False, None
        return BadRequest("the chunked body is invalid; send each chunk as its size in hexadecimal, CRLF, bytes, CRLF")
