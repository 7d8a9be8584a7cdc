"""What is done for every request, whatever its path: its id, its key, CORS, and a line in the log."""

import logging
import os
import re
import time

from sanic import HTTPResponse, Request, Sanic
from sanic.exceptions import MethodNotAllowed
from sanic.response import BaseHTTPResponse, empty

from frontend.api.errors import ApiError
from frontend.config import Config
from frontend.rest import metrics
from frontend.rest.api_keys import Key, Keys, KeysError
from frontend.rest.http_protocol import TimedRequest

log = logging.getLogger(__name__)
access = logging.getLogger("access")

#: Paths that need no key: probes of load balancers have none, and the description of the API holds no secret.
OPEN_PATHS = ("/v2/health/live", "/v2/health/ready", "/openapi.json")
OPEN_FOLDERS = ("/docs",)
#: Of the answers' headers, those that a script in a browser may read.
EXPOSED = (
    "x-request-id, retry-after, x-queue-time, x-inference-time, x-total-time, x-truncated-tokens, x-vecmill-warning"
)
#: How long a browser may remember what it asked before, in seconds; Chromium's own bound.
PREFLIGHT_S = 7200
#: A client's id that is taken over.
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
#: W3C Trace Context, version 00.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def install(app: Sanic) -> None:  # type: ignore[type-arg]
    """Hook all of it into an application whose context has `config` and `keys`."""
    app.register_middleware(_begin, "request")
    app.register_middleware(_finish, "response")


class KnownRequest(TimedRequest):
    """A request whose body is read only when its key is known: a stranger's would fill the memory for nothing."""

    @property
    def path(self) -> str:
        """The path, with one slash at its end where there are more: Sanic's router takes them off one by one, and each
        by a call inside the last, which a thousand of them make too deep."""
        path = str(super().path)
        return path.rstrip("/") + "/" if path.endswith("//") else path

    async def receive_body(self) -> None:
        """ApiError 401 instead of the body."""
        _identify(self)
        _admit(self)
        await super().receive_body()


async def _begin(request: Request) -> HTTPResponse | None:
    _identify(request)
    if not request.head:
        # Sanic's stand-in for what was no request, on its way to be told so.
        return None
    if request.method == "OPTIONS":
        return _preflight(request)
    _admit(request)
    return None


def _identify(request: Request) -> None:
    context = request.ctx
    if hasattr(context, "request_id"):
        return
    context.started = time.monotonic()
    given = request.headers.get("x-request-id", "")
    context.request_id = given if _REQUEST_ID.fullmatch(given) else os.urandom(16).hex()
    trace = request.headers.get("traceparent", "")
    context.traceparent = trace if _TRACEPARENT.fullmatch(trace) else ""
    #: What the log says beside the status: filled in by whoever serves the request.
    context.log = {}
    context.key = None


def _preflight(request: Request) -> HTTPResponse:
    """A browser asks whether a page of another origin may send such a request; it sends no key with that."""
    methods = _methods(request)
    headers = {"Allow": methods}
    if "access-control-request-method" in request.headers:
        # Not *, which does not cover Authorization.
        wanted = request.headers.get("access-control-request-headers", "authorization, content-type")
        headers |= {
            "Access-Control-Allow-Methods": methods,
            "Access-Control-Allow-Headers": wanted,
            "Access-Control-Max-Age": str(PREFLIGHT_S),
        }
    return empty(204, headers)


def _methods(request: Request) -> str:
    """What a path can be asked; Sanic's NotFound for one that there is not."""
    try:
        request.app.router.get(request.path, request.method, request.headers.get("host"))
    except MethodNotAllowed as error:
        return ", ".join(sorted({"OPTIONS", *(error.allowed_methods or ())} - {"HEAD"}))
    return "OPTIONS"


def _admit(request: Request) -> None:
    keys: Keys = request.app.ctx.keys
    if not keys.required or request.path in OPEN_PATHS or request.path.startswith(OPEN_FOLDERS):
        return
    try:
        if keys.refresh(time.monotonic()):
            log.info("the API keys have changed")
    except KeysError as error:
        log.error("the API keys are as before: %s", error)
    request.ctx.key = keys.find(request.headers.get("authorization", ""))
    if request.ctx.key is None:
        raise ApiError(401, "Unauthorized request due to invalid or missing api-key", code="invalid_api_key")


def require_admin(request: Request) -> None:
    """ApiError 403 for a key that is not an operator's."""
    key: Key | None = request.ctx.key
    if key and not key.admin:
        raise ApiError(403, "this path is for keys with admin = true", code="forbidden")


async def _finish(request: Request, response: BaseHTTPResponse) -> None:
    context = request.ctx
    # Sanic refuses some requests before any middleware of ours.
    _identify(request)
    response.headers["x-request-id"] = context.request_id
    _share(request, response)
    seconds = time.monotonic() - context.started
    metrics.count(request, response, seconds)
    if access.isEnabledFor(logging.INFO):
        known = {
            "request_id": context.request_id,
            "method": request.method,
            "path": request.path,
            "status": response.status,
            "ms": round(seconds * 1000, 3),
            "client": context.key.name if context.key else "",
            "trace_id": context.traceparent[3:35],
        }
        access.info("%s %s %d", request.method, request.path, response.status, extra=known | context.log)


def _share(request: Request, response: BaseHTTPResponse) -> None:
    """Let pages of allowed origins read the answer, errors too."""
    config: Config = request.app.ctx.config
    origin = request.headers.get("origin")
    allowed = [one.strip() for one in config.allowed_origins.split(",") if one.strip()]
    if allowed and "*" not in allowed:
        # For shared caches: also an answer to nobody in particular is not for everybody.
        response.headers["Vary"] = "Origin"
    if origin is None or not (origin in allowed or "*" in allowed):
        return
    response.headers["Access-Control-Allow-Origin"] = "*" if "*" in allowed else origin
    response.headers["Access-Control-Expose-Headers"] = EXPOSED
