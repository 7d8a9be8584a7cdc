"""The broker's two ROUTER sockets, one for frontends and one for workers, with CURVE unless both are local."""

import errno
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import zmq

from broker.shell.config import Config
from broker.shell.curve_auth import CurveAuth
from broker.wire import protocol as wire
from broker.wire.sockets import Context, is_local, open_router, receive_frames

#: First byte of the scheduler's name for a peer; the routing id on the socket of that role follows.
FRONTEND, WORKER = b"F", b"W"
#: Name of each role's folder of keys and ZAP domain.
DOMAINS = {FRONTEND: "frontends", WORKER: "workers"}
#: How long the last messages may take to leave when the sockets are closed.
LINGER_MS = 2000
#: Size from which a frame is sent without a copy; copying a smaller frame is faster.
ZERO_COPY_BYTES = 65536


class ConfigError(Exception):
    """The configuration is not safe or cannot be used. The text is one sentence."""


class Received(NamedTuple):
    """One message: its peer, the peer's public key in Z85 (empty without CURVE), and its frames."""

    peer: bytes
    key: str
    frames: list[memoryview]


class Routers:
    """Both sockets. `open` before use, and `close` after, also when `open` has raised."""

    def __init__(self, config: Config) -> None:
        self._binds = {FRONTEND: config.frontend_bind, WORKER: config.worker_bind}
        self._key_folder = config.keys
        self._context: Context = zmq.Context()
        self._sockets: dict[bytes, zmq.Socket[bytes]] = {}
        #: Sockets that report ended connections, with the role of the peers.
        self._monitors: dict[zmq.Socket[bytes], bytes] = {}
        self._auth: CurveAuth | None = None
        #: Public key of each peer that has sent a message.
        self._keys: dict[bytes, str] = {}

    def open(self, poller: zmq.Poller) -> None:
        """Bind both sockets and register them.

        Raise ConfigError if other hosts could connect without CURVE or if an endpoint cannot be bound, KeyFileError if
        the keys cannot be used, and CurveAuthError if unknown keys are accepted.
        """
        if self._key_folder:
            self._auth = CurveAuth(self._context, pathlib.Path(self._key_folder))
            self._auth.start()
        elif exposed := [endpoint for endpoint in self._binds.values() if not is_local(endpoint)]:
            who = "every local user" if exposed[0].startswith("ipc:") else "other hosts"
            raise ConfigError(f"{exposed[0]} can be reached from {who}; set --keys (see scripts/keys)")
        for role, endpoint in self._binds.items():
            self._bind_socket(role, endpoint)
        for socket in (*self._sockets.values(), *self._monitors):
            poller.register(socket, zmq.POLLIN)

    def _bind_socket(self, role: bytes, endpoint: str) -> None:
        socket = self._sockets[role] = open_router(self._context)
        if self._auth:
            self._auth.secure_socket(socket, DOMAINS[role])
        self._monitors[socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)] = role
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            reason = zmq.strerror(error.errno or 0)
            if error.errno == errno.ENAMETOOLONG:
                reason += f"; use a path of at most {zmq.IPC_PATH_MAX_LEN} bytes, with scripts/serve a shorter TMPDIR"
            raise ConfigError(f"cannot listen on {endpoint}: {reason}") from None
        if self._auth:
            self._auth.verify_rejection(socket)

    def close(self) -> None:
        """Let the last messages leave, and close."""
        # First: libzmq would wait forever to report a peer that leaves to a monitor that nobody reads.
        for socket in self._sockets.values():
            socket.disable_monitor()
        for monitor in self._monitors:
            monitor.close()
        for socket in self._sockets.values():
            socket.close(linger=LINGER_MS)
        if self._auth:
            self._auth.stop()
        self._context.term()

    def find_readable(self, ready: dict[object, int]) -> list[bytes]:
        """Return the roles with messages to receive; workers first, because results end jobs."""
        return [role for role in (WORKER, FRONTEND) if self._sockets[role] in ready]

    def receive(self, role: bytes) -> Received | None:
        """Return the next message of a role, or None if there is none."""
        try:
            address, *parts = receive_frames(self._sockets[role])
        except zmq.Again:
            return None
        key = str(address.get("User-Id")) if self._auth else ""
        return Received(role + address.bytes, key, [part.buffer for part in parts])

    def send(self, peer: bytes, message: wire.Message, frames: Sequence[wire.Frame]) -> bool:
        """Send a message. Return whether the peer is connected."""
        parts = [peer[1:], *wire.encode(message, frames)]
        large = any(len(frame) >= ZERO_COPY_BYTES for frame in frames)
        try:
            self._sockets[peer[:1]].send_multipart(parts, zmq.NOBLOCK, copy=not large)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            return False
        return True

    def take_disconnects(self, ready: dict[object, int]) -> list[bytes]:
        """Return the roles of which a connection has ended. libzmq does not report which connection."""
        roles = []
        for monitor, role in self._monitors.items():
            if monitor in ready:
                while monitor.poll(0):
                    monitor.recv_multipart()
                roles.append(role)
        return roles

    # --- keys of peers -----------------------------------------------------------------------------------------------

    def accept_key(self, peer: bytes, key: str) -> bool:
        """Record the key of a peer that sends a message. Return whether the key is (still) on the allow-list."""
        if not self._auth:
            return True
        if self._auth.is_allowed(DOMAINS[peer[:1]], key):
            self._keys[peer] = key
            return True
        return False

    def reload_keys(self) -> list[bytes]:
        """Read the allow-lists again. Return, and forget, the peers with a removed key.

        Raise KeyFileError, and keep the old lists, if a file cannot be used.
        """
        auth = self._auth
        if not auth:
            return []
        auth.reload_lists()
        revoked = [peer for peer, key in self._keys.items() if not auth.is_allowed(DOMAINS[peer[:1]], key)]
        for peer in revoked:
            del self._keys[peer]
        return revoked

    def keep_keys(self, peers: set[bytes]) -> None:
        """Forget the keys of all other peers."""
        self._keys = {peer: key for peer, key in self._keys.items() if peer in peers}
