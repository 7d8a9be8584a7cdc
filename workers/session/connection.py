"""How a worker's process connects to the broker."""

from pathlib import Path

import zmq

from broker.wire import protocol as wire
from broker.wire.curve import secure_dealer
from workers.config import Config


def dealer(context: "zmq.Context[zmq.Socket[bytes]]", config: Config) -> "zmq.Socket[bytes]":
    """A socket with the wire's options and this worker's keys, not connected yet. KeyFileError when a file of a key
    cannot be used."""
    socket = context.socket(zmq.DEALER)
    for name, value in wire.DEALER_OPTIONS.items():
        socket.setsockopt(getattr(zmq, name), value)
    if config.keys:
        secure_dealer(socket, Path(config.keys), "worker")
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
