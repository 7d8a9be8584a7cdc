"""Invariants of the scheduler's state between two calls. Pure; the checks change no state."""

from collections import Counter
from collections.abc import Iterable

from broker.core.jobs import Job, Request
from broker.core.state import State
from broker.wire.errors import LocalProtocolError
from broker.wire.protocol import Lane


def check_state(state: State) -> None:
    """Raise `LocalProtocolError` naming the first invariant that does not hold."""
    _check_jobs(state)
    _check_coalescing(state)
    _check_queues(state)
    _check_workers(state)
    _check_models(state)


def _check_jobs(state: State) -> None:
    queues = [model.queue for model in state.models.values()]
    waiting = [
        (request, position) for queue in queues for request, positions in queue.list_waiting() for position in positions
    ]
    leases = [lease for worker in state.pool.workers.values() for lease in worker.leases.values()]
    made = [job for lease in leases for job in lease.jobs if job.is_open] + state.blame.list_on_trial()
    following = list(state.coalescing.list_followers())
    places = Counter([*waiting, *((job.request, job.position) for job in (*made, *following))])
    requests = [request for frontend in state.ledger.by_uuid.values() for request in frontend.requests.values()]
    twice = [place for place, count in places.items() if count > 1]
    _require(not twice, "a job is in two places", twice)
    counted = Counter(request for request, _ in places)
    for request in requests:
        _require(
            counted[request] == request.open_jobs > 0, "an open job is in no place, or a closed one in some", request
        )
    _require(len(counted) == len(requests), "a job of a closed request is in some place")
    for job in (*made, *following):
        _require(job.request.jobs.get(job.position) is job, "a job is not its request's at this position", job)
    _check_totals(state, requests, places)


def _check_totals(state: State, requests: list[Request], places: Iterable[tuple[Request, int]]) -> None:
    ledger = state.ledger
    tokens, size, holders = Counter[Request](), Counter[Request](), Counter[str | bytes]()
    for request, position in places:
        tokens[request] += request.pricing.count_tokens([request.lengths[position]])[0]
        size[request] += request.lengths[position]
        holders.update(request.holders)
    for request in requests:
        _require(tokens[request] == request.open_tokens, "the open tokens of a request are wrong", request)
        _require(size[request] == request.open_bytes, "the open bytes of a request are wrong", request)
    _require(ledger.requests == len(requests), "the number of open requests is wrong")
    _require(ledger.jobs == sum(request.open_jobs for request in requests), "the number of open jobs is wrong")
    _require(ledger.tokens == sum(request.open_tokens for request in requests), "the tokens of open jobs are wrong")
    _require(ledger.bytes == sum(request.open_bytes for request in requests), "the bytes of open jobs are wrong")
    _require(
        ledger.model_requests == Counter(request.model for request in requests), "the requests of a model are wrong"
    )
    _require(ledger.holder_jobs == holders, "the number of a holder's open jobs is wrong")


def _check_coalescing(state: State) -> None:
    coalescing = state.coalescing
    leases = [lease for worker in state.pool.workers.values() for lease in worker.leases.values()]
    leased = {job for lease in leases for job in lease.jobs}
    _require(coalescing.followers.keys() <= coalescing.leaders.keys(), "jobs follow a key that no job leads")
    for key, leader in coalescing.leaders.items():
        _require(leader.is_open and _has_key(leader, key), "a leader is closed, or has another key", leader)
        _require(leader in leased or leader.suspect, "a leader neither runs nor is a suspect", leader)
    for key, followers in coalescing.followers.items():
        for job in followers:
            _require(not job.is_open or _has_key(job, key), "a job follows another key than its own", job)
    cache = coalescing.cache
    _require(cache.count_bytes() == cache.bytes <= cache.max_bytes, "the bytes of the cache are wrong")


def _has_key(job: Job, key: bytes) -> bool:
    """Return whether an open job has this key, computed from its input."""
    keys = job.request.keys
    return keys is not None and job.input_key == key == keys.compute(job.payload)


def _check_queues(state: State) -> None:
    for key, model in state.models.items():
        queued = [(request, position) for request, positions in model.queue.list_waiting() for position in positions]
        tokens = sum(request.pricing.count_tokens([request.lengths[position]])[0] for request, position in queued)
        _require(model.queue.jobs == len(queued), "the number of jobs in a queue is wrong", key)
        _require(model.queue.tokens == tokens, "the number of tokens in a queue is wrong", key)
        in_lanes = [
            sum(count(lane) for lane in Lane) for count in (model.queue.count_lane_jobs, model.queue.count_lane_tokens)
        ]
        suspects = [job for request, _ in queued for job in request.jobs.values() if job.is_queued]
        suspect_tokens = {job.key: job.tokens for job in suspects}
        expected = [len(queued) - len(suspect_tokens), tokens - sum(suspect_tokens.values())]
        _require(in_lanes == expected, "the totals of the lanes are wrong", key)
        unknown = any(model.queue.find_unknown(lane) for lane in Lane)
        left = state.coalescing.due is not None
        _require(left or not unknown, "an input is not looked up", key)
        _require(left or not (expected[0] and state.pool.count_idle(key)), "a job waits while a worker is idle", key)
        idle = state.pool.count_idle(key, for_suspects=True)
        _require(left or not (suspects and idle), "a suspect waits while a worker is idle", key)
        served = bool(state.pool.list_ready(key))
        _require(served == (model.unserved_since is None), "`unserved_since` of a model is wrong", key)


def _check_workers(state: State) -> None:
    for worker in state.pool.workers.values():
        _require(list(worker.unseen) == sorted(set(worker.unseen)), "unseen batches are out of order", worker)
        _require(all(lease.jobs for lease in worker.leases.values()), "a leased batch has no job", worker)
        models = {lease.model for lease in worker.leases.values()}
        _require(models <= set(worker.models), "a batch is of a model that its worker does not serve", worker)
    connections = sorted(frontend.peer for frontend in state.ledger.by_uuid.values())
    _require(sorted(state.ledger.by_peer) == connections, "a connection has no frontend or two")


def _check_models(state: State) -> None:
    for name, key in state.current.items():
        _require(key.name == name and key in state.models, "the current revision of a model is unknown", name)
    names = {key.name for key in state.models}
    _require(names == state.current.keys() >= state.removed, "a model has no current revision, or a wrong one")
    for worker in state.pool.workers.values():
        _require(worker.models.keys() <= state.models.keys(), "a worker has a model that is not known", worker)
        for model in worker.models.values():
            _require(model.listed or model.loaded, "a worker has a model that it neither lists nor has loaded", worker)
            waits = model.loaded and not (model.listed and not model.info.unloaded)
            _require(waits == (model.retired_at is not None), "`retired_at` of a worker's model is wrong", worker)


def _require(holds: bool, text: str, subject: object = None) -> None:
    if not holds:
        raise LocalProtocolError(text if subject is None else f"{text}: {subject!r}")
