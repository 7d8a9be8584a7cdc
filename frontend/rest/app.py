"""The Sanic application: settings, the broker's link over its life, and errors as OpenAI objects."""

import asyncio
import contextlib
import logging
import signal

from sanic import HTTPResponse, Request, Sanic
from sanic.exceptions import SanicException
from sanic.response import BaseHTTPResponse, raw

from frontend.api.errors import ApiError
from frontend.config import Config
from frontend.rest import metrics, middleware
from frontend.rest.api_keys import Keys, KeysError
from frontend.rest.http_protocol import Connection
from frontend.rest.memory import return_freed_memory
from frontend.rest.routes.docs import docs
from frontend.rest.routes.openai import openai
from frontend.rest.routes.operations import operations
from frontend.rest.routes.ovms import ovms
from frontend.rest.unread_answers import UnreadAnswers
from frontend.session.broker_client import BrokerClient

log = logging.getLogger(__name__)

#: How long a stopping process lets its open requests finish: their deadline by default, and a little.
DRAIN_S = 65.0
#: How often connections that are not read are looked at, in seconds.
LOOK_S = 0.25
#: How much of a body that is too large is read and thrown away, so that its sender reads the answer.
MAX_DISCARDED_BYTES = 64 * 1024 * 1024


def create_app(config: Config, keys: Keys) -> Sanic:  # type: ignore[type-arg]
    """The application of one frontend process."""
    app = Sanic("vecmill", configure_logging=False, request_class=middleware.KnownRequest)
    app.config.update(
        REQUEST_MAX_SIZE=config.max_body_bytes,
        # The deadline answers 504 first, or a body that stalls 408; Sanic's own limit only guards against our faults.
        RESPONSE_TIMEOUT=max(config.deadline_s, config.request_timeout_s) + 30,
        REQUEST_TIMEOUT=config.request_timeout_s,
        KEEP_ALIVE_TIMEOUT=75,
        GRACEFUL_SHUTDOWN_TIMEOUT=DRAIN_S,
        ACCESS_LOG=False,
        MOTD=False,
        FALLBACK_ERROR_FORMAT="json",
    )
    app.ctx.config, app.ctx.keys = config, keys
    app.ctx.connections = set()
    app.ctx.draining = None
    app.ctx.unread = UnreadAnswers(config)
    app.blueprint(openai)
    app.blueprint(operations)
    app.blueprint(ovms)
    app.blueprint(docs)
    app.register_listener(_open_broker, "before_server_start")
    app.register_listener(_look_after_readers, "before_server_start")
    app.register_listener(_listen_for_sighup, "before_server_start")
    app.register_listener(_drain, "before_server_stop")
    app.register_listener(_close_broker, "after_server_stop")
    app.error_handler.add(Exception, _error)
    app.error_handler.add(asyncio.CancelledError, _client_gone)
    app.register_middleware(_begin, "request")
    app.register_middleware(_watch, "response")
    app.register_middleware(_say_goodbye, "response")
    middleware.install(app)
    app.register_listener(_touch_metrics, "before_server_start")
    return app


async def _touch_metrics(app: Sanic) -> None:  # type: ignore[type-arg]
    metrics.touch({metrics.endpoint_of_name(route.name) for route in app.router.routes})


async def _open_broker(app: Sanic) -> None:  # type: ignore[type-arg]
    app.ctx.broker = BrokerClient(app.ctx.config)
    app.ctx.broker.open()


async def _look_after_readers(app: Sanic) -> None:  # type: ignore[type-arg]
    return_freed_memory()
    app.ctx.looking = asyncio.create_task(app.ctx.unread.look())
    app.ctx.watching = asyncio.create_task(_end_left_connections(app.ctx.connections))


async def _end_left_connections(connections: set[Connection]) -> None:
    """End the connections whose client has gone away behind bytes that are not read yet, and so cancel its request."""
    while True:
        await asyncio.sleep(LOOK_S)
        for connection in list(connections):
            # A socket that fails is about to be closed anyway, and must not end the watch over the others.
            with contextlib.suppress(OSError):
                if connection.has_left():
                    connection.abort()  # type: ignore[no-untyped-call]


async def _begin(request: Request) -> None:
    await request.app.ctx.unread.begin(request)


async def _watch(request: Request, _: BaseHTTPResponse) -> None:
    request.app.ctx.unread.watch(request)


async def _listen_for_sighup(app: Sanic) -> None:  # type: ignore[type-arg]
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload_keys, app.ctx.keys)


def _reload_keys(keys: Keys) -> None:
    try:
        log.info("SIGHUP: the API keys %s", "have changed" if keys.reload() else "are the same")
    except KeysError as error:
        log.error("the API keys are as before: %s", error)


async def _drain(app: Sanic) -> None:  # type: ignore[type-arg]
    """Let open requests finish, and close each connection as soon as it is idle.

    Sanic closes idle connections only after uvloop has seen all connections end, which a client's pool may never do.
    """
    log.info("draining: %d connections to finish", len(app.ctx.connections))
    app.ctx.draining = asyncio.create_task(_close_connections(app.ctx.connections))


async def _say_goodbye(request: Request, _: BaseHTTPResponse) -> None:
    """A draining server's answers say that the connection closes: a client must not send its next request there."""
    if request.app.ctx.draining and request.stream:
        request.stream.keep_alive = False  # type: ignore[attr-defined]


async def _close_connections(connections: set[Connection]) -> None:
    until = asyncio.get_running_loop().time() + DRAIN_S
    while connections:
        for connection in list(connections):
            connection.close_if_idle()
        if asyncio.get_running_loop().time() >= until:
            for connection in list(connections):
                connection.abort()  # type: ignore[no-untyped-call]
        await asyncio.sleep(0.02)


async def _close_broker(app: Sanic) -> None:  # type: ignore[type-arg]
    log.info("drained with %d connections left", len(app.ctx.connections))
    app.ctx.looking.cancel()
    app.ctx.broker.close()


def _error(request: Request, error: Exception) -> HTTPResponse:
    """Every error of every path, in OpenAI's shape. A fault of ours is logged, and its inside is not told."""
    if isinstance(error, SanicException):
        error = _from_sanic(request, error)
    elif not isinstance(error, ApiError):
        log.error("a request failed", exc_info=error)
        error = ApiError(500, "the server failed on this request", kind="server_error", code="internal_error")
    headers = error.headers() | ({"Allow": error.allow} if isinstance(error, _MethodError) else {})
    return raw(error.body(), status=error.status, headers=headers, content_type="application/json")


def _client_gone(_: Request, __: asyncio.CancelledError) -> HTTPResponse:
    """For the log: nobody reads it."""
    return raw(b"", status=metrics.CLIENT_GONE)


class _MethodError(ApiError):
    """405 also tells the methods that the path has."""

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(405, message, code="method_not_allowed")
        self.allow = allow


def _from_sanic(request: Request, error: SanicException) -> ApiError:
    status = error.status_code
    if status == 404:
        return ApiError(404, f"Invalid request URL: there is no {request.path}", code="unknown_url")
    if status == 405:
        allow = str((error.headers or {}).get("Allow", ""))
        return _MethodError(f"Unsupported method: {request.method} is not allowed for {request.path}", allow)
    if status == 408:
        limit_s = request.app.config.REQUEST_TIMEOUT
        return ApiError(408, f"the rest of the request did not come within {limit_s:g} s", code="request_timeout")
    if status == 413 and "header" in str(error):
        return ApiError(431, "the request's line and headers are too large", code="headers_too_large")
    if status == 413:
        limit = request.app.config.REQUEST_MAX_SIZE
        # Sanic reads no further than this before it closes: a client that is still sending would see a reset
        # connection and not the answer.
        if stream := request.stream:
            stream.request_max_size = stream.protocol.request_max_size = MAX_DISCARDED_BYTES
        return ApiError(413, f"the request body is larger than {limit} bytes", code="body_too_large")
    if status < 500:
        return ApiError(status, str(error), code="bad_request")
    return ApiError(status, "the server is not available", kind="server_error", code="unavailable", retry_after_s=1)
