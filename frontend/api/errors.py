"""Errors as HTTP answers: OpenAI's error object, and the one table from the wire's codes to statuses. Pure."""

import math

import msgspec

from broker.wire.errors import ErrorCode

#: OpenAI's clients give up on a Retry-After above this.
MAX_RETRY_AFTER_S = 120
#: How much of a request's value an error repeats, in characters.
MAX_QUOTED = 100

#: HTTP status, OpenAI's `type` and `code`, and the field at fault, of each code that a job can end with.
_STATUS = {
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
_FAULT = (500, "server_error", "internal_error", None)


class ApiError(Exception):
    """A request that ends with an error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float = 0.0,
    ) -> None:
        # A method or a path may hold bytes that are no text, which no JSON can hold.
        super().__init__(message.encode("utf-8", "backslashreplace").decode())
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def fields(self) -> dict[str, str | None]:
        """The inside of the error object."""
        return {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}

    def body(self) -> bytes:
        """The error object."""
        return msgspec.json.encode({"error": self.fields()})

    def headers(self) -> dict[str, str]:
        """Retry-After in whole seconds, where waiting can help."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        if not self.retry_after_s:
            return {}
        return {"Retry-After": str(min(MAX_RETRY_AFTER_S, max(1, math.ceil(self.retry_after_s))))}


def quote(value: str) -> str:
    """Return what a request has said, in quotes, for an error that names it; of a long one the beginning."""
    return repr(value) if len(value) <= MAX_QUOTED else f"{value[:MAX_QUOTED]!r}…"


def from_failure(code: ErrorCode, text: str, retry_after_ms: int = 0) -> ApiError:
    """What the broker or a worker said of a job, for the client."""
    status, kind, name, param = _STATUS.get(code, _FAULT)
    return ApiError(status, text, kind=kind, param=param, code=name, retry_after_s=retry_after_ms / 1000)


def unknown_model(name: str, wording: str = "Mediapipe graph definition with requested name is not found") -> ApiError:
    """No worker has ever announced this model; OVMS's wording for the path at the end."""
    text = f"The model {quote(name)} does not exist - {wording}"
    return ApiError(404, text, param="model", code="model_not_found")


def broker_away() -> ApiError:
    """Return the error of a request that found no broker within the grace."""
    return ApiError(
        503, "the broker cannot be reached", kind="server_error", code="broker_unavailable", retry_after_s=5
    )
