"""Admission control: limits on open jobs, tokens and bytes, per-client share, key quotas, and the expected wait.

A request is admitted or rejected as a whole. The checks that need only the number of inputs and bytes come first,
because counting tokens reads the length of each input. Pure.
"""

import math
from typing import NamedTuple

from broker.core.input_keys import InputKeys
from broker.core.jobs import TOKENIZE, Request
from broker.core.ledger import Frontend
from broker.core.limits import Limits
from broker.core.models import Model
from broker.core.state import State
from broker.wire import protocol as wire
from broker.wire.errors import MAX_RETRY_AFTER_S, ErrorCode, describe_no_worker, describe_queue, quote
from broker.wire.protocol import Caching, Failure, Frame, Kind, Lane, ModelKey

#: Retry-After if the throughput is unknown.
UNKNOWN_WAIT_S = 1.0
#: Abandoned jobs have no effect up to this multiple of their holder's limit, because a client with a short timeout may
#: send the same request again at once.
FORGIVEN_SHARE = 1.0
#: Abandoned jobs beyond that take up at most this share of the limit, so that a client that shares an address or a key
#: with a program that abandons its requests is still served.
MAX_ABANDONED_SHARE = 0.97


class Rejection(NamedTuple):
    """Why a request is rejected, and when to retry; None stands for the time that the queue ahead needs."""

    code: ErrorCode
    text: str
    retry_after_s: float | None


class Capacity:
    """What the workers of a model can take. Constant while requests are only admitted and rejected."""

    def __init__(self, state: State, model: ModelKey) -> None:
        self._pool, self._queue, self._model = state.pool, state.models[model].queue, model
        self._tokens_per_s = state.pool.sum_tokens_per_s(model)
        self._leased: dict[Lane, int] = {}

    def predict_wait_s(self, request: Request, tokens: int) -> float | None:
        """Return the seconds until the last of `tokens` of a request would run; None if no worker serves the model."""
        lane = request.lane
        if lane not in self._leased:
            self._leased[lane] = self._pool.count_leased_tokens(self._model, lane)
        ahead = self._queue.count_tokens_ahead(lane, request.client, tokens) + self._leased[lane]
        return compute_wait_s(ahead, self._tokens_per_s)


class Admission:
    """Admission of the requests in one message of a frontend. Each model is looked up once."""

    def __init__(self, state: State, frontend: Frontend, now: float) -> None:
        self._state, self._frontend, self._now = state, frontend, now
        #: Answers of `_find_model` by name and revision.
        self._found: dict[tuple[str, str], Model | Rejection] = {}
        self._capacities: dict[ModelKey, Capacity] = {}
        #: Keys by what distinguishes those of requests.
        self._keys: dict[tuple[ModelKey, Kind, int, str | bytes, bool], InputKeys] = {}

    def consider_request(self, submission: wire.Submission, frame: Frame) -> Request | Failure:
        """Return the submission's request, ready to be admitted, or the failure to answer with."""
        state, now = self._state, self._now
        found = _check_servable(state, self._frontend, submission) or self._find_model(submission)
        if isinstance(found, Rejection):
            return _build_failure(submission, found)
        model = found.info.key
        pricing = found.choose_pricing(submission.kind, submission.options)
        keys = self._choose_keys(submission, model)
        request = Request.from_submission(self._frontend.uuid, submission, frame, model, pricing, now, keys)
        capacity = self._capacities.get(model)
        if capacity is None:
            capacity = self._capacities[model] = Capacity(state, model)
        rejection = _check_counts(state, request, submission, now)
        rejection = rejection or _check_tokens(state, request, submission, capacity, now)
        if rejection is None:
            return request
        if rejection.retry_after_s is None:
            rejection = rejection._replace(retry_after_s=capacity.predict_wait_s(request, 0) or UNKNOWN_WAIT_S)
        return _build_failure(submission, rejection)

    def _find_model(self, submission: wire.Submission) -> Model | Rejection:
        wanted = (submission.model, submission.revision)
        found = self._found.get(wanted)
        if found is None:
            found = self._found[wanted] = _find_model(self._state, submission, self._now)
        return found

    def _choose_keys(self, submission: wire.Submission, model: ModelKey) -> InputKeys | None:
        """Return the keys of a request's inputs; None if their results are neither looked up nor stored."""
        limits = self._state.limits
        if not limits.cache_bytes or submission.caching == Caching.SKIP or submission.options & TOKENIZE:
            return None
        # Clients without a key have an address, and share results.
        shared = limits.cache_scope == "all" or submission.address
        scope = "" if shared else submission.client or self._frontend.uuid
        looks_up = submission.caching == Caching.USE
        wanted = (model, submission.kind, submission.options, scope, looks_up)
        if wanted not in self._keys:
            self._keys[wanted] = InputKeys(model, submission.kind, submission.options, scope, looks_up=looks_up)
        return self._keys[wanted]


def _build_failure(submission: wire.Submission, rejection: Rejection) -> Failure:
    retry_after_ms = math.ceil(min(MAX_RETRY_AFTER_S, rejection.retry_after_s or 0) * 1000)
    return Failure(submission.request, -1, rejection.code, rejection.text, retry_after_ms)


def _check_servable(state: State, frontend: Frontend, submission: wire.Submission) -> Rejection | None:
    """Return a rejection if the request could not be served even by an idle broker with its model."""
    if state.draining:
        return Rejection(ErrorCode.DRAINING, ErrorCode.DRAINING.text, 1)
    if frontend.unread > state.limits.max_unread_bytes:
        text = f"{frontend.unread} bytes of answers wait to be read by the frontend; retry later"
        return Rejection(ErrorCode.OVERLOADED, text, 1)
    if not submission.lengths:
        return Rejection(ErrorCode.INVALID_INPUT, "the request has no input", 0)
    if submission.kind == wire.Kind.TOKENS and any(map((3).__and__, wire.unpack_u32(submission.lengths))):
        return Rejection(ErrorCode.INVALID_INPUT, "token ids must have 4 bytes each", 0)
    return None


def _find_model(state: State, submission: wire.Submission, now: float) -> Model | Rejection:
    """Return the revision of a model that a request is bound to, or a rejection if the request cannot be served."""
    current = state.current.get(submission.model)
    # A request that was prepared for an older revision, or before the model was removed, gets what it was prepared for.
    wanted = ModelKey(submission.model, submission.revision)
    late = bool(state.pool.list_ready(wanted))
    if current is None or (submission.model in state.removed and not late):
        return Rejection(ErrorCode.UNKNOWN_MODEL, f"no worker serves a model named {quote(submission.model)}", 0)
    if submission.revision and wanted != current and not late:
        return Rejection(ErrorCode.REPLACED, ErrorCode.REPLACED.text, 1)
    model = state.models[wanted if late else current]
    if model.is_unserved(now, state.find_grace_s(model.info.key)):
        text = describe_no_worker(submission.model, state.find_failure(model.info.key))
        return Rejection(ErrorCode.NO_WORKER, text, 5)
    return model


def _check_counts(state: State, request: Request, submission: wire.Submission, now: float) -> Rejection | None:
    """Return a rejection if the request's inputs or bytes exceed its client's share or the free capacity."""
    limits, ledger = state.limits, state.ledger
    if request.inputs > limits.max_jobs or request.size > limits.max_bytes:
        return _reject_too_large()
    if 0 < submission.client_jobs < request.inputs:
        text = f"the request has {request.inputs} inputs, but its key may have {submission.client_jobs} open at once"
        return Rejection(ErrorCode.INVALID_INPUT, text + "; split it", 0)
    if 0 < submission.client_jobs < ledger.holder_jobs[request.client] + request.inputs:
        text = f"this key may have {submission.client_jobs} inputs open at once; wait for answers, then retry"
        return Rejection(ErrorCode.QUOTA, text, None)
    share = count_client_share(limits)
    # A request may take everything while no job is open. Otherwise capacity is kept for other clients.
    if ledger.jobs and ledger.holder_jobs[request.client] + request.inputs > share:
        text = f"this client may have {share} inputs open at once; wait for answers, then retry"
        return Rejection(ErrorCode.QUOTA, text, None)
    for holder in request.holders if state.abandonment else ():
        limit = min(share, submission.client_jobs or share)
        if rejection := _check_abandonment(state, request, holder, limit, now):
            return rejection
    if ledger.jobs + request.inputs > limits.max_jobs or ledger.bytes + request.size > limits.max_bytes:
        return Rejection(ErrorCode.OVERLOADED, "the queue is full; retry later", None)
    return None


def _check_abandonment(state: State, request: Request, holder: str | bytes, limit: int, now: float) -> Rejection | None:
    """Return a rejection if a client or an address that may have `limit` jobs open has abandoned too many recently."""
    held = state.ledger.holder_jobs[holder]
    if held == state.ledger.jobs:
        # Only this holder has open jobs, so its abandoned requests delay no other client.
        return None
    jobs = held + request.inputs
    forgiven = FORGIVEN_SHARE * limit
    counted = min(int(state.abandonment.count_jobs(holder, now) - forgiven), int(MAX_ABANDONED_SHARE * limit))
    if counted <= 0 or jobs + counted <= limit:
        return None
    text = f"this client may have {limit} inputs open at once, and {counted} recently abandoned ones count as open"
    wait_s = state.abandonment.find_wait_s(holder, forgiven + limit - jobs, now)
    return Rejection(ErrorCode.QUOTA, text + "; wait for answers before you disconnect", wait_s)


def _check_tokens(
    state: State, request: Request, submission: wire.Submission, capacity: Capacity, now: float
) -> Rejection | None:
    """Return a rejection if the request's tokens exceed its key's quota or the free capacity, or take too long."""
    limits, ledger, tokens = state.limits, state.ledger, request.tokens
    if tokens > limits.max_tokens:
        return _reject_too_large()
    quota_wait_s = state.quotas.find_wait_s(request.client, tokens, submission.client_tokens, now)
    if quota_wait_s:
        text = f"this key may use {submission.client_tokens} tokens a minute, and the request has about {tokens}"
        return Rejection(ErrorCode.QUOTA, text, quota_wait_s)
    wait_s = capacity.predict_wait_s(request, tokens)
    if ledger.tokens + tokens > limits.max_tokens:
        return Rejection(ErrorCode.OVERLOADED, "the queue is full; retry later", wait_s or UNKNOWN_WAIT_S)
    if wait_s is not None and wait_s > min(limits.max_wait_s, submission.budget_ms / 1000):
        return Rejection(ErrorCode.OVERLOADED, describe_queue(wait_s), wait_s)
    return None


def _reject_too_large() -> Rejection:
    return Rejection(ErrorCode.INVALID_INPUT, "the request is larger than all that may be open at once; split it", 0)


def count_client_share(limits: Limits) -> int:
    """Return how many jobs one client may have open while other jobs are open; at least 1."""
    return max(1, int(limits.max_jobs * limits.max_client_share))


def compute_wait_s(tokens_ahead: int, tokens_per_s: float) -> float | None:
    """Return the seconds that workers need for the tokens ahead of a job; None if no worker serves the model."""
    return tokens_ahead / tokens_per_s if tokens_per_s > 0 else None
