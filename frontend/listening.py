"""Listening sockets of a frontend: one for each address of `--host`."""

import contextlib
import errno
import os
import socket

#: Connections that wait until the event loop accepts them, for each socket.
BACKLOG = 1024
#: Errors of an address that this machine does not have, such as ::1 in a container without IPv6.
_NO_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def open_sockets(hosts: str, port: int) -> list[socket.socket]:
    """Listen on each address of comma-separated hosts. Raise `OSError` if an address is not free or does not exist.

    "::" serves IPv4 and IPv6. A name such as localhost serves those of its addresses that this machine has.
    """
    with contextlib.ExitStack() as opened:
        sockets = []
        for host in filter(None, map(str.strip, hosts.split(","))):
            for found in _listen(host, port):
                sockets.append(opened.enter_context(found))
        if not sockets:
            raise OSError("no address is given")
        opened.pop_all()
    return sockets


def _listen(host: str, port: int) -> list[socket.socket]:
    sockets, missing = [], None
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for family, address in dict.fromkeys((family, address[0]) for family, *_, address in found):
        is_dual = address == "::" and socket.has_dualstack_ipv6()
        try:
            sockets.append(
                socket.create_server((str(address), port), family=family, backlog=BACKLOG, dualstack_ipv6=is_dual)
            )
        except OSError as error:
            if error.errno not in _NO_ADDRESS:
                for opened in sockets:
                    opened.close()
                raise
            missing = error
    if missing and not sockets:
        raise missing
    return sockets


def describe_refusal(host: str, port: int, error: OSError) -> str:
    """Return why `open_sockets` failed, and which setting to change."""
    # Not the text of `create_server`, which repeats the address.
    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or error
    if isinstance(error, socket.gaierror) or error.errno in (None, *_NO_ADDRESS):
        return f"cannot listen on {host!r}: {reason}; choose an address of this machine with --host"
    return f"cannot listen on port {port} of {host}: {reason}; choose another with --port"


def adopt_sockets(descriptors: str) -> list[socket.socket]:
    """Return the parent process's sockets, given as comma-separated descriptors."""
    return [socket.socket(fileno=int(descriptor)) for descriptor in descriptors.split(",")]
