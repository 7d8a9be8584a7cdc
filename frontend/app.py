"""The Sanic application: settings, the broker's link over its life, and errors as OpenAI objects."""

import logging

from sanic import HTTPResponse, Request, Sanic
from sanic.exceptions import SanicException
from sanic.response import raw

from frontend.broker_client import BrokerClient
from frontend.config import Config
from frontend.errors import ApiError
from frontend.routes.openai import openai
from frontend.routes.operations import operations

log = logging.getLogger(__name__)

#: How long a stopping process lets its open requests finish.
DRAIN_S = 30.0


def create_app(config: Config) -> Sanic:  # type: ignore[type-arg]
    """The application of one frontend process."""
    app = Sanic("vecmill", configure_logging=False)
    app.config.update(
        REQUEST_MAX_SIZE=config.max_body_bytes,
        # The deadline answers 504 first; Sanic's own limit only guards against our faults.
        RESPONSE_TIMEOUT=config.deadline_s + 30,
        REQUEST_TIMEOUT=60,
        KEEP_ALIVE_TIMEOUT=75,
        GRACEFUL_SHUTDOWN_TIMEOUT=DRAIN_S,
        ACCESS_LOG=False,
        MOTD=False,
    )
    app.ctx.config = config
    app.blueprint(openai)
    app.blueprint(operations)
    app.register_listener(_open_broker, "before_server_start")
    app.register_listener(_close_broker, "after_server_stop")
    app.error_handler.add(Exception, _error)
    return app


async def _open_broker(app: Sanic) -> None:  # type: ignore[type-arg]
    app.ctx.broker = BrokerClient(app.ctx.config)
    app.ctx.broker.open()


async def _close_broker(app: Sanic) -> None:  # type: ignore[type-arg]
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
    if status == 413:
        limit = request.app.config.REQUEST_MAX_SIZE
        return ApiError(413, f"the request body is larger than {limit} bytes", code="body_too_large")
    if status < 500:
        return ApiError(status, str(error), code="bad_request")
    return ApiError(status, "the server is not available", kind="server_error", code="unavailable", retry_after_s=1)
