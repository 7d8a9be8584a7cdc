"""Tells the broker that a process prepares a model, long before there is a worker that could say hello."""

import contextlib
import threading
from collections.abc import Iterator

import msgspec
import zmq

from broker.wire import protocol as wire
from broker.wire.sockets import open_dealer
from workers.config import Config

#: How often it says so: as often as workers send heartbeats.
INTERVAL_S = 1.0
#: How soon it tries again while there is nobody to tell.
RETRY_S = 0.05
#: How long a process that ends takes to say why, in milliseconds: time to connect, and to send.
LAST_WORDS_MS = 1000


@contextlib.contextmanager
def announce_loading(
    config: Config, loading: wire.WorkerLoading, failures: tuple[type[Exception], ...]
) -> Iterator[None]:
    """While the model is being prepared. An exception of these kinds is told to the broker as the reason why there
    will be no worker; it goes on."""
    socket = connect_dealer(config)
    over = threading.Event()
    said = [loading]
    thread = threading.Thread(target=_announce, args=(socket, said, over), name="announce", daemon=True)
    thread.start()
    try:
        yield
    except failures as error:
        said.append(msgspec.structs.replace(loading, failure=str(error)[:4096]))
        raise
    finally:
        over.set()
        thread.join()


def connect_dealer(config: Config) -> "zmq.Socket[bytes]":
    """Return a socket in a context of its own, on its way to the broker; zmq.ZMQError when that has no such address."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        socket = open_dealer(context, config.keys, "worker")
        socket.connect(config.broker)
    except BaseException:
        context.destroy(linger=0)
        raise
    return socket


def _announce(socket: "zmq.Socket[bytes]", said: list[wire.WorkerLoading], over: threading.Event) -> None:
    told = False
    while not over.wait(INTERVAL_S if told else RETRY_S):
        told = _tell(socket, said[0])
    if said[1:] and socket.poll(LAST_WORDS_MS, zmq.POLLOUT):
        _tell(socket, said[-1])
    context = socket.context
    socket.close(linger=LAST_WORDS_MS if said[1:] else 0)
    context.term()


def _tell(socket: "zmq.Socket[bytes]", loading: wire.WorkerLoading) -> bool:
    """Whether the broker was there to be told."""
    try:
        socket.send_multipart(wire.encode(loading), zmq.NOBLOCK)
    except zmq.Again:
        return False
    return True
