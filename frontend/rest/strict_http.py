"""HTTP/1.1 requests as RFC 9110 and RFC 9112 define them.

Sanic's parser is lenient where another parser in front of it may disagree, which allows request smuggling, and refuses
some valid requests. `StrictHttp` parses heads and the sizes of chunks in its place, and writes the heads of answers.
"""

import functools
import re
from typing import Any, NamedTuple

from sanic.compat import Header
from sanic.exceptions import BadRequest, ExpectationFailed, PayloadTooLarge
from sanic.helpers import STATUS_CODES
from sanic.http import Http, Stage
from sanic.http.http1 import HTTP_CONTINUE

from frontend.api.errors import ApiError

#: Maximum length of the line of a chunk's size, and of all trailer fields, in bytes.
MAX_CHUNK_LINE_BYTES, MAX_TRAILER_BYTES = 256, 8192

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_NAME = re.compile(_TOKEN)
_REQUEST_LINE = re.compile(rf"({_TOKEN}) ([!-~]+) HTTP/(\d\.\d)")
#: First bytes of a request whose first line is incomplete.
_BEGIN = re.compile(rf"\r?\Z|{_TOKEN}(?: |\Z)".encode())
#: Bytes that no head has; line ends are checked by their number.
_CONTROLS = bytes([*(byte for byte in range(32) if byte not in b"\t\r\n"), 127])
_FIELD = re.compile(rf"{_TOKEN}:[\t -~\x80-\xff]*".encode())
_HOST = re.compile(r"[!$%&'()*+,.:;=\[\]_~0-9A-Za-z-]*")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[\t -~\x80-\xff]*)?")
_STATUS_LINES = {
    status: b"HTTP/1.1 %d %b\r\n" % (status, phrase)
    for status, phrase in STATUS_CODES.items()
    if status >= 200 and status not in (204, 304)
}
#: Fields that are checked, or that decide how a request ends.
_CHECKED = ("host", "content-length", "transfer-encoding", "connection")


class Head(NamedTuple):
    """Request line and header fields that have been checked."""

    method: str
    target: str
    version: str
    #: Names in lower case and values without blanks around them. A transfer coding is in lower case.
    fields: list[tuple[str, str]]
    #: Whether the connection stays open after the answer (RFC 9112, section 9.3).
    keeps_connection: bool


def parse_head(head: bytes) -> Head:
    """Return the checked head of a request, given without the empty line. Raise `ApiError` if it is invalid."""
    request_line, *lines = head.decode(errors="surrogateescape").split("\r\n")
    match = _REQUEST_LINE.fullmatch(request_line)
    if match is None:
        raise refuse("the request line is not valid HTTP/1.1; send METHOD, path and HTTP/1.1 with one space between")
    method, target, version = match.groups()
    if version not in ("1.0", "1.1"):
        raise refuse(f"HTTP/{version} is not supported; use HTTP/1.1", 505)
    fields = []
    checked: dict[str, list[str]] = {name: [] for name in _CHECKED}
    valid = head.count(b"\r") == head.count(b"\n") == len(lines) and len(head.translate(None, _CONTROLS)) == len(head)
    for line in lines:
        name, colon, value = line.partition(":")
        if not (valid and colon and _NAME.fullmatch(name)):
            raise refuse("a header line is not valid HTTP/1.1; send NAME: VALUE without control characters")
        name, value = name.lower(), value.strip(" \t")
        if name in checked:
            # `lower` maps some other characters to ASCII letters, such as the Kelvin sign to k.
            if not value.isascii():
                raise refuse(f"the value of {name} has bytes that are not ASCII; send ASCII alone")
            value = value.lower() if name == "transfer-encoding" else value
            checked[name].append(value)
        fields.append((name, value))
    _check_host(version, checked["host"])
    _check_framing(version, checked["content-length"], checked["transfer-encoding"])
    options = {option.strip(" \t").lower() for option in ",".join(checked["connection"]).split(",")}
    keeps_connection = "close" not in options and (version == "1.1" or "keep-alive" in options)
    return Head(method, target, version, fields, keeps_connection)


#: Clients send nearly the same head with each request. Longer heads are not kept, because any client can send them.
CACHED_HEADS, CACHED_HEAD_BYTES = 1024, 1024
_parse_known_head = functools.lru_cache(CACHED_HEADS)(parse_head)


def _check_host(version: str, hosts: list[str]) -> None:
    if len(hosts) > 1 or (not hosts and version == "1.1") or not all(map(_HOST.fullmatch, hosts)):
        raise refuse("the Host header is missing, repeated or invalid; send one with the server's name")


def _check_framing(version: str, lengths: list[str], codings: list[str]) -> None:
    """Raise `ApiError` if the end of the body is not certain (RFC 9112, section 6.3)."""
    if len(lengths) + len(codings) > 1:
        raise refuse("the request has more than one Content-Length or Transfer-Encoding; send one of them")
    if lengths and not lengths[0].isdigit():
        raise refuse("Content-Length is not a number; send the body's length in bytes as decimal digits")
    if not codings or (codings == ["chunked"] and version == "1.1"):
        return
    *others, last = (coding.strip(" \t") for coding in codings[0].split(","))
    known = version == "1.1" and last == "chunked" and "chunked" not in others
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
    head_only: Any
    response_func: Any
    response_size: Any
    url: Any

    async def http1_request_header(self) -> None:
        """Read, check and parse the head of a request. Raise `ApiError` or a Sanic exception if it is invalid."""
        end = await self._receive_head()
        head = bytes(self.recv_buffer[:end])
        parsed = _parse_known_head(head) if end <= CACHED_HEAD_BYTES else parse_head(head)
        self.url, self.keep_alive = parsed.target, parsed.keeps_connection
        self.head_only = parsed.method == "HEAD"
        request_class: Any = self.protocol.request_class
        request = request_class(
            url_bytes=parsed.target.encode(),
            headers=parsed.fields,
            head=head,
            version=parsed.version,
            method=parsed.method,
            transport=self.protocol.transport,
            app=self.protocol.app,
        )
        self._prepare_body(request.headers, parsed.version)
        # The line of a chunk's size begins with the line end before it.
        del self.recv_buffer[: end + (2 if self.request_body == "chunked" else 4)]
        self.request, request.stream = request, self
        self.protocol.state["requests_count"] += 1

    def _prepare_body(self, headers: Header, version: str) -> None:
        """Set what `read` needs. Raise a Sanic exception if the body cannot be read."""
        self.request_bytes_left = self.request_bytes = 0
        has_body = "transfer-encoding" in headers or "content-length" in headers
        expected = headers.get("expect") if has_body else None
        if expected is not None and expected.lower() != "100-continue":
            raise ExpectationFailed(f"Unknown Expect: {expected}")
        if "transfer-encoding" in headers:
            self.request_body = "chunked"
        elif has_body:
            try:
                self.request_bytes_left = self.request_bytes = int(headers["content-length"])
            except ValueError:  # of more than 4,300 digits
                raise BadRequest("Bad content-length") from None
            self.request_body = True
        too_large = self.request_bytes_left > self.request_max_size
        self.expecting_continue = expected is not None and version != "1.0" and not too_large

    def take_received_body(self) -> bytes | None:
        """Return the body if it has a length and all of it has arrived; otherwise `read` returns its parts."""
        size = self.request_bytes_left
        if self.request_body is not True or self.expecting_continue or size > self.request_max_size:
            return None
        if size > len(self.recv_buffer):
            return None
        body = bytes(self.recv_buffer[:size])
        del self.recv_buffer[:size]
        self.request_body, self.request_bytes_left = None, 0
        return body

    async def http1_response_header(self, data: bytes, end_stream: bool) -> None:
        """Send a whole answer at once.

        Sanic's own method, which encodes each field alone, sends all other answers, and removes line ends from fields.
        """
        response: Any = self.response
        body = getattr(response, "body", None)
        if data or not body or self.head_only or self.expecting_continue or response.status not in _STATUS_LINES:
            await super().http1_response_header(data, end_stream)
            return
        headers = response.headers
        headers.setdefault("content-type", response.content_type)
        headers["content-length"] = str(len(body))
        headers["connection"] = "keep-alive" if self.keep_alive else "close"
        lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
        text = "".join(lines)
        if not text.count("\n") == text.count("\r") == len(lines) or "\0" in text:
            await super().http1_response_header(data, end_stream)
            return
        self.response_func, self.response_size = None, len(body)
        await self._send(b"%b%b\r\n%b" % (_STATUS_LINES[response.status], text.encode(errors="surrogateescape"), body))
        self.stage = Stage.IDLE

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
            has_bare_lf = buffer.count(b"\n", 0, size) != buffer.count(b"\r\n", 0, size)
            if has_bare_lf or not _BEGIN.match(buffer):
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
