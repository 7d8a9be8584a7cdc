"""State machine test of the scheduler: peers send false and repeated messages, fall silent and disconnect.

hypothesis draws the configuration and the steps. Each call is followed by a check of all invariants, see
`tests/harness/core.py`. This machine checks that each admitted job is answered exactly once, with its own vector, to
the frontend that submitted the job, and that the totals agree with the metrics and with the messages. Each vector names
the batch that computed it: a job must be answered from a batch that had an equal input of the job's model and scope.
The test counts the events of all examples, because examples in which few events occur would show little.
"""

import itertools
import os
import struct
from collections import Counter
from collections.abc import Iterable
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from broker.core import dispatch, reuse
from broker.core.coalescing import Coalescing
from broker.core.jobs import Job
from broker.core.limits import Limits
from broker.core.metrics import Family
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from broker.wire.protocol import Caching, Kind, Lane, ModelKey, Option
from tests.harness.core import DIMENSION, EPOCH, Core, info, row

#: So many examples that the number of rare events hardly depends on the seed.
MANY = 1000
EXAMPLES = MANY if os.environ.get("CI") else 200
FRONTENDS = (b"F0", b"F1", b"F2")
#: Least number of events for each example, on average: at most a third of the usual number.
WANTED = {
    "jobs_admitted": 10.0,
    "jobs_answered": 1.5,
    "batches_dispatched": 3.0,
    "jobs_requeued": 2.0,
    "jobs_failed": 5.0,
    "jobs_cancelled": 1.0,
    "batches_failed": 0.1,
    "late_answers": 0.3,
    "duplicate_requests": 2.0,
    "requests_rejected": 1.0,
    "workers_evicted": 1.0,
    "workers_left": 0.3,
    "models_replaced": 0.3,
    "jobs_blocked": 0.1,
    # 0.04 in one run and three times as many in another.
    "cache_hits": 0.01,
    "cache_coalesced": 0.05,
    "cache_misses": 0.8,
    "cache_evictions": 0.03,
    "handed over": 0.05,
    "left for the next call": 0.1,
}
#: Texts that many requests have.
COMMON = ("aa", "ab", "bb")
#: Text that several requests have.
SAME = "the same"

#: Model, `Option` bits, `Caching` and scope of a request, and its texts.
Facts = tuple[str, int, Caching, str | bytes, list[str]]
#: Identity of a job: frontend, request number, position.
Key = tuple[bytes, int, int]
#: Batch that was sent: worker, number, texts.
Sent = tuple[bytes, int, list[str]]

#: Index of a peer or batch among the existing ones.
some = st.integers(0, 5)
#: Whether to choose any peer, so that the broker probably does not know the peer.
stranger = st.sampled_from([False, False, False, False, True])
requests = st.fixed_dictionaries(
    {
        "some": some,
        "lengths": st.lists(st.integers(0, 60), min_size=1, max_size=5),
        "client": st.sampled_from(["", "one", "two"]),
        # Limits of the key in jobs and in tokens per minute; 0 for no limit.
        "limits": st.sampled_from([(0, 0), (0, 0), (0, 0), (3, 0), (0, 100)]),
        "options": st.sampled_from([0, 0, Option.TOKENIZE, Option.TRUNCATE_END]),
        "budget_ms": st.sampled_from([30_000, 30_000, 5000, 50, 0]),
        "model": st.sampled_from(["m", "m", "m", "n"]),
        "revision": st.sampled_from(["", "", "r", "s"]),
        "resend": st.booleans(),
        "again": st.booleans(),
        "common": st.booleans(),
        "caching": st.sampled_from([*(5 * [Caching.USE]), Caching.REFRESH, Caching.SKIP]),
        "unprepared": stranger,
        "count": st.integers(1, 3),
        "work": st.booleans(),
    }
)


class Machine(RuleBasedStateMachine):
    """Connections of frontends F0 to F2 and workers W0 to W9."""

    #: Totals of the schedulers of all examples.
    seen: ClassVar[Counter[str]] = Counter()

    @initialize(
        liveness=st.sampled_from([3.5, 1.0]),
        lease=st.sampled_from([60.0, 0.5]),
        grace=st.sampled_from([5.0, 0.0]),
        jobs=st.sampled_from([1000, 1000, 1000, 3]),
        tokens=st.sampled_from([10**6, 10**6, 10**6, 20]),
        share=st.sampled_from([1.0, 1.0, 1.0, 0.3]),
        wait=st.sampled_from([1000.0, 1000.0, 1000.0, 0.01]),
        crashes=st.integers(1, 3),
        poison=st.booleans(),
        cache_bytes=st.sampled_from([0, 1000, 10**6]),
        cache_scope=st.sampled_from(["key", "key", "all"]),
    )
    def configure(
        self,
        liveness: float,
        lease: float,
        grace: float,
        jobs: int,
        tokens: int,
        share: float,
        wait: float,
        crashes: int,
        poison: bool,
        cache_bytes: int,
        cache_scope: Any,
    ) -> None:
        limits = Limits(
            liveness_s=liveness,
            lease_s=lease,
            worker_grace_s=grace,
            max_jobs=jobs,
            max_tokens=tokens,
            max_client_share=share,
            max_wait_s=wait,
            max_crashes=crashes,
            cache_bytes=cache_bytes,
            cache_scope=cache_scope,
        )
        self.core = Core(limits, cache=True)
        self.core.marks_batches = True
        self.shared_by_all = cache_scope == "all"
        #: Requests by number, and for each batch its requests, which its origins name, and its texts.
        self.facts: dict[int, Facts] = {}
        self.batch_facts: dict[int, tuple[list[Facts], list[str]]] = {}
        #: Whether `SAME` crashes every worker that runs it.
        self.poison = poison
        self.connected: set[bytes] = set()
        self.requests = 0
        #: Expected row of each open job, and the jobs that have ended.
        self.open: dict[Key, bytes] = {}
        self.ended: set[Key] = set()
        #: Batches without an answer, oldest first, and batches with one.
        self.unanswered: list[Sent] = []
        self.answered: list[Sent] = []
        #: Workers that drain or are gone, and so must get no batch.
        self.closed_workers: set[bytes] = set()
        #: Batches and rows that were sent.
        self.sent_batches = self.sent_rows = 0

    def choose_frontend(self, some: int, stranger: bool) -> bytes:
        """Return a connected frontend, or any frontend for a stranger."""
        known = sorted(self.connected)
        return b"F%d" % (some % 3) if stranger or not known else known[some % len(known)]

    def choose_worker(self, some: int, stranger: bool) -> bytes:
        """Return a worker that the broker knows, or any worker for a stranger."""
        known = sorted(self.core.scheduler.state.pool.workers)
        return b"W%d" % some if stranger or not known else known[some % len(known)]

    # --- frontends ---------------------------------------------------------------------------------------------------

    @rule(name=st.integers(0, 2))
    def connect_frontend(self, name: int) -> None:
        peer = b"F%d" % name
        self.core.frontend(peer)
        self.connected.add(peer)
        self.check_sent()

    @rule(request=requests)
    def submit_interactive(self, request: dict[str, Any]) -> None:
        self.submit_requests(Lane.INTERACTIVE, **request)

    @rule(request=requests)
    def submit_bulk(self, request: dict[str, Any]) -> None:
        self.submit_requests(Lane.BULK, **request)

    @rule(request=requests, next_request=requests)
    def submit_in_both_lanes(self, request: dict[str, Any], next_request: dict[str, Any]) -> None:
        self.submit_requests(Lane.BULK, **request)
        self.submit_requests(Lane.INTERACTIVE, **next_request)

    def submit_requests(
        self,
        lane: Lane,
        *,
        some: int,
        lengths: list[int],
        client: str,
        limits: tuple[int, int],
        options: int,
        budget_ms: int,
        model: str,
        revision: str,
        resend: bool,
        again: bool,
        common: bool,
        caching: Caching,
        unprepared: bool,
        count: int,
        work: bool,
    ) -> None:
        """Submit requests: some are sent twice, some are empty, and some have the text `SAME`."""
        if work:
            self.answer_all_batches()
        if unprepared and again:
            lengths = []
        if not unprepared:
            self.connect_peers(model)
        for number in range(count):
            peer = self.choose_frontend(some + number, unprepared)
            self.requests += 1
            texts = [f"{self.requests}-{position}".ljust(length, "x") for position, length in enumerate(lengths)]
            if common:
                texts = [COMMON[length % len(COMMON)] for length in lengths]
            texts[:1] = [SAME if again else text for text in texts[:1]]
            payloads = [text.encode() for text in texts]
            packed = wire.pack_u32(map(len, payloads))
            origin = wire.Origin(str(self.requests))
            submission = wire.Submission(
                *(self.requests, model, lane, client, budget_ms, Kind.TEXT, packed, options, origin, *limits),
                revision=revision,
                caching=caching,
            )
            scope = "" if self.shared_by_all else client or peer
            self.facts[self.requests] = (model, int(options), caching, scope, texts)
            if peer in self.connected:
                for position, text in enumerate(texts):
                    self.open[peer, self.requests, position] = row(text, options)
            for _ in range(1 + resend):
                known = {key for key in self.open if key[:2] == (peer, self.requests)}
                if known or not texts or peer not in self.connected:
                    self.core.handle(peer, wire.Submit([submission]), b"".join(payloads))
                    self.check_sent()

    def connect_peers(self, model: str) -> None:
        """Connect frontends, and a worker of the model, if there are none."""
        if not self.connected:
            self.connect_frontend(0)
            self.connect_frontend(1)
        pool = self.core.scheduler.state.pool
        if pool.find_live_model(self.core.scheduler.state.current.get(model, ModelKey(model, ""))) is None:
            free = next(name for name in itertools.count() if b"W%d" % name not in pool.workers)
            self.closed_workers.discard(b"W%d" % free)
            current = self.core.scheduler.state.current.get(model, ModelKey(model, "r"))
            revision = current.revision if pool.has_worker(current) else "r"
            self.core.worker(b"W%d" % free, model=model, revision=revision)
            self.check_sent()

    @rule(some=some, back=st.integers(0, 5), stranger=stranger)
    def cancel_request(self, some: int, back: int, stranger: bool) -> None:
        """Cancel an open request, or for a stranger a request of another frontend or one that does not exist."""
        peer, request = self.choose_frontend(some, stranger), max(0, self.requests - back)
        if self.open and not stranger:
            peer, request, _ = list(self.open)[back % len(self.open)]
        self.core.handle(peer, wire.Cancel(wire.pack_u64([request])))
        self.forget_jobs({key for key in self.open if key[:2] == (peer, request)})
        self.check_sent()

    @rule(some=some, lost=st.booleans(), stranger=stranger)
    def disconnect_frontend(self, some: int, lost: bool, stranger: bool) -> None:
        peer = self.choose_frontend(some, stranger)
        self.core.lost(peer) if lost else self.core.handle(peer, wire.FrontendGoodbye())
        self.connected.discard(peer)
        self.forget_jobs({key for key in self.open if key[0] == peer})
        self.check_sent()

    # --- workers -----------------------------------------------------------------------------------------------------

    @rule(
        name=st.integers(0, 5),
        model=st.sampled_from(["m", "m", "n"]),
        revision=st.sampled_from(["r", "r", "r", "s"]),
        credit=st.sampled_from([2, 3, 1, 0]),
        batch_tokens=st.sampled_from([1, 20, 1000]),
        speed=st.sampled_from([1, 1000, 10**6]),
        same=st.sampled_from([False, False, True]),
    )
    def connect_worker(
        self, name: int, model: str, revision: str, credit: int, batch_tokens: int, speed: int, same: bool
    ) -> None:
        """Connect a worker, or repeat its hello; some workers have the uuid of one process."""
        peer, uuid = b"W%d" % name, b"same" if same else b"W%d" % name
        self.closed_workers.discard(peer)
        self.core.worker(
            peer,
            model=model,
            revision=revision,
            credit=credit,
            batch_tokens=batch_tokens,
            tokens_per_s=speed,
            uuid=uuid,
        )
        self.check_sent()

    @rule(some=some, model=st.sampled_from(["m", "n", "o"]), failure=st.sampled_from(["", "broken"]), stranger=stranger)
    def send_loading_notice(self, some: int, model: str, failure: str, stranger: bool) -> None:
        peer = self.choose_worker(some, stranger)
        self.core.handle(peer, wire.WorkerLoading(peer.ljust(16, b"."), "host", 1, model, failure))
        self.check_sent()

    @rule(
        some=some,
        revisions=st.dictionaries(st.sampled_from("mmn"), st.sampled_from("rst"), max_size=2),
        unloaded=st.sampled_from(["", "", "m", "mn"]),
        number=st.integers(0, 5),
        stranger=stranger,
    )
    def announce_models(self, some: int, revisions: dict[str, str], unloaded: str, number: int, stranger: bool) -> None:
        """Add, replace, remove and unload models of a worker."""
        infos = [info(name, revision, unloaded=name in unloaded) for name, revision in revisions.items()]
        self.core.announce(*infos, peer=self.choose_worker(some, stranger), number=number)
        self.check_sent()

    @rule(some=some, credit=st.integers(0, 3), seen=st.integers(0, 50), stranger=stranger)
    def send_heartbeat(self, some: int, credit: int, seen: int, stranger: bool) -> None:
        self.core.handle(self.choose_worker(some, stranger), wire.WorkerHeartbeat(credit, seen))
        self.check_sent()

    @rule(some=some, stranger=stranger)
    def toggle_pings(self, some: int, stranger: bool) -> None:
        """Let a worker answer no ping any more, or answer the newest one and those to come."""
        peer = self.choose_worker(some, stranger)
        self.core.silent ^= {peer}
        if peer not in self.core.silent:
            self.core.answer_ping(peer, self.core.scheduler.state.pool.ping)
        self.check_sent()

    @rule()
    def answer_all_batches(self) -> None:
        """Answer every batch without an answer, or lose its worker if the batch has poison."""
        for batch in list(self.unanswered):
            self.core.lost(batch[0]) if self.poison and SAME in batch[2] else self.core.answer(batch)
            self.answered.append(batch)
            self.unanswered.remove(batch)
            self.check_sent()

    @precondition(lambda self: self.poison)
    @rule(request=requests)
    def crash_with_poison(self, request: dict[str, Any]) -> None:
        """Run poison until the broker blocks it."""
        for _ in range(3):
            self.submit_requests(
                Lane.INTERACTIVE, **request | {"again": True, "unprepared": False, "budget_ms": 30_000}
            )
            self.answer_all_batches()
            self.advance_clock(5.0)

    @precondition(lambda self: self.unanswered)
    @rule(some=some, failing=st.sets(st.integers(0, 4)))
    def answer_batch(self, some: int, failing: set[int]) -> None:
        """Answer one batch out of order, with some of its jobs rejected."""
        batch = self.unanswered.pop(some % len(self.unanswered))
        self.answered.append(batch)
        failures = [
            wire.JobFailure(position, ErrorCode.TOO_LONG, "long") for position in failing if position < len(batch[2])
        ]
        self.core.answer(batch, failures=failures)
        self.check_sent()

    @precondition(lambda self: self.answered)
    @rule(some=some)
    def repeat_answer(self, some: int) -> None:
        self.core.answer(self.answered[-1 - some % len(self.answered)])
        self.check_sent()

    @precondition(lambda self: self.unanswered)
    @rule(some=some, epoch=st.sampled_from([EPOCH, EPOCH, EPOCH + 1]))
    def fail_batch(self, some: int, epoch: int) -> None:
        peer, number, _ = self.unanswered[some % len(self.unanswered)]
        self.core.handle(peer, wire.BatchError(epoch, number, ErrorCode.DEVICE, "failed", 2, number))
        self.check_sent()

    @precondition(lambda self: self.unanswered)
    @rule(some=some, rows=st.integers(0, 6), epoch=st.sampled_from([EPOCH, EPOCH, 9]))
    def send_false_result(self, some: int, rows: int, epoch: int) -> None:
        """Answer a batch with a wrong number of rows or a wrong epoch."""
        peer, number, texts = self.unanswered[some % len(self.unanswered)]
        if rows == len(texts) and epoch == EPOCH:
            rows += 1
        result = wire.BatchResult(epoch, number, DIMENSION, wire.pack_u32([1] * rows), [], 1, 2, number)
        self.core.handle(peer, result, bytes(rows * DIMENSION * 4))
        self.check_sent()

    @rule(some=some, give_back=st.booleans(), batch=st.integers(0, 30), stranger=stranger)
    def drain_worker(self, some: int, give_back: bool, batch: int, stranger: bool) -> None:
        """Drain a worker that returns all its batches, or a batch of any worker."""
        peer = self.choose_worker(some, stranger)
        own_batches = [number for owner, number, _ in self.unanswered if owner == peer]
        self.closed_workers.add(peer)
        self.core.handle(peer, wire.WorkerDrain(wire.pack_u64(own_batches if give_back else [batch])))
        self.check_sent()

    @rule(some=some, lost=st.booleans(), stranger=stranger)
    def disconnect_worker(self, some: int, lost: bool, stranger: bool) -> None:
        peer = self.choose_worker(some, stranger)
        self.closed_workers.add(peer)
        self.core.lost(peer) if lost else self.core.handle(peer, wire.WorkerGoodbye())
        self.check_sent()

    # --- time --------------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.3, 1.0, 10.0]))
    def advance_clock(self, seconds: float) -> None:
        """Advance the clock while all peers send heartbeats."""
        for _ in range(max(1, round(seconds / 0.5))):
            for peer in list(self.core.scheduler.state.ledger.by_peer):
                self.core.handle(peer, wire.FrontendHeartbeat())
            for peer, worker in list(self.core.scheduler.state.pool.workers.items()):
                credit = 0 if worker.draining else max(0, 2 - len(worker.leases))
                self.core.handle(peer, wire.WorkerHeartbeat(credit, 10**6))
            self.core.tick(min(seconds, 0.5))
        self.check_sent()

    @rule(seconds=st.sampled_from([0.3, 1.0, 3600.0]))
    def jump_in_time(self, seconds: float) -> None:
        """Advance the clock in one step, without any message."""
        self.core.tick(seconds)
        self.check_sent()

    @rule()
    def advance_to_deadline(self) -> None:
        due = self.core.scheduler.next_deadline()
        if due is not None:
            self.core.now = max(self.core.now, due)
            self.core.tick()
            while self.core.scheduler.state.coalescing.due is not None:
                self.core.tick()
            after = self.core.scheduler.next_deadline()
            assert after is None or after > self.core.now, "an expired timer survives"
        self.check_sent()

    # --- history -----------------------------------------------------------------------------------------------------

    def check_sent(self) -> None:
        """Check that each batch is for a ready worker, and that each answer is right, expected and the only one."""
        self.seen["left for the next call"] += self.core.scheduler.state.coalescing.due is not None
        for _, message, frames in self.core.list_sent(wire.Batch):
            texts = wire.split_frame(frames[0], wire.unpack_u32(message.lengths))
            requests = [self.facts[int(origin.request_id)] for origin in message.origins]
            self.batch_facts[message.batch] = requests, [str(text, "utf-8") for text in texts]
        for batch in self.core.batches():
            assert batch[0] not in self.closed_workers, "a worker that drains or is gone gets a batch"
            self.unanswered.append(batch)
            self.sent_batches += 1
        for peer in FRONTENDS:
            for (request, position), answer in self.core.answers(peer).items():
                self.check_row(answer, self.open.pop((peer, request, position)), self.facts[request], position)
                self.end_job((peer, request, position))
                self.sent_rows += 1
            for request, position, _ in self.core.failures(peer):
                whole = {key for key in self.open if key[:2] == (peer, request)}
                keys = {(peer, request, position)} if position >= 0 else whole
                for key in keys:
                    del self.open[key]
                    self.end_job(key)
        known = {uuid.rstrip(b".") for uuid in self.core.scheduler.state.ledger.by_uuid}
        for peer in self.connected - known:
            # The broker removed the frontend because it was silent.
            self.connected.discard(peer)
            self.forget_jobs({key for key in self.open if key[0] == peer})

    def check_row(self, answer: bytes, expected: bytes, facts: Facts, position: int) -> None:
        """Check that an answer is right, and that a request which may share its result has computed it."""
        model, options, caching, scope, texts = facts
        if options & Option.TOKENIZE:
            assert answer == expected
            return
        assert answer[:-4] == expected[:-4]
        requests, batch_texts = self.batch_facts[int(struct.unpack("<f", answer[-4:])[0])]
        assert texts[position] in batch_texts
        if caching == Caching.USE:
            sharing = [
                other
                for other in requests
                if (other[0], other[1], other[3]) == (model, options, scope)
                and texts[position] in other[4]
                and other[2] != Caching.SKIP
            ]
            assert sharing, "the result of another model, scope or input"
        else:
            assert facts in requests, "a result of another request"

    def end_job(self, key: Key) -> None:
        assert key not in self.ended, "answered twice"
        self.ended.add(key)

    def forget_jobs(self, keys: set[Key]) -> None:
        """Forget open jobs, which must not be answered any more."""
        for key in keys:
            del self.open[key]

    @invariant()
    def scheduler_and_frontends_agree_on_open_jobs(self) -> None:
        if hasattr(self, "core"):
            assert self.core.scheduler.state.ledger.jobs == len(self.open)

    @invariant()
    def totals_agree_with_metrics_and_messages(self) -> None:
        if hasattr(self, "core"):
            totals = self.core.scheduler.count_totals()
            check_totals(totals, self.core.scheduler.collect_metrics())
            state = self.core.scheduler.state
            ended = totals["jobs_answered"] + totals["jobs_failed"] + totals["jobs_cancelled"]
            assert totals["jobs_admitted"] == ended + state.ledger.jobs
            gone = totals["workers_left"] + totals["workers_evicted"]
            assert totals["workers_joined"] == gone + len(state.pool.workers)
            assert (totals["batches_dispatched"], totals["jobs_answered"]) == (self.sent_batches, self.sent_rows)

    def teardown(self) -> None:
        """Check that time alone ends every job while the frontends live."""
        if hasattr(self, "core"):
            for _ in range(40):
                for peer in self.connected:
                    self.core.handle(peer, wire.FrontendHeartbeat())
                self.core.tick(0.9)
                self.check_sent()
            assert not self.open
            self.seen.update(self.core.scheduler.count_totals())


def check_totals(totals: dict[str, int], families: list[Family]) -> None:
    """Check that the totals of `/health` equal sums over the families of `/metrics`."""
    series = {family.name: {sample.labels: sample.value for sample in family.samples} for family in families}
    sums = {name: sum(values.values()) for name, values in series.items()}
    jobs, batches = series["jobs"], series["batches"]
    expected = {name: sums[name] for name in totals if name in sums}
    expected |= {f"batches_{event}": count for (event,), count in batches.items()}
    expected |= {f"jobs_{outcome}": jobs[(outcome,)] for outcome in ("answered", "cancelled")}
    expected["jobs_failed"] = sum(
        count for (outcome,), count in jobs.items() if outcome not in ("answered", "cancelled")
    )
    expected["jobs_dispatched"] = sums["job_dispatches"]
    expected["workers_evicted"] = sums["worker_evictions"]
    expected["batch_us"] = int(sums["batch_seconds"] * 1e6)
    assert totals == expected


@pytest.mark.timeout(900)
def test_each_admitted_job_is_answered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the state machine; each kind of event must be frequent."""
    Machine.seen.clear()
    # So little in a call that the requests of this test leave something for the next one.
    monkeypatch.setattr(reuse, "SHARES", {Lane.INTERACTIVE: 4 * reuse.LOOKUP, Lane.BULK: reuse.LOOKUP})
    monkeypatch.setattr(reuse, "TURN", 2)
    monkeypatch.setattr(reuse, "MAX_SETTLED", 2)
    monkeypatch.setattr(dispatch, "MAX_DROPPED", 2)
    replace_leaders = Coalescing.replace_leaders

    def count_successors(self: Coalescing, closed: Iterable[Job]) -> dict[Job, Job]:
        successors = replace_leaders(self, closed)
        Machine.seen["handed over"] += len(successors)
        return successors

    monkeypatch.setattr(Coalescing, "replace_leaders", count_successors)
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
    print({k: Machine.seen[k] / EXAMPLES for k in WANTED})
    if EXAMPLES == MANY:
        rare = {name: Machine.seen[name] / MANY for name in WANTED if Machine.seen[name] < WANTED[name] * MANY}
        assert not rare, f"too few events for each example: {rare}"
