"""State of a TCP connection in the kernel."""

import fcntl
import socket
import struct
import termios
from typing import NamedTuple

#: `tcpi_state` and `tcpi_bytes_acked` of `struct tcp_info` in linux/tcp.h, at offsets 0 and 120. The kernel only
#: appends fields; `tcpi_bytes_acked` exists since Linux 4.1.
_TCP_INFO = struct.Struct("=B119xQ")
#: `TCP_ESTABLISHED` in include/net/tcp_states.h of Linux: both sides are open.
_ESTABLISHED = 1


class TcpInfo(NamedTuple):
    """Kernel's state of a connection. Bytes count what this side sent."""

    is_established: bool
    #: Bytes that the peer's kernel has acknowledged since the connection was made.
    acked_bytes: int
    #: Bytes in the send queue, not sent yet or not acknowledged yet (`SIOCOUTQ` in tcp(7)).
    queued_bytes: int


def read_tcp_info(connected: socket.socket) -> TcpInfo:
    """Return the kernel's state of a connection. Raise `OSError` if the socket is closed."""
    state, acked_bytes = _TCP_INFO.unpack(connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))
    (queued_bytes,) = struct.unpack("=i", fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, bytes(4)))
    return TcpInfo(state == _ESTABLISHED, acked_bytes, queued_bytes)
