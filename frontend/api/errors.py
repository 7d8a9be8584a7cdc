"""Errors as HTTP answers: OpenAI's error object, and the table from error codes to HTTP statuses. Pure."""

import math
from typing import NamedTuple

import msgspec

from broker.wire.errors import ErrorCode
from frontend.api.answers import ErrorAnswer, ErrorObject, ErrorType

#: OpenAI's clients do not wait for a longer Retry-After, in seconds.
MAX_RETRY_AFTER_S = 120
#: Longest part of a value from a request that an error repeats, in characters.
MAX_QUOTED_CHARACTERS = 100


class _HttpError(NamedTuple):
    """HTTP status, OpenAI's `type` and `code`, and the field at fault."""

    status: int
    type: ErrorType
    code: str
    param: str | None = None


_HTTP_ERRORS = {
    ErrorCode.INVALID_INPUT: _HttpError(400, "invalid_request_error", "invalid_input", "input"),
    ErrorCode.TOO_LONG: _HttpError(400, "invalid_request_error", "context_length_exceeded", "input"),
    ErrorCode.TOO_MANY_TOKENS: _HttpError(400, "invalid_request_error", "max_tokens_per_request", "input"),
    ErrorCode.UNKNOWN_MODEL: _HttpError(404, "invalid_request_error", "model_not_found", "model"),
    ErrorCode.NO_WORKER: _HttpError(503, "server_error", "no_worker", "model"),
    ErrorCode.QUOTA: _HttpError(429, "rate_limit_error", "rate_limit_exceeded"),
    ErrorCode.OVERLOADED: _HttpError(503, "server_error", "overloaded"),
    ErrorCode.DEADLINE: _HttpError(504, "server_error", "deadline_exceeded"),
    ErrorCode.POISON: _HttpError(422, "invalid_request_error", "poison_input", "input"),
    ErrorCode.DRAINING: _HttpError(503, "server_error", "shutting_down"),
}
_INTERNAL_ERROR = _HttpError(500, "server_error", "internal_error")


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
    ) -> None:
        # A method or a path may hold bytes that are not UTF-8, which JSON cannot hold.
        super().__init__(message.encode("utf-8", "backslashreplace").decode())
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def to_object(self) -> ErrorObject:
        """Return OpenAI's error object."""
        return ErrorObject(str(self), self.kind, self.param, self.code)

    def body(self) -> bytes:
        """Return the body of the answer."""
        return msgspec.json.encode(ErrorAnswer(self.to_object()))

    def headers(self) -> dict[str, str]:
        """Return WWW-Authenticate for 401, or Retry-After in whole seconds if waiting can help."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        if not self.retry_after_s:
            return {}
        return {"Retry-After": str(min(MAX_RETRY_AFTER_S, max(1, math.ceil(self.retry_after_s))))}


def quote(value: str) -> str:
    """Return a value from a request in quotes, for an error text; only the beginning of a long value."""
    return repr(value) if len(value) <= MAX_QUOTED_CHARACTERS else f"{value[:MAX_QUOTED_CHARACTERS]!r}…"


def from_failure(code: ErrorCode, text: str = "", retry_after_ms: int = 0) -> ApiError:
    """Convert a failure from the broker or a worker; an empty text becomes the code's default text."""
    error = _HTTP_ERRORS.get(code, _INTERNAL_ERROR)
    return ApiError(
        error.status,
        text or code.text,
        kind=error.type,
        param=error.param,
        code=error.code,
        retry_after_s=retry_after_ms / 1000,
    )


def unknown_model(name: str, wording: str = "Mediapipe graph definition with requested name is not found") -> ApiError:
    """Return the error for a model that no worker has announced; the text ends with OVMS's wording for the path."""
    text = f"The model {quote(name)} does not exist - {wording}"
    return ApiError(404, text, param="model", code="model_not_found")


def broker_away() -> ApiError:
    """Return the error for a request that found no broker within the grace."""
    return ApiError(
        503, "the broker cannot be reached", kind="server_error", code="broker_unavailable", retry_after_s=5
    )
