"""Who may connect: CURVE, and one allow-list of public keys for each role. Fails closed.

libzmq lets everyone in when only one of ZAP_DOMAIN and ZAP_ENFORCE_DOMAIN is set, or when no ZAP handler answers in the
right domain; so both are set, and the broker tries a key of nobody's at its own door before it serves.
"""

import pathlib

import zmq
import zmq.auth
import zmq.utils.monitor
from zmq.auth.thread import ThreadAuthenticator

#: How long the door may take to turn the stranger away.
SELF_TEST_MS = 3000


class GateError(Exception):
    """The keys cannot be used, or the door stands open; the text is one sentence."""


class Gate:
    """The ZAP thread, and the allow-lists that it and the broker go by. A role is the name of a folder of keys."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", keys: pathlib.Path) -> None:
        self._keys = keys
        self._allowed: dict[str, set[bytes]] = {}
        self._authenticator = ThreadAuthenticator(context)

    def start(self) -> None:
        """Start the thread and read the lists."""
        self._authenticator.start()
        self.reload()

    def stop(self) -> None:
        """End the thread."""
        if self._authenticator.is_alive():
            self._authenticator.stop()

    def reload(self) -> None:
        """Read the lists anew. Connections of keys that are gone stay open: ask `allows` before serving one."""
        for role in ("frontends", "workers"):
            folder = self._keys / role
            try:
                self._allowed[role] = set(zmq.auth.load_certificates(folder))
            except OSError as error:
                raise GateError(f"the keys in {folder} cannot be read: {error}") from None
            self._authenticator.configure_curve(domain=role, location=folder)

    def allows(self, role: str, key: str) -> bool:
        """Whether the list has this key (z85), which CURVE has shown to be the peer's."""
        return key.encode() in self._allowed[role]

    def secure(self, socket: "zmq.Socket[bytes]", role: str) -> None:
        """Close a socket to everyone but the role's keys. Before it is bound."""
        socket.curve_publickey, socket.curve_secretkey = self._pair()
        socket.curve_server = True
        socket.setsockopt_string(zmq.ZAP_DOMAIN, role)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def try_stranger(self, socket: "zmq.Socket[bytes]") -> None:
        """Connect to the bound socket with a key of nobody's; GateError unless it is turned away."""
        endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT).replace("//0.0.0.0:", "//127.0.0.1:")
        with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
            stranger.linger = 0
            stranger.curve_publickey, stranger.curve_secretkey = zmq.curve_keypair()
            stranger.curve_serverkey, _ = self._pair()
            wanted = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            monitor = stranger.get_monitor_socket(wanted)
            stranger.connect(endpoint.replace("//[::]:", "//[::1]:"))
            seen = zmq.utils.monitor.recv_monitor_message(monitor)["event"] if monitor.poll(SELF_TEST_MS) else None
            stranger.disable_monitor()
            monitor.close()
        if seen != zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            raise GateError(f"the self-test failed: {endpoint} does not turn an unknown key away")

    def _pair(self) -> tuple[bytes, bytes]:
        """The broker's public and secret key."""
        try:
            public, secret = zmq.auth.load_certificate(self._keys / "broker.key_secret")
        except OSError as error:
            raise GateError(f"the broker's key in {self._keys} cannot be read: {error}") from None
        if secret is None:
            raise GateError(f"{self._keys / 'broker.key_secret'} has no secret key")
        return public, secret
