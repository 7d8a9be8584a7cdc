"""Clients that do not read their answers, or not fast enough: what becomes of them, of the memory, and of others.
Fake workers."""

import contextlib
import json
import re
import socket
import ssl
import time
from pathlib import Path

import httpx
import pytest

from tests.acceptance.test_edges import answers, connected, request
from tests.harness.clients import body, right
from tests.harness.processes import Cluster, Program, until

MB = 1_000_000
#: How far a frontend's memory may rise above what it is at its start, and how far above it may stay. Measured: 85 MB
#: and 10; without `frontend/rest/memory.py`, 50 to 86 MB stay.
MOST_MORE, MOST_KEPT = 150 * MB, 30 * MB
#: 2,048 texts are what a request may have at most.
TEXTS = tuple(str(number) for number in range(2048))


def memory(program: Program, field: str) -> int:
    """A process's memory in bytes as the kernel tells it: VmRSS now, VmHWM at the highest."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{program.process.pid}/status").read_text(), re.M)
    assert found
    return int(found[1]) * 1024


def client_of(cluster: Cluster, tmp_path: Path) -> httpx.Client:
    """A client that reads, over TLS where the cluster has it."""
    tls = "--tls-cert" in cluster.programs[-1].process.args  # type: ignore[operator]
    if not tls:
        return httpx.Client(base_url=cluster.url, timeout=60)
    trusted = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    return httpx.Client(base_url=cluster.url.replace("http:", "https:"), verify=trusted, timeout=60)


def metric(client: httpx.Client, name: str) -> float:
    """A sample of /metrics."""
    lines = client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(name)).rpartition(" ")[2])


def ended(client: httpx.Client, reason: str) -> float:
    """How many clients have been ended for it."""
    return metric(client, f'vecmill_readers_ended_total{{reason="{reason}"}}')


@pytest.fixture(params=["plain", "tls"])
def demanding(cluster: Cluster, certificate: tuple[Path, Path], request: pytest.FixtureRequest) -> Cluster:
    """A cluster with long vectors, where a client must take 1 MB/s over each 2 s."""
    cert, key = map(str, certificate)
    flags = ["--tls-cert", cert, "--tls-key", key] if request.param == "tls" else []
    cluster.broker()
    cluster.worker(dimension=4096)
    cluster.frontend("--send-timeout-s", "2", "--min-read-rate", "1000000", *flags)
    with client_of(cluster, Path(cert).parent) as client:
        until(lambda: answers(client, "/v2/health/ready"), what="the cluster")
    return cluster


def test_memory_is_bounded_when_nobody_reads_and_others_are_served(cluster: Cluster) -> None:
    """60 answers of some 4 MB, and an honest client beside."""
    dimension = 256
    cluster.broker()
    cluster.worker(dimension=dimension)
    frontend = cluster.frontend()
    cluster.until_workers(1)
    idle = memory(frontend, "VmRSS")
    content = json.dumps({"model": "fake", "input": TEXTS}).encode()
    asked = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content)
    with contextlib.ExitStack() as stack, httpx.Client(base_url=cluster.url, timeout=60) as honest:
        for number in range(60):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", cluster.port)))
            connection.sendall(asked)
            # Whose turn comes is the broker's affair; here each request's vectors come before the next is made.
            until(lambda: cluster.number("open_jobs") > 0 or metric(honest, "vecmill_unread_bytes") > 0)
            until(lambda: cluster.number("open_jobs") == 0)
            if number % 20 == 19:
                answer = honest.post("/v1/embeddings", json=body(*TEXTS))
                assert answer.status_code == 200, answer.text
                assert right(answer, TEXTS, dimension)
        assert memory(frontend, "VmHWM") - idle < MOST_MORE
        assert ended(honest, "pressed") > 0
    with httpx.Client(base_url=cluster.url) as client:
        until(lambda: metric(client, "vecmill_unread_bytes") == 0, what="the end of all that was unread")
    until(lambda: memory(frontend, "VmRSS") - idle < MOST_KEPT, what="the memory to come back")
    assert "ended connections whose clients do not read their answers: pressed" in frontend.output


def test_reader_below_the_rate_is_ended(demanding: Cluster, tmp_path: Path) -> None:
    with connected(demanding, tmp_path, 65536) as connection, client_of(demanding, tmp_path) as other:
        connection.sendall(request(*TEXTS))
        assert connection.recv(12) == b"HTTP/1.1 200"
        received = 0
        with contextlib.suppress(OSError):
            # 80 kB/s at most.
            while part := connection.recv(4096):
                received += len(part)
                time.sleep(0.05)
        assert received < 10 * MB
        assert ended(other, "slow") == 1


def test_reader_above_the_rate_gets_its_whole_answer(demanding: Cluster, tmp_path: Path) -> None:
    """For longer than the time-out, so that its rate is asked for."""
    begun = time.monotonic()
    received = bytearray()
    with connected(demanding, tmp_path, 65536) as connection, client_of(demanding, tmp_path) as other:
        connection.sendall(request(*TEXTS[:1000]).replace(b"Host: a", b"Connection: close"))
        while part := connection.recv(65536):
            received += part
            if time.monotonic() - begun < 3:
                time.sleep(0.01)
        assert (ended(other, "slow"), ended(other, "stalled")) == (0, 0)
    head, _, answer = bytes(received).partition(b"\r\n\r\n")
    assert f"content-length: {len(answer)}".encode() in head
    assert right(httpx.Response(200, content=answer), TEXTS[:1000], 4096)


def test_answer_larger_than_all_room_reaches_a_client_that_is_alone(cluster: Cluster, tmp_path: Path) -> None:
    """Some 30 MB where all answers together have 8: its client needs more than 10 s for it, and nobody waits."""
    cluster.broker()
    cluster.worker(dimension=4096)
    cluster.frontend("--max-unread-bytes", str(8 * MB))
    cluster.until_workers(1)
    received = bytearray()
    with connected(cluster, tmp_path, 65536) as connection, httpx.Client(base_url=cluster.url) as other:
        connection.sendall(request(*TEXTS[:600]).replace(b"Host: a", b"Connection: close"))
        begun = time.monotonic()
        while part := connection.recv(65536):
            received += part
            # About 1 MB/s at first.
            if time.monotonic() - begun < 4:
                time.sleep(0.05)
        assert ended(other, "pressed") == 0
    _, _, answer = bytes(received).partition(b"\r\n\r\n")
    assert right(httpx.Response(200, content=answer), TEXTS[:600], 4096)


def test_connection_has_one_unread_answer_however_much_it_asks(demanding: Cluster, tmp_path: Path) -> None:
    served = 'vecmill_requests_total{endpoint="embeddings",model="fake",status="200"}'
    with connected(demanding, tmp_path, 4096) as connection, client_of(demanding, tmp_path) as other:
        connection.sendall(request(*TEXTS[:500]) * 20)
        until(lambda: metric(other, "vecmill_unread_bytes") > MB, what="an answer that is not read")
        for number in range(3):
            assert other.post("/v1/embeddings", json=body("a")).status_code == 200
            assert metric(other, served) == 1 + number + 1
        until(lambda: ended(other, "stalled") + ended(other, "slow") == 1, what="the end of the connection")


def test_client_that_leaves_in_the_middle_of_its_answer_is_no_error(cluster: Cluster) -> None:
    cluster.broker()
    cluster.worker(dimension=4096)
    frontend = cluster.frontend()
    cluster.until_workers(1)
    with httpx.Client(base_url=cluster.url) as client:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", cluster.port)) as connection:
                connection.sendall(request(*TEXTS[:1000]))
                assert connection.recv(12) == b"HTTP/1.1 200"
        until(lambda: metric(client, "vecmill_unread_bytes") == 0, what="the end of all that was unread")
        assert client.post("/v1/embeddings", json=body("a")).status_code == 200
        assert metric(client, 'vecmill_requests_total{endpoint="embeddings",model="fake",status="200"}') == 4
        assert 'status="499"' not in client.get("/metrics").text
    assert "Traceback" not in frontend.output
    assert "ERROR" not in frontend.output
