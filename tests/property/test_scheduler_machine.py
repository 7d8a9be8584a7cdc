"""The scheduler among peers that lie, repeat themselves, fall silent and vanish, while time jumps.

hypothesis draws the configuration and the steps; every step checks all invariants (tests/core.py), and this machine the
history: each admitted job is answered exactly once, with its own vector, to the frontend that asked.
"""

import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from broker import protocol as wire
from broker.errors import ErrorCode
from broker.limits import Limits
from broker.protocol import Kind, Lane
from tests.core import DIMENSION, EPOCH, Core, vector

EXAMPLES = 1000 if os.environ.get("CI") else 200

#: A job as its frontend knows it: frontend, request, position.
Key = tuple[bytes, int, int]


class Machine(RuleBasedStateMachine):
    """Frontends F0-F2 and workers W0-W9, as connections that come and go."""

    batches: Bundle[Any] = Bundle("batches")

    @initialize(
        liveness=st.sampled_from([1.0, 3.5]),
        lease=st.sampled_from([0.5, 60.0]),
        grace=st.sampled_from([0.0, 5.0]),
        jobs=st.sampled_from([3, 1000]),
        tokens=st.sampled_from([20, 10**6]),
        share=st.sampled_from([0.3, 1.0]),
        wait=st.sampled_from([0.01, 1000.0]),
        crashes=st.integers(1, 3),
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
        self.connected: set[bytes] = set()
        self.requests = 0
        #: Text of each job that may still be answered, and the ones that have ended.
        self.open: dict[Key, str] = {}
        self.ended: set[Key] = set()
        #: Jobs that were in a batch of each worker, to see that nothing new goes to one that drains or is gone.
        self.closed_workers: set[bytes] = set()

    # --- frontends ---------------------------------------------------------------------------------------------------

    @rule(name=st.integers(0, 2))
    def frontend_says_hello(self, name: int) -> None:
        peer = b"F%d" % name
        self.core.frontend(peer)
        self.connected.add(peer)

    @rule(
        name=st.integers(0, 2),
        lengths=st.lists(st.integers(0, 60), min_size=0, max_size=5),
        lane=st.sampled_from(Lane),
        client=st.sampled_from(["", "one", "two"]),
        budget_ms=st.sampled_from([0, 50, 5000, 30_000]),
        model=st.sampled_from(["m", "m", "m", "n"]),
        resend=st.booleans(),
    )
    def submit(
        self, name: int, lengths: list[int], lane: Lane, client: str, budget_ms: int, model: str, resend: bool
    ) -> None:
        peer = b"F%d" % name
        self.requests += 1
        texts = [f"{self.requests}-{position}".ljust(length, "x") for position, length in enumerate(lengths)]
        payloads = [text.encode() for text in texts]
        packed = wire.pack_u32(map(len, payloads))
        submission = wire.Submission(self.requests, model, lane, client, budget_ms, Kind.TEXT, packed)
        if peer in self.connected:
            for position, text in enumerate(texts):
                self.open[peer, self.requests, position] = text
        for _ in range(1 + resend):
            known = {key for key in self.open if key[:2] == (peer, self.requests)}
            if known or not texts or peer not in self.connected:
                self.core.handle(peer, wire.Submit([submission]), b"".join(payloads))
                self.look()

    @rule(name=st.integers(0, 2), back=st.integers(0, 5))
    def cancel(self, name: int, back: int) -> None:
        peer, request = b"F%d" % name, max(0, self.requests - back)
        self.core.handle(peer, wire.Cancel(wire.pack_u64([request])))
        self.forget({key for key in self.open if key[:2] == (peer, request)})

    @rule(name=st.integers(0, 2), lost=st.booleans())
    def frontend_leaves(self, name: int, lost: bool) -> None:
        peer = b"F%d" % name
        self.core.lost(peer) if lost else self.core.handle(peer, wire.FrontendGoodbye())
        self.connected.discard(peer)
        self.forget({key for key in self.open if key[0] == peer})

    # --- workers -----------------------------------------------------------------------------------------------------

    @rule(
        target=batches,
        name=st.integers(0, 3),
        model=st.sampled_from(["m", "m", "n"]),
        revision=st.sampled_from(["r", "r", "r", "s"]),
        credit=st.integers(0, 3),
        batch_tokens=st.sampled_from([1, 20, 1000]),
        speed=st.sampled_from([1, 1000, 10**6]),
        same=st.booleans(),
    )
    def worker_says_hello(
        self, name: int, model: str, revision: str, credit: int, batch_tokens: int, speed: int, same: bool
    ) -> Any:
        peer, uuid = b"W%d" % name, b"same" if same else b"W%d" % name
        self.core.worker(
            peer,
            model=model,
            revision=revision,
            credit=credit,
            batch_tokens=batch_tokens,
            tokens_per_s=speed,
            uuid=uuid,
        )
        self.closed_workers.discard(peer)
        return self.sent()

    @rule(target=batches, name=st.integers(0, 3), credit=st.integers(0, 3), seen=st.integers(0, 50))
    def worker_heartbeat(self, name: int, credit: int, seen: int) -> Any:
        self.core.handle(b"W%d" % name, wire.WorkerHeartbeat(credit, seen))
        return self.sent()

    @rule(target=batches, batch=consumes(batches), keep=st.booleans(), failing=st.sets(st.integers(0, 4)))
    def worker_answers(self, batch: Any, keep: bool, failing: set[int]) -> Any:
        """An answer, sometimes given twice, sometimes too late, sometimes with jobs refused."""
        failures = [
            wire.JobFailure(position, ErrorCode.TOO_LONG, "long") for position in failing if position < len(batch[2])
        ]
        self.core.answer(batch, failures=failures)
        return self.sent(batch if keep else None)

    @rule(target=batches, batch=consumes(batches), epoch=st.sampled_from([EPOCH, EPOCH + 1]))
    def worker_fails_a_batch(self, batch: Any, epoch: int) -> Any:
        peer, number, _ = batch
        self.core.handle(peer, wire.BatchError(epoch, number, ErrorCode.DEVICE, "failed", 2, number))
        return self.sent()

    @rule(target=batches, batch=batches, rows=st.integers(0, 6), epoch=st.sampled_from([EPOCH, EPOCH, 9]))
    def worker_lies(self, batch: Any, rows: int, epoch: int) -> Any:
        """An answer with another number of rows, or of another life of the broker."""
        peer, number, texts = batch
        if rows == len(texts) and epoch == EPOCH:
            rows += 1
        result = wire.BatchResult(epoch, number, DIMENSION, wire.pack_u32([1] * rows), [], 1, 2, number)
        self.core.handle(peer, result, bytes(rows * DIMENSION * 4))
        return self.sent()

    @rule(target=batches, name=st.integers(0, 3), batch=st.integers(0, 30))
    def worker_drains(self, name: int, batch: int) -> Any:
        peer = b"W%d" % name
        self.core.handle(peer, wire.WorkerDrain(wire.pack_u64([batch])))
        found = self.sent()
        self.closed_workers.add(peer)
        return found

    @rule(target=batches, name=st.integers(0, 3), lost=st.booleans())
    def worker_leaves(self, name: int, lost: bool) -> Any:
        peer = b"W%d" % name
        self.core.lost(peer) if lost else self.core.handle(peer, wire.WorkerGoodbye())
        self.closed_workers.add(peer)
        return self.sent()

    # --- time --------------------------------------------------------------------------------------------------------

    @rule(target=batches, seconds=st.sampled_from([0.0, 0.01, 0.3, 1.0, 10.0, 3600.0]))
    def time_passes(self, seconds: float) -> Any:
        self.core.tick(seconds)
        return self.sent()

    @rule(target=batches)
    def time_passes_to_the_next_deadline(self) -> Any:
        due = self.core.scheduler.next_deadline()
        if due is not None:
            self.core.now = max(self.core.now, due)
            self.core.tick()
            after = self.core.scheduler.next_deadline()
            assert after is None or after > self.core.now, "an expired timer survives"
        return self.sent()

    # --- history -----------------------------------------------------------------------------------------------------

    def sent(self, also: Any = None) -> Any:
        """The batches that were just sent, and a look at everything else."""
        found = self.core.batches()
        for peer, _, _ in found:
            assert peer not in self.closed_workers, "a batch for a worker that drains or is gone"
        self.look()
        return multiple(*found, *([also] if also else []))

    def look(self) -> None:
        """Every answer is right, awaited, and the only one."""
        for peer in (b"F0", b"F1", b"F2"):
            for (request, position), row in self.core.answers(peer).items():
                text = self.open.pop((peer, request, position))
                assert row == vector(text)
                self.end((peer, request, position))
            for request, position, _ in self.core.failures(peer):
                whole = {key for key in self.open if key[:2] == (peer, request)}
                keys = {(peer, request, position)} if position >= 0 else whole
                for key in keys:
                    del self.open[key]
                    self.end(key)
        lost = {uuid_.rstrip(b".") for uuid_ in self.core.scheduler.ledger.by_uuid}
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
            assert self.core.scheduler.ledger.jobs == len(self.open)

    def teardown(self) -> None:
        """With time alone, and frontends that still live, everything is answered in the end."""
        if hasattr(self, "core"):
            for _ in range(40):
                for peer in self.connected:
                    self.core.handle(peer, wire.FrontendHeartbeat())
                self.core.tick(0.9)
                self.look()
            assert not self.open


Machine.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestSchedulerMachine = Machine.TestCase
