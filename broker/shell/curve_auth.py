"""Who may connect: CURVE, and one allow-list of public keys for each role. Fails closed.

libzmq lets everyone in when only one of ZAP_DOMAIN and ZAP_ENFORCE_DOMAIN is set, or when no ZAP handler answers in the
right domain; so both are set, and the broker tries a key of nobody's at its own door before it serves.
"""

import pathlib

import zmq
import zmq.utils.monitor
from zmq.auth.thread import ThreadAuthenticator

from broker.wire.curve import read_allow_list, read_pair

#: The roles that have an allow-list; each is the name of a folder of keys, and ZAP's domain.
ROLES = ("frontends", "workers")
#: How long the door may take to turn the stranger away.
SELF_TEST_MS = 3000


class GateError(Exception):
    """The door stands open; the text is one sentence."""


class Gate:
    """The ZAP thread, and the allow-lists that it and the broker go by."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", keys: pathlib.Path) -> None:
        """Read the broker's own keys. Raise KeyFileError if they cannot be used."""
        self._keys = keys
        self._pair = read_pair(keys / "broker.key_secret")
        self._allowed: dict[str, frozenset[bytes]] = {}
        self._authenticator = ThreadAuthenticator(context)

    def start(self) -> None:
        """Read the lists and start the thread. Raise KeyFileError if a list cannot be read."""
        self.reload()
        for role in ROLES:
            # The thread asks `callback` and never reads a file itself.
            self._authenticator.configure_curve_callback(domain=role, credentials_provider=self)
        self._authenticator.start()

    def stop(self) -> None:
        """End the thread."""
        if self._authenticator.is_alive():
            self._authenticator.stop()

    def reload(self) -> None:
        """Read all lists anew. Raise KeyFileError, with the lists as before, if one of their files cannot be used.

        Connections of keys that are gone stay open: ask `allows` before serving one.
        """
        self._allowed = {role: read_allow_list(self._keys / role) for role in ROLES}

    def allows(self, role: str, key: str) -> bool:
        """Return whether the list has this key (Z85), which CURVE has shown to be the peer's."""
        return self.callback(role, key.encode())

    def callback(self, domain: str, key: bytes) -> bool:
        """Return whether a connection is let in; in the ZAP thread, by a name that pyzmq has given."""
        return key in self._allowed[domain]

    def secure(self, socket: "zmq.Socket[bytes]", role: str) -> None:
        """Close a socket to everyone but the role's keys. Before it is bound."""
        socket.curve_publickey, socket.curve_secretkey = self._pair
        socket.curve_server = True
        socket.setsockopt_string(zmq.ZAP_DOMAIN, role)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def try_stranger(self, socket: "zmq.Socket[bytes]") -> None:
        """Connect to the bound socket with a key of nobody's; GateError unless it is turned away."""
        endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT).replace("//0.0.0.0:", "//127.0.0.1:")
        with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
            stranger.linger = 0
            stranger.curve_publickey, stranger.curve_secretkey = zmq.curve_keypair()
            stranger.curve_serverkey = self._pair.public
            wanted = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            monitor = stranger.get_monitor_socket(wanted)
            stranger.connect(endpoint.replace("//[::]:", "//[::1]:"))
            seen = zmq.utils.monitor.recv_monitor_message(monitor)["event"] if monitor.poll(SELF_TEST_MS) else None
            stranger.disable_monitor()
            monitor.close()
        if seen != zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            raise GateError(f"the self-test failed: {endpoint} does not turn an unknown key away")
