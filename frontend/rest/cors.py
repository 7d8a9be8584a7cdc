"""Cross-origin resource sharing: which pages in browsers may call the server (https://fetch.spec.whatwg.org/#cors)."""

import functools

from sanic import HTTPResponse, Request
from sanic.exceptions import MethodNotAllowed
from sanic.response import BaseHTTPResponse, empty

from frontend.config import Config

#: Response headers that a page's script may read.
EXPOSED_HEADERS = (
    "x-request-id, retry-after, x-queue-time, x-inference-time, x-total-time, x-truncated-tokens, x-vecmill-cache, "
    "x-vecmill-warning"
)
#: Seconds for which a browser may cache the answer to a preflight request; the maximum that Chromium accepts.
PREFLIGHT_MAX_AGE_S = 7200


def answer_preflight(request: Request) -> HTTPResponse:
    """Return the answer to OPTIONS, which browsers send without a key. Raise Sanic's `NotFound` for an unknown path."""
    methods = _list_methods(request)
    headers = {"Allow": methods}
    if "access-control-request-method" in request.headers:
        # "*" would not cover Authorization.
        requested = request.headers.get("access-control-request-headers", "authorization, content-type")
        headers |= {
            "Access-Control-Allow-Methods": methods,
            "Access-Control-Allow-Headers": requested,
            "Access-Control-Max-Age": str(PREFLIGHT_MAX_AGE_S),
        }
    return empty(204, headers)


def _list_methods(request: Request) -> str:
    try:
        request.app.router.get(request.path, request.method, request.headers.get("host"))
    except MethodNotAllowed as error:
        methods = {"OPTIONS", *(error.allowed_methods or ())}
        return ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))
    return "OPTIONS"


@functools.lru_cache(1)
def _list_origins(text: str) -> frozenset[str]:
    return frozenset(origin.strip() for origin in text.split(",") if origin.strip())


def add_cors_headers(request: Request, response: BaseHTTPResponse) -> None:
    """Let pages of the allowed origins read a response, whatever its status."""
    config: Config = request.app.ctx.config
    origin = request.headers.get("origin")
    allowed = _list_origins(config.allowed_origins)
    if allowed and "*" not in allowed:
        # Shared caches must not give a response without CORS headers to a page.
        response.headers["Vary"] = "Origin"
    if origin is None or not (origin in allowed or "*" in allowed):
        return
    response.headers["Access-Control-Allow-Origin"] = "*" if "*" in allowed else origin
    response.headers["Access-Control-Expose-Headers"] = EXPOSED_HEADERS
