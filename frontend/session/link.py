"""The frontend's socket to the broker: one raw DEALER on the event loop's `add_reader`.

zmq.asyncio costs five times the processor time for each message. The descriptor of a ZeroMQ socket is edge-triggered
and any call on the socket eats the edge, so reading always drains, and every send is followed by one more look.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

import zmq
import zmq.utils.monitor

from broker.wire import protocol as wire
from broker.wire.errors import RemoteProtocolError
from broker.wire.protocol import Frame, Message
from broker.wire.sockets import open_dealer
from frontend.config import Config

log = logging.getLogger(__name__)

#: Messages read in one turn of the event loop before other work gets its turn.
MAX_DRAIN = 64
#: How long `close` lets the last messages leave, in milliseconds.
LINGER_MS = 500


class Link:
    """A connection that libzmq makes again whenever it ends. All methods run on the event loop's thread."""

    def __init__(
        self,
        config: Config,
        on_connect: Callable[[], None],
        on_disconnect: Callable[[], None],
        on_message: Callable[[Message, Sequence[Frame]], None],
    ) -> None:
        self._config = config
        self._on_connect, self._on_disconnect, self._on_message = on_connect, on_disconnect, on_message

    def open(self) -> None:
        """Connect, without waiting for the broker. Call it on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = open_dealer(self._context, self._config.keys, "frontend")
        events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        self._monitor = self._socket.get_monitor_socket(events)
        self._loop.add_reader(self._monitor.fileno(), self._read_monitor)
        self._loop.add_reader(self._socket.fileno(), self._read)
        self._socket.connect(self._config.broker)
        self._loop.call_soon(self._read_monitor)

    def close(self) -> None:
        """Let the last messages leave, and close."""
        self._loop.remove_reader(self._monitor.fileno())
        self._loop.remove_reader(self._socket.fileno())
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close(linger=LINGER_MS)
        self._context.term()

    def send(self, message: Message, frames: Sequence[Frame] = ()) -> None:
        """Send a message, or drop it while there is no connection: the session sends again what was not answered."""
        try:
            self._socket.send_multipart(wire.encode(message, frames), zmq.NOBLOCK)
        except zmq.Again:
            log.debug("not sent, because the broker is away: %s", type(message).__name__)
        self._loop.call_soon(self._read)

    def _read_monitor(self) -> None:
        while self._monitor.poll(0):
            event = zmq.utils.monitor.recv_monitor_message(self._monitor)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._on_connect()
            elif event == zmq.EVENT_DISCONNECTED:
                self._on_disconnect()
            else:
                log.error("the broker at %s refuses this frontend's key", self._config.broker)

    def _read(self) -> None:
        if self._socket.closed:
            return
        for _ in range(MAX_DRAIN):
            try:
                header, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            try:
                message, payload = wire.decode(wire.TO_FRONTEND, [header.bytes, *(frame.buffer for frame in frames)])
            except RemoteProtocolError as error:
                log.warning("ignored a malformed message: %s", error)
                continue
            self._on_message(message, payload)
        self._loop.call_soon(self._read)
