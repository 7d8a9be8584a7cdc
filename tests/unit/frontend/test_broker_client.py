"""The calls of the event loop by which a frontend keeps its connection to the broker."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import zmq

from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from frontend.config import Config
from frontend.session.broker_client import BrokerClient
from frontend.session.link import Link
from frontend.session.session import Step


def test_timer_goes_on_after_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    client = BrokerClient(Config())
    calls: list[float] = []
    due = client._session.due

    def fail_once(now: float) -> object:
        calls.append(now)
        if len(calls) == 1:
            raise RuntimeError("a fault")
        return due(now)

    async def run() -> None:
        faults: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        second = asyncio.Event()
        link = SimpleNamespace(open=lambda: None, close=lambda: None, send=lambda message, _: second.set())
        monkeypatch.setattr(client, "_link", link)
        monkeypatch.setattr(client._session, "due", fail_once)
        client.open()
        await asyncio.wait_for(second.wait(), 10)
        client.close()
        assert [str(fault["exception"]) for fault in faults] == ["a fault"]

    asyncio.run(run())
    assert len(calls) >= 2


def test_messages_are_read_after_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = [wire.encode(wire.Goodbye(ErrorCode.DRAINING, "")) for _ in range(2)]
    seen: list[object] = []

    def receive(*_: object, **__: object) -> list[zmq.Frame]:
        if not waiting:
            raise zmq.Again
        return [zmq.Frame(part) for part in waiting.pop(0)]

    def handle(message: object, _: object) -> None:
        seen.append(message)
        if len(seen) == 1:
            raise RuntimeError("a fault")

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)
        link = Link(Config(), lambda: None, lambda: None, handle, lambda: None)
        monkeypatch.setattr(link, "_loop", loop, raising=False)
        monkeypatch.setattr(link, "_socket", SimpleNamespace(closed=False), raising=False)
        monkeypatch.setattr("frontend.session.link.receive_frames", receive)
        loop.call_soon(link._read_messages)
        while len(seen) < 2:
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(run(), 10))
    assert not waiting


def test_malformed_message_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    client = BrokerClient(Config())
    waiting = [[zmq.Frame(b"\xc1")]]
    calls: list[float] = []

    def receive(*_: object, **__: object) -> list[zmq.Frame]:
        if not waiting:
            raise zmq.Again
        return waiting.pop(0)

    def handle_malformed(now: float) -> Step:
        calls.append(now)
        return Step()

    monkeypatch.setattr(client._session, "handle_malformed", handle_malformed)
    monkeypatch.setattr(client._link, "_socket", SimpleNamespace(closed=False), raising=False)
    monkeypatch.setattr("frontend.session.link.receive_frames", receive)
    client._link._read_messages()
    assert len(calls) == 1
