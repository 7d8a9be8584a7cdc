"""The core of the broker: admits jobs, batches them across requests, leases batches to workers, answers each job once.

Pure: no socket, clock, randomness, thread or log. Messages and the time come in as arguments, and what is to be sent
comes back. There are three doors, `handle`, `tick` and `lost`; state changes nowhere else. A peer is opaque bytes.

A job:     QUEUED → LEASED → answered        QUEUED or LEASED → failed or cancelled        LEASED → QUEUED (requeued)
A worker:  READY → DRAINING → gone           READY or DRAINING → evicted

Whatever a peer sends, `handle` does not raise: what is late, foreign or contradictory is counted and ignored, or ends
that peer's session. LocalProtocolError means a fault in here.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from broker.core import outgoing
from broker.core.abandonment import Abandonment
from broker.core.admission import consider
from broker.core.blame import Blame
from broker.core.dispatch import next_batch, next_dispatch
from broker.core.invariants import check
from broker.core.job_history import Story
from broker.core.jobs import Job, Request
from broker.core.ledger import MAX_EXPIRED, Frontend, Ledger
from broker.core.limits import Limits
from broker.core.metrics import Metrics
from broker.core.model_loading import Loading
from broker.core.models import Model
from broker.core.pool import Lease, Pool, Worker
from broker.core.quota import Quotas
from broker.core.result_split import fits, share_out
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode, LocalProtocolError, describe_replaced_model
from broker.wire.protocol import Failure, Frame, Message

POISON = "the input ended the worker that ran it, each time it was tried"
#: How long a model is remembered that nothing serves and nobody asks for.
FORGET_MODEL_S = 3600.0


class Send(NamedTuple):
    """A message to send, with its raw frames."""

    peer: bytes
    message: Message
    frames: Sequence[Frame] = ()


class Scheduler:
    """See the head of this module."""

    def __init__(self, epoch: int, limits: Limits | None = None) -> None:
        self.epoch = epoch
        self.limits = limits or Limits()
        self.ledger = Ledger(self.limits.liveness_s)
        self.pool = Pool(self.limits.liveness_s, self.limits.lease_s)
        self.models: dict[str, Model] = {}
        self.loading = Loading(self.limits.liveness_s)
        self.quotas = Quotas()
        self.abandonment = Abandonment()
        #: What happened, by name.
        self.counters: Counter[str] = Counter()
        self.metrics = Metrics()
        self.draining = False
        self._newest_batch = 0
        self._blame = Blame(self.limits)
        self._story = Story()
        self._models_changed = False
        self._out: list[Send] = []
        self._handlers: dict[type, Callable[..., None]] = {
            wire.FrontendHello: self._on_frontend_hello,
            wire.Submit: self._on_submit,
            wire.Cancel: self._on_cancel,
            wire.FrontendHeartbeat: self._on_frontend_heartbeat,
            wire.FrontendGoodbye: self._on_frontend_goodbye,
            wire.WorkerHello: self._on_worker_hello,
            wire.WorkerHeartbeat: self._on_worker_heartbeat,
            wire.BatchResult: self._on_result,
            wire.BatchError: self._on_error,
            wire.WorkerDrain: self._on_worker_drain,
            wire.WorkerGoodbye: self._on_worker_goodbye,
        }

    # --- the doors ---------------------------------------------------------------------------------------------------

    def handle(self, peer: bytes, message: Message, now: float, frames: Sequence[Frame] = ()) -> list[Send]:
        """A message that `protocol.decode` accepted has come from a peer."""
        if isinstance(message, wire.WorkerLoading):
            self._models_changed |= self.loading.hear(message, now)
            return self._flush(now)
        handler = self._handlers[type(message)]
        known = self.ledger.by_peer.get(peer) or self.pool.workers.get(peer)
        if isinstance(message, wire.FrontendHello | wire.WorkerHello):
            if message.protocol_min <= wire.PROTOCOL_MAX and message.protocol_max >= wire.PROTOCOL_MIN:
                handler(peer, message, now)
            else:
                self.counters["peers_refused"] += 1
                text = f"the broker speaks protocol {wire.PROTOCOL_MIN} to {wire.PROTOCOL_MAX}"
                self._send(peer, wire.Goodbye(ErrorCode.PROTOCOL, text))
        elif known is None:
            self.counters["messages_without_session"] += 1
            self._send(peer, wire.Who())
        else:
            known.last_heard = now
            handler(known, message, now, frames)
        return self._flush(now)

    def tick(self, now: float, *, frontends_read: bool = True) -> list[Send]:
        """The time is `now`; due at the latest at `next_deadline()`.

        All that workers have sent must have been handled. `frontends_read`: so has all that frontends have sent.
        """
        for worker in self.pool.silent(now):
            self._evict(worker, ErrorCode.INTERNAL, "silent", now)
        for worker in self.pool.hung(now):
            self._evict(worker, ErrorCode.LEASE_EXPIRED, "its batch ran too long", now)
        for frontend in self.ledger.silent(now) if frontends_read else []:
            self._forget(frontend, now)
        for model in self.models.values():
            if model.queue and model.unserved(now, self.limits.worker_grace_s):
                self._fail_unserved(model, now)
        for name in [name for name, model in self.models.items() if model.unserved(now, FORGET_MODEL_S)]:
            del self.models[name]
            self._models_changed = True
        self._models_changed |= self.loading.forget(now)
        return self._flush(now)

    def lost(self, peer: bytes, now: float) -> list[Send]:
        """A send to the peer failed: its connection has ended."""
        worker = self.pool.workers.get(peer)
        if worker:
            self._evict(worker, ErrorCode.INTERNAL, "connection lost", now)
        frontend = self.ledger.by_peer.get(peer)
        if frontend:
            self._forget(frontend, now)
        return self._flush(now)

    def next_deadline(self) -> float | None:
        """The time at which `tick` must be called if nothing happens before; None: never."""
        times = [
            model.unserved_since + self.limits.worker_grace_s
            for model in self.models.values()
            if model.unserved_since is not None and model.queue
        ]
        others = (self.pool, self.ledger, self._blame, self.loading)
        times += [time for other in others if (time := other.next_deadline()) is not None]
        dispatch = next_dispatch(self.models, self.pool)
        return min([*times, dispatch] if dispatch is not None else times, default=None)

    def check(self) -> None:
        """Raise LocalProtocolError when an invariant is broken; called between doors."""
        check(self)

    def story(self, owner: bytes, request: int, position: int) -> list[str]:
        """What has happened to a job lately, a line each; `owner` is its frontend's uuid."""
        return self._story.tell(owner, request, position)

    def on_trial(self) -> list[Job]:
        """Open jobs that wait for a verdict instead of a worker."""
        return self._blame.on_trial()

    def drain(self) -> None:
        """Admit nothing more; what is admitted is still answered."""
        self.draining = True

    # --- frontends ---------------------------------------------------------------------------------------------------

    def _on_frontend_hello(self, peer: bytes, hello: wire.FrontendHello, now: float) -> None:
        # An old connection's session goes with what was sent into it; the frontend sends again what it still wants.
        for old in (self.ledger.by_uuid.get(hello.uuid), self.ledger.by_peer.get(peer)):
            if old and old.uuid in self.ledger.by_uuid and (old.uuid, old.peer) != (hello.uuid, peer):
                self._forget(old, now)
        if peer not in self.ledger.by_peer:
            self.ledger.join(peer, hello, now)
        frontend = self.ledger.by_peer[peer]
        frontend.last_heard, frontend.sent, frontend.received = now, 0, -1
        self._send(peer, outgoing.welcome(self, hello=0))
        self._send(peer, outgoing.catalogue(self))

    def _on_frontend_heartbeat(self, frontend: Frontend, message: wire.FrontendHeartbeat, *_: Any) -> None:
        frontend.received = message.received
        self._send(frontend.peer, outgoing.stats(self, metrics=message.metrics))

    def _on_frontend_goodbye(self, frontend: Frontend, _: Any, now: float, __: Any) -> None:
        self._forget(frontend, now)

    def _on_submit(self, frontend: Frontend, message: wire.Submit, now: float, frames: Sequence[Frame]) -> None:
        for submission, frame in zip(message.submissions, frames, strict=True):
            if submission.request in frontend.requests:
                self.counters["duplicate_requests"] += 1
                continue
            considered = consider(self, frontend, submission, frame, now)
            if isinstance(considered, Request):
                self._admit(frontend, considered, submission.client_tokens, now)
            else:
                self.counters["requests_rejected"] += 1
                self.metrics.rejected(considered.code)
                self._send(frontend.peer, wire.Failures([considered]))

    def _admit(self, frontend: Frontend, request: Request, client_tokens: int, now: float) -> None:
        self.ledger.enter(frontend, request)
        self.quotas.take(request.client, request.tokens, client_tokens, now)
        self.models[request.model].queue.push(request)
        self.counters["jobs_admitted"] += request.inputs
        self._story.note_request(now, "admitted", request.lane.name.lower(), request)

    def _on_cancel(self, frontend: Frontend, message: wire.Cancel, now: float, _: Any) -> None:
        for number in wire.unpack_u64(message.abandoned):
            if request := frontend.requests.get(number):
                for holder in request.holders:
                    self.abandonment.add(holder, request.open_jobs, now)
        for number in wire.unpack_u64(message.requests):
            if request := frontend.requests.get(number):
                self._cancel(request, now)

    def _forget(self, frontend: Frontend, now: float) -> None:
        """The frontend is gone: nobody waits for its jobs."""
        for request in list(frontend.requests.values()):
            self._cancel(request, now)
        self.ledger.leave(frontend)

    # --- workers -----------------------------------------------------------------------------------------------------

    def _on_worker_hello(self, peer: bytes, hello: wire.WorkerHello, now: float) -> None:
        for other in list(self.pool.workers.values()):
            if other.peer == peer or other.uuid == hello.uuid:
                self._evict(other, ErrorCode.DRAINING, "said hello anew", now, tell=other.peer != peer)
        self._blame.pardon(hello)
        for info in hello.models:
            served = self.pool.revision(info.name)
            if served not in (None, info.revision):
                self.counters["peers_refused"] += 1
                text = f"model {info.name!r} is served in revision {served}, not {info.revision}"
                self._send(peer, wire.Goodbye(ErrorCode.REVISION_CONFLICT, text))
                return
        self.pool.workers[peer] = Worker(peer, hello, now)
        self.loading.end(hello.uuid, [info.name for info in hello.models])
        self.counters["workers_joined"] += 1
        self.metrics.joined(self.pool.workers[peer])
        for info in hello.models:
            model = self.models.setdefault(info.name, Model(info))
            if model.info.revision != info.revision:
                self._fail_begun(model, now)
            model.info = msgspec.structs.replace(info, workers=0)
            model.unserved_since = None
        self._models_changed = True
        self._send(peer, outgoing.welcome(self, hello.number))

    def _on_worker_heartbeat(self, worker: Worker, message: wire.WorkerHeartbeat, *_: Any) -> None:
        worker.grant(message.credit, message.seen)
        self._send(worker.peer, wire.Heartbeat())

    def _on_worker_drain(self, worker: Worker, message: wire.WorkerDrain, now: float, _: Any) -> None:
        worker.draining = True
        for batch in wire.unpack_u64(message.unstarted):
            lease = worker.release(batch, now)
            if lease:
                self._requeue(lease)
        self._note_unserved(worker, now)

    def _on_worker_goodbye(self, worker: Worker, _: Any, now: float, __: Any) -> None:
        self._evict(worker, ErrorCode.DRAINING, "left", now)

    def _on_error(self, worker: Worker, message: wire.BatchError, now: float, _: Any) -> None:
        worker.grant(message.credit, message.seen)
        lease = worker.release(message.batch, now) if message.epoch == self.epoch else None
        if lease is None:
            self.counters["late_answers"] += 1
            return
        self._fail_batch(lease, message.code, message.text, now)

    def _on_result(self, worker: Worker, message: wire.BatchResult, now: float, frames: Sequence[Frame]) -> None:
        worker.grant(message.credit, message.seen)
        lease = worker.leases.get(message.batch) if message.epoch == self.epoch else None
        if lease is None:
            self.counters["late_answers"] += 1
            return
        if not fits(lease, message, worker.models[lease.model].dimension):
            worker.release(message.batch, now)
            self._fail_batch(lease, ErrorCode.DEVICE, "the worker's answer had another shape", now)
            self._evict(worker, ErrorCode.DRAINING, "answered a batch in another shape", now)
            return
        worker.release(message.batch, now)
        tokens, failed = wire.unpack_u32(message.tokens), {failure.position for failure in message.failures}
        # What was refused or only tokenised has cost no inference: its tokens would make the worker look fast.
        inferred = [
            count
            for position, count in enumerate(tokens)
            if position not in failed and not lease.options[position] & wire.Option.TOKENISE
        ]
        worker.learn(lease, sum(inferred), now)
        self.metrics.answered(worker, lease, message, sum(inferred))
        worker.answered_batches += 1
        self.counters["batches_answered"] += 1
        self.counters["batch_us"] += int((now - lease.since) * 1e6)
        worker.answered_jobs += len(lease.jobs)
        revision = worker.models[lease.model].revision
        for share in share_out(lease, message, memoryview(frames[0]), revision):
            self._story.note_jobs(now, "ended", f"with its vector from batch {lease.batch}", share.jobs)
            frontend = self.ledger.by_uuid[share.owner]
            frontend.sent += len(share.frame)
            self._send(frontend.peer, share.message, [share.frame])
            self.counters["jobs_answered"] += len(share.jobs)
            self.metrics.ended("answered", len(share.jobs))
            for job in share.jobs:
                self._close(job)
        for failure in message.failures:
            if lease.jobs[failure.position].open:
                self._fail_job(lease.jobs[failure.position], failure.code, failure.text, now)
        self._learn_lengths(lease, message, failed)

    def _learn_lengths(self, lease: Lease, message: wire.BatchResult, failed: set[int]) -> None:
        """The exact lengths of a batch's jobs are known."""
        tokens, cut = wire.unpack_u32(message.tokens), wire.unpack_u32(message.cut) or [0] * len(lease.jobs)
        served = [(at, job) for at, job in enumerate(lease.jobs) if at not in failed]
        for at, job in served:
            if not lease.options[at] & wire.Option.TOKENISE:
                self.quotas.settle(job.request.client, job.tokens, tokens[at])
        texts = [(tokens[at] + cut[at], job.bytes) for at, job in served if job.request.kind == wire.Kind.TEXT]
        model = self.models[lease.model]
        model.learn(len(texts), sum(count for count, _ in texts), sum(size for _, size in texts))

    def _evict(self, worker: Worker, code: ErrorCode, reason: str, now: float, *, tell: bool = True) -> None:
        """Drop a worker and requeue what it holds. Unless it left or was leaving, what ran can have caused its end."""
        del self.pool.workers[worker.peer]
        self.metrics.left(worker, reason)
        # So that a worker that takes too long to drain may be killed.
        blame = code == ErrorCode.LEASE_EXPIRED or (code == ErrorCode.INTERNAL and not worker.draining)
        self.counters["workers_left" if code == ErrorCode.DRAINING else "workers_evicted"] += 1
        blamed = worker.running() if blame else []
        for lease in reversed(worker.leases.values()):
            self._story.note_jobs(now, "returned", f"from batch {lease.batch}: {worker.name} {reason}", lease.jobs)
            if lease in blamed:
                lease.jobs = self._blame.crashed(worker, lease, now)
            self._requeue(lease)
        if tell:
            text = f"{worker.name}: {reason}, {len(worker.leases)} batches go back"
            self._send(worker.peer, wire.Goodbye(code, text))
        self._note_unserved(worker, now)

    def _note_unserved(self, worker: Worker, now: float) -> None:
        """The worker takes nothing more: its models may have no other."""
        self._models_changed = True
        for name in worker.models:
            if self.pool.live_model(name) is None and self.models[name].unserved_since is None:
                self.models[name].unserved_since = now

    def _judge(self, now: float) -> None:
        """End the trials that are over."""
        poison, free = self._blame.verdicts(now)
        for job in poison:
            self._blame.block(job, now)
            self._fail_job(job, ErrorCode.POISON, POISON, now)
        for job in free:
            self.models[job.request.model].queue.push_back([job])

    def _fail_batch(self, lease: Lease, code: ErrorCode, text: str, now: float) -> None:
        """A batch failed and its worker lives."""
        self.counters["batches_failed"] += 1
        self._story.note_jobs(now, "failed", f"in batch {lease.batch}: {text}", lease.jobs)
        for job in self._blame.failed(lease):
            self._fail_job(job, code, text, now)
        self._requeue(lease)

    def _requeue(self, lease: Lease) -> None:
        jobs = [job for job in lease.jobs if job.open]
        self.models[lease.model].queue.push_back(jobs)
        self.counters["jobs_requeued"] += len(jobs)
        self.metrics.requeued(lease.model, len(jobs))

    # --- dispatch ----------------------------------------------------------------------------------------------------

    def _dispatch(self, now: float) -> None:
        waiting = [(model.queue.find_oldest(), name) for name, model in self.models.items() if model.queue]
        for _, name in sorted(waiting):
            while chosen := next_batch(self.models, self.pool, name, now):
                worker, jobs = chosen
                if not jobs:
                    raise LocalProtocolError(f"a batch of {name!r} for {worker.name} has no job")
                if jobs := self._refuse_poison(jobs, now):
                    self._lease(worker, jobs, name, now)

    def _refuse_poison(self, jobs: list[Job], now: float) -> list[Job]:
        """Fail the jobs that are known to end their worker, and return the others."""
        blocked = self._blame.find_blocked(jobs, now)
        for job in blocked:
            self.counters["jobs_blocked"] += 1
            self._fail_job(job, ErrorCode.POISON, POISON, now)
        return [job for job in jobs if job.open] if blocked else jobs

    def _lease(self, worker: Worker, jobs: list[Job], model: str, now: float) -> None:
        # A frontend's rows must be adjacent; the rest of the order is for whoever reads a log.
        jobs.sort(key=lambda job: job.key)
        self._newest_batch = number = self._newest_batch + 1
        lane = jobs[0].request.lane
        lease = Lease(number, model, lane, jobs, now)
        worker.lease(lease)
        self._story.note_jobs(now, "dispatched", f"in batch {number} to {worker.name}", jobs)
        for job in jobs:
            job.dispatched = now
        self.counters["batches_dispatched"] += 1
        self.counters["jobs_dispatched"] += len(jobs)
        self.metrics.dispatched(worker, lease, now)
        kinds = bytes(job.request.kind for job in jobs)
        lengths = wire.pack_u32(job.bytes for job in jobs)
        options = lease.options if any(lease.options) else b""
        requests = dict.fromkeys(job.request for job in jobs)
        origins = [request.origin for request in requests if request.origin.request_id]
        batch = wire.Batch(self.epoch, number, model, kinds, lengths, lane, options, origins)
        self._send(worker.peer, batch, [b"".join(job.payload for job in jobs)])

    # --- ends of jobs and requests -----------------------------------------------------------------------------------

    def _fail_job(self, job: Job, code: ErrorCode, text: str, now: float) -> None:
        """An open job ends without a vector."""
        self._story.note_jobs(now, "ended", code.name, [job])
        self.counters["jobs_failed"] += 1
        self.metrics.ended(code.name.lower())
        failure = Failure(job.request.number, job.position, code, text)
        self._send(self.ledger.by_uuid[job.request.owner].peer, wire.Failures([failure]))
        self._close(job)

    def _fail_request(self, request: Request, code: ErrorCode, text: str, now: float) -> None:
        """All that is open of a request ends without a vector."""
        self.counters["jobs_failed"] += request.open_jobs
        self.metrics.ended(code.name.lower(), request.open_jobs)
        self._story.note_request(now, "ended", code.name, request)
        failure = Failure(request.number, -1, code, text, 5000)
        self._send(self.ledger.by_uuid[request.owner].peer, wire.Failures([failure]))
        self._close_request(request)

    def _fail_unserved(self, model: Model, now: float) -> None:
        text = f"no worker that serves {model.info.name!r} is connected"
        waiting = dict.fromkeys(request for request, _ in model.queue.list_waiting())
        for request in itertools.islice(waiting, MAX_EXPIRED):
            self._fail_request(request, ErrorCode.NO_WORKER, text, now)

    def _fail_begun(self, model: Model, now: float) -> None:
        """Another revision takes over: what has vectors of the old one already must not get any of the new one."""
        waiting = [request for request, _ in model.queue.list_waiting()]
        on_trial = [job.request for job in self.on_trial() if job.request.model == model.info.name]
        for request in dict.fromkeys([*waiting, *on_trial]):
            if request.open_jobs < request.inputs:
                text = describe_replaced_model(model.info.name)
                self._fail_request(request, ErrorCode.NO_WORKER, text, now)

    def _cancel(self, request: Request, now: float) -> None:
        self._story.note_request(now, "ended", "cancelled", request)
        self.counters["jobs_cancelled"] += request.open_jobs
        self.metrics.ended("cancelled", request.open_jobs)
        self._close_request(request)

    def _close_request(self, request: Request) -> None:
        self.models[request.model].queue.discard(request)
        self.ledger.close_request(request)

    def _close(self, job: Job) -> None:
        """End a job that does not wait in the queue."""
        if not job.open:
            story = "; ".join(self.story(*job.key))
            raise LocalProtocolError(f"job {job.position} of request {job.request.number} ends twice: {story}")
        self.ledger.close(job)

    # --- output ------------------------------------------------------------------------------------------------------

    def _send(self, peer: bytes, message: Message, frames: Sequence[Frame] = ()) -> None:
        self._out.append(Send(peer, message, frames))

    def _flush(self, now: float) -> list[Send]:
        """What every door ends with: expire, dispatch, tell frontends of changed models, hand out all messages."""
        for request in self.ledger.pop_expired(now):
            text = "the request's deadline passed before all of it was answered"
            self._fail_request(request, ErrorCode.DEADLINE, text, now)
        self._judge(now)
        self._dispatch(now)
        if self._models_changed:
            self._models_changed = False
            for peer in self.ledger.by_peer:
                self._send(peer, outgoing.catalogue(self))
        out, self._out = self._out, []
        return out
