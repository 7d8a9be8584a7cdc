"""Reuse of results: which waiting inputs are answered without being computed, or follow equal ones. Pure.

A request's inputs are looked up soon after its admission, although all workers may be busy, and again when they leave
the queue, because equal inputs may have been computed or dispatched meanwhile. Each call of the scheduler looks up a
limited number of inputs, interactive ones first, so that a request of 2,048 inputs does not delay other peers. The
others are due at once in the next call; until then they cannot leave the queue.
"""

import itertools
from typing import NamedTuple

from broker.core.coalescing import Settlement
from broker.core.jobs import Job, Request
from broker.core.outcomes import close_jobs, fail_job
from broker.core.queues import ModelQueue
from broker.core.result_cache import Row
from broker.core.state import State
from broker.wire import protocol as wire
from broker.wire.protocol import Lane, ModelKey, Source

#: Cost of the look-ups of one call, by lane; each lane leaves the rest to the next. A look-up costs `LOOKUP` and the
#: bytes of the input, which are hashed. Measured: 256 short inputs take 1 ms.
SHARES = {Lane.INTERACTIVE: 768 * 1024, Lane.BULK: 256 * 1024}
LOOKUP = 4096
#: Most inputs of one request that are looked up before those of the next request.
TURN = 64
#: Most followers that are settled in one call, and most jobs that one call drops when they leave the queue, except that
#: a batch is not divided.
MAX_SETTLED = MAX_DROPPED = 256


class Reused(NamedTuple):
    """An open job that is in no queue and no batch, with its row."""

    job: Job
    row: Row
    source: Source


# --- waiting inputs --------------------------------------------------------------------------------------------------


def look_up_waiting(state: State, now: float) -> None:
    """Look up waiting inputs: answer those with a known result, and let others follow equal ones that run."""
    left = 0
    reused: list[Reused] = []
    for lane, share in SHARES.items():
        left = max(0, left) + share
        for model in state.models.values():
            while left > 0 and (request := model.queue.find_unknown(lane)):
                left -= _look_up_turn(state, model.queue, request, left, reused, now)
        if left <= 0:
            state.coalescing.due = now
    answer_reused(state, reused, now)


def _look_up_turn(
    state: State, queue: ModelQueue, request: Request, limit: int, reused: list[Reused], now: float
) -> int:
    """Look up the next inputs of a request. Add the jobs with a known result to `reused`. Return the cost."""
    cost = 0
    ready: list[int] = []
    known: list[Job] = []
    keys = request.keys
    positions = request.list_unknown()[:TURN] if keys else ()
    for position in positions:
        if cost >= limit:
            break
        cost += LOOKUP + request.lengths[position]
        key = keys.compute(request.read_inputs(position, position)) if keys else b""
        row = state.coalescing.cache.find_row(key)
        if row is not None:
            known.append(job := request.make_job(position))
            reused.append(Reused(job, row, Source.CACHE))
        elif state.coalescing.may_follow(key, request.lane):
            known.append(job := request.make_job(position))
            state.coalescing.follow(job, key, now)
        else:
            ready.append(position)
    queue.end_turn(request, ready, known)
    return cost


def drop_known(state: State, jobs: list[Job], now: float) -> list[Job]:
    """Answer the jobs of a batch with a known result, let others follow, and return the rest, which lead from now."""
    coalescing = state.coalescing
    reused: list[Reused] = []
    rest: list[Job] = []
    misses = 0
    for job in jobs:
        keys = job.request.keys
        if keys is None or job.suspect:
            rest.append(job)
            continue
        key = job.input_key or keys.compute(job.payload)
        if keys.looks_up and (row := coalescing.cache.find_row(key)):
            reused.append(Reused(job, row, Source.CACHE))
        elif keys.looks_up and coalescing.may_follow(key, job.request.lane):
            coalescing.follow(job, key, now)
        else:
            misses += bool(key) and keys.looks_up and not job.input_key
            if key:
                coalescing.lead(job, key)
            rest.append(job)
    state.events.inputs_missed(misses)
    answer_reused(state, reused, now)
    return rest


# --- answers ---------------------------------------------------------------------------------------------------------


def settle_followers(state: State, now: float) -> None:
    """Answer, fail or return followers of leaders that have ended, at most `MAX_SETTLED`."""
    left = MAX_SETTLED
    settlements = state.coalescing.settlements
    reused: list[Reused] = []
    while settlements and left > 0:
        settlement = settlements[0]
        part = [settlement.jobs.popleft() for _ in range(min(left, len(settlement.jobs)))]
        left -= len(part)
        _settle(state, settlement, [job for job in part if job.is_open], reused, now)
        if not settlement.jobs:
            settlements.popleft()
    answer_reused(state, reused, now)


def _settle(state: State, settlement: Settlement, jobs: list[Job], reused: list[Reused], now: float) -> None:
    if settlement.row is not None:
        reused += [Reused(job, settlement.row, Source.COALESCED) for job in jobs]
    elif settlement.failure is not None:
        for job in jobs:
            fail_job(state, job, *settlement.failure, now)
    elif jobs:
        # All have the same key, and so the same model.
        state.models[jobs[0].request.model].queue.push_back(jobs)


def answer_reused(state: State, reused: list[Reused], now: float) -> None:
    """Answer jobs with rows that were not computed for them, in one message to each frontend and model."""
    groups: dict[tuple[bytes, ModelKey], list[Reused]] = {}
    for item in reused:
        groups.setdefault((item.job.request.owner, item.job.request.model), []).append(item)
    for (owner, model), items in groups.items():
        message, frame = _build_answers(items, model.revision, now)
        frontend = state.ledger.by_uuid[owner]
        frontend.sent += len(frame)
        state.outbox.put(frontend.peer, message, [frame])
        state.events.jobs_reused([item.job for item in items if item.source == Source.CACHE], Source.CACHE, now)
        state.events.jobs_reused([item.job for item in items if item.source != Source.CACHE], Source.COALESCED, now)
        for request, same in itertools.groupby(items, lambda item: item.job.request):
            jobs = [item.job for item in same]
            # Quotas count computed inputs only.
            state.quotas.correct_charge(request.client, sum(job.tokens for job in jobs), 0)
            close_jobs(state, jobs)


def _build_answers(items: list[Reused], revision: str, now: float) -> tuple[wire.Answers, bytes]:
    rows = [item.row for item in items]
    answers = wire.Answers(
        requests=wire.pack_u64([item.job.request.number for item in items]),
        positions=wire.pack_u32([item.job.position for item in items]),
        tokens=wire.pack_u32([row.tokens for row in rows]),
        dimension=len(rows[0].vector) // 4,
        queue_us=int(max([now - item.job.request.arrived for item in items]) * 1e6),
        inference_us=0,
        revision=revision,
        truncated=wire.pack_u32([row.truncated for row in rows]) if any([row.truncated for row in rows]) else b"",
        sources=bytes([item.source for item in items]),
    )
    return answers, b"".join([row.vector for row in rows])
