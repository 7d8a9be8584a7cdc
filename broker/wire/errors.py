"""Error codes that cross the wire, their texts, and the exceptions of the protocol. Pure.

The broker and the workers name a code; `frontend/api/errors.py` turns the code into an HTTP status. Texts that two
processes must word alike are here.
"""

import enum

#: Longest Retry-After, in seconds: OpenAI's clients give up on a longer one.
MAX_RETRY_AFTER_S = 120
#: Most characters of a name in an error.
MAX_QUOTED = 100


class ErrorCode(enum.IntEnum):
    """Why a job, a request or a peer was rejected. Numbers are part of the wire: append, never renumber.

    `text` is the default sentence of a code, which clients get when no better text is known. "HTTP" below is the status
    of an answer to a client; a code without one is sent to peers alone.
    """

    text: str

    def __new__(cls, number: int, text: str) -> "ErrorCode":
        """Create a member that has a default sentence."""
        code = int.__new__(cls, number)
        code._value_ = number
        code.text = text
        return code

    #: HTTP 400. The input itself cannot be embedded, for example because of a token id outside the vocabulary.
    INVALID_INPUT = 1, "the input cannot be embedded"
    #: HTTP 400. The input has more tokens than the model accepts, and the request does not allow truncation.
    TOO_LONG = 2, "the input has more tokens than the model accepts"
    #: HTTP 404. No worker has announced a model of this name.
    UNKNOWN_MODEL = 3, "the model does not exist"
    #: HTTP 503. The model is known, but has no worker for longer than the grace, or was replaced by another revision.
    NO_WORKER = 4, "no worker that serves the model is connected"
    #: HTTP 503. The broker's queue, or a frontend's room for answers, is full.
    OVERLOADED = 5, "the server is overloaded"
    #: HTTP 504. The deadline passed before the job was answered.
    DEADLINE = 6, "the request's deadline passed before it was answered"
    #: HTTP 422. Every worker that ran the input ended.
    POISON = 7, "this input crashed every worker that processed it"
    #: HTTP 500. The device failed on the input, or returned rows of a wrong size.
    DEVICE = 8, "the device failed on this input"
    #: HTTP 503. The broker or the worker is draining, and accepts no new jobs.
    DRAINING = 9, "the server is shutting down"
    #: The two peers have no protocol version in common.
    PROTOCOL = 10, "the peers have no protocol version in common"
    #: A live worker serves another revision under the same model name.
    REVISION_CONFLICT = 11, "another revision of the model is being served"
    #: HTTP 500. A fault of the server; the text does not describe internals.
    INTERNAL = 12, "the server failed on this request"
    #: HTTP 429. The client, or its key, has as many open jobs or has used as many tokens as it may.
    QUOTA = 13, "the client's quota is used up"
    #: A worker's batch has run longer than its lease. The worker should exit, because its inference hangs.
    LEASE_EXPIRED = 14, "the batch's lease expired"
    #: The peer's CURVE key was removed from the allow-list.
    REVOKED = 15, "the peer's key was removed from the allow-list"
    #: HTTP 400. All inputs of the request together have more tokens than the frontend allows.
    TOO_MANY_TOKENS = 16, "the request has too many tokens"
    #: HTTP 503. No worker serves the request's revision of the model any more, but another revision is served. The
    #: frontend submits the request again, so that a client sees this code only if the models differ in more.
    REPLACED = 17, "the model was replaced while the request ran; send the request again"


# --- texts that two places word alike --------------------------------------------------------------------------------

#: Text of `DRAINING` for a request.
DRAINING_TEXT = "the server is shutting down; retry on another one, or later"


def quote(name: str) -> str:
    """Return a name in quotes, and only the beginning of a long name, so that the error's text fits on the wire."""
    return repr(name) if len(name) <= MAX_QUOTED else f"{name[:MAX_QUOTED]!r}…"


def describe_too_long(tokens: int, max_tokens: int) -> str:
    """Return the text of `TOO_LONG`, which begins with OVMS's wording."""
    return f'Input length {tokens} longer than allowed {max_tokens}; shorten the input or set "truncate": "end"'


def describe_too_many_tokens(max_tokens: float) -> str:
    """Return the text of `TOO_MANY_TOKENS`."""
    return f"the request has more than {max_tokens} tokens; send its inputs in several requests"


def describe_foreign_token(token_id: int, vocabulary: int) -> str:
    """Return the text of `INVALID_INPUT` for a token id that is not in a model's vocabulary of that size."""
    switch = "LangChain sends the ids of OpenAI's models unless check_embedding_ctx_length=False"
    return f"token id {token_id} is not in the model's vocabulary of {vocabulary}; {switch}"


def describe_no_worker(name: str) -> str:
    """Return the text of `NO_WORKER` for a model that is known and has no worker."""
    return f"no worker that serves {quote(name)} is connected"


def describe_queue(wait_s: float) -> str:
    """Return the text of `OVERLOADED` for a request that would wait too long."""
    return f"the queue is {wait_s:.3g} s long; retry later"


def describe_replaced_model(name: str) -> str:
    """Return the text of `NO_WORKER` for a request that has rows of a revision that is no longer served."""
    return f"the model {quote(name)} was replaced while the request ran; send the request again"


# --- exceptions ------------------------------------------------------------------------------------------------------


class ProtocolError(Exception):
    """Base class of protocol errors."""


class RemoteProtocolError(ProtocolError):
    """A peer sent a malformed message: drop the message and count it."""


class LocalProtocolError(ProtocolError):
    """This process broke an invariant: stop with an error."""
