"""Gauges: metrics read from the scheduler's state at the time of a scrape. Pure; they change no state."""

import math
from collections.abc import Iterable

from broker.core.admission import compute_wait_s
from broker.core.metrics import Family, Labels, Sample
from broker.core.queues import ModelQueue
from broker.core.state import State
from broker.wire.protocol import Lane, ModelKey


def list_gauges(state: State) -> list[Family]:
    """Return the gauges of queues, models, workers and frontends."""
    return [*_list_queue_gauges(state), *_list_worker_gauges(state)]


def _list_queue_gauges(state: State) -> list[Family]:
    queues: dict[str, list[ModelQueue]] = {}
    for key, model in state.models.items():
        queues.setdefault(key.name, []).append(model.queue)
    lanes = [((name, lane.name.lower()), lane, found) for name, found in queues.items() for lane in Lane]
    suspects = {name: sum(queue.jobs - sum(map(queue.count_lane_jobs, Lane)) for queue in found)
                for name, found in queues.items()}  # fmt: skip
    return [
        _gauge("queue_jobs", "Jobs waiting", ("model", "lane"),
               ((labels, sum(queue.count_lane_jobs(lane) for queue in found)) for labels, lane, found in lanes)),
        _gauge("queue_tokens", "Tokens waiting", ("model", "lane"),
               ((labels, sum(queue.count_lane_tokens(lane) for queue in found)) for labels, lane, found in lanes)),
        _gauge("queue_suspects", "Jobs waiting to run alone after their batch crashed a worker or failed", ("model",),
               (((name,), number) for name, number in suspects.items())),
        _gauge("expected_wait_seconds", "Seconds that a model's workers need for all its open jobs", ("model",),
               (((name,), predict_wait_s(state, key)) for name, key in state.current.items())),
        _gauge("cache_bytes", "Memory of results", (), [((), state.coalescing.cache.bytes)]),
        _gauge("open_jobs", "Jobs waiting or running", (), [((), state.ledger.jobs)]),
        _gauge("frontends", "Frontends connected", (), [((), len(state.ledger.by_uuid))]),
        _gauge("workers", "Workers ready", ("model",),
               (((name,), getattr(state.pool.find_live_model(key), "workers", 0))
                for name, key in state.current.items())),
    ]  # fmt: skip


def _list_worker_gauges(state: State) -> list[Family]:
    labels = ("model", "device", "worker")
    # A worker may have two revisions of a model; the one that it announces counts.
    served = {(key.name, worker.device, worker.label): (worker, model)
              for worker in state.pool.workers.values()
              for key, model in sorted(worker.models.items(), key=lambda item: item[1].listed)}  # fmt: skip
    return [
        _gauge("worker_up", "1 for each connected worker", labels, ((of, 1) for of in served)),
        _gauge("worker_credits", "Batches that the worker accepts now", labels,
               ((of, worker.available) for of, (worker, _) in served.items())),
        _gauge("worker_leases", "Batches that the worker holds", labels,
               ((of, len(worker.leases)) for of, (worker, _) in served.items())),
        _gauge("worker_model_loaded", "1 for each model that the worker has in memory", labels,
               ((of, int(model.loaded)) for of, (_, model) in served.items())),
        _gauge("worker_tokens_per_second", "Throughput learned from the worker's results", labels,
               ((of, model.tokens_per_s) for of, (_, model) in served.items())),
        _gauge("worker_precision", "1 for each model, with the precision that the worker computes it in",
               (*labels, "precision"), (((*of, model.info.precision), 1) for of, (_, model) in served.items())),
        _gauge("worker_streams", "Inferences that run in parallel on the worker", labels,
               ((of, model.info.streams or worker.streams) for of, (worker, model) in served.items())),
    ]  # fmt: skip


def _gauge(name: str, text: str, labels: Labels, samples: Iterable[tuple[Labels, float]]) -> Family:
    return Family(name, "gauge", text, labels, [Sample(values, value) for values, value in samples])


def predict_wait_s(state: State, model: ModelKey) -> float:
    """Return the seconds until all open jobs of a model would have run; infinity without a worker."""
    tokens = state.models[model].queue.tokens + state.pool.count_leased_tokens(model, Lane.BULK)
    wait_s = compute_wait_s(tokens, state.pool.sum_tokens_per_s(model)) if tokens else 0.0
    return math.inf if wait_s is None else wait_s
