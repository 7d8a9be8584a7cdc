"""Broker, frontends and workers that a test plays by hand at real sockets, one message at a time."""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
import zmq
import zmq.utils.monitor

from broker.shared.version import VERSION
from broker.wire import protocol as wire
from tests.harness.fake_worker import model, vector

UUID = b"0123456789abcdef"
HELLOS = {
    "frontend": wire.FrontendHello(1, 1, VERSION, UUID, "host", 1),
    "worker": wire.WorkerHello(1, 1, VERSION, UUID, 1, "host", 1, "CPU", [], 1, 1, 1),
}
M = TypeVar("M", bound=wire.Message)


class Peer:
    """DEALER socket with its monitor."""

    def __init__(self, endpoint: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.linger = 0
        self._endpoint = endpoint
        self._monitor = self.socket.get_monitor_socket()

    def key(self, public: bytes, secret: bytes, server: bytes) -> "Peer":
        """Use CURVE with these keys, and return the peer."""
        self.socket.curve_publickey, self.socket.curve_secretkey, self.socket.curve_serverkey = public, secret, server
        return self

    def connect(self) -> "Peer":
        """Start to connect, and return the peer."""
        self.socket.connect(self._endpoint)
        return self

    def event(self, *wanted: int) -> int:
        """Return the first of these monitor events; raise AssertionError if none comes within 5 s."""
        while self._monitor.poll(5000):
            event = zmq.utils.monitor.recv_monitor_message(self._monitor)["event"]
            if event in wanted:
                return int(event)
        raise AssertionError("no such event in 5 s")

    def send(self, message: wire.Message, *frames: wire.Frame) -> None:
        """Send a message without waiting; drop it if the peer is not connected."""
        with contextlib.suppress(zmq.Again):
            self.socket.send_multipart(wire.encode(message, frames), zmq.NOBLOCK)

    def receive(self, within_ms: int = 5000) -> list[bytes] | None:
        """Return the frames of the next message, or None if no message comes in time."""
        return self.socket.recv_multipart() if self.socket.poll(within_ms) else None

    def close(self) -> None:
        """Close the socket and its context."""
        self.socket.disable_monitor()
        self._monitor.close()
        self.socket.close()
        self._context.term()


class HandWorker(Peer):
    """Worker that sends heartbeats while it waits for a message."""

    epoch = 0

    def join(self, *, batch_tokens: int = 1024, credit: int = 1, dimension: int = 8, number: int = 1) -> "HandWorker":
        """Connect, offer the fake model, and wait for the welcome."""
        self.connect()
        self.credit, self._seen = credit, 0
        uuid = number.to_bytes(16)
        models = [model(dimension)]
        self.send(
            wire.WorkerHello(1, 1, VERSION, uuid, 1, "hand", number, "CPU", models, batch_tokens, 100_000, credit)
        )
        self.epoch = self.get(wire.Welcome)[0].epoch
        return self

    def get(self, kind: type[M], within_s: float = 20.0) -> tuple[M, list[wire.Frame]]:
        """Return the next message of a kind; drop messages of other kinds."""
        return _get(self, wire.TO_WORKER, kind, within_s, lambda: self.send(self.heartbeat()))

    def heartbeat(self, ping: int = 0) -> wire.Message:
        """Return a heartbeat with the current credit."""
        return wire.WorkerHeartbeat(self.credit, self._seen, ping)

    def batch(self) -> tuple[wire.Batch, list[str]]:
        """Return the next batch and its texts."""
        batch, (frame,) = self.get(wire.Batch)
        self._seen = batch.batch
        return batch, [str(text, "utf-8") for text in wire.split_frame(frame, wire.unpack_u32(batch.lengths))]

    def result(self, batch: wire.Batch, texts: Sequence[str], dimension: int = 8) -> tuple[wire.BatchResult, bytes]:
        """Return the correct result of a batch, as if it had these texts."""
        tokens = wire.pack_u32(map(len, texts))
        rows = np.array([vector(text, dimension) for text in texts], "<f4").tobytes()
        return wire.BatchResult(self.epoch, batch.batch, dimension, tokens, [], 1, self.credit, self._seen), rows

    def answer(self, batch: wire.Batch, texts: Sequence[str]) -> None:
        """Send the correct result of a batch."""
        self.send(*self.result(batch, texts))


class HandFrontend(Peer):
    """Frontend that sends heartbeats while it waits for a message."""

    def join(self, number: int = 1) -> "HandFrontend":
        """Connect, and wait until a model has a worker."""
        self.connect()
        self.send(wire.FrontendHello(1, 1, VERSION, number.to_bytes(16), "hand", number))
        while not any(model.workers for model in self.get(wire.Models)[0].models):
            pass
        return self

    def get(self, kind: type[M], within_s: float = 20.0) -> tuple[M, list[wire.Frame]]:
        """Return the next message of a kind; drop messages of other kinds."""
        return _get(self, wire.TO_FRONTEND, kind, within_s, lambda: self.send(wire.FrontendHeartbeat()))

    def submit(self, request: int, texts: Sequence[str], lane: wire.Lane = wire.Lane.BULK) -> None:
        """Submit a request with a budget of one minute."""
        self.send(*submit(request, texts, lane))


class HandBroker:
    """ROUTER socket of a broker for one role."""

    def __init__(self, endpoint: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self._endpoint = endpoint
        self._peer = b""

    def bind(self) -> "HandBroker":
        """Bind the socket, and return the broker."""
        self.socket.bind(self._endpoint)
        return self

    def send(self, message: wire.Message, *frames: wire.Frame) -> None:
        """Send a message to the peer of the last received message."""
        self.socket.send_multipart([self._peer, *wire.encode(message, frames)])

    def receive(self, decoder: msgspec.msgpack.Decoder[M], within_ms: int) -> tuple[M, list[wire.Frame]] | None:
        """Return the next message of any peer, or None if no message comes in time."""
        if not self.socket.poll(within_ms):
            return None
        self._peer, *frames = self.socket.recv_multipart()
        return wire.decode(decoder, frames)

    def close(self) -> None:
        """Close the socket and its context."""
        self.socket.close()
        self._context.term()


def submit(request: int, texts: Sequence[str], lane: wire.Lane = wire.Lane.BULK) -> tuple[wire.Submit, bytes]:
    """Return a submission of texts and its frame."""
    inputs = [text.encode() for text in texts]
    lengths = wire.pack_u32(map(len, inputs))
    return wire.Submit([wire.Submission(request, "fake", lane, "", 60_000, wire.Kind.TEXT, lengths)]), b"".join(inputs)


def _get(
    peer: Peer,
    decoder: msgspec.msgpack.Decoder[Any],
    kind: type[M],
    within_s: float,
    send_heartbeat: Callable[[], None],
) -> tuple[M, list[wire.Frame]]:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        frames = peer.receive(500)
        if frames is None:
            send_heartbeat()
            continue
        message, payload = wire.decode(decoder, frames)
        if isinstance(message, kind):
            return message, payload
    raise AssertionError(f"no {kind.__name__} within {within_s} s")
