"""Who is let in: bounds in jobs, tokens and bytes, each client's part of them, and the wait that a request can expect.

A request is admitted or refused as a whole. Pure.
"""

from typing import NamedTuple

from broker.errors import ErrorCode
from broker.protocol import Lane
from broker.queues import ModelQueue

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


def expected_wait(queue: ModelQueue, lane: Lane, tokens_per_s: float) -> float | None:
    """Seconds until a job that comes now would be dispatched; None when nothing serves the model."""
    if tokens_per_s <= 0:
        return None
    return queue.tokens_ahead(lane) / tokens_per_s
