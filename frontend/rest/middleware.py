"""Middleware of all paths: request ids, API keys, CORS, HTTP metrics and the access log."""

import contextlib
import logging
import os
import re
import time

from sanic import HTTPResponse, Request, Sanic
from sanic.response import BaseHTTPResponse

from broker.wire.protocol import Origin
from frontend.api.errors import ApiError
from frontend.api.schemas import list_credentials
from frontend.rest import metrics
from frontend.rest.api_keys import Key, Keys, KeysError
from frontend.rest.cors import add_cors_headers, answer_preflight
from frontend.rest.http_protocol import TimedRequest

access = logging.getLogger("access")

#: Paths without a key: load balancers' probes have none, and the API's description is public.
OPEN_PATHS = ("/", "/v2/health/live", "/v2/health/ready", "/openapi.json")
OPEN_FOLDERS = ("/docs",)
#: Paths that probes and Prometheus request every few seconds. The access log has them at level debug.
_PROBES = re.compile(r"/v2/health/(live|ready)|/v2/models/.*/ready|/health|/metrics")
#: Fields of the access log that the text has too.
_SHOWN = ("model", "inputs", "client", "request_id")
#: A client's request id that is used as it is.
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
#: W3C Trace Context, version 00.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def install_middleware(app: Sanic) -> None:  # type: ignore[type-arg]
    """Register the middleware with an application that has `config` and `keys` in its context."""
    app.register_middleware(_begin_request, "request")
    app.register_middleware(_finish_response, "response")


class AuthenticatedRequest(TimedRequest):
    """Request that checks the API key before it reads the body, so that strangers cannot fill the memory."""

    @property
    def path(self) -> str:
        """The path with at most one slash at its end.

        Sanic's router strips slashes one by one, each in a nested call, so that a thousand of them exceed the
        recursion limit.
        """
        path = str(super().path)
        return path.rstrip("/") + "/" if path.endswith("//") else path

    async def receive_body(self) -> None:
        """Read the body. Raise `ApiError` 401 if a key is required and the request has none."""
        _identify_request(self)
        _check_key(self)
        await super().receive_body()


async def _begin_request(request: Request) -> HTTPResponse | None:
    _identify_request(request)
    if not request.head:
        # Placeholder request that Sanic creates for unparsable input; its error handler answers.
        return None
    if request.method == "OPTIONS":
        return answer_preflight(request)
    _check_key(request)
    return None


def _identify_request(request: Request) -> None:
    context = request.ctx
    if hasattr(context, "request_id"):
        return
    context.started = time.monotonic()
    given = request.headers.get("x-request-id", "")
    context.request_id = given if _REQUEST_ID.fullmatch(given) else os.urandom(16).hex()
    trace = request.headers.get("traceparent", "")
    context.traceparent = trace if _TRACEPARENT.fullmatch(trace) else ""
    #: Additional fields of the access log, which handlers set.
    context.log = {}
    context.key = None


def _check_key(request: Request) -> None:
    keys: Keys = request.app.ctx.keys
    if not keys.required or request.path in OPEN_PATHS or request.path.startswith(OPEN_FOLDERS):
        return
    # `Keys` logs the error, and the old keys stay valid.
    with contextlib.suppress(KeysError):
        keys.refresh(time.monotonic())
    request.ctx.key = next(filter(None, map(keys.find_key, list_credentials(request.headers))), None)
    if request.ctx.key is None:
        text = (
            "Unauthorized request due to invalid or missing api-key; send the header Authorization: Bearer KEY, with a"
        )
        headers = {"WWW-Authenticate": "Bearer"}
        raise ApiError(401, f"{text} key of this server", code="invalid_api_key", headers=headers)


def require_admin(request: Request) -> None:
    """Raise `ApiError` 403 if the request's key is not an operator's."""
    key: Key | None = request.ctx.key
    if key and not key.admin:
        raise ApiError(403, "this path requires a key with admin = true", code="forbidden")


async def _finish_response(request: Request, response: BaseHTTPResponse) -> None:
    context = request.ctx
    # Sanic rejects some requests before it calls request middleware.
    _identify_request(request)
    response.headers["x-request-id"] = context.request_id
    add_cors_headers(request, response)
    seconds = time.monotonic() - context.started
    metrics.count_answer(request, response, seconds)
    _log_request(request, response.status, round(seconds * 1000, 3))


def _log_request(request: Request, status: int, ms: float) -> None:
    """Write the access log: as fields of a JSON object, and the most important of them also as text."""
    level = logging.DEBUG if _PROBES.fullmatch(request.path) else logging.INFO
    if not access.isEnabledFor(level):
        return
    context = request.ctx
    fields = {
        "request_id": context.request_id,
        "method": request.method,
        "path": request.path,
        "status": status,
        "ms": ms,
        "client": context.key.name if context.key else "",
        "trace_id": Origin(traceparent=context.traceparent).trace_id if context.traceparent else "",
        **context.log,
    }
    shown = " ".join([f"{name}={fields[name]}" for name in _SHOWN if fields.get(name)])
    access.log(level, "%s %s %d %.1f ms %s", request.method, request.path, status, ms, shown, extra=fields)
