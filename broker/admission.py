"""Who is let in: bounds in jobs, tokens and bytes, each client's part of them, and the wait that a request can expect.

A request is admitted or refused as a whole. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from broker import protocol as wire
from broker.errors import ErrorCode
from broker.protocol import Failure

if TYPE_CHECKING:
    from broker.ledger import Frontend
    from broker.limits import Limits
    from broker.scheduler import Scheduler

#: The longest Retry-After, in seconds: OpenAI's clients give up on a longer one.
MAX_RETRY_AFTER_S = 120.0

#: Retry-After when no rate is known to compute it from.
UNKNOWN_WAIT_S = 1.0


class Bounds(NamedTuple):
    """What may be open at once, over all models; times in seconds."""

    jobs: int
    tokens: int
    bytes: int
    client_jobs: int
    wait_s: float


class Refusal(NamedTuple):
    """Why a request is not let in, and when it may be."""

    code: ErrorCode
    text: str
    retry_after_s: float


class Load(NamedTuple):
    """What is open, or what a request would add."""

    jobs: int
    tokens: int
    bytes: int


def refusal_of(scheduler: Scheduler, frontend: Frontend, asked: wire.Submission, now: float) -> Failure | None:
    """Why a request cannot be admitted; None: it can."""
    limits, model = scheduler.limits, scheduler.models.get(asked.model)
    lengths = wire.unpack_u32(asked.lengths)

    def no(code: ErrorCode, text: str, retry_after_s: float = 0.0) -> Failure:
        return Failure(asked.request, -1, code, text, int(min(MAX_RETRY_AFTER_S, retry_after_s) * 1000))

    if scheduler.draining:
        return no(ErrorCode.DRAINING, "the server is shutting down", 1)
    if frontend.unread > limits.max_unread_bytes:
        return no(ErrorCode.OVERLOADED, f"this frontend has {frontend.unread} bytes of answers to read first", 1)
    if model is None:
        return no(ErrorCode.UNKNOWN_MODEL, f"no worker serves a model named {asked.model!r}")
    if model.unserved(now, limits.worker_grace_s):
        return no(ErrorCode.NO_WORKER, f"no worker that serves {asked.model!r} is connected", 5)
    if not lengths:
        return no(ErrorCode.INVALID_INPUT, "the request has no input")
    if asked.kind == wire.Kind.TOKENS and any(length % 4 for length in lengths):
        return no(ErrorCode.INVALID_INPUT, "token ids are 4 bytes each")
    client = asked.client or frontend.uuid
    load = Load(len(lengths), sum(model.tokens(asked.kind, length) for length in lengths), sum(lengths))
    if load.jobs > limits.max_jobs or load.tokens > limits.max_tokens or load.bytes > limits.max_bytes:
        return no(ErrorCode.INVALID_INPUT, "the request is larger than all that may be open at once")
    ahead = model.queue.tokens_ahead(asked.lane, client, load.tokens)
    ahead += scheduler.pool.leased_tokens(asked.model, asked.lane)
    refusal = refuse(
        load,
        scheduler.ledger.load,
        scheduler.ledger.client_jobs[client],
        bounds(limits),
        expected_wait(ahead, scheduler.pool.tokens_per_s(asked.model)),
        asked.budget_ms / 1000,
    )
    return refusal and no(refusal.code, refusal.text, refusal.retry_after_s + 0.001)


def bounds(limits: Limits) -> Bounds:
    """As configured; one client may always have one job."""
    client_jobs = max(1, int(limits.max_jobs * limits.max_client_share))
    return Bounds(limits.max_jobs, limits.max_tokens, limits.max_bytes, client_jobs, limits.max_wait_s)


def refuse(
    asked: Load, held: Load, client_jobs: int, bounds: Bounds, wait_s: float | None, budget_s: float
) -> Refusal | None:
    """Why a request must not enter; None: it may. `wait_s`: what it can expect to wait, None when nobody can tell.

    A client's part only bounds it while something is open: alone it may have everything.
    """
    retry = wait_s if wait_s else UNKNOWN_WAIT_S
    if held.jobs and client_jobs + asked.jobs > bounds.client_jobs:
        return Refusal(ErrorCode.QUOTA, f"this client may have {bounds.client_jobs} inputs open at once", retry)
    full = (
        held.jobs + asked.jobs > bounds.jobs
        or held.tokens + asked.tokens > bounds.tokens
        or held.bytes + asked.bytes > bounds.bytes
    )
    if full:
        return Refusal(ErrorCode.OVERLOADED, "the queue is full", retry)
    if wait_s is not None and wait_s > min(bounds.wait_s, budget_s):
        return Refusal(ErrorCode.OVERLOADED, f"the queue is {wait_s:.0f} s long", retry)
    return None


def expected_wait(tokens_ahead: int, tokens_per_s: float) -> float | None:
    """Seconds until a job runs that so many tokens are ahead of; None when nothing serves the model."""
    return tokens_ahead / tokens_per_s if tokens_per_s > 0 else None
