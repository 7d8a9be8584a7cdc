"""What is done for requests of all paths: request ids, API keys, CORS, HTTP metrics and the access log."""

import contextlib
import functools
import random
import re
import time
from collections.abc import Mapping
from email.utils import formatdate
from typing import Any

from sanic import HTTPResponse, Request
from sanic.response import BaseHTTPResponse

from frontend.api.errors import ApiError
from frontend.api.schemas import list_credentials
from frontend.rest import metrics
from frontend.rest.api_keys import Key, Keys, KeysError
from frontend.rest.cors import add_cors_headers, answer_preflight
from frontend.rest.http_protocol import TimedRequest

#: Paths without a key: load balancers' probes have none, and the API's description is public.
OPEN_PATHS = ("/", "/v2/health/live", "/v2/health/ready", "/openapi.json")
OPEN_FOLDERS = ("/docs",)
#: A client's request id that is used as it is.
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
#: W3C Trace Context, version 00.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class AuthenticatedRequest(TimedRequest):
    """Request whose answer gets the headers of all paths."""

    async def _receive_parts(self, stream: Any) -> None:
        await super()._receive_parts(stream)
        # The key may have been revoked meanwhile.
        _check_key(self)

    async def respond(
        self,
        response: BaseHTTPResponse | None = None,
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        content_type: str | None = None,
    ) -> Any:
        """Return the response that the connection will send, with the headers of all paths, and record it.

        Sanic calls this for each answer and each error. Its own method calls the middleware of a list, and asks of each
        whether it must be awaited.
        """
        if response is None:
            response = HTTPResponse(status=status, headers=dict(headers or {}), content_type=content_type)
        if self.stream is not None:
            response = self.stream.respond(response)
        if not self._response_middleware_started:
            self._response_middleware_started = True
            _finish_response(self, response)
        self.responded = True
        return response


def authenticate_request(request: Request) -> None:
    """Give a request its id, and check its API key before its body is read, so that strangers cannot fill the memory.

    Raise `ApiError` 401 if a key is required and the request has none.
    """
    _identify_request(request)
    _check_key(request)


async def begin_error(request: Request) -> HTTPResponse | None:
    """Do for a request that fails early what is done for others before their handlers.

    Return the answer to a preflight request, for which no path has a route, and else None. Raise `ApiError` 401 if the
    key is missing.
    """
    await request.app.ctx.unread.wait_for_previous(request)
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
    context.request_id = given if given and _REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
    trace = request.headers.get("traceparent", "")
    context.traceparent = trace if trace and _TRACEPARENT.fullmatch(trace) else ""
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


def _finish_response(request: Request, response: BaseHTTPResponse) -> None:
    # Sanic rejects some requests before their head or body is complete.
    _identify_request(request)
    application, context, headers = request.app.ctx, request.ctx, response.headers
    headers["x-request-id"] = context.request_id
    add_cors_headers(request, response)
    headers["Date"] = _format_date(int(time.time()))
    stream: Any = request.stream
    # The truth value of Sanic's streams is whether a request is being handled.
    if stream is not None:
        application.unread.watch_connection(request)
        if application.draining:
            stream.keep_alive = False
        # Clients that know the idle time do not use a connection that is about to be closed.
        elif stream.keep_alive and (idle_s := int(application.config.idle_timeout_s)):
            headers["Keep-Alive"] = f"timeout={idle_s}"
    seconds = time.monotonic() - context.started
    metrics.count_answer(request, response, seconds)
    application.access_log.log_request(request, response.status, seconds)


@functools.lru_cache(1)
def _format_date(time_s: int) -> str:
    return formatdate(time_s, usegmt=True)
