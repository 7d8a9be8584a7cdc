"""Errors as HTTP answers: OpenAI's error object, and the table from error codes to HTTP statuses. Pure."""

import difflib
import math
from collections.abc import Collection, Mapping

import msgspec

from broker.wire.errors import MAX_QUOTED, MAX_RETRY_AFTER_S, ErrorCode, quote
from frontend.api.answers import ErrorAnswer, ErrorObject, ErrorType

#: Longest message of an error, in characters.
MAX_MESSAGE_CHARACTERS = 2000
#: Most names of models that an error lists.
MAX_LISTED_MODELS = 10
#: Ends of paths that other servers have, or that a wrong base URL makes, and the right path of each.
_PATHS = {"embeddings": "/v1/embeddings", "embed": "/v1/embeddings", "tokenize": "/v1/tokenize", "models": "/v1/models"}

#: HTTP status, OpenAI's `type` and `code`, and the field at fault, of each code that a job can end with.
_HTTP_ERRORS: dict[ErrorCode, tuple[int, ErrorType, str, str | None]] = {
    ErrorCode.INVALID_INPUT: (400, "invalid_request_error", "invalid_input", "input"),
    ErrorCode.TOO_LONG: (400, "invalid_request_error", "context_length_exceeded", "input"),
    ErrorCode.TOO_MANY_TOKENS: (400, "invalid_request_error", "max_tokens_per_request", "input"),
    ErrorCode.UNKNOWN_MODEL: (404, "invalid_request_error", "model_not_found", "model"),
    ErrorCode.NO_WORKER: (503, "server_error", "no_worker", "model"),
    ErrorCode.REPLACED: (503, "server_error", "model_replaced", "model"),
    ErrorCode.QUOTA: (429, "rate_limit_error", "rate_limit_exceeded", None),
    ErrorCode.OVERLOADED: (503, "server_error", "overloaded", None),
    ErrorCode.DEADLINE: (504, "server_error", "deadline_exceeded", None),
    ErrorCode.POISON: (422, "invalid_request_error", "poison_input", "input"),
    ErrorCode.DRAINING: (503, "server_error", "shutting_down", None),
}
#: OVMS's words for a model that POST /v1/embeddings does not find.
OVMS_UNKNOWN_MODEL = "Mediapipe graph definition with requested name is not found"
_INTERNAL_ERROR: tuple[int, ErrorType, str, None] = (500, "server_error", "internal_error", None)


class ApiError(Exception):
    """An error that ends a request, or fails one input of it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: ErrorType = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float = 0.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        # A method or a path may hold bytes that are not UTF-8, which JSON cannot hold.
        text = message.encode("utf-8", "backslashreplace").decode()
        super().__init__(text if len(text) <= MAX_MESSAGE_CHARACTERS else f"{text[:MAX_MESSAGE_CHARACTERS]}…")
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s
        self._headers = headers or {}

    def to_object(self) -> ErrorObject:
        """Return OpenAI's error object."""
        return ErrorObject(str(self), self.kind, self.param, self.code)

    def body(self) -> bytes:
        """Return the body of the answer."""
        return msgspec.json.encode(ErrorAnswer(self.to_object()))

    def headers(self) -> dict[str, str]:
        """Return the headers of the answer: those given, and Retry-After in whole seconds if waiting can help."""
        if not self.retry_after_s:
            return dict(self._headers)
        return {**self._headers, "Retry-After": str(min(MAX_RETRY_AFTER_S, max(1, math.ceil(self.retry_after_s))))}


def from_failure(code: ErrorCode, text: str = "", retry_after_ms: int = 0) -> ApiError:
    """Convert a failure from the broker or a worker; an empty text becomes the code's default text."""
    status, kind, name, param = _HTTP_ERRORS.get(code, _INTERNAL_ERROR)
    return ApiError(status, text or code.text, kind=kind, param=param, code=name, retry_after_s=retry_after_ms / 1000)


def name_input(error: ApiError, position: int, count: int, *, embeds: bool = True) -> ApiError:
    """Add to the error of an input that fails a request of `count` its position, and how to spare the others.

    A position of -1 is the whole request. Only embeddings can be answered without an input.
    """
    if count > 1 and position >= 0:
        hint = '; set "error_policy": "per_item" to get the other vectors' if embeds else ""
        error.args = (f"input {position}: {error}{hint}",)
    return error


def unknown_model(
    name: str,
    wording: str = OVMS_UNKNOWN_MODEL,
    served: Collection[str] = (),
) -> ApiError:
    """Return the error for a model that no worker has announced, with OVMS's wording for the path, and what is served.

    A name that resembles a served one without its folder is taken for a mistake.
    """
    by_end = {_shorten(other): other for other in served}
    close = difflib.get_close_matches(_shorten(name), by_end, n=1)
    hint = f" (did you mean {quote(by_end[close[0]])}?)" if close else ""
    text = f"The model {quote(name)} does not exist - {wording}{hint}{describe_served(served)}"
    return ApiError(404, text, param="model", code="model_not_found")


def _shorten(name: str) -> str:
    """Return the end of a model's name, as names are compared."""
    return name[-MAX_QUOTED:].lower().rpartition("/")[2]


def describe_served(served: Collection[str]) -> str:
    """Return the end of a sentence that lists the served models."""
    if not served:
        return ""
    names = ", ".join(quote(name) for name in sorted(served)[:MAX_LISTED_MODELS])
    return f"; this server has {names}{' and others' if len(served) > MAX_LISTED_MODELS else ''}"


def unknown_path(path: str) -> ApiError:
    """Return the error for a path that does not exist, which names the right path if there is a similar one."""
    right = next((right for part in reversed(path.lower().split("/")) if (right := _PATHS.get(part))), None)
    hint = f"send the request to {right}" if right else "/docs lists the paths"
    return ApiError(404, f"Invalid request URL: there is no {path[:MAX_QUOTED]}; {hint}", code="unknown_url")


def body_too_large(limit: int) -> ApiError:
    """Return the error for a body of more than `limit` bytes."""
    text = f"the request body is larger than {limit} bytes; split its inputs over several requests"
    return ApiError(413, text, code="body_too_large")


def broker_away() -> ApiError:
    """Return the error for a request that found no broker within the grace."""
    return ApiError(
        503, "the broker cannot be reached", kind="server_error", code="broker_unavailable", retry_after_s=5
    )
