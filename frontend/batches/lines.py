"""Lines of a batch's files: the request in a line of the input, and the line of its answer. Pure."""

import codecs
import hashlib
from typing import Any, NamedTuple

import msgspec

from frontend.api.errors import ApiError
from frontend.api.inputs import replace_lone_surrogates

#: White space around a line (RFC 8259, section 2); the first one ends lines of Windows.
_BLANKS = b"\r \t"
#: Longest value of a field that a message quotes, in characters.
_MAX_QUOTED = 100


# --- input -----------------------------------------------------------------------------------------------------------


class InputLine(NamedTuple):
    """A line that is not blank."""

    #: From 1; blank lines count.
    number: int
    #: Offset in the file of the byte after the line and its end.
    end: int
    #: Without the line's end; None if the line is longer than the limit.
    content: bytes | None
    #: Length of the line, in bytes.
    size: int


def strip_line(content: bytes, number: int) -> bytes:
    """Return a line without white space around it, and the first one without a byte order mark."""
    return (content.removeprefix(codecs.BOM_UTF8) if number == 1 else content).strip(_BLANKS)


class LineError(Exception):
    """Why a line is no request: OpenAI's code, and a sentence without the number of the line."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


class BatchRequest(NamedTuple):
    """The request in a line."""

    custom_id: str
    #: Body as it is in the line, except for lone surrogates if the line has any.
    body: bytes


class _Fields(msgspec.Struct):
    custom_id: Any = None
    method: Any = None
    url: Any = None
    body: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode = msgspec.json.Decoder(_Fields).decode


def parse_line(content: bytes, endpoint: str) -> BatchRequest:
    """Return the request of a line. Raise `LineError` if the line is no request to the batch's endpoint."""
    fields = _decode_line(content)
    for name in ("custom_id", "method", "url"):
        value = getattr(fields, name)
        if not isinstance(value, str) or not value:
            raise LineError("missing_required_parameter", f"{name} must be a string that is not empty", name)
    if fields.body is msgspec.UNSET:
        raise LineError("missing_required_parameter", "body is missing; it is the request's JSON body", "body")
    if fields.method != "POST":
        raise LineError("invalid_method", f"method is {_quote(fields.method)}, but must be POST", "method")
    if fields.url != endpoint:
        text = f"url is {_quote(fields.url)}, but must be the batch's endpoint, {endpoint}"
        raise LineError("url_mismatch", text, "url")
    return BatchRequest(fields.custom_id, bytes(fields.body))


def _check_encoding(content: bytes) -> None:
    """Raise `LineError` for a byte that no UTF-8 text has. The decoder of the fields does not read all of the body."""
    position, reason = content.find(0), "is NUL, as in files of UTF-16"
    if position < 0 and not content.isascii():
        try:
            content.decode()
        except UnicodeDecodeError as error:
            position, reason = error.start, "is not UTF-8"
    if position >= 0:
        text = f"byte {position} of the line {reason}; save the file as UTF-8"
        raise LineError("invalid_json_line", text)


def _decode_line(content: bytes) -> _Fields:
    _check_encoding(content)
    try:
        try:
            return _decode(content)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            # A decoder that skips a string reads a lone surrogate as the first of two.
            replaced, count = replace_lone_surrogates(content)
            if not count:
                raise
            return _decode(replaced)
    except (msgspec.MsgspecError, RecursionError) as error:
        text = f"the line is not a valid JSON object: {error}; a batch's file has one JSON object per line"
        raise LineError("invalid_json_line", text) from None


def _quote(text: str) -> str:
    return msgspec.json.encode(text[:_MAX_QUOTED]).decode()


# --- output ----------------------------------------------------------------------------------------------------------


def make_request_id(batch: str, number: int) -> str:
    """Return the id of a line's request, which is the same whenever the line runs."""
    return hashlib.blake2b(f"{batch}/{number}".encode(), digest_size=16).hexdigest()


def render_answer(request_id: str, custom_id: str, status: int, body: bytes) -> bytes:
    """Return the line of a request that was answered; `body` is the answer of the HTTP API, byte for byte."""
    head = f',"response":{{"status_code":{status},"request_id":"{request_id}","body":'.encode()
    return b"".join((_render_ids(request_id, custom_id), head, body, b'},"error":null}\n'))


def render_error(request_id: str, custom_id: str, error: ApiError) -> bytes:
    """Return the line of a request that the HTTP API would refuse, for the error file."""
    return render_answer(request_id, custom_id, error.status, error.body())


def render_unsent(request_id: str, custom_id: str, code: str, message: str) -> bytes:
    """Return the line of a request that never ran, for the error file."""
    reason = msgspec.json.encode({"code": code, "message": message})
    return b"".join((_render_ids(request_id, custom_id), b',"response":null,"error":', reason, b"}\n"))


def _render_ids(request_id: str, custom_id: str) -> bytes:
    return b'{"id":"batch_req_%b","custom_id":%b' % (request_id.encode(), msgspec.json.encode(custom_id))
