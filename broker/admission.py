"""Who is let in: bounds in jobs, tokens and bytes, each client's part of them, and the wait that a request can expect.

A request is admitted or refused as a whole. Pure.
"""

from __future__ import annotations

import math
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
    #: The client's own limit of jobs; 0: none.
    key_jobs: int = 0


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
    refusal = _unservable(scheduler, frontend, asked, now) or _unbearable(scheduler, frontend, asked, now)
    if refusal is None:
        return None
    retry_after_ms = math.ceil(min(MAX_RETRY_AFTER_S, refusal.retry_after_s) * 1000)
    return Failure(asked.request, -1, refusal.code, refusal.text, retry_after_ms)


def _unservable(scheduler: Scheduler, frontend: Frontend, asked: wire.Submission, now: float) -> Refusal | None:
    """Why it cannot be served, however little there is to do."""
    limits, model = scheduler.limits, scheduler.models.get(asked.model)
    lengths = wire.unpack_u32(asked.lengths)
    if scheduler.draining:
        return Refusal(ErrorCode.DRAINING, "the server is shutting down", 1)
    if frontend.unread > limits.max_unread_bytes:
        return Refusal(ErrorCode.OVERLOADED, f"this frontend has {frontend.unread} bytes of answers to read first", 1)
    if model is None:
        return Refusal(ErrorCode.UNKNOWN_MODEL, f"no worker serves a model named {asked.model!r}", 0)
    if model.unserved(now, limits.worker_grace_s):
        return Refusal(ErrorCode.NO_WORKER, f"no worker that serves {asked.model!r} is connected", 5)
    if not lengths:
        return Refusal(ErrorCode.INVALID_INPUT, "the request has no input", 0)
    if asked.kind == wire.Kind.TOKENS and any(length % 4 for length in lengths):
        return Refusal(ErrorCode.INVALID_INPUT, "token ids are 4 bytes each", 0)
    return None


def _unbearable(scheduler: Scheduler, frontend: Frontend, asked: wire.Submission, now: float) -> Refusal | None:
    """Why it is too much, for its key or for what is open."""
    limits, model = scheduler.limits, scheduler.models[asked.model]
    lengths = wire.unpack_u32(asked.lengths)
    client = asked.client or frontend.uuid
    tokens = sum(model.tokens(asked.kind, length, asked.options) for length in lengths)
    load = Load(len(lengths), tokens, sum(lengths))
    if load.jobs > limits.max_jobs or load.tokens > limits.max_tokens or load.bytes > limits.max_bytes:
        return Refusal(ErrorCode.INVALID_INPUT, "the request is larger than all that may be open at once", 0)
    if 0 < asked.client_jobs < load.jobs:
        text = f"the request has {load.jobs} inputs, and its key may have {asked.client_jobs} open at once"
        return Refusal(ErrorCode.INVALID_INPUT, text, 0)
    quota_wait_s = scheduler.quotas.wait_s(client, load.tokens, asked.client_tokens, now)
    if quota_wait_s:
        text = f"this key may use {asked.client_tokens} tokens a minute, and the request has about {load.tokens}"
        return Refusal(ErrorCode.QUOTA, text, quota_wait_s)
    ahead = model.queue.tokens_ahead(asked.lane, client, load.tokens)
    ahead += scheduler.pool.leased_tokens(asked.model, asked.lane)
    return refuse(
        load,
        scheduler.ledger.load,
        scheduler.ledger.client_jobs[client],
        bounds(limits, asked.client_jobs),
        expected_wait(ahead, scheduler.pool.tokens_per_s(asked.model)),
        asked.budget_ms / 1000,
    )


def bounds(limits: Limits, key_jobs: int) -> Bounds:
    """As configured; one client may always have one job."""
    client_jobs = max(1, int(limits.max_jobs * limits.max_client_share))
    return Bounds(limits.max_jobs, limits.max_tokens, limits.max_bytes, client_jobs, limits.max_wait_s, key_jobs)


def refuse(
    asked: Load, held: Load, client_jobs: int, bounds: Bounds, wait_s: float | None, budget_s: float
) -> Refusal | None:
    """Why a request must not enter; None: it may. `wait_s`: what it can expect to wait, None when nobody can tell.

    A client's part only bounds it while something is open: alone it may have everything.
    """
    retry = wait_s if wait_s else UNKNOWN_WAIT_S
    if 0 < bounds.key_jobs < client_jobs + asked.jobs:
        return Refusal(ErrorCode.QUOTA, f"this key may have {bounds.key_jobs} inputs open at once", retry)
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
        return Refusal(ErrorCode.OVERLOADED, f"the queue is {wait_s:.3g} s long", retry)
    return None


def expected_wait(tokens_ahead: int, tokens_per_s: float) -> float | None:
    """Seconds until a job runs that so many tokens are ahead of; None when nothing serves the model."""
    return tokens_ahead / tokens_per_s if tokens_per_s > 0 else None
