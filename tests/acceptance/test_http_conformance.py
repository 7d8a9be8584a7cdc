"""HTTP/1.1 as RFC 9110 and RFC 9112 define it: rows of raw bytes, each sent to a live server at once and byte by byte.

A closed connection must have sent exactly the listed answers, so that no rest of a refused request is served. On an
open connection, the server must answer one more request.
"""

import gzip
import select
import socket
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pytest

from tests.harness.connections import is_ready
from tests.harness.processes import Cluster, until

BODY = b'{"model":"fake","input":"a"}'
SIZE = b"Content-Length: %d" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked"
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
#: Maximum size of a body.
MAX_BYTES = 4096


class Row(NamedTuple):
    """Bytes of a client, and the statuses of the answers."""

    #: Section of RFC 9112, or of RFC 9110 with a leading 9110.
    section: str
    name: str
    sent: bytes
    statuses: tuple[int, ...]
    #: Whether the connection stays open.
    is_open: bool = True
    #: Headers of the last answer. `...`: any value; None: absent.
    headers: Mapping[str, object] = {}


class Answer(NamedTuple):
    """Answer of the server."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def get(*lines: bytes, path: bytes = b"/v2/health/live", method: bytes = b"GET", version: bytes = b"HTTP/1.1") -> bytes:
    """Return a request without a body."""
    return b"\r\n".join([b"%s %s %s" % (method, path, version), b"Host: a", *lines, b"", b""])


def post(*lines: bytes, content: bytes = BODY, version: bytes = b"HTTP/1.1") -> bytes:
    """Return a request for embeddings."""
    return get(*lines, path=b"/v1/embeddings", method=b"POST", version=version) + content


def refuse(section: str, name: str, sent: bytes, status: int = 400) -> Row:
    """Return a row of a request that ends its connection. The request behind it must not be served."""
    return Row(section, name, sent + get(), (status,), is_open=False, headers={"connection": "close", "date": ...})


def compress(*lines: bytes, content: bytes) -> bytes:
    """Return a request for embeddings with these bytes as its body."""
    return post(b"Content-Length: %d" % len(content), *lines, content=content)


CONFORMING = [
    Row("2.1", "plain request", get(), (200,), headers={"connection": "keep-alive", "date": ...}),
    Row("2.2", "empty line first", b"\r\n" + get(), (200,)),
    Row("2.2", "three empty lines first", b"\r\n" * 3 + get(), (200,)),
    Row("2.2", "empty line behind a body", post(SIZE) + b"\r\n" + get(), (200, 200)),
    Row("3.2", "host in capitals", get().replace(b"Host", b"HOST"), (200,)),
    Row("3.2", "host with a port", get().replace(b"Host: a", b"Host: [::1]:8000"), (200,)),
    Row("3.2", "empty host", get().replace(b"Host: a", b"Host:"), (200,)),
    Row("3.2.2", "absolute form", get(path=b"http://b/v2/health/live"), (200,)),
    Row("3.2.2", "absolute form with a query", get(path=b"http://b:80/v2/health/live?x=1"), (200,)),
    Row("5", "no blank behind a colon", get(b"X:y"), (200,)),
    Row("5", "tabs and blanks around a value", post(b"Content-Length:\t %d \t" % len(BODY)), (200,)),
    Row("5", "empty value", get(b"X:"), (200,)),
    Row("9110 5.5", "value beyond ASCII", get(b"X: caf\xe9"), (200,)),
    Row("9110 5.1", "all token characters in a name", get(b"!#$%&'*+.^_`|~09-: y"), (200,)),
    Row("6.2", "body with a length", post(SIZE), (200,)),
    Row("6.2", "length with leading zeros", post(SIZE.replace(b": ", b": 000")), (200,)),
    Row("6.2", "length 0", get(b"Content-Length: 0"), (200,)),
    Row("6", "GET with a body", get(SIZE) + BODY + get(), (200, 200)),
    Row("7.1", "one chunk", post(CHUNKED, content=CHUNKS), (200,)),
    Row("7.1", "chunk for each byte", post(CHUNKED, content=b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) +
        b"0\r\n\r\n"), (200,)),
    Row("7.1", "size in capitals with zeros", post(CHUNKED, content=b"0" + CHUNKS.replace(b"1c\r", b"1C\r")), (200,)),
    Row("7.1", "several zeros as last chunk", post(CHUNKED, content=CHUNKS.replace(b"0\r\n\r", b"000\r\n\r")), (200,)),
    Row("7.1.1", "chunk extension", post(CHUNKED, content=CHUNKS.replace(b"1c\r", b"1c;a=b;c\r")), (200,)),
    Row("7.1.1", "quoted chunk extension", post(CHUNKED, content=CHUNKS.replace(b"1c\r", b'1c ; a="b c"\r')), (200,)),
    Row("7.1.2", "trailer", post(CHUNKED, content=CHUNKS[:-2] + b"X-Sum: 1\r\n\r\n") + get(), (200, 200)),
    Row("7.1.2", "trailer with framing", post(CHUNKED, content=CHUNKS[:-2] + SIZE + b"\r\nHost: b\r\n\r\n"), (200,)),
    Row("7.1", "coding in capitals", post(b"TRANSFER-ENCODING: Chunked", content=CHUNKS), (200,)),
    Row("7.1", "blanks behind the coding", post(CHUNKED + b" \t", content=CHUNKS), (200,)),
    Row("9.3.2", "two pipelined", get() + get(), (200, 200)),
    Row("9.3.2", "pipelined behind a body", post(SIZE) + get(), (200, 200)),
    Row("9.3.2", "pipelined behind chunks", post(CHUNKED, content=CHUNKS) + get(), (200, 200)),
    Row("9.3", "option keep-alive, Upgrade", get(b"Connection: keep-alive, Upgrade"), (200,)),
    Row("9.3", "option TE", get(b"Connection: TE", b"TE: trailers"), (200,)),
    Row("9.3", "options Keep-Alive, TE", get(b"Connection: Keep-Alive, TE"), (200,)),
    Row("9.3", "empty options", get(b"Connection: ,,"), (200,)),
    Row("9.6", "option close", get(b"Connection: close") + get(), (200,), False, {"connection": "close"}),
    Row("9.6", "option close in capitals", get(b"Connection: CLOSE"), (200,), is_open=False),
    Row("9.6", "option close in a list", get(b"Connection: keep-alive ,\tclose"), (200,), is_open=False),
    Row("9.6", "option close in a second line", get(b"Connection: TE", b"Connection: close"), (200,), is_open=False),
    Row("9.3", "HTTP/1.0", get(version=b"HTTP/1.0"), (200,), is_open=False),
    Row("9.3", "HTTP/1.0 keep-alive", get(b"Connection: Keep-Alive", version=b"HTTP/1.0"), (200,),
        headers={"connection": "keep-alive"}),
    Row("9.3", "HTTP/1.0 keep-alive in a list", get(b"Connection: x, keep-alive", version=b"HTTP/1.0"), (200,)),
    Row("3.2", "HTTP/1.0 without host", b"GET /v2/health/live HTTP/1.0\r\n\r\n", (200,), is_open=False),
    Row("9110 7.8", "offer of h2c", get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: A"),
        (200,), headers={"upgrade": None}),
    Row("9110 7.8", "offer of h2c with a body", post(SIZE, b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c") +
        get(), (200, 200)),
    Row("9110 7.8", "offer of a WebSocket", get(b"Connection: Upgrade", b"Upgrade: websocket"), (200,)),
    Row("9110 9.1", "HEAD", get(method=b"HEAD") + get(), (200, 200)),
    Row("9110 9.1", "HEAD of models", get(method=b"HEAD", path=b"/v1/models"), (200,), headers={"content-length": ...}),
    Row("9110 9.1", "HEAD of a large answer", get(method=b"HEAD", path=b"/docs/swagger-ui-bundle.js"), (200,)),
    Row("9110 9.1", "HEAD of an unknown path", get(method=b"HEAD", path=b"/none"), (404,)),
    Row("9110 9.1", "HEAD where only POST is", get(method=b"HEAD", path=b"/v1/embeddings"), (405,),
        headers={"allow": "POST"}),
    Row("9110 15.5.6", "allowed methods", get(method=b"PUT"), (405,), headers={"allow": "GET, HEAD"}),
    Row("9110 6.6.1", "date of an error", get(path=b"/none"), (404,), headers={"date": ...}),
    Row("9110 10.1.1", "expectation", post(SIZE, b"Expect: 100-Continue"), (100, 200)),
    Row("9110 10.1.1", "expectation before chunks", post(CHUNKED, b"Expect: 100-continue", content=CHUNKS), (100, 200)),
    Row("9110 10.1.1", "expectation without a body", get(b"Expect: 100-continue"), (200,)),
    Row("9110 10.1.1", "expectation of HTTP/1.0", post(SIZE, b"Expect: 100-continue", version=b"HTTP/1.0"), (200,),
        is_open=False),
    Row("9110 10.1.1", "expectation of too large a body", post(b"Expect: 100-continue", b"Content-Length: 9999",
        content=b"x" * 9999), (413,), is_open=False),
    Row("9110 8.4", "gzip", compress(b"Content-Encoding: gzip", content=gzip.compress(BODY)), (200,)),
    Row("9110 8.4", "gzip by its old name", compress(b"Content-Encoding: X-GZIP", content=gzip.compress(BODY)), (200,)),
    Row("9110 8.4", "identity", post(SIZE, b"Content-Encoding: identity"), (200,)),
    Row("9110 8.4", "gzip that is damaged", compress(b"Content-Encoding: gzip", content=BODY), (400,)),
    Row("9110 8.4", "gzip without its end", compress(b"Content-Encoding: gzip", content=gzip.compress(BODY)[:-1]),
        (400,)),
    Row("9110 8.4", "gzip of too much", compress(b"Content-Encoding: gzip", content=gzip.compress(b" " * MAX_BYTES +
        BODY)), (413,)),
    Row("9110 15.5.16", "deflate", compress(b"Content-Encoding: deflate", content=BODY), (415,),
        headers={"accept-encoding": "gzip"}),
    Row("9110 15.5.16", "gzip twice", compress(b"Content-Encoding: gzip", b"Content-Encoding: gzip", content=BODY),
        (415,)),
]  # fmt: skip
LENGTHS = [b"", b"+28", b"-28", b"0x1c", b"2_8", b"28 28", b"28, 28", b"28;", "٢٨".encode()]
CODINGS = [b"gzip", b"identity", b"xchunked", b"chunked, gzip", b"chunked, chunked", b"chunked,", b"chunked;q=1",
           b'"chunked"', b"\x0bchunked", "\u00a0chunked".encode(), b"chunked\x00"]  # fmt: skip
SIZES = [b"0x1c", b"+1c", b"-1c", b" 1c", b"1c ", b"1_c", b"", b"g", b"1c\n", b"1c;\x0b", b"1c;a\rb", b"1c;a\nb",
         b"0" * 16 + b"1c", b"1c;" + b"a" * 300]  # fmt: skip
LINES = [b"Content-Length : 28", b"X : y", b"X\t: y", b" X: y", b"X: y\r\n folded", b"X: y\r\n\tfolded", b"X", b": y",
         b"A B: y", b"X\x00: y", b"caf\xe9: y", b"X: a\nY: b", b"X: a\rY: b", b"X: \x00", b"X: \x0b", b"X: \x7f",
         b"X(): y"]  # fmt: skip
HOSTS = [b"", b"Host: a\r\nHost: a\r\n", b"Host: a b\r\n", b"Host: a/b\r\n", b"Host: a@b\r\n", b"Host: caf\xe9\r\n"]
REQUEST_LINES = [b"GET  / HTTP/1.1", b"GET\t/ HTTP/1.1", b"GET / HTTP/1.1 ", b" GET / HTTP/1.1", b"GET /", b"GET / ",
                 b"GET / http/1.1", b"GET / HTTP/1.10", b"GET / HTTP/11", b"GET / HTTP/1,1", b"GET /a b HTTP/1.1",
                 b"GET /\xc3\xa9 HTTP/1.1", b"GET /\x7f HTTP/1.1", b"G@T / HTTP/1.1", b"GET / HTTP/1.1\n",
                 b"GET"]  # fmt: skip
TRAILERS = [b"X : y", b"X", b" X: y", b"X: y\r\n folded", b"X: \x00", b"GET / HTTP/1.1"]
REFUSED = [
    refuse("2.2", "line ends without CR", get().replace(b"\r\n", b"\n")),
    refuse("2.2", "line ends without LF", get().replace(b"\r\n", b"\r")),
    refuse("2.3", "HTTP/2.0", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    refuse("2.3", "HTTP/1.2", get(version=b"HTTP/1.2"), 505),
    refuse("3", "TLS handshake", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    refuse("5", "headers that are too large", get(b"X: " + b"y" * 20_000), 431),
    refuse("6.1", "length and coding", post(SIZE, CHUNKED, content=CHUNKS)),
    refuse("6.1", "coding and length", post(CHUNKED, b"Content-Length: 3", content=CHUNKS)),
    refuse("6.1", "coding in HTTP/1.0", post(CHUNKED, content=CHUNKS, version=b"HTTP/1.0")),
    refuse("6.1", "coding that is unknown", post(b"Transfer-Encoding: gzip, chunked", content=CHUNKS), 501),
    refuse("6.1", "coding twice", post(CHUNKED, CHUNKED, content=CHUNKS)),
    refuse("6.3", "length twice", post(SIZE, SIZE)),
    refuse("6.3", "length beyond all limits", post(b"Content-Length: " + b"2" * 2000), 413),
    refuse("6.3", "two lengths", post(SIZE, b"Content-Length: 3")),
    refuse("6.3", "length behind a blank name", post(SIZE, b"Content-Length : 3")),
    refuse("7.1", "chunk longer than its size", post(CHUNKED, content=CHUNKS.replace(b"1c\r", b"1b\r"))),
    refuse("7.1", "chunk shorter than its size", post(CHUNKED, content=CHUNKS.replace(b"1c\r", b"1d\r"))),
    refuse("7.1", "chunk that LF ends", post(CHUNKED, content=CHUNKS.replace(b"}\r\n", b"}\n"))),
    refuse("7.1", "last chunk that LF ends", post(CHUNKED, content=CHUNKS.replace(b"0\r\n\r\n", b"0\n\n"))),
    refuse("9110 10.1.1", "expectation that is unknown", post(SIZE, b"Expect: y", b"Connection: close"), 417),
    Row("9110 10.1.1", "unknown expectation before its body", post(SIZE, b"Expect: y", content=b""), (417,), False),
    *(refuse("6.2", f"length {value[:9]!r}", post(b"Content-Length: " + value)) for value in LENGTHS),
    *(refuse("6.1", f"coding {value!r}", post(b"Transfer-Encoding:" + value, content=CHUNKS)) for value in CODINGS),
    *(refuse("7.1", f"size {value[:9]!r}", post(CHUNKED, content=CHUNKS.replace(b"1c\r", value + b"\r")))
      for value in SIZES),
    *(refuse("5", f"line {line!r}", get(line)) for line in LINES),
    *(refuse("5", f"first line {line!r}", get().replace(b"Host:", line + b"\r\nHost:")) for line in LINES),
    *(refuse("3.2", f"hosts {line!r}", get().replace(b"Host: a\r\n", line)) for line in HOSTS),
    *(refuse("3", f"request line {line!r}", line + b"\r\nHost: a\r\n\r\n") for line in REQUEST_LINES),
    *(refuse("7.1.2", f"trailer {line!r}", post(CHUNKED, content=CHUNKS[:-2] + line + b"\r\n\r\n"))
      for line in TRAILERS),
]  # fmt: skip
ROWS = CONFORMING + REFUSED


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Return a cluster with a fake worker and a small limit on bodies."""
    cluster = Cluster(tmp_path_factory.mktemp("server"))
    cluster.broker()
    cluster.worker()
    cluster.frontend("--max-body-bytes", str(MAX_BYTES))
    until(lambda: is_ready(cluster), what="a worker")
    yield cluster
    cluster.close()


def read_line(stream: socket.SocketIO) -> bytes:
    """Return a line without its line end, or nothing if the server has closed the connection."""
    line = b""
    while not line.endswith(b"\r\n"):
        try:
            byte = stream.read(1)
        except ConnectionResetError:
            # The server closed before it had read all bytes.
            byte = b""
        if not byte:
            assert line == b""
            return b""
        line += byte
    return line


def read_answer(stream: socket.SocketIO, *, is_head: bool) -> Answer | None:
    """Return the next answer, or None if the server has closed the connection."""
    line = read_line(stream)
    if not line:
        return None
    version, status = line.split()[:2]
    assert version == b"HTTP/1.1"
    headers = {}
    while (line := read_line(stream)) != b"\r\n":
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    rest = 0 if is_head or status in (b"100", b"204") else int(headers["content-length"])
    body = b""
    while len(body) < rest:
        part = stream.read(rest - len(body))
        assert part
        body += part
    return Answer(int(status), headers, body)


def test_table_has_distinct_rows() -> None:
    names = [(row.section, row.name) for row in ROWS]
    assert len(set(names)) == len(names) >= 140


@pytest.mark.parametrize("by_byte", [False, True], ids=["whole", "by byte"])
@pytest.mark.parametrize("row", ROWS, ids=[f"{row.section} {row.name}" for row in ROWS])
def test_row(row: Row, server: Cluster, *, by_byte: bool) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        parts = [bytes([byte]) for byte in row.sent] if by_byte and len(row.sent) < 5000 else [row.sent]
        try:
            for part in parts:
                connection.sendall(part)
                if not row.is_open and select.select([connection], [], [], 0)[0]:
                    break
        except (BrokenPipeError, ConnectionResetError):
            assert not row.is_open
        stream = socket.SocketIO(connection, "r")
        answers = [read_answer(stream, is_head=row.sent.startswith(b"HEAD")) for _ in row.statuses[:1]]
        answers += [read_answer(stream, is_head=False) for _ in row.statuses[1:]]
        assert [answer and answer.status for answer in answers] == list(row.statuses), answers
        last = answers[-1]
        assert last is not None
        for name, value in row.headers.items():
            assert (name in last.headers) is (value is not None), name
            assert value in (None, ..., last.headers.get(name)), last.headers
        if row.is_open:
            connection.sendall(get(b"Connection: close"))
            following = read_answer(stream, is_head=False)
            assert following is not None
            assert following.status == 200
        assert read_answer(stream, is_head=False) is None
