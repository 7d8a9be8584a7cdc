"""Admission control: bounds on open jobs, tokens and bytes, each client's share of them, and the expected wait.

A request is admitted or refused as a whole. The checks that need only the number of inputs and bytes come first,
because counting tokens reads the length of each input. Pure.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from broker.core.jobs import Request
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from broker.wire.protocol import Failure, Frame

if TYPE_CHECKING:
    from broker.core.ledger import Frontend
    from broker.core.limits import Limits
    from broker.core.scheduler import Scheduler

#: The longest Retry-After, in seconds: OpenAI's clients give up on a longer one.
MAX_RETRY_AFTER_S = 120.0

#: Retry-After when no rate is known to compute it from.
UNKNOWN_WAIT_S = 1.0
#: Abandoned jobs are forgiven up to this many times what their holder may have open: a client whose own time-out was
#: too short may ask for the same again at once.
FORGIVEN_SHARE = 1.0
#: What is not forgiven takes up at most this part. So whoever shares an address or a key with a program that abandons
#: its requests is still served.
MAX_ABANDONED_SHARE = 0.97


class Refusal(NamedTuple):
    """Why a request is refused, and when to retry; None means once the queue ahead of it has run."""

    code: ErrorCode
    text: str
    retry_after_s: float | None


class Load(NamedTuple):
    """What is open."""

    jobs: int
    tokens: int
    bytes: int


def consider(
    scheduler: Scheduler, frontend: Frontend, asked: wire.Submission, frame: Frame, now: float
) -> Request | Failure:
    """Return the request that a submission asks for, or why it is refused."""
    refusal = _refuse_unservable(scheduler, frontend, asked, now)
    if refusal is None:
        pricing = scheduler.models[asked.model].price(asked.kind, asked.options)
        request = Request(frontend.uuid, asked, frame, pricing, now)
        refusal = _refuse_number(scheduler, request, asked, now) or _refuse_tokens(scheduler, request, asked, now)
        if refusal is None:
            return request
        if refusal.retry_after_s is None:
            refusal = refusal._replace(retry_after_s=_expect_wait(scheduler, request, 0) or UNKNOWN_WAIT_S)
    retry_after_ms = math.ceil(min(MAX_RETRY_AFTER_S, refusal.retry_after_s or 0) * 1000)
    return Failure(asked.request, -1, refusal.code, refusal.text, retry_after_ms)


def _refuse_unservable(scheduler: Scheduler, frontend: Frontend, asked: wire.Submission, now: float) -> Refusal | None:
    """Return why a request cannot be served, however little there is to do."""
    limits, model = scheduler.limits, scheduler.models.get(asked.model)
    if scheduler.draining:
        return Refusal(ErrorCode.DRAINING, "the server is shutting down", 1)
    if frontend.unread > limits.max_unread_bytes:
        return Refusal(ErrorCode.OVERLOADED, f"this frontend has {frontend.unread} bytes of answers to read first", 1)
    if model is None:
        return Refusal(ErrorCode.UNKNOWN_MODEL, f"no worker serves a model named {asked.model!r}", 0)
    if model.unserved(now, limits.worker_grace_s):
        return Refusal(ErrorCode.NO_WORKER, f"no worker that serves {asked.model!r} is connected", 5)
    if not asked.lengths:
        return Refusal(ErrorCode.INVALID_INPUT, "the request has no input", 0)
    if asked.kind == wire.Kind.TOKENS and any(map((3).__and__, wire.unpack_u32(asked.lengths))):
        return Refusal(ErrorCode.INVALID_INPUT, "token ids are 4 bytes each", 0)
    return None


def _refuse_number(scheduler: Scheduler, request: Request, asked: wire.Submission, now: float) -> Refusal | None:
    """Return a refusal if the request's inputs or bytes exceed its client's share or the room that is left."""
    limits, held = scheduler.limits, scheduler.ledger.load
    if request.inputs > limits.max_jobs or request.bytes > limits.max_bytes:
        return _refuse_too_large()
    if 0 < asked.client_jobs < request.inputs:
        text = f"the request has {request.inputs} inputs, and its key may have {asked.client_jobs} open at once"
        return Refusal(ErrorCode.INVALID_INPUT, text, 0)
    if 0 < asked.client_jobs < scheduler.ledger.holder_jobs[request.client] + request.inputs:
        return Refusal(ErrorCode.QUOTA, f"this key may have {asked.client_jobs} inputs open at once", None)
    share = count_client_share(limits)
    # A request that comes when nothing is open may have everything; else there is room left for those who come next.
    if held.jobs and scheduler.ledger.holder_jobs[request.client] + request.inputs > share:
        return Refusal(ErrorCode.QUOTA, f"this client may have {share} inputs open at once", None)
    for holder in request.holders:
        if refusal := _refuse_abandonment(scheduler, request, holder, min(share, asked.client_jobs or share), now):
            return refusal
    if held.jobs + request.inputs > limits.max_jobs or held.bytes + request.bytes > limits.max_bytes:
        return Refusal(ErrorCode.OVERLOADED, "the queue is full", None)
    return None


def _refuse_abandonment(
    scheduler: Scheduler, request: Request, holder: str | bytes, limit: int, now: float
) -> Refusal | None:
    """Return why a client or an address that may have `limit` jobs open has abandoned too many lately."""
    held = scheduler.ledger.holder_jobs[holder]
    if held == scheduler.ledger.jobs:
        # Only this holder has anything open, so its abandoned requests harm nobody else.
        return None
    jobs = held + request.inputs
    forgiven = FORGIVEN_SHARE * limit
    counted = min(int(scheduler.abandonment.count(holder, now) - forgiven), int(MAX_ABANDONED_SHARE * limit))
    if counted <= 0 or jobs + counted <= limit:
        return None
    text = f"this client may have {limit} inputs open at once, and {counted} that it abandoned count too"
    return Refusal(ErrorCode.QUOTA, text, scheduler.abandonment.find_wait_s(holder, forgiven + limit - jobs, now))


def _refuse_tokens(scheduler: Scheduler, request: Request, asked: wire.Submission, now: float) -> Refusal | None:
    """Return a refusal if the request's tokens exceed its key's quota, the room that is left, or its deadline."""
    limits, held = scheduler.limits, scheduler.ledger.load
    if request.tokens > limits.max_tokens:
        return _refuse_too_large()
    quota_wait_s = scheduler.quotas.wait_s(request.client, request.tokens, asked.client_tokens, now)
    if quota_wait_s:
        text = f"this key may use {asked.client_tokens} tokens a minute, and the request has about {request.tokens}"
        return Refusal(ErrorCode.QUOTA, text, quota_wait_s)
    wait_s = _expect_wait(scheduler, request, request.tokens)
    if held.tokens + request.tokens > limits.max_tokens:
        return Refusal(ErrorCode.OVERLOADED, "the queue is full", wait_s or UNKNOWN_WAIT_S)
    if wait_s is not None and wait_s > min(limits.max_wait_s, asked.budget_ms / 1000):
        return Refusal(ErrorCode.OVERLOADED, f"the queue is {wait_s:.3g} s long", wait_s)
    return None


def _refuse_too_large() -> Refusal:
    return Refusal(ErrorCode.INVALID_INPUT, "the request is larger than all that may be open at once", 0)


def count_client_share(limits: Limits) -> int:
    """Return how many jobs one client may have open while others have some; one client may always have one."""
    return max(1, int(limits.max_jobs * limits.max_client_share))


def _expect_wait(scheduler: Scheduler, request: Request, tokens: int) -> float | None:
    """Return the seconds until the last of `tokens` of a request would run; None if no worker serves the model."""
    queue, pool = scheduler.models[request.model].queue, scheduler.pool
    ahead = queue.count_tokens_ahead(request.lane, request.client, tokens)
    ahead += pool.leased_tokens(request.model, request.lane)
    return expected_wait(ahead, pool.tokens_per_s(request.model))


def expected_wait(tokens_ahead: int, tokens_per_s: float) -> float | None:
    """Return the seconds that workers need for the tokens ahead of a job; None if no worker serves the model."""
    return tokens_ahead / tokens_per_s if tokens_per_s > 0 else None
