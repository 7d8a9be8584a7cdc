"""Scheduler: admits requests, batches jobs across requests, leases batches to workers, answers each job exactly once.

Pure: no socket, clock, randomness, thread or log. Messages and times are arguments, and the messages to send are return
values. `handle`, `tick`, `lost` and `drain` are the only ways to change the state. A peer is an opaque byte string.

Jobs and workers are state machines; ARCHITECTURE.md has their transition tables:

    job:     QUEUED → LEASED → answered    QUEUED or LEASED → failed or cancelled    LEASED → QUEUED (requeued)
             QUEUED → answered from the cache    QUEUED → FOLLOWING (an equal job) → answered, failed or QUEUED
    worker:  READY → DRAINING → gone       READY or DRAINING → evicted

No message makes `handle` raise. A late, unknown or contradictory message is counted and ignored, or ends the peer's
session. `LocalProtocolError` means a bug in the broker.
"""

from collections.abc import Iterable, Sequence

from broker.core import outgoing
from broker.core.admission import Admission
from broker.core.dispatch import dispatch_waiting, next_dispatch_at
from broker.core.events import EvictionReason
from broker.core.eviction import evict_worker, mark_unserved
from broker.core.gauges import list_gauges
from broker.core.invariants import check_state
from broker.core.jobs import Request
from broker.core.ledger import Frontend
from broker.core.limits import Limits
from broker.core.metrics import Family
from broker.core.outbox import Send
from broker.core.outcomes import (
    cancel_request,
    compute_grace_s,
    end_trials,
    fail_expired,
    fail_unserved,
    requeue_lease,
)
from broker.core.results import receive_error, receive_result
from broker.core.reuse import look_up_waiting, settle_followers
from broker.core.revisions import (
    announce_models,
    ask_for_models,
    change_models,
    forget_models,
    list_strays,
    next_change_at,
    release_models,
    restore_revisions,
)
from broker.core.state import State
from broker.core.worker import Worker
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode, LocalProtocolError, quote
from broker.wire.protocol import Frame, Message


class Scheduler:
    """The broker's decisions; see the module's docstring."""

    def __init__(self, epoch: int, limits: Limits | None = None) -> None:
        self.state = State(epoch, limits or Limits())
        #: Latest time of a message.
        self._handled_at = 0.0

    # --- inputs ------------------------------------------------------------------------------------------------------

    def handle(self, peer: bytes, message: Message, now: float, frames: Sequence[Frame] = ()) -> list[Send]:
        """Process a decoded message of a peer. Return the messages to send."""
        self._handled_at = max(self._handled_at, now)
        frontend, worker = self.state.ledger.by_peer.get(peer), self.state.pool.workers.get(peer)
        if isinstance(message, wire.WorkerLoading):
            self.state.models_changed |= self.state.loading.record_notice(peer, message, now)
        elif isinstance(message, wire.FrontendHello | wire.WorkerHello):
            self._handle_hello(peer, message, now)
        elif frontend:
            frontend.last_heard = now
            self._handle_frontend(frontend, message, now, frames)
        elif worker:
            worker.last_heard = now
            self._handle_worker(worker, message, now, frames)
        else:
            self.state.events.message_unexpected()
            self.state.outbox.put(peer, wire.Who())
        return self._finish_call(now)

    def tick(self, now: float, *, frontends_read: bool = True) -> list[Send]:
        """Advance the time to `now`. Return the messages to send.

        Call `tick` at `next_deadline` at the latest, after all messages that workers have sent are handled.
        `frontends_read`: whether all messages that frontends have sent are handled, so that a frontend can be judged
        silent.
        """
        state = self.state
        # `now` may be from before those messages were read. No request arrives in the future.
        now = max(now, self._handled_at)
        for worker in state.pool.find_silent(now):
            evict_worker(state, worker, EvictionReason.SILENT, now)
        for worker in state.pool.find_hung(now):
            evict_worker(state, worker, EvictionReason.LEASE_EXPIRED, now)
        for frontend in state.ledger.find_silent(now) if frontends_read else []:
            self._remove_frontend(frontend, now)
        restore_revisions(state, now)
        # Cleared jobs and followers return to their queue, and fail there if their model has no worker.
        end_trials(state, now)
        settle_followers(state, now)
        for model in state.models.values():
            if model.queue and model.is_unserved(now, compute_grace_s(state, model)):
                fail_unserved(state, model, now)
        forget_models(state, now)
        state.models_changed |= state.loading.drop_expired(now)
        return self._finish_call(now, settled=True)

    def lost(self, peer: bytes, now: float) -> list[Send]:
        """Remove a peer because its connection has ended. Return the messages to send."""
        worker = self.state.pool.workers.get(peer)
        if worker:
            evict_worker(self.state, worker, EvictionReason.CONNECTION_LOST, now)
        frontend = self.state.ledger.by_peer.get(peer)
        if frontend:
            self._remove_frontend(frontend, now)
        return self._finish_call(now)

    def revoke(self, peer: bytes, now: float) -> list[Send]:
        """Remove a peer because its key was revoked, and forget its notice. Return the messages to send."""
        self.state.models_changed |= self.state.loading.drop_peer(peer)
        return self.lost(peer, now)

    def drain(self) -> None:
        """Reject new requests from now on. Admitted jobs are still answered; those without a worker fail."""
        self.state.draining = True

    def _finish_call(self, now: float, *, settled: bool = False) -> list[Send]:
        """Fail expired requests, look up inputs, dispatch, and return all messages to send, with changed models."""
        state = self.state
        state.coalescing.due = None
        fail_expired(state, now)
        end_trials(state, now)
        if not settled:
            settle_followers(state, now)
        look_up_waiting(state, now)
        dispatch_waiting(state, now)
        if state.coalescing.settlements:
            state.coalescing.due = now
        release_models(state, now)
        ask_for_models(state, now)
        if state.models_changed:
            state.models_changed = False
            for peer in state.ledger.by_peer:
                state.outbox.put(peer, outgoing.build_models(state))
        for owner, reloaded in state.reloads.take_ended(state.pool.workers):
            if frontend := state.ledger.by_uuid.get(owner):
                state.outbox.put(frontend.peer, reloaded)
        return state.outbox.take_all()

    # --- queries -----------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """Return when `tick` must be called at the latest; None if no time matters."""
        state = self.state
        times = [
            model.unserved_since + compute_grace_s(state, model)
            for model in state.models.values()
            if model.unserved_since is not None and model.queue
        ]
        others = (state.pool, state.ledger, state.blame, state.loading, state.coalescing)
        times += [time for other in others if (time := other.next_deadline()) is not None]
        calls = (next_dispatch_at(state.models, state.pool), next_change_at(state))
        return min([*times, *(time for time in calls if time is not None)], default=None)

    @property
    def open_jobs(self) -> int:
        """Number of admitted jobs that have not ended."""
        return self.state.ledger.jobs

    @property
    def peers(self) -> set[bytes]:
        """Peers with a session."""
        return self.state.ledger.by_peer.keys() | self.state.pool.workers.keys()

    @property
    def trusted_peers(self) -> set[bytes]:
        """Peers with a session, and those that the state has a notice of."""
        return self.peers | self.state.loading.peers

    def build_probes(self, peers: Iterable[bytes]) -> list[Send]:
        """Return a harmless message for each of these peers, which must have a session, to detect dead connections."""
        models, workers = outgoing.build_models(self.state), self.state.pool.workers
        return [Send(peer, wire.Heartbeat() if peer in workers else models) for peer in peers]

    def find_worker_name(self, peer: bytes) -> str:
        """Return the name of a connected worker, for logs; empty if the peer is not a worker."""
        worker = self.state.pool.workers.get(peer)
        return worker.name if worker else ""

    def record_malformed(self) -> int:
        """Count a message that could not be decoded, and return the number of them so far."""
        return self.state.events.message_malformed()

    def count_totals(self) -> dict[str, int]:
        """Return the totals of all counters since the start, by name."""
        return self.state.events.metrics.count_totals()

    def collect_metrics(self) -> list[Family]:
        """Return a copy of all metrics, which another thread may read."""
        return [*self.state.events.metrics.list_families(), *list_gauges(self.state)]

    def check_invariants(self) -> None:
        """Raise `LocalProtocolError` if an invariant does not hold; call between two calls of the other methods."""
        check_state(self.state)

    def describe_job(self, owner: bytes, request: int, position: int) -> list[str]:
        """Return recent events of a job, one line each; `owner` is the frontend's uuid."""
        return self.state.events.history.describe_job(owner, request, position)

    # --- frontends ---------------------------------------------------------------------------------------------------

    def _handle_hello(self, peer: bytes, hello: wire.FrontendHello | wire.WorkerHello, now: float) -> None:
        if hello.protocol_min > wire.PROTOCOL_MAX or hello.protocol_max < wire.PROTOCOL_MIN:
            text = f"the broker supports protocol versions {wire.PROTOCOL_MIN} to {wire.PROTOCOL_MAX}"
            self._refuse_peer(peer, ErrorCode.PROTOCOL, text)
        elif isinstance(hello, wire.FrontendHello):
            self._greet_frontend(peer, hello, now)
        else:
            self._greet_worker(peer, hello, now)

    def _refuse_peer(self, peer: bytes, code: ErrorCode, text: str) -> None:
        self.state.events.peer_refused()
        self.state.outbox.put(peer, wire.Goodbye(code, text))

    def _handle_frontend(self, frontend: Frontend, message: Message, now: float, frames: Sequence[Frame]) -> None:
        match message:
            case wire.Submit():
                self._submit(frontend, message, now, frames)
            case wire.Cancel():
                self._cancel(frontend, message, now)
            case wire.FrontendHeartbeat():
                frontend.received = message.received
                self.state.outbox.put(frontend.peer, outgoing.build_stats(self.state))
            case wire.ReloadModels():
                number = self.state.reloads.begin(frontend.uuid, message.number, self.state.pool.workers)
                for peer in self.state.pool.workers:
                    self.state.outbox.put(peer, wire.Reload(number))
            case wire.FrontendGoodbye():
                self._remove_frontend(frontend, now)
            case _:
                raise LocalProtocolError(f"a frontend cannot send {type(message).__name__}")

    def _greet_frontend(self, peer: bytes, hello: wire.FrontendHello, now: float) -> None:
        state = self.state
        # What was sent into an old connection is lost. Its session ends, and the frontend submits open requests again.
        for old in (state.ledger.by_uuid.get(hello.uuid), state.ledger.by_peer.get(peer)):
            if old and old.uuid in state.ledger.by_uuid and (old.uuid, old.peer) != (hello.uuid, peer):
                self._remove_frontend(old, now)
        frontend = state.ledger.by_peer.get(peer) or state.ledger.add_frontend(peer, hello, now)
        frontend.last_heard, frontend.sent, frontend.received = now, 0, -1
        state.outbox.put(peer, outgoing.build_welcome(state, hello=0))
        state.outbox.put(peer, outgoing.build_models(state))

    def _submit(self, frontend: Frontend, message: wire.Submit, now: float, frames: Sequence[Frame]) -> None:
        state = self.state
        admission = Admission(state, frontend, now)
        for submission, frame in zip(message.submissions, frames, strict=True):
            if submission.request in frontend.requests:
                state.events.request_repeated()
                continue
            considered = admission.consider_request(submission, frame)
            if isinstance(considered, Request):
                self._admit(frontend, considered, submission.client_tokens, now)
            else:
                state.events.request_rejected(considered.code)
                state.outbox.put(frontend.peer, wire.Failures([considered]))

    def _admit(self, frontend: Frontend, request: Request, client_tokens: int, now: float) -> None:
        self.state.ledger.open_request(frontend, request)
        self.state.quotas.charge(request.client, request.tokens, client_tokens, now)
        self.state.models[request.model].queue.push(request)
        self.state.events.request_admitted(request, now)

    def _cancel(self, frontend: Frontend, message: wire.Cancel, now: float) -> None:
        for number in wire.unpack_u64(message.abandoned):
            if request := frontend.requests.get(number):
                for holder in request.holders:
                    self.state.abandonment.add_jobs(holder, request.open_jobs, now)
        for number in wire.unpack_u64(message.requests):
            if request := frontend.requests.get(number):
                cancel_request(self.state, request, now)

    def _remove_frontend(self, frontend: Frontend, now: float) -> None:
        """Cancel a frontend's requests and forget the frontend."""
        for request in list(frontend.requests.values()):
            cancel_request(self.state, request, now)
        self.state.ledger.remove_frontend(frontend)

    # --- workers -----------------------------------------------------------------------------------------------------

    def _handle_worker(self, worker: Worker, message: Message, now: float, frames: Sequence[Frame]) -> None:
        match message:
            case wire.BatchResult():
                receive_result(self.state, worker, message, frames, now)
            case wire.WorkerHeartbeat():
                worker.update_credit(message.credit, message.seen)
                if message.ping:
                    worker.answered_ping = message.ping
                else:
                    self.state.outbox.put(worker.peer, wire.Heartbeat())
            case wire.BatchError():
                receive_error(self.state, worker, message, now)
            case wire.WorkerModels():
                change_models(self.state, worker, message, now)
            case wire.Reloaded():
                self.state.reloads.record_answer(worker.peer, message)
            case wire.WorkerDrain():
                self._drain_worker(worker, message, now)
            case wire.WorkerGoodbye():
                evict_worker(self.state, worker, EvictionReason.LEFT, now)
            case _:
                raise LocalProtocolError(f"a worker cannot send {type(message).__name__}")

    def _greet_worker(self, peer: bytes, hello: wire.WorkerHello, now: float) -> None:
        state = self.state
        for other in list(state.pool.workers.values()):
            if other.peer == peer or other.uuid == hello.uuid:
                evict_worker(state, other, EvictionReason.REPLACED, now, notify=other.peer != peer)
        state.blame.clear_jobs(hello, now)
        strays = list_strays(state, hello.models)
        if strays and len(strays) == len(hello.models):
            served, stray = state.current[strays[0].name].revision, strays[0]
            text = f"other workers serve revision {served} of model {quote(stray.name)}, not {stray.revision}"
            self._refuse_peer(peer, ErrorCode.REVISION_CONFLICT, text)
            return
        worker = state.pool.add_worker(peer, hello, now)
        state.loading.finish_loading(hello.uuid, [info.name for info in hello.models])
        announce_models(state, worker, hello.models, now)
        state.events.worker_joined(worker)
        unused = [info.name for info in hello.models if state.current[info.name] != info.key]
        state.outbox.put(peer, outgoing.build_welcome(state, hello.number, unused))
        if state.pool.ping:
            state.outbox.put(peer, wire.Heartbeat(state.pool.ping))

    def _drain_worker(self, worker: Worker, message: wire.WorkerDrain, now: float) -> None:
        worker.draining = True
        for batch in wire.unpack_u64(message.unstarted):
            lease = worker.release_lease(batch, now)
            if lease:
                requeue_lease(self.state, lease)
        mark_unserved(self.state, worker, now)
