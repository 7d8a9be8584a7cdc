"""How a worker's process connects to the broker."""

import zmq

from broker.wire.sockets import open_dealer
from workers.config import Config


def connecting(config: Config) -> "zmq.Socket[bytes]":
    """Return a socket in a context of its own, on its way to the broker; zmq.ZMQError when that has no such address."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        socket = open_dealer(context, config.keys, "worker")
        socket.connect(config.broker)
    except BaseException:
        context.destroy(linger=0)
        raise
    return socket
