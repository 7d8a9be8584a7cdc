"""Connections: Sanic's private attributes that they use, and the end of a connection."""

import asyncio
import inspect
import socket
from types import SimpleNamespace
from typing import cast

import pytest
from sanic.http import Http, Stage
from sanic.server.protocols.base_protocol import SanicProtocol
from sanic.server.protocols.http_protocol import HttpProtocol

from frontend.rest.http_protocol import Connection

#: What `Connection` and `TimedRequest` read or set, by the class that has it.
USED = {
    SanicProtocol: {"app", "loop", "transport", "conn_info", "_can_write", "_time"},
    HttpProtocol: {"request_timeout", "response_timeout", "keep_alive_timeout", "request_max_size",
                   "_callback_check_timeouts"},
    Http: {"stage", "keep_alive", "request_body", "request_max_size", "protocol"},
}  # fmt: skip


@pytest.mark.parametrize("owner", USED)
def test_sanic_still_has_used_attributes(owner: type) -> None:
    slots = {name for base in owner.__mro__ for name in getattr(base, "__slots__", ())}
    assert USED[owner] <= slots


@pytest.mark.parametrize(
    ("method", "texts"),
    [
        (HttpProtocol.check_timeouts, ["duration = current_time() - self._time", "self._callback_check_timeouts = "]),
        (HttpProtocol.check_timeouts, ["stage is Stage.IDLE and duration > self.keep_alive_timeout"]),
        (HttpProtocol.check_timeouts, ["stage is Stage.REQUEST and duration > self.request_timeout"]),
        (HttpProtocol.close, ["self._callback_check_timeouts.cancel()", "super().close(timeout=timeout)"]),
        (HttpProtocol.close_if_idle, ["self.http.stage is Stage.IDLE", "self.close()"]),
        (HttpProtocol.data_received, ["self._time = current_time()", "self.transport.pause_reading()"]),
        (SanicProtocol.pause_writing, ["self._can_write.clear()"]),
        (SanicProtocol.resume_writing, ["self._can_write.set()"]),
    ],
)
def test_sanic_still_uses_attributes_alike(method: object, texts: list[str]) -> None:
    source = inspect.getsource(method)  # type: ignore[arg-type]
    assert all(text in source for text in texts), f"{method} changed; check frontend/rest/http_protocol.py"


def test_sanic_still_has_used_stages() -> None:
    assert {"IDLE", "REQUEST"} <= set(Stage.__members__)


def test_connection_with_failing_socket_is_aborted() -> None:
    failing, ends = socket.socket(), []
    failing.close()
    connection = Connection.__new__(Connection)
    transport = SimpleNamespace(get_extra_info=lambda _: failing, abort=lambda: ends.append("aborted"))
    connection.transport = cast(asyncio.Transport, transport)
    with pytest.raises(OSError, match="Bad file descriptor"):
        connection.reset_connection()
    assert ends == ["aborted"]
