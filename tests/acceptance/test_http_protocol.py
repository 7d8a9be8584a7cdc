"""Connections of clients that are too slow in sending, or do not read. Real broker and frontend, fake workers."""

import contextlib
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.harness.clients import body
from tests.harness.connections import encode_request, is_answered, is_ready, open_connection
from tests.harness.processes import Cluster, until

KEY = "vm-key"
#: Time-out of closing connections in Sanic. 0 shows whether anything depends on it.
NO_CLOSE_TIMEOUT = {"SANIC_GRACEFUL_TCP_CLOSE_TIMEOUT": "0"}


@pytest.fixture(params=["plain", "tls"])
def impatient(cluster: Cluster, certificate: tuple[Path, Path], request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Yield a cluster with long vectors and short time-outs."""
    cert, key = map(str, certificate)
    flags = ["--tls-cert", cert, "--tls-key", key] if request.param == "tls" else []
    cluster.broker()
    cluster.worker(dimension=4096)
    cluster.frontend("--send-timeout-s", "0.5", "--request-timeout-s", "0.5", *flags, environ=NO_CLOSE_TIMEOUT)
    url = cluster.url.replace("http:", "https:") if flags else cluster.url
    with httpx.Client(base_url=url, verify=ssl.create_default_context(cafile=cert)) as client:
        until(lambda: is_answered(client, "/v2/health/ready"), what="the cluster")
        yield cluster
        assert client.post("/v1/embeddings", json=body("a")).status_code == 200


def find_peer_socket(connection: socket.socket) -> str:
    """Return the descriptor link of the other end of a connection on this host, or an empty text without one."""
    port = f":{connection.getsockname()[1]:04X}"
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines())
    return next((f"socket:[{row[9]}]" for row in rows if row[2].endswith(port) and row[9] != "0"), "")


def list_descriptors(cluster: Cluster) -> set[str]:
    """Return the descriptor links of the frontend."""
    found = set()
    for link in Path(f"/proc/{cluster.programs[-1].process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(str(link.readlink()))
    return found


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"no HTTP\r\n\r\n", b"400"),
        (b"GET /v1/models HTTP/1.1\r\nx: " + b"y" * 100_000 + b"\r\n\r\n", b"431"),
        (b"GET /v1/models HTTP/1.1\r\nx: ", b"408"),
        # Without a key the body is not read.
        (b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 9\r\n\r\n", b"401"),
    ],
)
def test_incomplete_request_is_answered_with_id(cluster: Cluster, sent: bytes, status: bytes) -> None:
    cluster.frontend("--request-timeout-s", "1", environ={"API_KEY": KEY})
    until(lambda: is_ready(cluster, "/v2/health/live"), what="the frontend")
    with socket.create_connection(("127.0.0.1", cluster.port), timeout=30) as connection:
        connection.sendall(sent)
        answer = connection.recv(65536)
    assert answer.split()[1] == status
    assert b"x-request-id: " in answer


def test_idle_new_connection_is_closed(impatient: Cluster, tmp_path: Path) -> None:
    with open_connection(impatient, tmp_path) as connection:
        assert connection.recv(65536) == b""


@pytest.mark.parametrize(
    ("begin", "continuation", "status"),
    [
        (b"GET /v1/models HTTP/1.1\r\n", b"x: y\r\n", b"408"),
        (b"POST /nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n", b"x", b"404"),
    ],
    ids=["head", "discarded body"],
)
def test_trickling_sender_is_ended(
    impatient: Cluster, tmp_path: Path, begin: bytes, continuation: bytes, status: bytes
) -> None:
    answer, ended = b"", False
    with open_connection(impatient, tmp_path) as connection:
        connection.sendall(begin)
        connection.settimeout(0.05)
        for _ in range(400):
            try:
                connection.sendall(continuation)
                part = connection.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                part = b""
            answer += part
            if not part:
                ended = True
                break
    assert answer.split()[1] == status
    assert ended


def test_client_that_does_not_read_is_ended(impatient: Cluster, tmp_path: Path) -> None:
    with open_connection(impatient, tmp_path, 4096) as connection:
        # The answer has 40 MB, far more than the kernel buffers.
        connection.sendall(encode_request(*(str(number) for number in range(2000))))
        end = until(lambda: find_peer_socket(connection), what="the connection")
        assert end in list_descriptors(impatient)
        until(lambda: end not in list_descriptors(impatient), what="the end of the connection")


def test_slow_steady_reader_gets_whole_answer(impatient: Cluster, tmp_path: Path) -> None:
    with open_connection(impatient, tmp_path, 65536) as connection:
        connection.sendall(
            encode_request(*(str(number) for number in range(1000))).replace(
                b"Host: a", b"Host: a\r\nConnection: close"
            )
        )
        received = bytearray()
        while part := connection.recv(16384):
            received += part
    head, _, answer = bytes(received).partition(b"\r\n\r\n")
    assert b"200 OK" in head
    assert len(json.loads(answer)["data"]) == 1000
