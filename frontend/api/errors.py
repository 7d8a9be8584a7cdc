"""Errors as HTTP answers: OpenAI's error object, and the table from error codes to HTTP statuses. Pure."""

import math

import msgspec

from broker.wire.errors import MAX_RETRY_AFTER_S, ErrorCode
from frontend.api.answers import ErrorAnswer, ErrorObject, ErrorType

#: Longest part of a value from a request that an error repeats, in characters.
MAX_QUOTED_CHARACTERS = 100

#: HTTP status, OpenAI's `type` and `code`, and the field at fault, of each code that a job can end with.
_HTTP_ERRORS: dict[ErrorCode, tuple[int, ErrorType, str, str | None]] = {
    ErrorCode.INVALID_INPUT: (400, "invalid_request_error", "invalid_input", "input"),
    ErrorCode.TOO_LONG: (400, "invalid_request_error", "context_length_exceeded", "input"),
    ErrorCode.TOO_MANY_TOKENS: (400, "invalid_request_error", "max_tokens_per_request", "input"),
    ErrorCode.UNKNOWN_MODEL: (404, "invalid_request_error", "model_not_found", "model"),
    ErrorCode.NO_WORKER: (503, "server_error", "no_worker", "model"),
    ErrorCode.QUOTA: (429, "rate_limit_error", "rate_limit_exceeded", None),
    ErrorCode.OVERLOADED: (503, "server_error", "overloaded", None),
    ErrorCode.DEADLINE: (504, "server_error", "deadline_exceeded", None),
    ErrorCode.POISON: (422, "invalid_request_error", "poison_input", "input"),
    ErrorCode.DRAINING: (503, "server_error", "shutting_down", None),
}
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
    """Return a value from a request in quotes, and only the beginning of a long value."""
    return repr(value) if len(value) <= MAX_QUOTED_CHARACTERS else f"{value[:MAX_QUOTED_CHARACTERS]!r}…"


def from_failure(code: ErrorCode, text: str = "", retry_after_ms: int = 0) -> ApiError:
    """Convert a failure from the broker or a worker; an empty text becomes the code's default text."""
    status, kind, name, param = _HTTP_ERRORS.get(code, _INTERNAL_ERROR)
    return ApiError(status, text or code.text, kind=kind, param=param, code=name, retry_after_s=retry_after_ms / 1000)


def unknown_model(name: str, wording: str = "Mediapipe graph definition with requested name is not found") -> ApiError:
    """Return the error for a model that no worker has announced; the text ends with OVMS's wording for the path."""
    text = f"The model {quote(name)} does not exist - {wording}"
    return ApiError(404, text, param="model", code="model_not_found")


def broker_away() -> ApiError:
    """Return the error for a request that found no broker within the grace."""
    return ApiError(
        503, "the broker cannot be reached", kind="server_error", code="broker_unavailable", retry_after_s=5
    )
