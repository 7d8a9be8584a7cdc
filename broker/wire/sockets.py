"""ZeroMQ sockets as the wire needs them: a ROUTER for the broker, a DEALER for frontends and workers."""

import ipaddress
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import zmq
import zmq.utils.monitor

from broker.wire.curve import Role, read_dealer_keys
from broker.wire.protocol import MAX_FRAME_BYTES

log = logging.getLogger(__name__)

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


#: Seconds of refused connections after which a process logs that no broker listens: processes start in any order.
UNREACHABLE_S = 5.0
#: Failed handshakes in a row after which the keys are to blame, and not a broker that was killed meanwhile.
FAILED_HANDSHAKES = 2


def open_router(context: Context) -> "zmq.Socket[bytes]":
    """Return a ROUTER that is not bound yet."""
    return _open_socket(context, zmq.ROUTER, ROUTER_OPTIONS)


def receive_frames(socket: "zmq.Socket[bytes]") -> list[zmq.Frame]:
    """Return the frames of the next message. Raise `zmq.Again` if there is none.

    pyzmq's `recv_multipart` takes twice as long, because it reads an option of the socket after each frame.
    """
    frames = [socket.recv(zmq.NOBLOCK, copy=False)]
    while frames[-1].more:
        frames.append(socket.recv(zmq.NOBLOCK, copy=False))
    return frames


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


class ConnectionMonitor:
    """Reports when a DEALER connects and disconnects, and logs once why it cannot connect."""

    def __init__(self, socket: "zmq.Socket[bytes]", broker: str, role: Role, key_folder: str) -> None:
        """Watch a socket that is not connected yet. Log a warning if its connection will not be encrypted."""
        if not key_folder and not is_local(broker):
            log.warning("the connection to the broker at %s is not encrypted; set --keys (see scripts/keys)", broker)
        self._watched, self._broker, self._role, self._key_folder = socket, broker, role, key_folder
        refusals = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED
        #: Readable when there is something to read.
        self.socket = socket.get_monitor_socket(events | refusals | zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        self._reset()

    def read_changes(self) -> list[bool]:
        """Return True for each connection made since the last call, and False for each one that ended."""
        changes = []
        while self.socket.poll(0):
            event = zmq.utils.monitor.recv_monitor_message(self.socket)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._reset()
                changes.append(True)
            elif event == zmq.EVENT_DISCONNECTED:
                changes.append(False)
            else:
                self._handle_failure(event, time.monotonic())
        return changes

    def close(self) -> None:
        """Stop watching. The watched socket must still be open."""
        self._watched.disable_monitor()
        self.socket.close()

    def _reset(self) -> None:
        self._failed_handshakes = 0
        self._refused_since = math.inf
        self._has_logged = False

    def _handle_failure(self, event: int, now: float) -> None:
        reason = ""
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            reason = f"it rejected this {self._role}'s key; add the key with scripts/keys --add, and restart"
        elif event == zmq.EVENT_CLOSED:
            self._refused_since = min(self._refused_since, now)
            if now >= self._refused_since + UNREACHABLE_S:
                reason = "nobody listens there; start the broker, or check --broker"
        else:
            # libzmq does not connect again after an error of the protocol.
            self._failed_handshakes += FAILED_HANDSHAKES if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL else 1
            if self._failed_handshakes >= FAILED_HANDSHAKES and self._key_folder:
                reason = (
                    f"the handshake failed; {Path(self._key_folder) / 'broker.key'} is not the key of this broker, "
                )
                reason += f"or it uses no keys; copy its key there, and restart this {self._role}"
            elif self._failed_handshakes >= FAILED_HANDSHAKES:
                reason = "the handshake failed, so it probably uses keys; set --keys (see scripts/keys), and restart"
        if reason and not self._has_logged:
            self._has_logged = True
            log.error("cannot connect to the broker at %s: %s", self._broker, reason)


def is_local(endpoint: str) -> bool:
    """Return whether no other host, and for ipc no other user, can connect to the endpoint."""
    parts = urlsplit(endpoint)
    if parts.scheme != "tcp":
        # Every local user can connect to an abstract socket, ipc://@NAME; no permissions of a file protect it.
        return parts.scheme in ("ipc", "inproc") and not endpoint.startswith("ipc://@")
    return is_loopback(parts.hostname or "")


def is_loopback(host: str) -> bool:
    """Return whether only this machine can connect to an address or name; of all names, only localhost counts."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
