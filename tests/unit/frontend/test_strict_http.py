"""Checks of the head of a request. tests/acceptance/test_http_conformance.py sends many more to a live server."""

import pytest

from frontend.api.errors import ApiError
from frontend.rest.strict_http import parse_head

LINE = b"POST / HTTP/1.1\r\nHost: a"


def test_head_is_split_into_fields() -> None:
    head = parse_head(LINE + b"\r\nTransfer-Encoding:\t Chunked \r\nX-Lane:INTERACTIVE \xe9:")
    assert (head.method, head.target, head.version) == ("POST", "/", "1.1")
    assert head.fields == [("host", "a"), ("transfer-encoding", "chunked"), ("x-lane", "INTERACTIVE \udce9:")]


@pytest.mark.parametrize(
    ("version", "lines", "keeps"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"\r\nConnection: keep-alive, Upgrade", True),
        (b"1.1", b"\r\nConnection: TE\r\nConnection: x,\tClose", False),
        (b"1.0", b"", False),
        (b"1.0", b"\r\nConnection: x, Keep-Alive", True),
        (b"1.0", b"\r\nConnection: keep-alive, close", False),
    ],
)
def test_connection_options_are_a_list(version: bytes, lines: bytes, *, keeps: bool) -> None:
    assert parse_head(LINE.replace(b"1.1", version) + lines).keeps_connection is keeps


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"Content-Length : 5", 400),
        (b"Content-Length: +5", 400),
        (b"Transfer-Encoding:\x0bchunked", 400),
        (b"Transfer-Encoding: gzip", 400),
        ("Transfer-Encoding: chun\u212aed".encode(), 400),
        ("Connection: \u212aeep-alive".encode(), 400),
        (b"Transfer-Encoding: gzip, chunked", 501),
        (b"X: a\nTransfer-Encoding: chunked", 400),
        (b" folded", 400),
        (b"Host: b", 400),
        ("Content-Length: \u0663".encode(), 400),
        (b"X: a\rb", 400),
        (b"X: a\x00", 400),
        (b"X: a\x7f", 400),
        (b"no colon", 400),
        (b": no name", 400),
    ],
)
def test_uncertain_framing_is_refused(line: bytes, status: int) -> None:
    with pytest.raises(ApiError) as caught:
        parse_head(LINE + b"\r\n" + line)
    assert caught.value.status == status
