"""Why a frontend or a worker cannot connect to the broker: what is logged, and when."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from broker.shell.config import Config
from broker.shell.curve_keys import make_keys
from broker.shell.routers import Routers
from broker.wire import sockets
from broker.wire.sockets import ConnectionMonitor, is_local, open_dealer, receive_frames
from tests.harness.damage import remove
from tests.harness.processes import free_port, until


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """Make the folders of keys of broker, worker and frontend."""
    make_keys(tmp_path)
    return tmp_path


@pytest.fixture
def endpoint() -> str:
    """An endpoint that is free."""
    return f"tcp://127.0.0.1:{free_port()}"


def serve(endpoint: str, tmp_path: Path, key_folder: str = "") -> Routers:
    """Return open sockets of a broker."""
    config = Config(frontend_bind=endpoint, worker_bind=f"ipc://{tmp_path}/w", keys=key_folder)
    routers = Routers(config)
    routers.open(zmq.Poller())
    return routers


@contextlib.contextmanager
def watch(endpoint: str, key_folder: str) -> Iterator[ConnectionMonitor]:
    """Connect a frontend, and yield its monitor."""
    context: sockets.Context = zmq.Context()
    socket = open_dealer(context, key_folder, "frontend")
    monitor = ConnectionMonitor(socket, endpoint, "frontend", key_folder)
    socket.connect(endpoint)
    try:
        yield monitor
    finally:
        monitor.close()
        socket.close()
        context.term()


@pytest.mark.parametrize(
    ("broker_keys", "own_keys", "reason"),
    [
        (True, False, "the handshake failed, so it probably uses keys; set --keys"),
        (False, True, "frontend/broker.key is not the key of this broker, or it uses no keys"),
        (True, True, "it rejected this frontend's key; add the key with scripts/keys --add, and restart"),
    ],
    ids=["no keys", "broker without keys", "unknown key"],
)
def test_wrong_keys_are_logged_once(
    keys: Path,
    endpoint: str,
    caplog: pytest.LogCaptureFixture,
    broker_keys: bool,
    own_keys: bool,
    reason: str,
) -> None:
    remove(keys / "broker" / "frontends" / "frontend.key")
    routers = serve(endpoint, keys, str(keys / "broker") if broker_keys else "")
    with contextlib.closing(routers), watch(endpoint, str(keys / "frontend") if own_keys else "") as monitor:
        until(lambda: monitor.read_changes() is None or reason in caplog.text, what=reason)
        assert caplog.text.count("cannot connect") == 1


def test_key_of_another_broker_is_named(
    keys: Path, endpoint: str, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path_factory.mktemp("other")
    make_keys(other)
    routers = serve(endpoint, keys, str(keys / "broker"))
    with contextlib.closing(routers), watch(endpoint, str(other / "frontend")) as monitor:
        until(lambda: monitor.read_changes() is None or f"{other}/frontend/broker.key is not the key" in caplog.text)


def test_absent_broker_is_logged_after_a_while(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sockets, "UNREACHABLE_S", 0.3)
    with watch(endpoint, "") as monitor:
        until(lambda: monitor.read_changes() is None or "nobody listens there; start the broker" in caplog.text)
        with contextlib.closing(serve(endpoint, tmp_path)):
            until(lambda: True in monitor.read_changes(), what="the connection")
        assert caplog.text.count("cannot connect") == 1
        until(
            lambda: monitor.read_changes() is None or caplog.text.count("cannot connect") == 2, what="another message"
        )


@pytest.mark.parametrize(
    ("broker", "local"),
    [
        ("tcp://127.0.0.1:1", True),
        ("tcp://localhost:1", True),
        ("tcp://[::1]:1", True),
        ("ipc:///run/x", True),
        ("ipc://@x", False),
        ("tcp://10.0.0.1:1", False),
        ("tcp://broker:1", False),
    ],
)
def test_unencrypted_connection_to_another_host_is_warned_of(
    caplog: pytest.LogCaptureFixture, broker: str, local: bool
) -> None:
    assert is_local(broker) == local
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket, caplog.at_level(logging.WARNING):
        ConnectionMonitor(socket, broker, "worker", "").close()
    assert ("is not encrypted; set --keys" in caplog.text) != local


@pytest.mark.parametrize("key_folder", ["", "keys"])
def test_single_failed_handshake_is_no_reason(caplog: pytest.LogCaptureFixture, key_folder: str) -> None:
    # A broker that is killed meanwhile ends a handshake too.
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        monitor = ConnectionMonitor(socket, "ipc:///run/x", "worker", key_folder)
        logged = []
        for _ in range(3):
            monitor._handle_failure(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, 0.0)
            logged.append(caplog.text.count("cannot connect"))
        monitor.close()
    assert logged == [0, 1, 1]


def test_frames_of_one_message_are_received() -> None:
    with zmq.Context() as context, context.socket(zmq.PAIR) as sender, context.socket(zmq.PAIR) as receiver:
        sender.bind("inproc://frames")
        receiver.connect("inproc://frames")
        for message in ([b"a", b"", b"c"], [b"d"]):
            sender.send_multipart(message)
        assert [frame.bytes for frame in receive_frames(receiver)] == [b"a", b"", b"c"]
        assert [frame.bytes for frame in receive_frames(receiver)] == [b"d"]
        with pytest.raises(zmq.Again):
            receive_frames(receiver)
