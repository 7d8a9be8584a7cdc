"""Log lines of messages between the broker and its peers."""

import logging

import pytest

from broker.shared.version import VERSION
from broker.shell.message_log import LOGGED_MALFORMED, MAX_REFUSED, MessageLog
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode, RemoteProtocolError

UUID = b"u" * 16


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> MessageLog:
    caplog.set_level(logging.DEBUG)
    return MessageLog(lambda peer: f"name of {peer.decode()}")


def make_worker_hello(build: str) -> wire.WorkerHello:
    return wire.WorkerHello(1, 1, build, UUID, 1, "host", 7, "CPU", [], 1, 1, 1)


def test_hello_is_logged_with_its_version(log: MessageLog, caplog: pytest.LogCaptureFixture) -> None:
    log.log_received(b"F1", wire.FrontendHello(1, 1, VERSION, UUID, "host", 6))
    log.log_received(b"W1", make_worker_hello(VERSION))
    assert caplog.record_tuples == [
        ("broker.shell.message_log", logging.INFO, f"hello from frontend host/6, version {VERSION}"),
        ("broker.shell.message_log", logging.INFO, f"hello from worker host/7, version {VERSION}"),
    ]


def test_other_versions_give_one_warning_each(log: MessageLog, caplog: pytest.LogCaptureFixture) -> None:
    for build in ("0.0.9", "0.0.9", "", VERSION, ""):
        log.log_received(b"W1", make_worker_hello(build))
    log.log_received(b"F1", wire.FrontendHello(1, 1, "0.0.9", UUID, "host", 6))
    advice = f"but the broker has version {VERSION}; run the same version everywhere"
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        f"worker host/7 has version 0.0.9, {advice}",
        f"worker host/7 has version unknown, {advice}",
        f"frontend host/6 has version 0.0.9, {advice}",
    ]


def test_malformed_messages_are_not_all_logged(log: MessageLog, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(1, 3 * LOGGED_MALFORMED + 1):
        log.log_malformed(RemoteProtocolError("bad"), number)
    assert len(caplog.messages) == LOGGED_MALFORMED + 2
    assert caplog.messages[-1] == f"malformed message ignored ({3 * LOGGED_MALFORMED} so far): bad"


@pytest.mark.parametrize(("code", "level"), [(ErrorCode.DRAINING, logging.INFO), (ErrorCode.INTERNAL, logging.WARNING)])
def test_goodbye_is_logged(log: MessageLog, caplog: pytest.LogCaptureFixture, code: ErrorCode, level: int) -> None:
    log.log_sent(b"W1", wire.Goodbye(code, "why"))
    assert caplog.record_tuples == [("broker.shell.message_log", level, f"session closed: {code.name}: why")]


def test_repeated_refusal_is_logged_once_a_minute(
    log: MessageLog, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("broker.shell.message_log.time.monotonic", lambda: now)
    hello, welcome = make_worker_hello(VERSION), wire.Welcome(1, 7, 1000, 3500, 20_000, 1)

    def refuse(peer: bytes, text: str) -> list[str]:
        caplog.clear()
        log.log_received(peer, hello)
        log.log_sent(peer, wire.Goodbye(ErrorCode.REVISION_CONFLICT, text))
        return [message.partition(" ")[0] for message in caplog.messages]

    assert refuse(b"W1", "why") == ["hello", "session"]
    assert refuse(b"W2", "why") == ["hello", "session"]
    now = 1059.0
    assert refuse(b"W1", "why") == []
    assert refuse(b"W1", "another reason") == ["session"]
    assert refuse(b"W1", "another reason") == []
    now = 1119.0
    assert refuse(b"W1", "another reason") == ["hello", "session"]
    log.log_sent(b"W1", welcome)
    log.log_sent(b"W1", welcome)
    assert caplog.messages[2:] == ["accepted a peer that was refused before"]
    assert refuse(b"W1", "another reason") == ["hello", "session"]


def test_remembered_refusals_are_bounded(log: MessageLog, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(MAX_REFUSED + 1):
        log.log_sent(b"%d" % number, wire.Goodbye(ErrorCode.REVOKED, "why"))
    caplog.clear()
    for peer in (b"1", b"0"):
        log.log_sent(peer, wire.Goodbye(ErrorCode.REVOKED, "why"))
    assert len(caplog.messages) == 1


def test_evictions_are_all_logged(log: MessageLog, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        log.log_sent(b"W1", wire.Goodbye(ErrorCode.INTERNAL, "worker was removed: silent"))
    assert len(caplog.messages) == 3


def test_batches_are_logged_with_their_requests(log: MessageLog, caplog: pytest.LogCaptureFixture) -> None:
    origins = [wire.Origin("request 1", "00-" + "a" * 32 + "-" + "b" * 16 + "-01"), wire.Origin("request 2")]
    log.log_sent(b"W1", wire.Batch(1, 5, "m", b"\0\0", wire.pack_u32([1, 1]), origins=origins))
    log.log_received(b"W1", wire.BatchResult(1, 5, 4, wire.pack_u32([1, 1]), [], 9, 1, 5))
    log.log_received(b"W1", wire.BatchError(1, 6, ErrorCode.DEVICE, "broken", 1, 6))
    assert caplog.messages == [
        "batch 5 of 2 jobs to name of W1",
        "batch 5 answered",
        "batch 6 failed: DEVICE: broken",
    ]
    fields = vars(caplog.records[0])
    assert fields["request_ids"] == ["request 1", "request 2"]
    assert fields["trace_ids"] == ["a" * 32]
    assert {vars(record)["worker"] for record in caplog.records} == {"name of W1"}
