"""Clients that read slowly or not at all, the frontend's memory, and other clients. Fake workers."""

import contextlib
import json
import re
import socket
import ssl
import time
from pathlib import Path

import httpx
import pytest

from tests.harness.clients import body, right
from tests.harness.connections import encode_request, is_answered, open_connection
from tests.harness.processes import Cluster, Program, until

MB = 1_000_000
#: Maximum rise of a frontend's memory above its start, and what may remain afterwards. Measured: 85 MB and 10 MB;
#: without `frontend/rest/memory.py`, 50 to 86 MB remain.
MAX_RISE, MAX_LEFT = 150 * MB, 30 * MB
#: The maximum number of texts in a request.
TEXTS = tuple(str(number) for number in range(2048))


def read_memory(program: Program, field: str) -> int:
    """Return a process's memory in bytes: VmRSS, or VmHWM for its maximum."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{program.process.pid}/status").read_text(), re.M)
    assert found
    return int(found[1]) * 1024


def open_client(cluster: Cluster, tmp_path: Path) -> httpx.Client:
    """Return a client, over TLS if the frontend has a certificate."""
    tls = "--tls-cert" in cluster.programs[-1].process.args  # type: ignore[operator]
    if not tls:
        return httpx.Client(base_url=cluster.url, timeout=60)
    trusted = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    return httpx.Client(base_url=cluster.url.replace("http:", "https:"), verify=trusted, timeout=60)


def read_metric(client: httpx.Client, name: str) -> float:
    """Return a sample of /metrics."""
    lines = client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(name)).rpartition(" ")[2])


def is_everything_read(client: httpx.Client) -> bool:
    """Return whether no bytes are unread, after a pause in which this client's last answer is acknowledged."""
    time.sleep(0.3)
    return read_metric(client, "vecmill_unread_bytes") == 0


def count_ended(client: httpx.Client, reason: str) -> float:
    """Return the number of clients that were ended for a reason."""
    return read_metric(client, f'vecmill_readers_ended_total{{reason="{reason}"}}')


@pytest.fixture(params=["plain", "tls"])
def demanding(cluster: Cluster, certificate: tuple[Path, Path], request: pytest.FixtureRequest) -> Cluster:
    """Return a cluster with long vectors, where a client must read 1 MB/s over each 2 s."""
    cert, key = map(str, certificate)
    flags = ["--tls-cert", cert, "--tls-key", key] if request.param == "tls" else []
    cluster.broker()
    cluster.worker(dimension=4096)
    cluster.frontend("--send-timeout-s", "2", "--min-read-rate", "1000000", *flags)
    with open_client(cluster, Path(cert).parent) as client:
        until(lambda: is_answered(client, "/v2/health/ready"), what="the cluster")
    return cluster


def test_memory_is_bounded_and_others_are_served(cluster: Cluster) -> None:
    """60 answers of about 4 MB are not read, and a client that reads is served."""
    dimension = 256
    cluster.broker()
    cluster.worker(dimension=dimension)
    frontend = cluster.frontend()
    cluster.until_workers(1)
    idle = read_memory(frontend, "VmRSS")
    content = json.dumps({"model": "fake", "input": TEXTS}).encode()
    request_bytes = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content)
    with contextlib.ExitStack() as stack, httpx.Client(base_url=cluster.url, timeout=60) as honest:
        for number in range(60):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", cluster.port)))
            connection.sendall(request_bytes)
            # Wait for each request's vectors, because the broker may serve requests in another order.
            until(lambda: cluster.number("open_jobs") > 0 or read_metric(honest, "vecmill_unread_bytes") > 0)
            until(lambda: cluster.number("open_jobs") == 0)
            if number % 20 == 19:
                answer = honest.post("/v1/embeddings", json=body(*TEXTS))
                assert answer.status_code == 200, answer.text
                assert right(answer, TEXTS, dimension)
        assert read_memory(frontend, "VmHWM") - idle < MAX_RISE
        assert count_ended(honest, "pressed") > 0
    with httpx.Client(base_url=cluster.url) as client:
        until(lambda: is_everything_read(client), what="the end of all unread answers")
    until(lambda: read_memory(frontend, "VmRSS") - idle < MAX_LEFT, what="the read_memory to come back")
    assert "ended connections of slow readers: pressed" in frontend.output


def test_reader_below_minimum_rate_is_ended(demanding: Cluster, tmp_path: Path) -> None:
    with open_connection(demanding, tmp_path, 65536) as connection, open_client(demanding, tmp_path) as other:
        connection.sendall(encode_request(*TEXTS))
        assert connection.recv(12) == b"HTTP/1.1 200"
        received = 0
        with contextlib.suppress(OSError):
            # 80 kB/s at most.
            while part := connection.recv(4096):
                received += len(part)
                time.sleep(0.05)
        assert received < 10 * MB
        assert count_ended(other, "slow") == 1


def test_reader_above_minimum_rate_gets_whole_answer(demanding: Cluster, tmp_path: Path) -> None:
    """The answer takes longer than the time-out, so that the minimum rate applies."""
    started = time.monotonic()
    received = bytearray()
    with open_connection(demanding, tmp_path, 65536) as connection, open_client(demanding, tmp_path) as other:
        connection.sendall(encode_request(*TEXTS[:1000]).replace(b"Host: a", b"Host: a\r\nConnection: close"))
        while part := connection.recv(65536):
            received += part
            if time.monotonic() - started < 3:
                time.sleep(0.01)
        assert (count_ended(other, "slow"), count_ended(other, "stalled")) == (0, 0)
    head, _, answer = bytes(received).partition(b"\r\n\r\n")
    assert f"content-length: {len(answer)}".encode() in head
    assert right(httpx.Response(200, content=answer), TEXTS[:1000], 4096)


def test_answer_above_maximum_reaches_single_client(cluster: Cluster, tmp_path: Path) -> None:
    """The answer has 30 MB, the maximum is 8 MB, the client needs more than 10 s, and no answer waits."""
    cluster.broker()
    cluster.worker(dimension=4096)
    cluster.frontend("--max-unread-bytes", str(8 * MB))
    cluster.until_workers(1)
    received = bytearray()
    with open_connection(cluster, tmp_path, 65536) as connection, httpx.Client(base_url=cluster.url) as other:
        connection.sendall(encode_request(*TEXTS[:600]).replace(b"Host: a", b"Host: a\r\nConnection: close"))
        started = time.monotonic()
        while part := connection.recv(65536):
            received += part
            # About 1 MB/s at first.
            if time.monotonic() - started < 4:
                time.sleep(0.05)
        assert count_ended(other, "pressed") == 0
    _, _, answer = bytes(received).partition(b"\r\n\r\n")
    assert right(httpx.Response(200, content=answer), TEXTS[:600], 4096)


def test_connection_has_one_unread_answer(demanding: Cluster, tmp_path: Path) -> None:
    served = 'vecmill_requests_total{endpoint="embeddings",model="fake",status="200"}'
    with open_connection(demanding, tmp_path, 4096) as connection, open_client(demanding, tmp_path) as other:
        connection.sendall(encode_request(*TEXTS[:500]) * 20)
        until(lambda: read_metric(other, "vecmill_unread_bytes") > MB, what="an answer that is not read")
        for number in range(3):
            assert other.post("/v1/embeddings", json=body("a")).status_code == 200
            assert read_metric(other, served) == 1 + number + 1
        until(lambda: count_ended(other, "stalled") + count_ended(other, "slow") == 1, what="the end of the connection")


def test_client_leaving_during_answer_is_no_error(cluster: Cluster) -> None:
    cluster.broker()
    cluster.worker(dimension=4096)
    frontend = cluster.frontend()
    cluster.until_workers(1)
    with httpx.Client(base_url=cluster.url) as client:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", cluster.port)) as connection:
                connection.sendall(encode_request(*TEXTS[:1000]))
                assert connection.recv(12) == b"HTTP/1.1 200"
        until(lambda: is_everything_read(client), what="the end of all unread answers")
        assert client.post("/v1/embeddings", json=body("a")).status_code == 200
        assert read_metric(client, 'vecmill_requests_total{endpoint="embeddings",model="fake",status="200"}') == 4
        assert 'status="499"' not in client.get("/metrics").text
    assert "Traceback" not in frontend.output
    assert "ERROR" not in frontend.output
