"""ZeroMQ sockets as the wire needs them: a ROUTER for the broker, a DEALER for frontends and workers."""

from collections.abc import Mapping
from pathlib import Path

import zmq

from broker.wire.curve import Role, read_dealer_keys
from broker.wire.protocol import MAX_FRAME_BYTES

Context = zmq.Context[zmq.Socket[bytes]]

#: Times in milliseconds; those of TCP keepalive in seconds.
SOCKET_OPTIONS: Mapping[int, int] = {
    # Closing need not wait, because an answer confirms delivery.
    zmq.LINGER: 0,
    # No high-water mark: credits and admission bound what is in flight, and a full queue would lose messages.
    zmq.SNDHWM: 0,
    zmq.RCVHWM: 0,
    zmq.HANDSHAKE_IVL: 5000,
    # libzmq's own heartbeats find a host that vanished. Those of the protocol show that a peer's process works.
    zmq.HEARTBEAT_IVL: 1000,
    zmq.HEARTBEAT_TIMEOUT: 3000,
    zmq.HEARTBEAT_TTL: 3000,
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 10,
    zmq.TCP_KEEPALIVE_INTVL: 3,
    zmq.TCP_KEEPALIVE_CNT: 5,
    zmq.MAXMSGSIZE: MAX_FRAME_BYTES,
}
#: IMMEDIATE: while the broker is away a send fails at once, instead of queueing for a connection that may never come.
DEALER_OPTIONS = {**SOCKET_OPTIONS, zmq.IMMEDIATE: 1, zmq.RECONNECT_IVL: 50, zmq.RECONNECT_IVL_MAX: 2000}
#: MANDATORY: a send to a disconnected peer raises, instead of dropping the message.
ROUTER_OPTIONS = {**SOCKET_OPTIONS, zmq.ROUTER_MANDATORY: 1}


def open_router(context: Context) -> "zmq.Socket[bytes]":
    """Return a ROUTER that is not bound yet."""
    return _open_socket(context, zmq.ROUTER, ROUTER_OPTIONS)


def open_dealer(context: Context, key_folder: str, role: Role) -> "zmq.Socket[bytes]":
    """Return a DEALER that is not connected yet; it uses CURVE if a folder of keys is given.

    Raise KeyFileError if a key file cannot be used.
    """
    keys = read_dealer_keys(Path(key_folder), role) if key_folder else None
    socket = _open_socket(context, zmq.DEALER, DEALER_OPTIONS)
    if keys:
        socket.curve_publickey, socket.curve_secretkey = keys.own
        socket.curve_serverkey = keys.broker
    return socket


def _open_socket(context: Context, kind: int, options: Mapping[int, int]) -> "zmq.Socket[bytes]":
    socket = context.socket(kind)
    for option, value in options.items():
        socket.setsockopt(option, value)
    return socket
