"""The scheduler among peers that lie, repeat themselves, fall silent and vanish, while time jumps.

hypothesis draws the configuration and the steps; every step checks all invariants (tests/harness/core.py), and this
machine the history: each admitted job is answered exactly once, with its own vector, to the frontend that asked. The
test counts what happened in all examples, because a machine that wanders where nothing happens would show nothing.
"""

import os
from collections import Counter
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

from broker.core.limits import Limits
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from broker.wire.protocol import Kind, Lane, Option
from tests.harness.core import DIMENSION, EPOCH, Core, row

EXAMPLES = 1000 if os.environ.get("CI") else 200
FRONTENDS = (b"F0", b"F1", b"F2")
#: What must have happened so often for each example, on average; a third of what usually does, or less.
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
    "jobs_blocked": 0.1,
}
#: A text that several requests have.
SAME = "the same"

#: A job as its frontend knows it: frontend, request, position.
Key = tuple[bytes, int, int]
#: A batch as it was sent: worker, number, texts.
Sent = tuple[bytes, int, list[str]]

#: Which of those that there are.
some = st.integers(0, 5)
#: Whether the peer is any at all, and most likely one that the broker does not know.
stranger = st.sampled_from([False, False, False, False, True])
requests = st.fixed_dictionaries(
    {
        "some": some,
        "lengths": st.lists(st.integers(0, 60), min_size=1, max_size=5),
        "client": st.sampled_from(["", "one", "two"]),
        # In jobs, and in tokens a minute.
        "limits": st.sampled_from([(0, 0), (0, 0), (0, 0), (3, 0), (0, 100)]),
        "options": st.sampled_from([0, 0, Option.TOKENISE, Option.TRUNCATE_END]),
        "budget_ms": st.sampled_from([30_000, 30_000, 5000, 50, 0]),
        "model": st.sampled_from(["m", "m", "m", "n"]),
        "resend": st.booleans(),
        "again": st.booleans(),
        "unprepared": stranger,
        "count": st.integers(1, 3),
        "work": st.booleans(),
    }
)


class Machine(RuleBasedStateMachine):
    """Frontends F0-F2 and workers W0-W9, as connections that come and go."""

    #: What the schedulers of all examples counted.
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
        )
        self.core = Core(limits)
        #: Whether the text that several requests have ends every worker that runs it.
        self.poison = poison
        self.connected: set[bytes] = set()
        self.requests = 0
        #: The right row of each job that may still be answered, and the ones that have ended.
        self.open: dict[Key, bytes] = {}
        self.ended: set[Key] = set()
        #: Batches that no rule has answered, oldest first, and those that some rule has.
        self.unanswered: list[Sent] = []
        self.answered: list[Sent] = []
        #: Workers that drain or are gone: nothing new may go to them.
        self.closed_workers: set[bytes] = set()

    def frontend(self, some: int, stranger: bool) -> bytes:
        """One of those that are connected, or any."""
        known = sorted(self.connected)
        return b"F%d" % (some % 3) if stranger or not known else known[some % len(known)]

    def worker(self, some: int, stranger: bool) -> bytes:
        """One of those that the broker knows, or any."""
        known = sorted(self.core.scheduler.state.pool.workers)
        return b"W%d" % some if stranger or not known else known[some % len(known)]

    # --- frontends ---------------------------------------------------------------------------------------------------

    @rule(name=st.integers(0, 2))
    def frontend_says_hello(self, name: int) -> None:
        peer = b"F%d" % name
        self.core.frontend(peer)
        self.connected.add(peer)
        self.look()

    @rule(request=requests)
    def interactive_requests(self, request: dict[str, Any]) -> None:
        self.submit(Lane.INTERACTIVE, **request)

    @rule(request=requests)
    def bulk_requests(self, request: dict[str, Any]) -> None:
        self.submit(Lane.BULK, **request)

    @rule(request=requests, next_request=requests)
    def requests_in_both_lanes(self, request: dict[str, Any], next_request: dict[str, Any]) -> None:
        self.submit(Lane.BULK, **request)
        self.submit(Lane.INTERACTIVE, **next_request)

    def submit(
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
        resend: bool,
        again: bool,
        unprepared: bool,
        count: int,
        work: bool,
    ) -> None:
        """Requests, sometimes sent twice, sometimes empty, sometimes with a text that others have too."""
        if work:
            self.workers_work()
        if unprepared and again:
            lengths = []
        if not unprepared:
            self.prepare(model)
        for number in range(count):
            peer = self.frontend(some + number, unprepared)
            self.requests += 1
            texts = [f"{self.requests}-{position}".ljust(length, "x") for position, length in enumerate(lengths)]
            texts[:1] = [SAME if again else text for text in texts[:1]]
            payloads = [text.encode() for text in texts]
            packed = wire.pack_u32(map(len, payloads))
            origin = wire.Origin(str(self.requests))
            submission = wire.Submission(
                self.requests, model, lane, client, budget_ms, Kind.TEXT, packed, options, origin, *limits
            )
            if peer in self.connected:
                for position, text in enumerate(texts):
                    self.open[peer, self.requests, position] = row(text, options)
            for _ in range(1 + resend):
                known = {key for key in self.open if key[:2] == (peer, self.requests)}
                if known or not texts or peer not in self.connected:
                    self.core.handle(peer, wire.Submit([submission]), b"".join(payloads))
                    self.look()

    def prepare(self, model: str) -> None:
        """Most requests come from frontends that are known, for a model that somebody serves."""
        if not self.connected:
            self.frontend_says_hello(0)
            self.frontend_says_hello(1)
        pool = self.core.scheduler.state.pool
        if pool.find_live_model(model) is None:
            free = next(name for name in range(10) if b"W%d" % name not in pool.workers)
            self.closed_workers.discard(b"W%d" % free)
            self.core.worker(b"W%d" % free, model=model, revision=pool.find_revision(model) or "r")
            self.look()

    @rule(some=some, back=st.integers(0, 5), stranger=stranger)
    def cancel(self, some: int, back: int, stranger: bool) -> None:
        """Mostly of a request that is open; else of another frontend's, or of one that was never made."""
        peer, request = self.frontend(some, stranger), max(0, self.requests - back)
        if self.open and not stranger:
            peer, request, _ = list(self.open)[back % len(self.open)]
        self.core.handle(peer, wire.Cancel(wire.pack_u64([request])))
        self.forget({key for key in self.open if key[:2] == (peer, request)})
        self.look()

    @rule(some=some, lost=st.booleans(), stranger=stranger)
    def frontend_leaves(self, some: int, lost: bool, stranger: bool) -> None:
        peer = self.frontend(some, stranger)
        self.core.lost(peer) if lost else self.core.handle(peer, wire.FrontendGoodbye())
        self.connected.discard(peer)
        self.forget({key for key in self.open if key[0] == peer})
        self.look()

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
    def worker_says_hello(
        self, name: int, model: str, revision: str, credit: int, batch_tokens: int, speed: int, same: bool
    ) -> None:
        """Another one, or one that the broker knows; sometimes all are one process."""
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
        self.look()

    @rule(some=some, model=st.sampled_from(["m", "n", "o"]), failure=st.sampled_from(["", "broken"]), stranger=stranger)
    def worker_loads(self, some: int, model: str, failure: str, stranger: bool) -> None:
        peer = self.worker(some, stranger)
        self.core.handle(peer, wire.WorkerLoading(peer.ljust(16, b"."), "host", 1, model, failure))
        self.look()

    @rule(some=some, credit=st.integers(0, 3), seen=st.integers(0, 50), stranger=stranger)
    def worker_heartbeat(self, some: int, credit: int, seen: int, stranger: bool) -> None:
        self.core.handle(self.worker(some, stranger), wire.WorkerHeartbeat(credit, seen))
        self.look()

    @rule()
    def workers_work(self) -> None:
        """Every batch that has no answer yet gets its own, or is its worker's end."""
        for batch in list(self.unanswered):
            self.core.lost(batch[0]) if self.poison and SAME in batch[2] else self.core.answer(batch)
            self.answered.append(batch)
            self.unanswered.remove(batch)
            self.look()

    @precondition(lambda self: self.poison)
    @rule(request=requests)
    def poison_kills(self, request: dict[str, Any]) -> None:
        """As often as it may, so that its like is refused afterwards."""
        for _ in range(3):
            self.submit(Lane.INTERACTIVE, **request | {"again": True, "unprepared": False, "budget_ms": 30_000})
            self.workers_work()
            self.time_passes(5.0)

    @precondition(lambda self: self.unanswered)
    @rule(some=some, failing=st.sets(st.integers(0, 4)))
    def worker_answers(self, some: int, failing: set[int]) -> None:
        """One answer, out of turn, sometimes with jobs refused."""
        batch = self.unanswered.pop(some % len(self.unanswered))
        self.answered.append(batch)
        failures = [
            wire.JobFailure(position, ErrorCode.TOO_LONG, "long") for position in failing if position < len(batch[2])
        ]
        self.core.answer(batch, failures=failures)
        self.look()

    @precondition(lambda self: self.answered)
    @rule(some=some)
    def worker_repeats_itself(self, some: int) -> None:
        self.core.answer(self.answered[-1 - some % len(self.answered)])
        self.look()

    @precondition(lambda self: self.unanswered)
    @rule(some=some, epoch=st.sampled_from([EPOCH, EPOCH, EPOCH + 1]))
    def worker_fails_a_batch(self, some: int, epoch: int) -> None:
        peer, number, _ = self.unanswered[some % len(self.unanswered)]
        self.core.handle(peer, wire.BatchError(epoch, number, ErrorCode.DEVICE, "failed", 2, number))
        self.look()

    @precondition(lambda self: self.unanswered)
    @rule(some=some, rows=st.integers(0, 6), epoch=st.sampled_from([EPOCH, EPOCH, 9]))
    def worker_lies(self, some: int, rows: int, epoch: int) -> None:
        """An answer with another number of rows, or of another life of the broker."""
        peer, number, texts = self.unanswered[some % len(self.unanswered)]
        if rows == len(texts) and epoch == EPOCH:
            rows += 1
        result = wire.BatchResult(epoch, number, DIMENSION, wire.pack_u32([1] * rows), [], 1, 2, number)
        self.core.handle(peer, result, bytes(rows * DIMENSION * 4))
        self.look()

    @rule(some=some, give_back=st.booleans(), batch=st.integers(0, 30), stranger=stranger)
    def worker_drains(self, some: int, give_back: bool, batch: int, stranger: bool) -> None:
        """It gives back all that it holds, or a batch that may be another's."""
        peer = self.worker(some, stranger)
        mine = [number for owner, number, _ in self.unanswered if owner == peer]
        self.closed_workers.add(peer)
        self.core.handle(peer, wire.WorkerDrain(wire.pack_u64(mine if give_back else [batch])))
        self.look()

    @rule(some=some, lost=st.booleans(), stranger=stranger)
    def worker_leaves(self, some: int, lost: bool, stranger: bool) -> None:
        peer = self.worker(some, stranger)
        self.closed_workers.add(peer)
        self.core.lost(peer) if lost else self.core.handle(peer, wire.WorkerGoodbye())
        self.look()

    # --- time --------------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.3, 1.0, 10.0]))
    def time_passes(self, seconds: float) -> None:
        """All peers that are known say that they live."""
        for _ in range(max(1, round(seconds / 0.5))):
            for peer in list(self.core.scheduler.state.ledger.by_peer):
                self.core.handle(peer, wire.FrontendHeartbeat())
            for peer, worker in list(self.core.scheduler.state.pool.workers.items()):
                credit = 0 if worker.draining else max(0, 2 - len(worker.leases))
                self.core.handle(peer, wire.WorkerHeartbeat(credit, 10**6))
            self.core.tick(min(seconds, 0.5))
        self.look()

    @rule(seconds=st.sampled_from([0.3, 1.0, 3600.0]))
    def silence(self, seconds: float) -> None:
        """Time passes in one jump, and nobody says a word."""
        self.core.tick(seconds)
        self.look()

    @rule()
    def time_passes_to_the_next_deadline(self) -> None:
        due = self.core.scheduler.next_deadline()
        if due is not None:
            self.core.now = max(self.core.now, due)
            self.core.tick()
            after = self.core.scheduler.next_deadline()
            assert after is None or after > self.core.now, "an expired timer survives"
        self.look()

    # --- history -----------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Every batch goes to a worker that takes one; every answer is right, awaited, and the only one."""
        for batch in self.core.batches():
            assert batch[0] not in self.closed_workers, "a batch for a worker that drains or is gone"
            self.unanswered.append(batch)
        for peer in FRONTENDS:
            for (request, position), answer in self.core.answers(peer).items():
                assert answer == self.open.pop((peer, request, position))
                self.end((peer, request, position))
            for request, position, _ in self.core.failures(peer):
                whole = {key for key in self.open if key[:2] == (peer, request)}
                keys = {(peer, request, position)} if position >= 0 else whole
                for key in keys:
                    del self.open[key]
                    self.end(key)
        lost = {uuid.rstrip(b".") for uuid in self.core.scheduler.state.ledger.by_uuid}
        for peer in self.connected - lost:
            # It was silent for too long.
            self.connected.discard(peer)
            self.forget({key for key in self.open if key[0] == peer})

    def end(self, key: Key) -> None:
        assert key not in self.ended, "answered twice"
        self.ended.add(key)

    def forget(self, keys: set[Key]) -> None:
        """Nobody waits for these any more: an answer to one would be a fault."""
        for key in keys:
            del self.open[key]

    @invariant()
    def scheduler_and_frontends_agree_on_what_is_open(self) -> None:
        if hasattr(self, "core"):
            assert self.core.scheduler.state.ledger.jobs == len(self.open)

    def teardown(self) -> None:
        """With time alone, and frontends that still live, everything is answered in the end."""
        if hasattr(self, "core"):
            for _ in range(40):
                for peer in self.connected:
                    self.core.handle(peer, wire.FrontendHeartbeat())
                self.core.tick(0.9)
                self.look()
            assert not self.open
            self.seen.update(self.core.scheduler.count_totals())


@pytest.mark.timeout(900)
def test_whatever_peers_do_each_admitted_job_is_answered_once() -> None:
    """And much of each thing did happen."""
    Machine.seen.clear()
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
    rare = {name: Machine.seen[name] / EXAMPLES for name in WANTED if Machine.seen[name] < WANTED[name] * EXAMPLES}
    assert not rare, f"too rare, for each example: {rare}"
