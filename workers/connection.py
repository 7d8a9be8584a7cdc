"""How a worker's process connects to the broker."""

from pathlib import Path

import zmq
import zmq.auth

from broker import protocol as wire
from workers.config import Config


def dealer(context: "zmq.Context[zmq.Socket[bytes]]", config: Config) -> "zmq.Socket[bytes]":
    """A socket with the wire's options and this worker's keys, not connected yet."""
    socket = context.socket(zmq.DEALER)
    for name, value in wire.DEALER_OPTIONS.items():
        socket.setsockopt(getattr(zmq, name), value)
    if config.keys:
        folder = Path(config.keys)
        socket.curve_publickey, socket.curve_secretkey = zmq.auth.load_certificate(folder / "worker.key_secret")
        socket.curve_serverkey, _ = zmq.auth.load_certificate(folder / "broker.key")
    return socket
