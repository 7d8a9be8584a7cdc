"""What a process says of itself while it prepares a model: to a broker played by hand, and to none."""

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
    """The model cannot be served."""


@pytest.fixture
def endpoint() -> str:
    return f"tcp://127.0.0.1:{free_port()}"


@pytest.fixture
def broker(endpoint: str) -> Iterator[HandBroker]:
    broker = HandBroker(endpoint)
    yield broker
    broker.close()


def heard(broker: HandBroker, within_ms: int = 5000) -> wire.Message | None:
    """The next message that a worker's process sent."""
    received = broker.receive(wire.FROM_WORKER, within_ms)
    return received and received[0]


def test_it_is_said_at_once_and_again_and_no_more_when_the_model_is_ready(
    broker: HandBroker, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading_notice, "INTERVAL_S", 0.2)
    broker.bind()
    with announce_loading(Config(broker=endpoint), LOADING, (TooLargeError,)):
        assert [heard(broker) for _ in range(3)] == [LOADING] * 3
    assert heard(broker, 400) is None


def test_broker_that_comes_later_is_told(broker: HandBroker, endpoint: str) -> None:
    with announce_loading(Config(broker=endpoint), LOADING, (TooLargeError,)):
        broker.bind()
        assert heard(broker) == LOADING


@pytest.mark.parametrize("text", ["it is too large", "x" * 10_000])
def test_reason_why_it_cannot_be_served_is_the_last_word(broker: HandBroker, endpoint: str, text: str) -> None:
    """Also when it is known before the connection stands."""
    broker.bind()
    with pytest.raises(TooLargeError), announce_loading(Config(broker=endpoint), LOADING, (TooLargeError,)):
        raise TooLargeError(text)
    assert heard(broker) == wire.WorkerLoading(LOADING.uuid, "host", 1, "model", text[:4096])
    assert heard(broker, 200) is None


def test_without_a_broker_nothing_hangs(endpoint: str) -> None:
    with announce_loading(Config(broker=endpoint), LOADING, (TooLargeError,)):
        pass
    with pytest.raises(TooLargeError), announce_loading(Config(broker=endpoint), LOADING, (TooLargeError,)):
        raise TooLargeError


@pytest.mark.parametrize(
    ("flag", "value", "told"),
    [
        ("--broker", "nonsense", "could not connect to the broker: Invalid argument (addr='nonsense'); check --broker"),
        ("--keys", "/nonexistent", "/nonexistent/worker.key_secret cannot be used as a key: No such file or directory"),
    ],
)
def test_address_or_key_that_cannot_be_used_is_told_in_a_sentence(flag: str, value: str, told: str) -> None:
    command = [sys.executable, "-m", "workers", flag, value]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (2, f"vecmill worker: {told}\n")


@pytest.mark.parametrize("content", ["curve\n", 'curve\n    public-key = "' + "a" * 40 + '"\n'])
def test_key_file_without_its_keys_is_told_in_a_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "worker.key_secret").write_text(content)
    command = [sys.executable, "-m", "workers", "--keys", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "worker.key_secret" in done.stderr
