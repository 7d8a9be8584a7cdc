"""Tells the broker that a process prepares a model, long before there is a worker that could say hello."""

import contextlib
import threading
from collections.abc import Iterator

import msgspec
import zmq

from broker import protocol as wire
from workers.config import Config
from workers.connection import dealer

#: How often it says so: as often as workers send heartbeats.
INTERVAL_S = 1.0
#: How long a process that ends takes to say why, in milliseconds: time to connect, and to send.
LAST_WORDS_MS = 1000


@contextlib.contextmanager
def announced(config: Config, loading: wire.WorkerLoading, failures: tuple[type[Exception], ...]) -> Iterator[None]:
    """While the model is being prepared. An exception of these kinds is told to the broker as the reason why there
    will be no worker; it goes on."""
    over = threading.Event()
    said = [loading]
    thread = threading.Thread(target=_announce, args=(config, said, over), name="announce", daemon=True)
    thread.start()
    try:
        yield
    except failures as error:
        said.append(msgspec.structs.replace(loading, failure=str(error)[:4096]))
        raise
    finally:
        over.set()
        thread.join()


def _announce(config: Config, said: list[wire.WorkerLoading], over: threading.Event) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = dealer(context, config)
    socket.connect(config.broker)
    while not over.is_set():
        # With the broker away there is nobody to tell.
        with contextlib.suppress(zmq.Again):
            socket.send_multipart(wire.encode(said[0]), zmq.NOBLOCK)
        over.wait(INTERVAL_S)
    if said[1:] and socket.poll(LAST_WORDS_MS, zmq.POLLOUT):
        socket.send_multipart(wire.encode(said[-1]), zmq.NOBLOCK)
    socket.close(linger=LAST_WORDS_MS)
    context.term()
