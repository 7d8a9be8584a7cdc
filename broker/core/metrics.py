"""What operators want to know of the broker's work: counters and histograms here, gauges read from the state. Pure.

An observation costs a dictionary lookup and a bisection. Series exist from the moment that their worker does, at zero,
so that a rate never starts in the middle of something.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from broker.core.pool import Lease, Worker
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from broker.wire.protocol import Lane

if TYPE_CHECKING:
    from broker.core.scheduler import Scheduler

#: From the time of a loop's turn to the longest wait that a request may have when it is admitted.
_WAITS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
#: From one short text on a fast device to the lease of a batch.
_INFERENCES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0)
#: Powers of two up to the most jobs of a batch, and from a short text to a batch of 0.1 s on a fast device.
_JOBS = tuple(float(2**power) for power in range(12))
_TOKENS = tuple(float(2**power) for power in range(4, 18))

#: Labels of what belongs to a worker.
_WORKER = ["model", "device", "lane", "worker"]
#: Why a worker was evicted, as `Scheduler` says it.
_REASONS = ("silent", "its batch ran too long", "connection lost", "answered a batch in another shape")
#: Codes that a request is refused with at the door, and that a job ends with.
_REFUSALS = ("DRAINING", "OVERLOADED", "UNKNOWN_MODEL", "NO_WORKER", "INVALID_INPUT", "QUOTA")
_OUTCOMES = (
    "answered",
    "cancelled",
    *(name.lower() for name in ("DEADLINE", "DEVICE", "INVALID_INPUT", "NO_WORKER", "POISON", "TOO_LONG")),
)


class Sample(NamedTuple):
    """One time series of a family."""

    labels: tuple[str, ...]
    #: The value of a counter or a gauge; the sum of a histogram's observations.
    value: float
    #: Only of a histogram: the number of observations in each bucket, and last of those above the highest bound.
    buckets: tuple[int, ...] = ()


class Family(NamedTuple):
    """A metric as Prometheus defines it. Its kind is "counter", "gauge" or "histogram"; only a histogram has bounds."""

    name: str
    kind: str
    text: str
    labels: tuple[str, ...]
    samples: list[Sample]
    bounds: tuple[float, ...] = ()


class Counter:
    """A family of numbers that only grow."""

    kind = "counter"
    bounds: tuple[float, ...] = ()

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self.name, self.text, self.labels = name, text, tuple(labels)
        self.series: dict[tuple[str, ...], float] = {}

    def touch(self, labels: tuple[str, ...]) -> None:
        """Let the series exist."""
        self.series.setdefault(labels, 0.0)

    def add(self, labels: tuple[str, ...], by: float = 1.0) -> None:
        """Count."""
        self.series[labels] = self.series.get(labels, 0.0) + by

    def forget(self, worker: str) -> None:
        """Drop a worker's series."""
        self.series = {labels: value for labels, value in self.series.items() if labels[-1] != worker}

    def family(self) -> Family:
        """Return a copy of all series."""
        samples = [Sample(labels, value) for labels, value in self.series.items()]
        return Family(self.name, self.kind, self.text, self.labels, samples)


class Histogram:
    """A family of distributions. A value is in the first bucket whose bound is not below it."""

    kind = "histogram"

    def __init__(self, name: str, text: str, labels: Sequence[str], bounds: tuple[float, ...]) -> None:
        self.name, self.text, self.labels, self.bounds = name, text, tuple(labels), bounds
        self.series: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}

    def touch(self, labels: tuple[str, ...]) -> tuple[list[int], list[float]]:
        """Let the series exist: its buckets, and its sum."""
        found = self.series.get(labels)
        if found is None:
            found = self.series[labels] = ([0] * (len(self.bounds) + 1), [0.0])
        return found

    def observe(self, labels: tuple[str, ...], values: Iterable[float]) -> None:
        """Count values."""
        buckets, total = self.touch(labels)
        for value in values:
            buckets[bisect.bisect_left(self.bounds, value)] += 1
            total[0] += value

    def forget(self, worker: str) -> None:
        """Drop a worker's series."""
        self.series = {labels: found for labels, found in self.series.items() if labels[-1] != worker}

    def family(self) -> Family:
        """Return a copy of all series."""
        samples = [Sample(labels, total[0], tuple(buckets)) for labels, (buckets, total) in self.series.items()]
        return Family(self.name, self.kind, self.text, self.labels, samples, self.bounds)


class Metrics:
    """What has happened, by what operators ask for."""

    def __init__(self) -> None:
        lanes = ["model", "lane"]
        self._waits = Histogram("queue_seconds", "Time from a job's arrival to its dispatch", lanes, _WAITS)
        self._attempts = Counter("job_dispatches", "Jobs dispatched, repeated dispatches included", lanes)
        self._requeued = Counter("jobs_requeued", "Jobs returned to the queue", ["model"])
        self._jobs = Counter("jobs", "Jobs finished, by outcome", ["outcome"])
        self._rejected = Counter("requests_rejected", "Requests rejected at admission, by error code", ["code"])
        self._evicted = Counter("worker_evictions", "Workers evicted, by reason", ["reason"])
        self._left = Counter("workers_left", "Workers that left after a drain, or reconnected", [])
        self._batch_jobs = Histogram("batch_jobs", "Jobs in a dispatched batch", _WORKER, _JOBS)
        self._batch_tokens = Histogram("batch_tokens", "Tokens in an answered batch", _WORKER, _TOKENS)
        self._inferences = Histogram(
            "inference_seconds", "Inference time of a batch, all micro-batches included", _WORKER, _INFERENCES
        )
        self._tokens = Counter("tokens", "Tokens of inputs that were run", _WORKER)
        self._padding = Counter("padding_tokens", "Padding tokens that were run to fill up micro-batches", _WORKER)
        self._of_workers: list[Counter | Histogram] = [
            self._batch_jobs,
            self._batch_tokens,
            self._inferences,
            self._tokens,
            self._padding,
        ]
        for outcome in _OUTCOMES:
            self._jobs.touch((outcome,))
        for code in _REFUSALS:
            self._rejected.touch((code.lower(),))
        for reason in _REASONS:
            self._evicted.touch((reason,))
        self._left.touch(())

    def joined(self, worker: Worker) -> None:
        """Create the series of a worker that has joined."""
        for name in worker.models:
            self._requeued.touch((name,))
            for lane in Lane:
                self._waits.touch((name, lane.name.lower()))
                self._attempts.touch((name, lane.name.lower()))
                for family in self._of_workers:
                    family.touch(_labels(worker, name, lane))

    def left(self, worker: Worker, reason: str) -> None:
        """Count a worker that is gone, and drop its series."""
        if reason in _REASONS:
            self._evicted.add((reason,))
        else:
            self._left.add(())
        for family in self._of_workers:
            family.forget(worker.label)

    def dispatched(self, worker: Worker, lease: Lease, now: float) -> None:
        """A batch is leased."""
        labels = (lease.model, lease.lane.name.lower())
        self._waits.observe(labels, (now - job.request.arrived for job in lease.jobs))
        self._attempts.add(labels, len(lease.jobs))
        self._batch_jobs.observe(_labels(worker, lease.model, lease.lane), [len(lease.jobs)])

    def answered(self, worker: Worker, lease: Lease, result: wire.BatchResult, tokens: int) -> None:
        """A batch's result has come, of so many tokens that were run."""
        labels = _labels(worker, lease.model, lease.lane)
        self._batch_tokens.observe(labels, [tokens])
        self._inferences.observe(labels, [result.inference_us / 1e6])
        self._tokens.add(labels, tokens)
        self._padding.add(labels, result.padding)

    def ended(self, outcome: str, jobs: int = 1) -> None:
        """Jobs have ended."""
        self._jobs.add((outcome,), jobs)

    def requeued(self, model: str, jobs: int) -> None:
        """Jobs go back into the queue."""
        self._requeued.add((model,), jobs)

    def rejected(self, code: ErrorCode) -> None:
        """A request is refused at the door."""
        self._rejected.add((code.name.lower(),))

    def families(self, scheduler: Scheduler) -> list[Family]:
        """Return a copy of all counters and histograms, and the gauges of the state."""
        own: tuple[Counter | Histogram, ...] = (
            self._waits,
            self._attempts,
            self._requeued,
            self._jobs,
            self._rejected,
            self._evicted,
            self._left,
            *self._of_workers,
        )
        return [*(family.family() for family in own), *gauges(scheduler)]


def _labels(worker: Worker, model: str, lane: Lane) -> tuple[str, ...]:
    return (model, worker.device, lane.name.lower(), worker.label)


def gauges(scheduler: Scheduler) -> list[Family]:
    """What is there now, and the few numbers that are only counted by name."""
    workers, models = list(scheduler.pool.workers.values()), scheduler.models
    queues = [((name, lane.name.lower()), lane, model.queue) for name, model in models.items() for lane in Lane]
    suspects = {name: model.queue.jobs - sum(map(model.queue.count_lane_jobs, Lane)) for name, model in models.items()}
    served = [(worker, name) for worker in workers for name in worker.models]

    def gauge(name: str, text: str, labels: list[str], samples: Iterable[tuple[tuple[str, ...], float]]) -> Family:
        return Family(name, "gauge", text, tuple(labels), [Sample(of, value) for of, value in samples])

    def count(name: str, text: str, counter: str) -> Family:
        return Family(name, "counter", text, (), [Sample((), scheduler.counters[counter])])

    by_worker, by_lane = ["model", "device", "worker"], ["model", "lane"]
    return [
        gauge("queue_jobs", "Queued jobs", by_lane,
              ((of, queue.count_lane_jobs(lane)) for of, lane, queue in queues)),
        gauge("queue_tokens", "Queued tokens, estimated", by_lane,
              ((of, queue.count_lane_tokens(lane)) for of, lane, queue in queues)),
        gauge("queue_suspects", "Queued jobs that run alone because they may have crashed a worker", ["model"],
              (((name,), number) for name, number in suspects.items())),
        gauge("expected_wait_seconds", "Time in which the workers of a model would finish all open jobs", ["model"],
              (((name,), expected_wait_s(scheduler, name)) for name in models)),
        gauge("open_jobs", "Jobs queued or running", [], [((), scheduler.ledger.jobs)]),
        gauge("frontends", "Connected frontends", [], [((), len(scheduler.ledger.by_uuid))]),
        gauge("workers", "Workers that accept batches", ["model"],
              (((name,), getattr(scheduler.pool.live_model(name), "workers", 0)) for name in models)),
        gauge("worker_up", "1 for each connected worker", by_worker, (((n, w.device, w.label), 1) for w, n in served)),
        gauge("worker_credits", "Batches that a worker accepts now", by_worker,
              (((n, w.device, w.label), w.available) for w, n in served)),
        gauge("worker_leases", "Batches leased to a worker", by_worker,
              (((n, w.device, w.label), len(w.leases)) for w, n in served)),
        gauge("worker_tokens_per_second", "Measured speed of a worker", by_worker,
              (((n, w.device, w.label), w.speed.tokens_per_s) for w, n in served)),
        gauge("worker_streams", "Inferences that a worker runs in parallel", by_worker,
              (((n, w.device, w.label), w.streams) for w, n in served)),
        count("workers_joined", "Workers that joined", "workers_joined"),
        count("malformed_messages", "Messages that could not be decoded", "malformed_messages"),
        count("late_answers", "Results discarded because they came too late", "late_answers"),
    ]  # fmt: skip


def expected_wait_s(scheduler: Scheduler, model: str) -> float:
    """Seconds until all jobs of a model that are open now would have been run; infinite without a worker."""
    tokens = scheduler.models[model].queue.tokens + scheduler.pool.leased_tokens(model, Lane.BULK)
    speed = scheduler.pool.tokens_per_s(model)
    return tokens / speed if speed else math.inf if tokens else 0.0
