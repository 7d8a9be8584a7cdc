"""Notices of a process that prepares a model, with a broker played by hand and without a broker."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.wire import protocol as wire
from tests.harness.peers import HandBroker
from tests.harness.processes import ROOT, free_port
from workers.config import Config
from workers.session import loading_notice
from workers.session.loading_notice import announce_loading

LOADING = wire.WorkerLoading(b"0123456789abcdef", "host", 1, "model")


class TooLargeError(Exception):
    """Stands for an error of the preparation."""


@pytest.fixture
def endpoint() -> str:
    return f"tcp://127.0.0.1:{free_port()}"


@pytest.fixture
def broker(endpoint: str) -> Iterator[HandBroker]:
    broker = HandBroker(endpoint)
    yield broker
    broker.close()


def receive_message(broker: HandBroker, within_ms: int = 5000) -> wire.Message | None:
    """Return the next message of a worker, or None."""
    received = broker.receive(wire.FROM_WORKER, within_ms)
    return received and received[0]


def test_notices_are_sent_until_the_model_is_ready(
    broker: HandBroker, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading_notice, "INTERVAL_S", 0.2)
    broker.bind()
    with announce_loading(Config(broker=endpoint), LOADING, (TooLargeError,)):
        assert [receive_message(broker) for _ in range(3)] == [LOADING] * 3
    assert receive_message(broker, 400) is None


def test_notice_reaches_a_broker_that_starts_later(broker: HandBroker, endpoint: str) -> None:
    with announce_loading(Config(broker=endpoint), LOADING, (TooLargeError,)):
        broker.bind()
        assert receive_message(broker) == LOADING


@pytest.mark.parametrize("text", ["it is too large", "x" * 10_000])
def test_failure_is_the_last_notice(broker: HandBroker, endpoint: str, text: str) -> None:
    """The failure happens before the connection is established."""
    broker.bind()
    with pytest.raises(TooLargeError), announce_loading(Config(broker=endpoint), LOADING, (TooLargeError,)):
        raise TooLargeError(text)
    assert receive_message(broker) == wire.WorkerLoading(LOADING.uuid, "host", 1, "model", text[:4096])
    assert receive_message(broker, 200) is None


def test_list_of_models_is_no_model(broker: HandBroker, endpoint: str) -> None:
    broker.bind()
    config = Config(broker=endpoint, config_path="config.json")
    with announce_loading(config, LOADING, (TooLargeError,)) as announce:
        assert receive_message(broker) == wire.WorkerLoading(LOADING.uuid, "host", 1, "")
        announce("first")
        assert receive_message(broker) == wire.WorkerLoading(LOADING.uuid, "host", 1, "first")
    with pytest.raises(TooLargeError), announce_loading(config, LOADING, (TooLargeError,)):
        raise TooLargeError("unreadable")
    assert receive_message(broker) == wire.WorkerLoading(LOADING.uuid, "host", 1, "model", "unreadable")


def test_notice_without_a_broker_does_not_hang(endpoint: str) -> None:
    with announce_loading(Config(broker=endpoint), LOADING, (TooLargeError,)):
        pass
    with pytest.raises(TooLargeError), announce_loading(Config(broker=endpoint), LOADING, (TooLargeError,)):
        raise TooLargeError


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--broker", "nonsense", "could not connect to the broker: Invalid argument (addr='nonsense'); check --broker"),
        ("--keys", "/nonexistent", "/nonexistent/worker.key_secret cannot be used as a key: No such file or directory"),
    ],
)
def test_unusable_address_or_key_is_reported(flag: str, value: str, expected: str) -> None:
    command = [sys.executable, "-m", "workers", flag, value]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (2, f"vecmill worker: {expected}\n")


@pytest.mark.parametrize("content", ["curve\n", 'curve\n    public-key = "' + "a" * 40 + '"\n'])
def test_key_file_without_keys_is_reported(tmp_path: Path, content: str) -> None:
    (tmp_path / "worker.key_secret").write_text(content)
    command = [sys.executable, "-m", "workers", "--keys", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "worker.key_secret" in done.stderr
