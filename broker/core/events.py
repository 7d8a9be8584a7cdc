"""Recorder of what happens to requests, jobs, batches and workers. Pure.

The recorder is the only writer of the metrics and of the job history. The counters in `/health` are totals of the
metrics, so `/health` and `/metrics` cannot disagree.
"""

import enum
from collections.abc import Sequence

from broker.core.job_history import JobHistory
from broker.core.jobs import Job, Request
from broker.core.metrics import Metrics
from broker.core.worker import Lease, Worker
from broker.wire.errors import ErrorCode
from broker.wire.protocol import BatchResult, ModelKey, Source


class EvictionReason(enum.StrEnum):
    """Why the broker removed a worker. The values are labels of metrics."""

    #: The worker has sent no message for `liveness_s`.
    SILENT = "silent"
    #: A batch has run for `lease_s`.
    LEASE_EXPIRED = "lease_expired"
    #: The worker's connection has ended without a goodbye.
    CONNECTION_LOST = "connection_lost"
    #: The worker answered a batch with rows of the wrong number or size.
    INVALID_RESULT = "invalid_result"
    #: The worker drained and said goodbye.
    LEFT = "left"
    #: The same process has connected again.
    REPLACED = "replaced"

    @property
    def is_departure(self) -> bool:
        """Whether the worker left or reconnected, so that it counts as left and not as evicted."""
        return self in (EvictionReason.LEFT, EvictionReason.REPLACED)

    @property
    def text(self) -> str:
        """Words for logs and messages."""
        return self.value.replace("_", " ")

    @property
    def code(self) -> ErrorCode:
        """Code of the goodbye that the worker is sent."""
        if self == EvictionReason.LEASE_EXPIRED:
            return ErrorCode.LEASE_EXPIRED
        return ErrorCode.DRAINING if self.is_departure else ErrorCode.INTERNAL


class EventRecorder:
    """Counts every event in the metrics and adds the events of jobs to the job history."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.history = JobHistory()

    # --- requests ----------------------------------------------------------------------------------------------------

    def request_admitted(self, request: Request, now: float) -> None:
        """Record that a request's jobs enter the queue."""
        self.metrics.jobs_admitted.add((), request.inputs)
        self.history.add_request(now, "admitted", request.lane.name.lower(), request)

    def request_rejected(self, code: ErrorCode) -> None:
        """Record that admission control rejected a request."""
        self.metrics.requests_rejected.add((code.name.lower(),))

    def request_repeated(self) -> None:
        """Record that a frontend submitted an open request again."""
        self.metrics.requests_repeated.add(())

    def request_failed(self, request: Request, code: ErrorCode, now: float) -> None:
        """Record that all open jobs of a request fail."""
        self.metrics.jobs_ended.add((code.name.lower(),), request.open_jobs)
        self.history.add_request(now, "ended", code.name, request)

    def request_cancelled(self, request: Request, now: float) -> None:
        """Record that all open jobs of a request are cancelled."""
        self.metrics.jobs_ended.add(("cancelled",), request.open_jobs)
        self.history.add_request(now, "ended", "cancelled", request)

    # --- batches and jobs --------------------------------------------------------------------------------------------

    def batch_dispatched(self, worker: Worker, lease: Lease, now: float) -> None:
        """Record that a batch is sent to a worker."""
        self.metrics.record_dispatch(worker, lease, now)
        self.history.add_jobs(now, "dispatched", f"in batch {lease.batch} to {worker.name}", lease.jobs)

    def batch_answered(self, worker: Worker, lease: Lease, result: BatchResult, tokens: int, now: float) -> None:
        """Record a batch's valid result; `tokens` were run through the model."""
        self.metrics.record_result(worker, lease, result, tokens, now)

    def batch_failed(self, lease: Lease, text: str, now: float) -> None:
        """Record that a batch failed and its worker lives."""
        self.metrics.batches.add(("failed",))
        self.history.add_jobs(now, "failed", f"in batch {lease.batch}: {text}", lease.jobs)

    def jobs_answered(self, lease: Lease, jobs: Sequence[Job], now: float) -> None:
        """Record that jobs are answered with their row of a batch's result."""
        self.metrics.jobs_ended.add(("answered",), len(jobs))
        self.history.add_jobs(now, "ended", f"with its vector from batch {lease.batch}", jobs)

    def jobs_reused(self, jobs: Sequence[Job], source: Source, now: float) -> None:
        """Record that jobs are answered with rows that were computed for equal inputs."""
        if jobs:
            counter = self.metrics.cache_hits if source == Source.CACHE else self.metrics.cache_coalesced
            counter.add((), len(jobs))
            self.metrics.jobs_ended.add(("answered",), len(jobs))
            self.history.add_jobs(now, "ended", f"with the vector of an equal input ({source.name.lower()})", jobs)

    def inputs_missed(self, jobs: int) -> None:
        """Record that jobs are computed after a look-up without a result."""
        self.metrics.cache_misses.add((), jobs)

    def rows_evicted(self, rows: int) -> None:
        """Record that rows left the cache to make room."""
        self.metrics.cache_evictions.add((), rows)

    def job_failed(self, job: Job, code: ErrorCode, now: float) -> None:
        """Record that a job fails."""
        self.metrics.jobs_ended.add((code.name.lower(),))
        self.history.add_jobs(now, "ended", code.name, [job])

    def jobs_requeued(self, model: ModelKey, jobs: int) -> None:
        """Record that jobs return to the queue."""
        self.metrics.jobs_requeued.add((model.name,), jobs)

    def jobs_blocked(self, jobs: int) -> None:
        """Record that jobs are not dispatched because their input is known poison."""
        self.metrics.jobs_blocked.add((), jobs)

    # --- peers -------------------------------------------------------------------------------------------------------

    def worker_joined(self, worker: Worker) -> None:
        """Record that a worker is welcomed."""
        self.metrics.workers_joined.add(())
        self.metrics.create_series(worker)

    def models_announced(self, worker: Worker) -> None:
        """Record that a worker announces other models."""
        self.metrics.create_series(worker)

    def model_replaced(self, name: str) -> None:
        """Record that another revision takes over a model's name."""
        self.metrics.models_replaced.add((name,))

    def worker_evicted(self, worker: Worker, reason: EvictionReason, now: float) -> None:
        """Record that a worker is removed, and that its batches are requeued."""
        if reason.is_departure:
            self.metrics.workers_left.add(())
        else:
            self.metrics.worker_evictions.add((reason.value,))
        self.metrics.drop_series(worker)
        for lease in worker.leases.values():
            self.history.add_jobs(now, "returned", f"from batch {lease.batch}: {worker.name} {reason.text}", lease.jobs)

    def peer_refused(self) -> None:
        """Record that a hello was refused."""
        self.metrics.peers_refused.add(())

    def message_unexpected(self) -> None:
        """Record a message on a connection without a session."""
        self.metrics.messages_unexpected.add(())

    def message_malformed(self) -> int:
        """Record a message that could not be decoded, and return the number of them so far."""
        self.metrics.messages_malformed.add(())
        return int(self.metrics.messages_malformed.total)

    def result_late(self) -> None:
        """Record the result of a batch that the worker no longer holds."""
        self.metrics.results_late.add(())
