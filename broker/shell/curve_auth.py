"""CURVE authentication of peers by one allow-list of public keys for each role. Fails closed.

libzmq admits every peer if only one of ZAP_DOMAIN and ZAP_ENFORCE_DOMAIN is set, or if no ZAP handler answers for the
domain. So both options are set, and at start-up the broker connects with an unknown key and checks that the connection
is rejected.
"""

import pathlib

import zmq
import zmq.utils.monitor
from zmq.auth.thread import ThreadAuthenticator

from broker.wire.curve import read_allow_list, read_pair
from broker.wire.sockets import Context

#: Roles with an allow-list; each is the name of a folder of keys and of a ZAP domain.
ROLES = ("frontends", "workers")
#: How long the connection with an unknown key may take to be rejected.
SELF_TEST_MS = 3000


class CurveAuthError(Exception):
    """An unknown key is not rejected. The text is one sentence."""


class CurveAuth:
    """The ZAP thread, and the allow-lists that the thread and the broker use."""

    def __init__(self, context: Context, folder: pathlib.Path) -> None:
        """Read the broker's own keys. Raise KeyFileError if they cannot be used."""
        self._folder = folder
        self._pair = read_pair(folder / "broker.key_secret")
        self._allow_lists: dict[str, frozenset[bytes]] = {}
        self._authenticator = ThreadAuthenticator(context)

    def start(self) -> None:
        """Read the allow-lists and start the thread. Raise KeyFileError if a list cannot be used."""
        self.reload_lists()
        for role in ROLES:
            # The thread calls `callback` and never reads a file itself.
            self._authenticator.configure_curve_callback(domain=role, credentials_provider=self)
        self._authenticator.start()

    def stop(self) -> None:
        """Stop the thread."""
        if self._authenticator.is_alive():
            self._authenticator.stop()

    def reload_lists(self) -> None:
        """Read all allow-lists again. Raise KeyFileError, and keep the old lists, if one of the files cannot be used.

        Open connections of removed keys stay open: check `is_allowed` before serving one.
        """
        self._allow_lists = {role: read_allow_list(self._folder / role) for role in ROLES}

    def is_allowed(self, role: str, key: str) -> bool:
        """Return whether a role's list has this key (Z85), which CURVE has proven to be the peer's."""
        return self.callback(role, key.encode())

    def callback(self, domain: str, key: bytes) -> bool:
        """Return whether a connection is accepted. pyzmq prescribes the name and calls this in the ZAP thread."""
        return key in self._allow_lists[domain]

    def secure_socket(self, socket: "zmq.Socket[bytes]", role: str) -> None:
        """Restrict a socket that is not bound yet to the keys of a role."""
        socket.curve_publickey, socket.curve_secretkey = self._pair
        socket.curve_server = True
        socket.setsockopt_string(zmq.ZAP_DOMAIN, role)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def verify_rejection(self, socket: "zmq.Socket[bytes]") -> None:
        """Connect to a bound socket with an unknown key. Raise CurveAuthError unless the connection is rejected."""
        endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT).replace("//0.0.0.0:", "//127.0.0.1:")
        with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
            stranger.linger = 0
            stranger.curve_publickey, stranger.curve_secretkey = zmq.curve_keypair()
            stranger.curve_serverkey = self._pair.public
            outcomes = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            monitor = stranger.get_monitor_socket(outcomes)
            stranger.connect(endpoint.replace("//[::]:", "//[::1]:"))
            event = zmq.utils.monitor.recv_monitor_message(monitor)["event"] if monitor.poll(SELF_TEST_MS) else None
            stranger.disable_monitor()
            monitor.close()
        if event != zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            raise CurveAuthError(f"self-test failed: {endpoint} does not reject an unknown key; no peer is served")
