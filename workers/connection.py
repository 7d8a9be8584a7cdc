"""How a worker's process connects to the broker."""

from pathlib import Path

import zmq
import zmq.auth

from broker import protocol as wire
from workers.config import Config


def dealer(context: "zmq.Context[zmq.Socket[bytes]]", config: Config) -> "zmq.Socket[bytes]":
    """A socket with the wire's options and this worker's keys, not connected yet. OSError or ValueError when a file of
    a key cannot be read."""
    socket = context.socket(zmq.DEALER)
    for name, value in wire.DEALER_OPTIONS.items():
        socket.setsockopt(getattr(zmq, name), value)
    if config.keys:
        folder = Path(config.keys)
        public, secret = zmq.auth.load_certificate(folder / "worker.key_secret")
        if secret is None:
            raise ValueError(f"No secret key found in {folder / 'worker.key_secret'}")
        socket.curve_publickey, socket.curve_secretkey = public, secret
        socket.curve_serverkey, _ = zmq.auth.load_certificate(folder / "broker.key")
    return socket


def connecting(config: Config) -> "zmq.Socket[bytes]":
    """Such a socket in a context of its own, on its way to the broker; zmq.ZMQError when that has no such address."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        socket = dealer(context, config)
        socket.connect(config.broker)
    except BaseException:
        context.destroy(linger=0)
        raise
    return socket
