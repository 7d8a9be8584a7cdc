"""Notice to the broker that a process prepares a model, long before the process can send a worker's hello."""

import contextlib
import threading
from collections.abc import Callable, Iterator

import msgspec
import zmq

from broker.wire import protocol as wire
from broker.wire.sockets import open_dealer
from workers.config import Config
from workers.session.catalog import repair_failure

#: Seconds between two notices, as between two heartbeats of a worker.
INTERVAL_S = 1.0
#: Seconds until the next try while no broker is connected.
RETRY_S = 0.05
#: Longest time that a failing process takes to connect and send the reason, in milliseconds.
FAILURE_MS = 1000


@contextlib.contextmanager
def announce_loading(
    config: Config, loading: wire.WorkerLoading, failures: tuple[type[Exception], ...]
) -> Iterator[Callable[[str], None]]:
    """Send notices in a thread while the caller prepares a model. Yield a function that sets the name of the model.

    Before that, the name is empty if the configuration is a list of models; then `loading` names the list.
    An exception of the types `failures` is sent as the reason why there will be no worker, and raised again. Raise
    `KeyFileError` or `zmq.ZMQError` if a key or the broker's address cannot be used.
    """
    socket = connect_dealer(config)
    ended = threading.Event()
    is_list = config.config_path or config.model_repository_path
    notices = [msgspec.structs.replace(loading, model="") if is_list else loading]
    thread = threading.Thread(target=_send_notices, args=(socket, notices, ended), name="announce", daemon=True)
    thread.start()

    def set_name(name: str) -> None:
        notices[0] = msgspec.structs.replace(loading, model=name)

    try:
        yield set_name
    except failures as error:
        failure = repair_failure(str(error))
        notices.append(msgspec.structs.replace(notices[0], model=notices[0].model or loading.model, failure=failure))
        raise
    finally:
        ended.set()
        thread.join()


def connect_dealer(config: Config) -> "zmq.Socket[bytes]":
    """Return a socket in a context of its own that connects to the broker.

    Raise `KeyFileError` or `zmq.ZMQError` if a key or the broker's address cannot be used.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        socket = open_dealer(context, config.keys, "worker")
        socket.connect(config.broker)
    except BaseException:
        context.destroy(linger=0)
        raise
    return socket


def _send_notices(socket: "zmq.Socket[bytes]", notices: list[wire.WorkerLoading], ended: threading.Event) -> None:
    """Send the first notice until the event is set, then a second notice if there is one, and close the socket."""
    sent = False
    while not ended.wait(INTERVAL_S if sent else RETRY_S):
        sent = _send_notice(socket, notices[0])
    failed = len(notices) > 1
    if failed and socket.poll(FAILURE_MS, zmq.POLLOUT):
        _send_notice(socket, notices[1])
    context = socket.context
    socket.close(linger=FAILURE_MS if failed else 0)
    context.term()


def _send_notice(socket: "zmq.Socket[bytes]", notice: wire.WorkerLoading) -> bool:
    """Send a notice. Return whether a broker was connected."""
    try:
        socket.send_multipart(wire.encode(notice), zmq.NOBLOCK)
    except zmq.Again:
        return False
    return True
