"""Hostile requests: bodies that are expensive to parse, and bytes that would forge log lines. Fake workers."""

import json
import re
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from broker.shared.logs import INDENT
from tests.harness.hostile import BODIES, LONGEST
from tests.harness.processes import Cluster, Program, until

LINE = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ frontend: ")


def start_frontend(cluster: Cluster, *flags: str) -> Program:
    """Start a frontend, and wait until it answers."""
    program = cluster.frontend(*flags)
    until(lambda: cluster.health(), what="the frontend")
    return program


def exchange(cluster: Cluster, head: bytes, content: bytes = b"") -> bytes:
    """Send bytes on a new connection, and return what the server sends until it closes."""
    with socket.create_connection(("127.0.0.1", cluster.port), timeout=60) as connection:
        connection.sendall(head + b"Host: a\r\nConnection: close\r\n\r\n" + content)
        received = b""
        while part := connection.recv(65536):
            received += part
    return received


# --- cost ------------------------------------------------------------------------------------------------------------


def test_expensive_bodies_do_not_block_others(cluster: Cluster) -> None:
    cluster.broker()
    cluster.worker()
    cluster.frontend("--broker-grace-s", "0")
    cluster.until_workers(1)
    for kind, make in BODIES.items():
        body = make(LONGEST)
        head = b"POST /v1/embeddings HTTP/1.1\r\nContent-Length: %d\r\n" % len(body)
        with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=cluster.url, timeout=10) as client:
            answer = pool.submit(exchange, cluster, head, body)
            assert client.get("/v2/health/live").status_code == 200
            while not answer.done():
                assert client.get("/v2/health/live").status_code == 200
            assert answer.result().split()[1] == (b"404" if kind == "a long name" else b"400"), kind


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_body_in_small_chunks_is_joined(cluster: Cluster, size: int) -> None:
    start_frontend(cluster, "--broker-grace-s", "0")
    body = json.dumps({"model": 1, "input": "x" * 20_000}).encode()
    parts = (body[at : at + size] for at in range(0, len(body), size))
    content = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    answer = exchange(cluster, b"POST /v1/embeddings HTTP/1.1\r\nTransfer-Encoding: chunked\r\n", content)
    assert answer.split()[1] == b"400"
    assert b"model field is not a string" in answer


@pytest.mark.parametrize("path", ["/" * 7900, "/v1/models" + "/" * 7800, "/v1" + "/x" * 3000 + "/" * 1500])
def test_many_slashes_are_answered_404(cluster: Cluster, path: str) -> None:
    program = start_frontend(cluster)
    assert exchange(cluster, b"GET %s HTTP/1.1\r\n" % path.encode()).split()[1] == b"404"
    assert "Traceback" not in program.output


# --- forged log lines ------------------------------------------------------------------------------------------------

FORGED = b"2026-01-01\t00:00:00,000\tCRITICAL\tbroker:\tforged"
#: Heads of requests, without the empty line. Some are invalid HTTP, and some are answered 200.
FORGING_HEADS = [
    b"GET\n%s /v1/models HTTP/1.1\r\n" % FORGED,
    b"GET\x1b[2J\x1b]0;forged\x07 /v1/models HTTP/1.1\r\n",
    b"\x1b[31mGET\x00\x7f\xc2\x85\n%s /v2/health/live HTTP/1.1\r\n" % FORGED,
    "GET\u2028forged\u202eforged\u2066 /v1/models HTTP/1.1\r\n".encode(),
    b"GET\xff\xfe /v1/models HTTP/1.1\r\n",
    b"GET /v1/models/\n%s HTTP/1.1\r\n" % FORGED,
    b"GET /v1/models/%%0a%%1b[2J%s HTTP/1.1\r\n" % FORGED.replace(b"\t", b"%09"),
    b"GET /\x1b[2J\xc2\x85 HTTP/1.1\r\n",
    b"GET /v1/models HTTP/1.1\n%s\r\n" % FORGED,
    b"GET /v1/models HTTP/1.1\r\nx-request-id: a\n%s\r\n" % FORGED,
    b"GET /v1/models HTTP/1.1\r\nx-request-id: \x1b[2J\r\ntraceparent: \x1b[2J\n%s\r\n" % FORGED,
    b"GET /metrics HTTP/1.1\r\nAccept: text/plain; version=x.\x1b\x0b%s\r\n" % FORGED,
    b"GET /v1/models HTTP/1.1\r\nOrigin: \n%s\r\nHost: \n%s\r\nExpect: \x1b\n%s\r\n" % (FORGED, FORGED, FORGED),
    b"POST /v1/embeddings HTTP/1.1\r\nExpect: \n%s\r\nContent-Length: \n%s\r\n" % (FORGED, FORGED),
    b"POST /v1/embeddings HTTP/1.1\r\nx-vecmill-lane: \x1b\n%s\r\n" % FORGED,
]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_request_cannot_forge_log_lines(cluster: Cluster, log_format: str) -> None:
    cluster.broker()
    cluster.worker()
    program = start_frontend(cluster, "--log-level", "debug", "--log-format", log_format, "--broker-grace-s", "0")
    for head in FORGING_HEADS:
        assert exchange(cluster, head).startswith(b"HTTP/1.1 ")
    named = {"model": "\n" + FORGED.decode() + "\x1b[2J", "input": "\x1b[2J"}
    assert httpx.post(f"{cluster.url}/v1/embeddings", json=named, timeout=30).status_code in (404, 503)
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    log = program.log.read_bytes()
    assert not {*range(32), 127} & set(log) - {ord("\n")}
    lines = log.removesuffix(b"\n").split(b"\n")
    assert len(lines) > len(FORGING_HEADS)
    if log_format == "text":
        assert not [line for line in lines if not LINE.match(line) and not line.startswith(INDENT.encode())]
        return
    records = [json.loads(line) for line in lines]
    assert {record["role"] for record in records} == {"frontend"}
    assert all(
        record[name].isprintable() for record in records for name in ("message", "method", "path") if name in record
    )
    # A method with control characters is refused before it is logged.
    assert {record.get("method") for record in records} <= {None, "NONE", "GET", "POST"}
