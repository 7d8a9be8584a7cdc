"""State of TCP connections in the kernel."""

import socket

import pytest

from frontend.rest.tcp_info import read_tcp_info
from tests.harness.processes import until


def test_tcp_info_counts_sent_bytes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        connected, _ = listening.accept()
        with connected, client:
            before = read_tcp_info(connected)
            assert (before.is_established, before.queued_bytes) == (True, 0)
            connected.sendall(bytes(1000))
            until(lambda: read_tcp_info(connected) == before._replace(acked_bytes=before.acked_bytes + 1000))
            connected.setblocking(False)
            sent = connected.send(bytes(100_000_000))
            info = read_tcp_info(connected)
            assert info.queued_bytes > 0
            assert info.acked_bytes - before.acked_bytes + info.queued_bytes <= 1000 + sent
            client.shutdown(socket.SHUT_WR)
            until(lambda: not read_tcp_info(connected).is_established)
    with pytest.raises(OSError, match="Bad file descriptor"):
        read_tcp_info(connected)
