"""What must hold of the scheduler between two calls of its doors. Pure; it reads the state and changes nothing."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from broker.errors import LocalProtocolError

if TYPE_CHECKING:
    from broker.scheduler import Scheduler


def check(scheduler: Scheduler) -> None:
    """Raise LocalProtocolError that names the first broken invariant."""
    _check_jobs(scheduler)
    _check_queues(scheduler)
    _check_workers(scheduler)


def _check_jobs(scheduler: Scheduler) -> None:
    waiting = [job for model in scheduler.models.values() for job in model.queue.waiting()]
    leases = [lease for worker in scheduler.pool.workers.values() for lease in worker.leases.values()]
    leased = [job for lease in leases for job in lease.jobs if job.open]
    requests = [request for frontend in scheduler.ledger.by_uuid.values() for request in frontend.requests.values()]
    owed = [job for request in requests for job in request.jobs.values()]
    places = Counter(map(id, [*waiting, *leased, *scheduler.on_trial()]))
    _require(places == Counter(map(id, owed)), "an open job is not in exactly one place")
    _require(all(job.open for job in owed), "a closed job is still owed")
    _require(all(request.jobs for request in requests), "a request with no open job is still open")
    _require(scheduler.ledger.jobs == len(owed), "the number of open jobs is wrong")
    _require(scheduler.ledger.tokens == sum(job.tokens for job in owed), "the tokens of open jobs are wrong")
    _require(scheduler.ledger.client_jobs == Counter(job.client for job in owed), "a client's open jobs are wrong")
    _require(scheduler.ledger.bytes == sum(job.bytes for job in owed), "the bytes of open jobs are wrong")


def _check_queues(scheduler: Scheduler) -> None:
    for name, model in scheduler.models.items():
        queued = model.queue.waiting()
        _require(model.queue.jobs == len(queued), "a queue's length is wrong")
        _require(model.queue.tokens == sum(job.tokens for job in queued), "a queue's tokens are wrong")
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
