"""With workers that answer, every job gets its vector, whatever came before, within a bounded number of batches.

The state machine beside this lets time end what is never dispatched; here nothing ends by time.
"""

import random
from collections.abc import Sequence

import pytest

from broker.core.limits import Limits
from broker.wire import protocol as wire
from broker.wire.protocol import Lane, ModelInfo
from tests.harness.core import DIMENSION, Core

SEEDS = 300
#: A job that is in two dying workers is refused; here nothing is.
LIMITS = Limits(
    max_wait_s=4e6, lease_s=4e6, liveness_s=4e6, worker_grace_s=4e6, max_crashes=1000, max_errors=1000
)  # fmt: skip
MODELS = ("m", "n")


class Play:
    """A random history, and then workers that answer until nothing is open."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.core = Core(LIMITS)
        self.core.frontend()
        self.credit: dict[bytes, int] = {}
        self.held: list[tuple[Lane, tuple[bytes, int, list[str]]]] = []
        self.requests = 0
        #: Open jobs.
        self.wanted: set[tuple[int, int]] = set()
        self.join(MODELS)
        for _ in range(self.random.randint(0, 2)):
            self.join(self.random.choice([MODELS, MODELS[:1]]))

    def join(self, names: Sequence[str]) -> None:
        """One more worker, of these models."""
        peer = b"W%d" % len(self.credit)
        draw = self.random
        self.credit[peer] = draw.randint(1, 4)
        models = [ModelInfo(name, "r", DIMENSION, 100) for name in names]
        tokens, speed = draw.choice([1, 20, 100, 1000]), draw.choice([1, 100, 10**5])
        hello = wire.WorkerHello(1, 1, "", peer.ljust(16), 1, "h", 1, "CPU", models, tokens, speed, self.credit[peer])
        self.core.handle(peer, hello)

    def submit(self) -> None:
        """A request of a few jobs."""
        self.requests += 1
        draw = self.random
        texts = ["x" * draw.choice([1, 50, 300]) for _ in range(draw.randint(1, 12))]
        model = draw.choice(MODELS)
        self.core.submit(self.requests, texts, model=model, lane=draw.choice(list(Lane)), budget_ms=2**32 - 1)
        self.wanted |= {(self.requests, position) for position in range(len(texts))}

    def cancel(self) -> None:
        """One of the requests."""
        request = self.random.randint(1, max(1, self.requests))
        self.core.handle(b"F1", wire.Cancel(wire.pack_u64([request])))
        self.wanted = {job for job in self.wanted if job[0] != request}

    def lose(self) -> None:
        """A worker dies, or leaves, and another comes."""
        worker = self.random.choice(list(self.core.scheduler.state.pool.workers.values()))
        gone = self.random.random() < 0.7
        self.core.lost(worker.peer) if gone else self.core.handle(worker.peer, wire.WorkerGoodbye())
        self.join(list(worker.models))

    def answer(self) -> bool:
        """A worker answers the batch that it runs first, or fails it; False when nobody holds any."""
        leased = {
            (worker.peer, batch)
            for worker in self.core.scheduler.state.pool.workers.values()
            for batch in worker.leases
        }
        self.held = [one for one in self.held if one[1][:2] in leased]
        if not self.held:
            return False
        peer = self.random.choice(self.held)[1][0]
        mine = sorted((one for one in self.held if one[1][0] == peer), key=lambda one: (one[0], one[1][1]))
        self.held.remove(mine[0])
        self.core.now += self.random.choice([0.001, 0.05])
        self.core.answer(mine[0][1], credit=max(0, self.credit[peer] - len(mine) + 1))
        return True

    def look(self) -> None:
        """Take note of what was sent; no worker holds more of a lane than one batch that runs and the next."""
        for to, batch, frames in self.core.take(wire.Batch):
            parts = wire.split_frame(frames[0], wire.unpack_u32(batch.lengths))
            self.held.append((batch.lane, (to, batch.batch, [str(part, "utf-8") for part in parts])))
        for worker in self.core.scheduler.state.pool.workers.values():
            assert all(len(worker.list_leases(lane)) <= 2 for lane in Lane)
        self.wanted -= self.core.answers().keys()
        assert not self.core.failures()

    def tick(self) -> None:
        """Time passes until something is due."""
        due = self.core.scheduler.next_deadline()
        if due is None or due > self.core.now + 1e5:
            assert self.held or not self.wanted, "jobs wait, and nobody works or will soon"
            return
        self.core.now = max(self.core.now, due)
        self.core.tick()
        after = self.core.scheduler.next_deadline()
        assert after is None or after > self.core.now, "an expired timer survives"

    def run(self) -> None:
        """The history, and then the answers."""
        steps = [self.submit] * 10 + [self.answer] * 5 + [self.lose, self.cancel, self.tick]
        for _ in range(self.random.randint(5, 60)):
            self.random.choice(steps)()
            self.look()
        batches = 0
        while self.wanted:
            batches += 1
            assert batches < 3000, f"{len(self.wanted)} jobs are never answered"
            if not self.answer():
                self.tick()
            self.look()


@pytest.mark.timeout(600)
def test_all_that_is_open_is_answered_by_workers_that_work() -> None:
    for seed in range(SEEDS):
        try:
            Play(seed).run()
        except AssertionError as error:
            raise AssertionError(f"{error}; Play({seed}).run()") from error
