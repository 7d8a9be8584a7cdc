"""Error codes that cross the wire, their texts, and the exceptions of the protocol. Pure.

The broker and the workers name a code; `frontend/api/errors.py` turns the code into an HTTP status. Texts that two
processes must word alike are here.
"""

import enum

#: Longest Retry-After, in seconds: OpenAI's clients give up on a longer one.
MAX_RETRY_AFTER_S = 120
#: Most characters of a name in an error.
MAX_QUOTED = 100
#: Most characters of a reason in an error; the wire allows 4,096 in all.
MAX_REASON = 1000


class ErrorCode(enum.IntEnum):
    """Why a job, a request or a peer was rejected. Numbers are part of the wire: append, never renumber.

    "HTTP" below is the status of an answer to a client; a code without one is sent to peers alone.
    """

    #: HTTP 400. The input itself cannot be embedded, for example because of a token id outside the vocabulary.
    INVALID_INPUT = 1
    #: HTTP 400. The input has more tokens than the model accepts, and the request does not allow truncation.
    TOO_LONG = 2
    #: HTTP 404. No worker has announced a model of this name.
    UNKNOWN_MODEL = 3
    #: HTTP 503. The model is known, but has no worker for longer than the grace, or was replaced by another revision.
    NO_WORKER = 4
    #: HTTP 503. The broker's queue, or a frontend's room for answers, is full.
    OVERLOADED = 5
    #: HTTP 504. The deadline passed before the job was answered.
    DEADLINE = 6
    #: HTTP 422. Every worker that ran the input ended.
    POISON = 7
    #: HTTP 500. The device failed on the input, or returned rows of a wrong size.
    DEVICE = 8
    #: HTTP 503. The broker or the worker is draining, and accepts no new jobs.
    DRAINING = 9
    #: The two peers have no protocol version in common.
    PROTOCOL = 10
    #: A live worker serves another revision under the same model name.
    REVISION_CONFLICT = 11
    #: HTTP 500. A fault of the server; the text does not describe internals.
    INTERNAL = 12
    #: HTTP 429. The client, or its key, has as many open jobs or has used as many tokens as it may.
    QUOTA = 13
    #: A worker's batch has run longer than its lease. The worker should exit, because its inference hangs.
    LEASE_EXPIRED = 14
    #: The peer's CURVE key was removed from the allow-list.
    REVOKED = 15
    #: HTTP 400. All inputs of the request together have more tokens than the frontend allows.
    TOO_MANY_TOKENS = 16
    #: HTTP 503. No worker serves the request's revision of the model any more, but another revision is served. The
    #: frontend submits the request again, so that a client sees this code only if the models differ in more.
    REPLACED = 17

    @property
    def text(self) -> str:
        """Sentence for clients and peers, if no better one is known."""
        return _TEXTS.get(self, "the server failed on this request")


_TEXTS = {
    ErrorCode.DEADLINE: "the request's deadline passed before it was answered",
    ErrorCode.POISON: "this input crashed every worker that processed it",
    ErrorCode.DEVICE: "the device failed on this input",
    ErrorCode.DRAINING: "the server is shutting down; retry on another one, or later",
    ErrorCode.REVOKED: "this key has been removed from the broker's allow-list",
    ErrorCode.REPLACED: "the model was replaced while the request ran; send the request again",
}


# --- texts that two places word alike --------------------------------------------------------------------------------


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


def describe_no_worker(name: str, failure: str = "") -> str:
    """Return the text of `NO_WORKER` for a model that is known and has no worker, and why it could not be loaded."""
    reason = f"; loading the model failed: {failure[:MAX_REASON]}" if failure else ""
    return f"no worker that serves {quote(name)} is connected{reason}"


def describe_queue(wait_s: float) -> str:
    """Return the text of `OVERLOADED` for a request that would wait too long."""
    return f"the queue is {wait_s:.3g} s long; retry later"


def describe_replaced_model(name: str) -> str:
    """Return the text of `NO_WORKER` for a request that has rows of a revision that is no longer served."""
    return f"the model {quote(name)} was replaced while the request ran; send the request again"


# --- exceptions ------------------------------------------------------------------------------------------------------


class RemoteProtocolError(Exception):
    """A peer sent a malformed message: drop the message and count it."""


class LocalProtocolError(Exception):
    """This process broke an invariant: stop with an error."""
