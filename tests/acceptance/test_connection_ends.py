"""When a frontend ends connections: idle time, time-outs, memory of bodies, drain; and the addresses it listens on."""

import contextlib
import json
import re
import signal
import socket
import time

import httpx
import pytest

from tests.harness.connections import is_ready
from tests.harness.processes import Cluster, Program, until

PROBE = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
IDLE_S = 1.0


def start_frontend(cluster: Cluster, *flags: str) -> Program:
    """Start a frontend without a broker, and wait until it answers."""
    program = cluster.frontend("--broker-grace-s", "0", *flags)
    until(lambda: is_ready(cluster, "/v2/health/live"), what="the frontend")
    return program


def connect(cluster: Cluster, host: str = "127.0.0.1") -> socket.socket:
    """Open a connection."""
    return socket.create_connection((host, cluster.port), timeout=30)


def receive_all(connection: socket.socket) -> bytes:
    """Return what the server sends until it ends the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            received += part
    return received


# --- idle time -------------------------------------------------------------------------------------------------------


def test_request_at_idle_limit_is_answered(cluster: Cluster) -> None:
    start_frontend(cluster, "--idle-timeout-s", str(IDLE_S))
    number = 300
    with contextlib.ExitStack() as stack:
        idle = []
        for _ in range(number):
            connection = stack.enter_context(connect(cluster))
            # Before Sanic's task of the connection has begun.
            connection.sendall(PROBE)
            assert b"keep-alive: timeout=1\r\n" in connection.recv(65536).lower()
            idle.append((time.monotonic(), connection))
        for position, (answered, connection) in enumerate(idle):
            # Around the limit, from 0.8 to 1.2 s.
            due = answered + IDLE_S + 0.4 * (position / number - 0.5)
            time.sleep(max(0.0, due - time.monotonic()))
            connection.sendall(PROBE)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200"), position


@pytest.mark.parametrize("is_late", [False, True], ids=["first request", "second request"])
def test_idle_connections_are_closed_in_time(cluster: Cluster, *, is_late: bool) -> None:
    start_frontend(cluster, "--idle-timeout-s", str(IDLE_S))
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(cluster)) for _ in range(40)]
        for _ in range(1 + is_late):
            for connection in connections:
                connection.sendall(PROBE)
                assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            answered = time.monotonic()
        for connection in connections:
            assert connection.recv(65536) == b""
            assert time.monotonic() - answered > IDLE_S
        assert time.monotonic() - answered < IDLE_S + 5


def test_empty_lines_do_not_begin_a_request(cluster: Cluster) -> None:
    start_frontend(cluster, "--request-timeout-s", "0.3")
    with connect(cluster) as connection:
        connection.sendall(PROBE + b"\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.settimeout(1)
        with pytest.raises(TimeoutError):
            connection.recv(65536)
        connection.sendall(PROBE)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


# --- bodies ----------------------------------------------------------------------------------------------------------


def test_trickling_body_is_ended_with_408(cluster: Cluster) -> None:
    start_frontend(cluster, "--body-timeout-s", "0.5")
    with connect(cluster) as connection:
        connection.sendall(POST % 1000)
        connection.settimeout(0.05)
        for _ in range(200):
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(65536)
                break
            connection.sendall(b"x")
        else:
            pytest.fail("the body was not ended")
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"did not arrive within 0.5 s" in answer


def test_oldest_body_is_ended_when_memory_is_short(cluster: Cluster) -> None:
    start_frontend(cluster, "--max-incoming-bytes", "300000", "--max-body-bytes", "200000")
    with connect(cluster) as oldest, connect(cluster) as newer, connect(cluster) as whole:
        for connection in (oldest, newer):
            connection.sendall(POST % 150_000 + b"x" * 149_000)
            # A request on another connection is served after these bytes have been read.
            assert is_ready(cluster, "/v2/health/live")
        content = b'{"input": "%s"}' % (b"a" * 140_000)
        whole.sendall(POST % len(content) + content)
        assert whole.recv(65536).startswith(b"HTTP/1.1 400")
        ended = receive_all(oldest)
        assert ended.startswith(b"HTTP/1.1 503")
        assert json.loads(ended.partition(b"\r\n\r\n")[2])["error"]["code"] == "overloaded"
        newer.sendall(b"x" * 1000)
        assert newer.recv(65536).startswith(b"HTTP/1.1 400")


# --- drain -----------------------------------------------------------------------------------------------------------


def test_drain_ends_incomplete_requests(cluster: Cluster) -> None:
    program = start_frontend(cluster)
    with contextlib.ExitStack() as stack:
        heads, bodies, fast = ([stack.enter_context(connect(cluster)) for _ in range(number)] for number in (50, 5, 5))
        for connection in heads:
            connection.sendall(PROBE[:-2])
        for connection in [*bodies, *fast]:
            connection.sendall(POST % 10 + b"x")
        assert is_ready(cluster, "/v2/health/live")
        began = time.monotonic()
        program.signal(signal.SIGTERM)
        until(lambda: "draining" in program.output, what="the drain")
        for connection in fast:
            # The rest arrives in time.
            connection.sendall(b"x" * 9)
            assert receive_all(connection).startswith(b"HTTP/1.1 400")
        assert program.wait(30) == 0
        assert time.monotonic() - began < 20
        assert {receive_all(connection) for connection in heads} == {b""}
        for connection in bodies:
            assert re.match(rb"HTTP/1.1 503.*shutting_down", receive_all(connection), re.DOTALL)
    assert "Traceback" not in program.output
    assert "ERROR" not in program.output


# --- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="without IPv6")
@pytest.mark.parametrize("flags", [["--host", "::"], ["--host", "127.0.0.1,::1"],
                                   ["--host", "::1,127.0.0.1", "--processes", "2"]], ids=" ".join)  # fmt: skip
def test_both_families_are_served_and_drained(cluster: Cluster, flags: list[str]) -> None:
    program = start_frontend(cluster, *flags)
    assert httpx.get(f"http://[::1]:{cluster.port}/v2/health/live").status_code == 200
    with connect(cluster) as four, connect(cluster, "::1") as six:
        for connection in (four, six):
            connection.sendall(PROBE)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        program.signal(signal.SIGTERM)
        assert receive_all(four) == receive_all(six) == b""
    assert program.wait() == 0
    assert "Traceback" not in program.output
