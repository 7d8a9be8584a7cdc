"""The frontend's socket to the broker: one raw DEALER, read by the event loop's `add_reader`.

zmq.asyncio takes five times the CPU time for each message. A ZeroMQ socket's descriptor is edge-triggered, and any call
on the socket consumes the edge (`ZMQ_FD` in zmq_getsockopt(3)). Therefore each read drains the socket, and each send is
followed by another read.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

import zmq

from broker.wire import protocol as wire
from broker.wire.errors import RemoteProtocolError
from broker.wire.protocol import Frame, Message
from broker.wire.sockets import ConnectionMonitor, open_dealer, receive_frames
from frontend.config import Config

log = logging.getLogger(__name__)

#: Maximum number of messages that are read in one turn of the event loop.
MAX_READS = 64
#: Milliseconds for which a closed socket goes on to send its last messages.
LINGER_MS = 500


def check_endpoint(endpoint: str) -> None:
    """Raise `zmq.ZMQError` if the endpoint of a broker is invalid."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(endpoint)


class Link:
    """Connection to the broker, which libzmq reconnects. All methods run on the event loop's thread."""

    def __init__(
        self,
        config: Config,
        on_connect: Callable[[], None],
        on_disconnect: Callable[[], None],
        on_message: Callable[[Message, Sequence[Frame]], None],
        on_malformed: Callable[[], None],
    ) -> None:
        self._config = config
        self._on_connect, self._on_disconnect = on_connect, on_disconnect
        self._on_message, self._on_malformed = on_message, on_malformed

    def open(self) -> None:
        """Start to connect. Must be called on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = open_dealer(self._context, self._config.keys, "frontend")
        self._monitor = ConnectionMonitor(self._socket, self._config.broker, "frontend", self._config.keys)
        self._loop.add_reader(self._monitor.socket.fileno(), self._read_monitor)
        self._loop.add_reader(self._socket.fileno(), self._read_messages)
        self._socket.connect(self._config.broker)
        self._loop.call_soon(self._read_monitor)

    def close(self) -> None:
        """Close the socket after its last messages are sent."""
        self._loop.remove_reader(self._monitor.socket.fileno())
        self._loop.remove_reader(self._socket.fileno())
        self._monitor.close()
        self._socket.close(linger=LINGER_MS)
        self._context.term()

    def send(self, message: Message, frames: Sequence[Frame] = ()) -> None:
        """Send a message, or drop it without a connection, because the session resubmits all unanswered requests."""
        try:
            self._socket.send_multipart(wire.encode(message, frames), zmq.NOBLOCK)
        except zmq.Again:
            log.debug("dropped %s: no connection to the broker", type(message).__name__)
        self._loop.call_soon(self._read_messages)

    def _read_monitor(self) -> None:
        for connected in self._monitor.read_changes():
            if connected:
                self._on_connect()
            else:
                self._on_disconnect()

    def _read_messages(self) -> None:
        if self._socket.closed:
            return
        drained = False
        try:
            for _ in range(MAX_READS):
                try:
                    header, *frames = receive_frames(self._socket)
                except zmq.Again:
                    drained = True
                    return
                try:
                    message, payload = wire.decode(wire.TO_FRONTEND, [header.bytes, *(part.buffer for part in frames)])
                except RemoteProtocolError as error:
                    log.warning("malformed message from the broker: %s", error)
                    self._on_malformed()
                    continue
                self._on_message(message, payload)
        finally:
            # The other messages are read even if the handling of one has failed.
            if not drained:
                self._loop.call_soon(self._read_messages)
