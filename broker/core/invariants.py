"""What must hold of the scheduler between two calls of its doors. Pure; it reads the state and changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from broker.core.jobs import Request
from broker.wire.errors import LocalProtocolError
from broker.wire.protocol import Lane

if TYPE_CHECKING:
    from broker.core.scheduler import Scheduler


def check(scheduler: Scheduler) -> None:
    """Raise LocalProtocolError that names the first broken invariant."""
    _check_jobs(scheduler)
    _check_queues(scheduler)
    _check_workers(scheduler)


def _check_jobs(scheduler: Scheduler) -> None:
    queues = [model.queue for model in scheduler.models.values()]
    waiting = [(one, position) for queue in queues for one, positions in queue.list_waiting() for position in positions]
    leases = [lease for worker in scheduler.pool.workers.values() for lease in worker.leases.values()]
    made = [job for lease in leases for job in lease.jobs if job.open] + scheduler.on_trial()
    places = Counter([*waiting, *((job.request, job.position) for job in made)])
    requests = [request for frontend in scheduler.ledger.by_uuid.values() for request in frontend.requests.values()]
    _require(all(count == 1 for count in places.values()), "an open job is in two places")
    _require(
        Counter(request for request, _ in places) == {request: request.open_jobs for request in requests},
        "an open job is in no place, or a closed one in some",
    )
    _require(
        all(request.jobs.get(job.position) is job for job in made for request in [job.request]), "a job is foreign"
    )
    _require(all(request.open_jobs for request in requests), "a request with no open job is still open")
    _check_counts(scheduler, requests, places)


def _check_counts(scheduler: Scheduler, requests: list[Request], places: Iterable[tuple[Request, int]]) -> None:
    ledger = scheduler.ledger
    tokens, size, holders = Counter[Request](), Counter[Request](), Counter[str | bytes]()
    for request, position in places:
        tokens[request] += request.pricing.count_tokens([request.lengths[position]])[0]
        size[request] += request.lengths[position]
        holders.update(request.holders)
    _require(all(tokens[one] == one.open_tokens for one in requests), "a request's open tokens are wrong")
    _require(all(size[one] == one.open_bytes for one in requests), "a request's open bytes are wrong")
    _require(ledger.requests == len(requests), "the number of open requests is wrong")
    _require(ledger.jobs == sum(one.open_jobs for one in requests), "the number of open jobs is wrong")
    _require(ledger.tokens == sum(one.open_tokens for one in requests), "the tokens of open jobs are wrong")
    _require(ledger.bytes == sum(one.open_bytes for one in requests), "the bytes of open jobs are wrong")
    _require(ledger.holder_jobs == holders, "a holder's open jobs are wrong")


def _check_queues(scheduler: Scheduler) -> None:
    for name, model in scheduler.models.items():
        queued = [(one, position) for one, positions in model.queue.list_waiting() for position in positions]
        tokens = sum(request.pricing.count_tokens([request.lengths[position]])[0] for request, position in queued)
        _require(model.queue.jobs == len(queued), "a queue's length is wrong")
        _require(model.queue.tokens == tokens, "a queue's tokens are wrong")
        in_lanes = [
            sum(count(lane) for lane in Lane) for count in (model.queue.count_lane_jobs, model.queue.count_lane_tokens)
        ]
        suspects = [job for request, _ in queued for job in request.jobs.values() if job.queued]
        apart = {job.key: job.tokens for job in suspects}
        _require(in_lanes == [len(queued) - len(apart), tokens - sum(apart.values())], "what waits in lanes is wrong")
        _require(not (queued and scheduler.pool.idle(name)), "a job waits while a fitting worker is idle")
        served = scheduler.pool.live_model(name) is not None
        _require(served == (model.unserved_since is None), "a model's unserved_since is wrong")


def _check_workers(scheduler: Scheduler) -> None:
    for worker in scheduler.pool.workers.values():
        _require(list(worker.unseen) == sorted(set(worker.unseen)), "batches are unseen out of order")
        _require(all(lease.jobs for lease in worker.leases.values()), "an empty batch is leased")
        models = {lease.model for lease in worker.leases.values()}
        _require(models <= set(worker.models), "a worker holds a batch of a model it does not serve")
    connections = sorted(one.peer for one in scheduler.ledger.by_uuid.values())
    _require(sorted(scheduler.ledger.by_peer) == connections, "a connection has no frontend or two")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise LocalProtocolError(otherwise)
