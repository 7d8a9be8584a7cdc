"""How jobs and batches end: answered, failed, cancelled or requeued. Pure.

Each job ends exactly once. The frontend is sent an answer or a failure, unless the frontend cancelled the request.
"""

import itertools
from collections.abc import Sequence

from broker.core.jobs import TOKENIZE, Job, Request
from broker.core.ledger import MAX_EXPIRED
from broker.core.models import Model
from broker.core.result_split import list_rows, split_result
from broker.core.state import State
from broker.core.worker import Lease, Worker
from broker.wire import protocol as wire
from broker.wire.errors import (
    ErrorCode,
    LocalProtocolError,
    describe_no_worker,
)
from broker.wire.protocol import Failure, Frame, ModelKey

#: Retry-After of a request that failed as a whole, in milliseconds.
RETRY_AFTER_MS = 5000


def answer_batch(
    state: State, worker: Worker, lease: Lease, result: wire.BatchResult, frame: Frame, now: float
) -> None:
    """Send a valid result's rows to the frontends, and learn from it. The lease has been released."""
    tokens, failed = wire.unpack_u32(result.tokens), {failure.position for failure in result.failures}
    # Rejected and tokenize-only jobs cost no inference; their tokens would make the worker look fast.
    inferred = [
        count
        for position, count in enumerate(tokens)
        if position not in failed and not lease.options[position] & TOKENIZE
    ]
    worker.record_batch_time(lease, sum(inferred), now)
    worker.answered_batches += 1
    state.events.batch_answered(worker, lease, result, sum(inferred), now)
    if lease.jobs[0].suspect:
        state.blame.acquit(lease.jobs[0])
    # Before the jobs are closed, so that none of them leads any more.
    evicted = sum(state.coalescing.end_with_row(job, row) for job, row in list_rows(lease, result, memoryview(frame)))
    state.events.rows_evicted(evicted)
    for share in split_result(lease, result, memoryview(frame), lease.model.revision):
        state.events.jobs_answered(lease, share.jobs, now)
        worker.answered_jobs += len(share.jobs)
        frontend = state.ledger.by_uuid[share.owner]
        frontend.sent += len(share.frame)
        state.outbox.put(frontend.peer, share.message, [share.frame])
        for _, jobs in itertools.groupby(share.jobs, lambda job: job.request):
            close_jobs(state, list(jobs))
    for failure in result.failures:
        if lease.jobs[failure.position].is_open:
            fail_job(state, lease.jobs[failure.position], failure.code, failure.text, now)
    _record_lengths(state, lease, result, failed)


def _record_lengths(state: State, lease: Lease, result: wire.BatchResult, failed: set[int]) -> None:
    """Correct quotas and the model's ratio of tokens to bytes by the exact lengths of a batch's jobs."""
    tokens = wire.unpack_u32(result.tokens)
    truncated = wire.unpack_u32(result.truncated) or [0] * len(lease.jobs)
    served = [(position, job) for position, job in enumerate(lease.jobs) if position not in failed]
    for position, job in served if state.quotas else ():
        if not lease.options[position] & TOKENIZE:
            state.quotas.correct_charge(job.request.client, job.tokens, tokens[position])
    texts = [
        (tokens[position] + truncated[position], job.size)
        for position, job in served
        if job.request.kind == wire.Kind.TEXT
    ]
    model = state.models[lease.model]
    model.record_lengths(len(texts), sum(count for count, _ in texts), sum(size for _, size in texts))


def fail_batch(state: State, lease: Lease, code: ErrorCode, text: str, now: float) -> None:
    """Requeue a failed batch of a worker that lives, and fail the jobs that have failed too often."""
    state.events.batch_failed(lease, text, now)
    for job in state.blame.blame_for_failure(lease):
        fail_job(state, job, code, text, now)
    requeue_lease(state, lease)


def requeue_lease(state: State, lease: Lease) -> None:
    """Return a lease's open jobs to the head of the queue."""
    jobs = [job for job in lease.jobs if job.is_open]
    state.coalescing.release_followers(job for job in jobs if not job.suspect)
    state.models[lease.model].queue.push_back(jobs)
    state.events.jobs_requeued(lease.model, len(jobs))


def end_trials(state: State, now: float) -> None:
    """End trials that are due: fail the poison jobs, and requeue the others."""
    poison, cleared = state.blame.end_trials(now)
    for job in poison:
        fail_job(state, job, ErrorCode.POISON, ErrorCode.POISON.text, now)
    for job in cleared:
        state.models[job.request.model].queue.push_back([job])


def remove_suspects(state: State, jobs: list[Job], now: float) -> list[Job]:
    """Fail the jobs with a known poison input, queue those whose input was part of a crash, and return the others."""
    blocked, suspects = state.blame.recognize_jobs(jobs, now)
    state.events.jobs_blocked(len(blocked))
    for job in blocked:
        fail_job(state, job, ErrorCode.POISON, ErrorCode.POISON.text, now)
    if suspects:
        state.models[suspects[0].request.model].queue.push_back(suspects)
    return [job for job in jobs if job.is_open and not job.is_queued] if blocked or suspects else jobs


def fail_job(state: State, job: Job, code: ErrorCode, text: str, now: float) -> None:
    """End an open job without a vector."""
    state.events.job_failed(job, code, now)
    failure = Failure(job.request.number, job.position, code, text)
    state.outbox.put(state.ledger.by_uuid[job.request.owner].peer, wire.Failures([failure]))
    state.coalescing.end_with_failure(job, code, text)
    close_jobs(state, [job])


def fail_request(state: State, request: Request, code: ErrorCode, text: str, now: float) -> None:
    """End all open jobs of a request without a vector."""
    state.events.request_failed(request, code, now)
    if code == ErrorCode.REPLACED:
        # The frontend submits the request again.
        state.quotas.correct_charge(request.client, request.open_tokens, 0)
    failure = Failure(request.number, -1, code, text, RETRY_AFTER_MS)
    state.outbox.put(state.ledger.by_uuid[request.owner].peer, wire.Failures([failure]))
    _close_request(state, request)


def fail_expired(state: State, now: float) -> None:
    """Fail the requests past their deadline."""
    for request in state.ledger.pop_expired(now):
        fail_request(state, request, ErrorCode.DEADLINE, ErrorCode.DEADLINE.text, now)


def fail_unserved(state: State, model: Model, now: float) -> None:
    """Fail requests that wait for a model without a worker, at most `MAX_EXPIRED` in a call."""
    code, text = ErrorCode.NO_WORKER, describe_no_worker(model.info.name, state.find_failure(model.info.key))
    if is_replaced(state, model):
        code, text = ErrorCode.REPLACED, ErrorCode.REPLACED.text
    elif state.draining:
        code, text = ErrorCode.DRAINING, ErrorCode.DRAINING.text
    for _ in range(MAX_EXPIRED):
        # One at a time, because a follower of a suspect takes its place.
        request = next((request for request, _ in model.queue.list_waiting()), None)
        if request is None:
            break
        fail_request(state, request, code, text, now)


def compute_grace_s(state: State, model: Model) -> float:
    """Return how long jobs wait for a worker of their model; 0 if another revision is served instead."""
    return 0.0 if is_replaced(state, model) else state.find_grace_s(model.info.key)


def is_replaced(state: State, model: Model) -> bool:
    """Return whether new requests get another revision of a model, which is served."""
    current = state.current[model.info.name]
    return current != model.info.key and state.pool.find_live_model(current) is not None


def cancel_request(state: State, request: Request, now: float) -> None:
    """End all open jobs of a request because its client or frontend is gone; send the frontend no message."""
    state.events.request_cancelled(request, now)
    _close_request(state, request)


def _close_request(state: State, request: Request) -> None:
    state.models[request.model].queue.discard(request)
    jobs = list(request.jobs.values())
    state.ledger.close_request(request)
    hand_over(state, request.model, jobs)


def hand_over(state: State, model: ModelKey, closed: Sequence[Job]) -> None:
    """Let followers take the places of closed jobs that led: in their batches, or as suspects."""
    successors = state.coalescing.replace_leaders(closed)
    for leader, successor in successors.items():
        successor.suspect, successor.errors = leader.suspect, leader.errors
        successor.fingerprint, successor.crashes = leader.fingerprint, state.blame.limit_crashes(leader.crashes)
    leases = [lease for worker in state.pool.workers.values() for lease in worker.leases.values()] if successors else []
    for lease in leases:
        if lease.model == model:
            lease.jobs = [successors.pop(job, job) for job in lease.jobs]
    if successors:
        state.models[model].queue.push_back(successors.values())


def close_jobs(state: State, jobs: Sequence[Job]) -> None:
    """Close jobs of one request that are in no queue. Raise `LocalProtocolError` if one is closed already."""
    for job in jobs:
        if not job.is_open:
            history = "; ".join(state.events.history.describe_job(*job.key))
            raise LocalProtocolError(f"job {job.position} of request {job.request.number} ends twice: {history}")
    state.ledger.close_jobs(jobs[0].request, jobs)
