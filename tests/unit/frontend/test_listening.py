"""Listening sockets for the addresses of `--host`."""

import socket

import pytest

from frontend.listening import adopt_sockets, open_sockets
from tests.harness.processes import free_port


def close_all(sockets: list[socket.socket]) -> None:
    """Close sockets."""
    for listening in sockets:
        listening.close()


def can_connect(address: str, port: int) -> bool:
    """Return whether a socket listens on an address."""
    try:
        socket.create_connection((address, port), timeout=5).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="without IPv6")
@pytest.mark.parametrize("hosts", ["::", "127.0.0.1, ::1"])
def test_both_families_are_served(hosts: str) -> None:
    port = free_port()
    sockets = open_sockets(hosts, port)
    try:
        assert can_connect("127.0.0.1", port)
        assert can_connect("::1", port)
    finally:
        close_all(sockets)


def test_name_serves_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    # 192.0.2.1 is for documentation, so that no machine has it.
    found = [(socket.AF_INET, 1, 6, "", (address, port)) for address in ("192.0.2.1", "127.0.0.1", "127.0.0.2")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    sockets = open_sockets("name", port)
    assert [listening.getsockname()[0] for listening in sockets] == ["127.0.0.1", "127.0.0.2"]
    close_all(sockets)


@pytest.mark.parametrize("hosts", ["127.0.0.2,127.0.0.1", "192.0.2.1", "", ","])
def test_unusable_address_is_an_error(hosts: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=r"."):
            open_sockets(hosts, port)
        # Sockets of the other addresses are closed again.
        close_all(open_sockets("127.0.0.2", port))


def test_parents_sockets_are_adopted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        names = [one.getsockname(), other.getsockname()]
        adopted = adopt_sockets(f"{one.detach()},{other.detach()}")
    assert [listening.getsockname() for listening in adopted] == names
    close_all(adopted)
