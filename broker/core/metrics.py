"""Counters and histograms of the scheduler's work. Pure.

An observation costs a dictionary lookup and a bisection. A worker's series exist from the moment it joins, at zero, so
that a rate never misses its first observation, and end when it leaves.
"""

import bisect
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from broker.core.worker import Lease, Worker
from broker.wire.protocol import BatchResult, Lane, ModelKey

#: Histogram bounds in seconds, from one turn of the broker's loop to the longest queueing delay that admission accepts.
_WAITS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
#: Histogram bounds in seconds, from one short text on a fast device to a batch's lease.
_INFERENCES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0)
#: Powers of two up to the most jobs of a batch, and from a short text to a batch of 0.1 s on a fast device.
_JOBS = tuple(float(2**power) for power in range(12))
_TOKENS = tuple(float(2**power) for power in range(4, 18))

#: Labels of the series of one worker.
_WORKER = ("model", "device", "lane", "worker")
_LANE = ("model", "lane")

Labels = tuple[str, ...]


class Sample(NamedTuple):
    """One time series: the values of the family's labels, and the value of a counter or gauge.

    A histogram's value is the sum of its observations; `buckets` has the number of observations in each bucket, the
    one above the last bound included.
    """

    labels: tuple[str, ...]
    value: float
    buckets: tuple[int, ...] = ()


class Family(NamedTuple):
    """A Prometheus metric: `kind` is counter, gauge or histogram; only a histogram has bounds."""

    name: str
    kind: str
    text: str
    labels: tuple[str, ...]
    samples: list[Sample]
    bounds: tuple[float, ...] = ()


class CounterFamily:
    """Numbers that only grow, by labels."""

    def __init__(self, name: str, text: str, labels: Labels = (), values: Iterable[str] = ()) -> None:
        self.name, self.text, self.labels = name, text, labels
        #: Series with no label, or with the known `values` of the only label, exist from the start.
        self._series: dict[Labels, float] = {(value,): 0.0 for value in values} if labels else {(): 0.0}

    def create_series(self, labels: Labels) -> None:
        """Create a series at zero if it does not exist."""
        self._series.setdefault(labels, 0.0)

    def drop_series(self, worker: str) -> None:
        """Remove the series of a worker."""
        self._series = {labels: value for labels, value in self._series.items() if labels[-1] != worker}

    def add(self, labels: Labels, by: float = 1.0) -> None:
        """Add to a series."""
        self._series[labels] = self._series.get(labels, 0.0) + by

    def get(self, labels: Labels) -> float:
        """Return the value of a series; 0 if the series does not exist."""
        return self._series.get(labels, 0.0)

    @property
    def total(self) -> float:
        """Sum of all series."""
        return sum(self._series.values())

    def snapshot(self) -> Family:
        """Return a copy for exposition."""
        samples = [Sample(labels, value) for labels, value in self._series.items()]
        return Family(self.name, "counter", self.text, self.labels, samples)


class HistogramFamily:
    """Distributions by labels. A value belongs to the first bucket with a bound of at least the value."""

    def __init__(self, name: str, text: str, labels: Labels, bounds: tuple[float, ...]) -> None:
        self.name, self.text, self.labels, self.bounds = name, text, labels, bounds
        #: Counts of the buckets, and the sum of observations in a list of one.
        self._series: dict[Labels, tuple[list[int], list[float]]] = {}

    def create_series(self, labels: Labels) -> tuple[list[int], list[float]]:
        """Return a series, empty if it did not exist."""
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = [0] * (len(self.bounds) + 1), [0.0]
        return series

    def drop_series(self, worker: str) -> None:
        """Remove the series of a worker."""
        self._series = {labels: series for labels, series in self._series.items() if labels[-1] != worker}

    def observe(self, labels: Labels, value: float, count: int = 1) -> None:
        """Add `count` equal observations to a series."""
        buckets, total = self.create_series(labels)
        buckets[bisect.bisect_left(self.bounds, value)] += count
        total[0] += value * count

    def snapshot(self) -> Family:
        """Return a copy for exposition."""
        samples = [Sample(labels, total[0], tuple(buckets)) for labels, (buckets, total) in self._series.items()]
        return Family(self.name, "histogram", self.text, self.labels, samples, self.bounds)


class Metrics:
    """All counters and histograms. `EventRecorder` is the only writer."""

    def __init__(self) -> None:
        outcomes = (
            "answered",
            "cancelled",
            "deadline",
            "device",
            "invalid_input",
            "no_worker",
            "poison",
            "replaced",
            "too_long",
        )
        codes = ("draining", "overloaded", "unknown_model", "no_worker", "invalid_input", "quota", "replaced")
        reasons = ("silent", "lease_expired", "connection_lost", "invalid_result")
        self.jobs_admitted = CounterFamily("jobs_admitted", "Jobs admitted")
        self.jobs_ended = CounterFamily("jobs", "Jobs finished, by outcome", ("outcome",), outcomes)
        self.jobs_requeued = CounterFamily("jobs_requeued", "Jobs returned to the queue", ("model",))
        self.jobs_blocked = CounterFamily("jobs_blocked", "Jobs failed without dispatch: their input is known poison")
        self.requests_rejected = CounterFamily(
            "requests_rejected", "Requests rejected at admission, by reason", ("code",), codes
        )
        self.requests_repeated = CounterFamily("duplicate_requests", "Open requests that a frontend submitted again")
        self.batches = CounterFamily(
            "batches", "Batches dispatched, answered and failed", ("event",), ("dispatched", "answered", "failed")
        )
        self.batch_seconds = CounterFamily("batch_seconds", "Seconds that answered batches took, from lease to result")
        self.cache_hits = CounterFamily("cache_hits", "Inputs answered with a result in memory")
        self.cache_misses = CounterFamily("cache_misses", "Inputs computed because no result was in memory")
        self.cache_coalesced = CounterFamily("cache_coalesced", "Inputs answered when an equal input was computed")
        self.cache_evictions = CounterFamily("cache_evictions", "Results removed from memory to make room")
        self.workers_joined = CounterFamily("workers_joined", "Workers that connected")
        self.workers_left = CounterFamily("workers_left", "Workers that drained and left, or reconnected")
        self.worker_evictions = CounterFamily("worker_evictions", "Workers evicted, by reason", ("reason",), reasons)
        self.models_replaced = CounterFamily(
            "models_replaced", "Revisions that took over the name of another", ("model",)
        )
        self.peers_refused = CounterFamily("peers_refused", "Hellos refused: protocol version or model revision")
        self.messages_unexpected = CounterFamily("messages_without_session", "Messages before a hello")
        self.messages_malformed = CounterFamily("malformed_messages", "Messages that could not be decoded")
        self.results_late = CounterFamily("late_answers", "Results of batches that the worker no longer held")
        self._waits = HistogramFamily("queue_seconds", "Seconds from a job's arrival to its dispatch", _LANE, _WAITS)
        self._dispatches = CounterFamily("job_dispatches", "Dispatches of jobs, repeated ones included", _LANE)
        self._batch_jobs = HistogramFamily("batch_jobs", "Jobs of a dispatched batch", _WORKER, _JOBS)
        self._batch_tokens = HistogramFamily("batch_tokens", "Tokens of an answered batch", _WORKER, _TOKENS)
        self._inferences = HistogramFamily(
            "inference_seconds", "Inference time of a batch, all micro-batches together", _WORKER, _INFERENCES
        )
        self._tokens = CounterFamily("tokens", "Tokens of inputs run through the model", _WORKER)
        self._padding = CounterFamily(
            "padding_tokens", "Padding tokens run through the model, outside attention", _WORKER
        )
        self._micro_batches = CounterFamily("micro_batches", "Inferences of answered batches", _WORKER)
        self._micro_batch_inputs = CounterFamily("micro_batch_inputs", "Inputs of these inferences", _WORKER)

    def create_series(self, worker: Worker) -> None:
        """Create all series of a worker that joins, or that announces other models."""
        for model in worker.models:
            self.jobs_requeued.create_series((model.name,))
            for lane in Lane:
                self._waits.create_series((model.name, lane.name.lower()))
                self._dispatches.create_series((model.name, lane.name.lower()))
                for family in self._list_worker_families():
                    family.create_series(_build_labels(worker, model, lane))

    def drop_series(self, worker: Worker) -> None:
        """Remove all series of a worker that has left."""
        for family in self._list_worker_families():
            family.drop_series(worker.label)

    def record_dispatch(self, worker: Worker, lease: Lease, now: float) -> None:
        """Count a batch that is sent."""
        labels = (lease.model.name, lease.lane.name.lower())
        self.batches.add(("dispatched",))
        for request, jobs in Counter([job.request for job in lease.jobs]).items():
            self._waits.observe(labels, now - request.arrived, jobs)
        self._dispatches.add(labels, len(lease.jobs))
        self._batch_jobs.observe(_build_labels(worker, lease.model, lease.lane), len(lease.jobs))

    def record_result(self, worker: Worker, lease: Lease, result: BatchResult, tokens: int, now: float) -> None:
        """Count a batch's result; `tokens` were run through the model."""
        labels = _build_labels(worker, lease.model, lease.lane)
        self.batches.add(("answered",))
        self.batch_seconds.add((), now - lease.since)
        self._batch_tokens.observe(labels, tokens)
        self._inferences.observe(labels, result.inference_us / 1e6)
        self._tokens.add(labels, tokens)
        self._padding.add(labels, result.padding)
        self._micro_batches.add(labels, result.micro_batches)
        self._micro_batch_inputs.add(labels, result.micro_batch_inputs)

    def count_totals(self) -> dict[str, int]:
        """Return the totals since the start, by the names that `/health` shows."""
        answered, cancelled = self.jobs_ended.get(("answered",)), self.jobs_ended.get(("cancelled",))
        totals = {
            "jobs_admitted": self.jobs_admitted.total,
            "jobs_dispatched": self._dispatches.total,
            "jobs_answered": answered,
            "jobs_cancelled": cancelled,
            "jobs_failed": self.jobs_ended.total - answered - cancelled,
            "jobs_requeued": self.jobs_requeued.total,
            "jobs_blocked": self.jobs_blocked.total,
            "cache_hits": self.cache_hits.total,
            "cache_coalesced": self.cache_coalesced.total,
            "cache_misses": self.cache_misses.total,
            "cache_evictions": self.cache_evictions.total,
            "requests_rejected": self.requests_rejected.total,
            "duplicate_requests": self.requests_repeated.total,
            "batches_dispatched": self.batches.get(("dispatched",)),
            "batches_answered": self.batches.get(("answered",)),
            "batches_failed": self.batches.get(("failed",)),
            "batch_us": self.batch_seconds.total * 1e6,
            "workers_joined": self.workers_joined.total,
            "workers_left": self.workers_left.total,
            "workers_evicted": self.worker_evictions.total,
            "models_replaced": self.models_replaced.total,
            "peers_refused": self.peers_refused.total,
            "messages_without_session": self.messages_unexpected.total,
            "malformed_messages": self.messages_malformed.total,
            "late_answers": self.results_late.total,
        }
        return {name: int(total) for name, total in totals.items()}

    def list_families(self) -> list[Family]:
        """Return copies of all families."""
        families = [family for family in vars(self).values() if isinstance(family, CounterFamily | HistogramFamily)]
        return [family.snapshot() for family in families]

    def _list_worker_families(self) -> list[CounterFamily | HistogramFamily]:
        counters = [self._tokens, self._padding, self._micro_batches, self._micro_batch_inputs]
        return [self._batch_jobs, self._batch_tokens, self._inferences, *counters]


def _build_labels(worker: Worker, model: ModelKey, lane: Lane) -> Labels:
    return (model.name, worker.device, lane.name.lower(), worker.label)
