"""The Sanic application of a frontend process: its settings, start-up, shutdown, and errors as OpenAI objects."""

import asyncio
import contextlib
import functools
import gc
import logging
import math
import signal
import socket
import ssl
from collections.abc import Sequence
from typing import Any

from sanic import HTTPResponse, Request, Sanic
from sanic.exceptions import SanicException
from sanic.response import raw
from sanic.router import Router

from frontend.api.errors import ApiError, body_too_large, unknown_path
from frontend.config import Config
from frontend.rest import metrics, middleware
from frontend.rest.access_log import AccessLog
from frontend.rest.api_keys import Keys, KeysError
from frontend.rest.http_protocol import Connection
from frontend.rest.incoming_bodies import IncomingBodies
from frontend.rest.memory import return_freed_memory
from frontend.rest.routes.batches import batches
from frontend.rest.routes.docs import docs
from frontend.rest.routes.files import files
from frontend.rest.routes.openai import openai
from frontend.rest.routes.operations import operations
from frontend.rest.routes.ovms import ovms
from frontend.rest.unread_answers import UnreadAnswers
from frontend.rest.uploads import discard_rest
from frontend.session.broker_client import BrokerClient

log = logging.getLogger(__name__)

#: Seconds for which a stopping process lets open requests finish: the default deadline and a margin.
DRAIN_S = 65.0
#: Seconds for which a stopping process waits for the rest of requests that have arrived in part.
INCOMPLETE_S = 5.0
#: Intervals in seconds at which connections are checked: for clients that have left, and, in a drain, for idle ones.
LEFT_INTERVAL_S, IDLE_INTERVAL_S = 0.25, 0.02
#: New objects, and collections of the younger generation, after which each generation is collected (gc.set_threshold).
GC_THRESHOLDS = (20_000, 20, 20)
#: Maximum bytes of a body that is too large that are read and discarded, so that its sender reads the answer.
MAX_DISCARDED_BYTES = 64 * 1024 * 1024


class HeadRouter(Router):
    """Routes, where HEAD is answered as GET without a body (RFC 9110, section 9.1)."""

    def _get(self, path: str, method: str, host: str | None) -> Any:
        return super()._get(path, "GET" if method == "HEAD" else method, host)


class Server(Sanic):  # type: ignore[type-arg]
    """Sanic without its signals and lists of middleware, which took a tenth of the CPU time of a request."""

    async def handle_request(self, request: Any) -> None:
        """Find the route of a request, read the body, call the handler, and write the answer or the error."""
        began = streams = False
        try:
            # No route depends on the host.
            request.route, handler, arguments = self.router.get(request.path, request.method, None)
            request._match_info = dict(arguments)
            streams = hasattr(handler, "is_stream")
            middleware.authenticate_request(request)
            if streams:
                # The handler reads the body, and limits its size.
                request.stream.request_max_size = math.inf
            elif request.stream.request_body and not request.route.extra.ignore_body:
                await request.receive_body()
            began = True
            # The client must have read the previous answer.
            await request.stream.protocol.wait_until_writable()
            response = await handler(request, **arguments)
            # Without a response, the handler has written the answer.
            response = await request.respond(response) if response else request.stream.response
            await response.send(end_stream=True)
        except Exception as error:
            if streams:
                discard_rest(request, self.ctx.config)
            await self.handle_exception(request, error, run_middleware=not began)


def create_app(config: Config, keys: Keys) -> Server:
    """Return the application of a frontend process."""
    app = Server("vecmill", configure_logging=False, request_class=middleware.AuthenticatedRequest, router=HeadRouter())
    app.config.update(
        REQUEST_MAX_SIZE=config.max_body_bytes,
        # Comes after the deadline (504) and the time-out of a body (408), and guards against faults of this server.
        RESPONSE_TIMEOUT=max(config.deadline_s, config.request_timeout_s) + 30,
        REQUEST_TIMEOUT=config.request_timeout_s,
        KEEP_ALIVE_TIMEOUT=config.idle_timeout_s,
        GRACEFUL_SHUTDOWN_TIMEOUT=DRAIN_S,
        ACCESS_LOG=False,
        MOTD=False,
        FALLBACK_ERROR_FORMAT="json",
    )
    app.ctx.config, app.ctx.keys = config, keys
    app.ctx.connections = set()
    app.ctx.incoming = IncomingBodies(config.max_incoming_bytes)
    app.ctx.draining = False
    #: Background tasks, which live as long as the process.
    app.ctx.tasks = []
    app.ctx.unread = UnreadAnswers(config)
    for blueprint in (openai, operations, ovms, files, batches, docs):
        app.blueprint(blueprint)
    app.error_handler.add(Exception, _render_error)
    app.error_handler.add(asyncio.CancelledError, _render_cancelled)
    app.register_middleware(middleware.begin_error, "request")
    app.register_listener(_start_up, "before_server_start")
    app.register_listener(_begin_drain, "before_server_stop")
    app.register_listener(_shut_down, "after_server_stop")
    return app


# --- start-up and shutdown -------------------------------------------------------------------------------------------
#
# SIGTERM and SIGINT shut a process down in these steps:
# 1. `_begin_drain`: responses have "Connection: close" from now on, and idle connections are closed.
# 2. Sanic closes the listening socket, and waits until all connections are closed.
# 3. `_close_connections` ends incomplete requests after INCOMPLETE_S, and aborts what is open after DRAIN_S.
# 4. `_shut_down`: the broker cancels the jobs that are left, and the process ends.


async def _start_up(app: Sanic) -> None:  # type: ignore[type-arg]
    return_freed_memory()
    app.ctx.access_log = AccessLog()
    metrics.create_series({metrics.get_route_endpoint(route.name) for route in app.router.routes})
    app.ctx.broker = BrokerClient(app.ctx.config)
    app.ctx.broker.open()
    for task in (app.ctx.unread.watch_clients(), _end_left_connections(app.ctx.connections)):
        app.ctx.tasks.append(asyncio.create_task(task))
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload_keys, app.ctx.keys)
    # What is loaded until now stays, so the garbage collector need not look at it again. Nearly all other objects are
    # freed without it; with Python's own thresholds it took 7 % of the time of a request.
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    log.info("listening on port %d of %s", app.ctx.config.port, app.ctx.config.host)


async def _begin_drain(app: Sanic) -> None:  # type: ignore[type-arg]
    log.info("draining: %d open connections", len(app.ctx.connections))
    app.ctx.draining = True
    app.ctx.tasks.append(asyncio.create_task(_close_connections(app)))


async def _shut_down(app: Sanic) -> None:  # type: ignore[type-arg]
    # Sanic has waited only for the connections of the socket that it serves.
    while app.ctx.connections:
        await asyncio.sleep(IDLE_INTERVAL_S)
    log.info("drained with %d connections open", len(app.ctx.connections))
    for task in app.ctx.tasks:
        task.cancel()
    app.ctx.broker.close()
    metrics.write_changes()
    app.ctx.access_log.flush()


async def _close_connections(app: Sanic) -> None:  # type: ignore[type-arg]
    """Close each connection when it is idle, soon after if its request is incomplete, and abort others after DRAIN_S.

    Sanic closes idle connections only after uvloop has seen all connections end, and clients' pools keep them open.
    """
    connections: set[Connection] = app.ctx.connections
    now = asyncio.get_running_loop().time
    began = now()
    while True:
        for connection in list(connections):
            connection.close_if_idle()
            if now() >= began + INCOMPLETE_S:
                connection.close_if_incomplete()
            if now() >= began + DRAIN_S:
                connection.abort()
        if now() >= began + INCOMPLETE_S:
            app.ctx.incoming.end_all()
        await asyncio.sleep(IDLE_INTERVAL_S)


async def _end_left_connections(connections: set[Connection]) -> None:
    """Abort connections that clients closed behind bytes that are not read yet, and so cancel the requests."""
    while True:
        await asyncio.sleep(LEFT_INTERVAL_S)
        for connection in list(connections):
            # A socket that fails is about to be closed anyway, and must not end this task.
            with contextlib.suppress(OSError):
                if connection.has_left():
                    connection.abort()


def _reload_keys(keys: Keys) -> None:
    # `Keys` logs the error, and the old keys stay valid.
    with contextlib.suppress(KeysError):
        keys.reload()


def serve_sockets(app: Sanic, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None) -> None:  # type: ignore[type-arg]
    """Serve further listening sockets, besides the one that Sanic serves."""
    servers: list[asyncio.Server] = []

    async def start(_: object) -> None:
        loop = asyncio.get_running_loop()
        for listening in sockets:
            servers.append(
                await loop.create_server(functools.partial(Connection, loop=loop, app=app), sock=listening, ssl=tls)
            )

    async def stop(_: object) -> None:
        for server in servers:
            server.close()

    app.register_listener(start, "after_server_start")
    app.register_listener(stop, "before_server_stop")


# --- errors ----------------------------------------------------------------------------------------------------------


def _render_error(request: Request, error: Exception) -> HTTPResponse:
    """Return the OpenAI error object of an exception. Log an unexpected exception, without details in the answer."""
    if isinstance(error, SanicException):
        error = _convert_sanic_error(request, error)
    elif not isinstance(error, ApiError):
        log.error("request failed", exc_info=error)
        text = "the server failed to process this request; its log has the reason"
        error = ApiError(500, text, kind="server_error", code="internal_error")
    return raw(error.body(), status=error.status, headers=error.headers(), content_type="application/json")


def _render_cancelled(_: Request, __: asyncio.CancelledError) -> HTTPResponse:
    """Return a response for the access log and the metrics, because the client has left."""
    return raw(b"", status=metrics.CLIENT_GONE)


def _convert_sanic_error(request: Request, error: SanicException) -> ApiError:
    status = error.status_code
    if status == 404:
        return unknown_path(request.path)
    if status == 405:
        allow = str((error.headers or {}).get("Allow", ""))
        text = f"Unsupported method: {request.method} is not allowed for {request.path}; use {allow}"
        headers = {"Allow": allow + ", HEAD" if "GET" in allow.split(", ") else allow}
        return ApiError(405, text, code="method_not_allowed", headers=headers)
    if status == 408:
        limit_s = request.app.config.REQUEST_TIMEOUT
        text = f"the rest of the request did not arrive within {limit_s:g} s; send it without pauses"
        return ApiError(408, text, code="request_timeout")
    if status == 413 and "header" in str(error):
        text = "the request line and headers are too large; shorten them"
        return ApiError(431, text, code="headers_too_large")
    if status == 413:
        limit = request.app.config.REQUEST_MAX_SIZE
        # Sanic closes the connection after this many bytes. A client that is still sending would see a connection reset
        # instead of the answer.
        if stream := request.stream:
            stream.request_max_size = stream.protocol.request_max_size = MAX_DISCARDED_BYTES
        return body_too_large(limit)
    if status < 500:
        return ApiError(status, str(error), code="bad_request")
    return ApiError(status, "the server is unavailable", kind="server_error", code="unavailable", retry_after_s=1)
