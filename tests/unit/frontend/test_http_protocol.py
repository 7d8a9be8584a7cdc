"""Connections: Sanic's private attributes that they use, and the end of a connection."""

import asyncio
import inspect
import socket
import time
from types import SimpleNamespace
from typing import cast

import pytest
from sanic import Request, Sanic
from sanic.http import Http, Stage
from sanic.router import Router
from sanic.server.protocols.base_protocol import SanicProtocol
from sanic.server.protocols.http_protocol import HttpProtocol

from frontend.rest.http_protocol import Connection

#: What `Connection`, `TimedRequest` and `StrictHttp` read or set, by the class that has it.
USED = {
    SanicProtocol: {"app", "loop", "transport", "conn_info", "_can_write", "_time", "_task"},
    HttpProtocol: {"request_timeout", "response_timeout", "keep_alive_timeout", "request_max_size",
                   "_callback_check_timeouts", "_http"},
    Http: {"stage", "keep_alive", "request_body", "request_max_size", "protocol", "recv_buffer", "expecting_continue",
           "request_bytes", "request_bytes_left", "upgrade_websocket", "_send", "_receive_more", "exception", "request",
           "url", "head_only", "response", "response_func", "response_size"},
    Request: {"responded", "route", "stream", "_match_info", "_response_middleware_started"},
}  # fmt: skip


@pytest.mark.parametrize("owner", USED)
def test_sanic_still_has_used_attributes(owner: type) -> None:
    slots = {name for base in owner.__mro__ for name in getattr(base, "__slots__", ())}
    assert USED[owner] <= slots


@pytest.mark.parametrize(
    ("method", "texts"),
    [
        (HttpProtocol._setup_connection, ["self.HTTP_CLASS(self", "self.check_timeouts()"]),
        (HttpProtocol.check_timeouts, ["RequestTimeout(", "ServiceUnavailable(", "self._task.cancel("]),
        (HttpProtocol.close, ["self._callback_check_timeouts.cancel()", "super().close(timeout=timeout)"]),
        (HttpProtocol.close_if_idle, ["self.http.stage is Stage.IDLE", "self.close()"]),
        (HttpProtocol.data_received, ["self._time = current_time()", "self.transport.pause_reading()"]),
        (Http.http1, ["self.stage = Stage.REQUEST", "await self.http1_request_header()", "except (BadRequest,"]),
        # `StrictHttp` replaces what sets these.
        (
            Http.http1_request_header,
            [
                "self.url",
                "self.keep_alive = ",
                "self.head_only = ",
                "self.request_bytes_left = ",
                "self.request_body = ",
                "self.expecting_continue = ",
                "pos -= 2",
                "del buf[: pos + 4]",
                'state["requests_count"] += 1',
                "self.request, request.stream = request, self",
            ],
        ),
        (
            Http.http1_response_header,
            [
                "self.response_func = self.head_response_ignored",
                "self.response_size = size",
                "self.response_func = None",
                'headers["content-length"] = size',
                'headers["connection"] = ',
                "self.stage = Stage.IDLE",
            ],
        ),
        (Http.read, ["if self.request_bytes_left == 0 and self.request_body == ", "self.request_bytes_left -= size"]),
        # `Server` and `AuthenticatedRequest` replace these.
        (
            Sanic.handle_request,
            [
                "route, handler, kwargs = self.router.get(",
                "request._match_info = {**kwargs}",
                "and not route.extra.ignore_body",
                'if hasattr(handler, "is_stream")',
                'request.stream.request_max_size = float("inf")',
                "await request.receive_body()",
                "run_middleware = False",
                "response = await request.respond(response)",
                "await response.send(end_stream=True)",
            ],
        ),
        (
            Request.respond,
            [
                "response = self.stream.respond(response)",
                "self._response_middleware_started = True",
                "self.responded = True",
            ],
        ),
        (Router.get.__wrapped__, ["self._get(path, method, host)"]),
        (SanicProtocol.abort, ["self.transport.abort()", "self.transport = None"]),
        (SanicProtocol.pause_writing, ["self._can_write.clear()"]),
        (SanicProtocol.resume_writing, ["self._can_write.set()"]),
    ],
)
def test_sanic_still_uses_attributes_alike(method: object, texts: list[str]) -> None:
    source = inspect.getsource(method)  # type: ignore[arg-type]
    assert all(text in source for text in texts), (
        f"{method} changed; check frontend/rest/{{http_protocol,strict_http,app,middleware}}.py"
    )


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


@pytest.mark.parametrize("has_request", [False, True])
def test_idle_connection_with_request_is_not_closed(*, has_request: bool) -> None:
    client, server = socket.socketpair()
    ends: list[str] = []
    checks: list[float] = []
    connection = Connection.__new__(Connection)
    connection.app = SimpleNamespace(config=SimpleNamespace(KEEP_ALIVE_TIMEOUT=1.0))  # type: ignore[assignment]
    connection._http = SimpleNamespace(stage=Stage.IDLE, request_body=None)
    connection._task = SimpleNamespace(cancel=lambda: ends.append("closed"))  # type: ignore[assignment]
    connection._time = time.monotonic() - 2.0
    connection.keep_alive_timeout = connection.request_timeout = connection.response_timeout = 1.0
    connection.loop = SimpleNamespace(call_later=lambda delay_s, _: checks.append(delay_s))
    connection.transport = cast(
        asyncio.Transport, SimpleNamespace(is_closing=lambda: False, get_extra_info=lambda _: server)
    )
    with client, server:
        if has_request:
            client.send(b"GET")
        connection.check_timeouts()
    assert (ends, len(checks)) == (([], 1) if has_request else (["closed"], 0))
