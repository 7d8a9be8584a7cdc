"""Progress: after any history, workers that answer give every open job its vector in a bounded number of batches.

In `test_scheduler_machine.py`, deadlines end the jobs that are never dispatched; here no deadline passes.
"""

import random
from collections.abc import Sequence

import pytest

from broker.core.limits import Limits
from broker.wire import protocol as wire
from broker.wire.protocol import Lane, ModelInfo
from tests.harness.core import DIMENSION, Core

SEEDS = 300
#: No job fails, expires or becomes poison under these limits.
LIMITS = Limits(
    max_wait_s=4e6, lease_s=4e6, liveness_s=4e6, worker_grace_s=4e6, max_crashes=1000, max_errors=1000
)  # fmt: skip
MODELS = ("m", "n")


class Run:
    """Random history, followed by workers that answer until no job is open."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.core = Core(LIMITS)
        self.core.frontend()
        self.credit: dict[bytes, int] = {}
        self.held: list[tuple[Lane, tuple[bytes, int, list[str]]]] = []
        self.requests = 0
        #: Open jobs: request number and position.
        self.wanted: set[tuple[int, int]] = set()
        self.connect_worker(MODELS)
        for _ in range(self.random.randint(0, 2)):
            self.connect_worker(self.random.choice([MODELS, MODELS[:1]]))

    def connect_worker(self, names: Sequence[str]) -> None:
        """Connect one more worker that serves these models."""
        peer = b"W%d" % len(self.credit)
        draw = self.random
        self.credit[peer] = draw.randint(1, 4)
        models = [ModelInfo(name, "r", DIMENSION, 100) for name in names]
        tokens, speed = draw.choice([1, 20, 100, 1000]), draw.choice([1, 100, 10**5])
        hello = wire.WorkerHello(1, 1, "", peer.ljust(16), 1, "h", 1, "CPU", models, tokens, speed, self.credit[peer])
        self.core.handle(peer, hello)

    def submit_request(self) -> None:
        """Submit a request of a few inputs."""
        self.requests += 1
        draw = self.random
        texts = ["x" * draw.choice([1, 50, 300]) for _ in range(draw.randint(1, 12))]
        model = draw.choice(MODELS)
        self.core.submit(self.requests, texts, model=model, lane=draw.choice(list(Lane)), budget_ms=2**32 - 1)
        self.wanted |= {(self.requests, position) for position in range(len(texts))}

    def cancel_request(self) -> None:
        """Cancel one of the requests."""
        request = self.random.randint(1, max(1, self.requests))
        self.core.handle(b"F1", wire.Cancel(wire.pack_u64([request])))
        self.wanted = {job for job in self.wanted if job[0] != request}

    def lose_worker(self) -> None:
        """Let a worker crash or leave, and connect another worker."""
        worker = self.random.choice(list(self.core.scheduler.state.pool.workers.values()))
        crashes = self.random.random() < 0.7
        self.core.lost(worker.peer) if crashes else self.core.handle(worker.peer, wire.WorkerGoodbye())
        self.connect_worker([key.name for key in worker.models])

    def answer_batch(self) -> bool:
        """Let a worker answer the batch that it runs first. Return False if no worker holds a batch."""
        leased = {
            (worker.peer, batch)
            for worker in self.core.scheduler.state.pool.workers.values()
            for batch in worker.leases
        }
        self.held = [item for item in self.held if item[1][:2] in leased]
        if not self.held:
            return False
        peer = self.random.choice(self.held)[1][0]
        own_batches = sorted((item for item in self.held if item[1][0] == peer), key=lambda item: (item[0], item[1][1]))
        self.held.remove(own_batches[0])
        self.core.now += self.random.choice([0.001, 0.05])
        self.core.answer(own_batches[0][1], credit=max(0, self.credit[peer] - len(own_batches) + 1))
        return True

    def collect_sent(self) -> None:
        """Collect the sent batches and answers, and check that no worker holds three batches of a lane."""
        for to, batch, frames in self.core.take(wire.Batch):
            parts = wire.split_frame(frames[0], wire.unpack_u32(batch.lengths))
            self.held.append((batch.lane, (to, batch.batch, [str(part, "utf-8") for part in parts])))
        for worker in self.core.scheduler.state.pool.workers.values():
            assert all(len(worker.list_leases(lane)) <= 2 for lane in Lane)
        self.wanted -= self.core.answers().keys()
        assert not self.core.failures()

    def advance_clock(self) -> None:
        """Advance the clock to the next deadline, and check that time alone does not have to end a job."""
        due = self.core.scheduler.next_deadline()
        if due is None or due > self.core.now + 1e5:
            assert self.held or not self.wanted, "jobs wait, but no worker holds a batch or will get one"
            return
        self.core.now = max(self.core.now, due)
        self.core.tick()
        after = self.core.scheduler.next_deadline()
        assert after is None or after > self.core.now, "an expired timer survives"

    def run(self) -> None:
        """Run the history, then answer until no job is open."""
        steps = (
            [self.submit_request] * 10
            + [self.answer_batch] * 5
            + [self.lose_worker, self.cancel_request, self.advance_clock]
        )
        for _ in range(self.random.randint(5, 60)):
            self.random.choice(steps)()
            self.collect_sent()
        batches = 0
        while self.wanted:
            batches += 1
            assert batches < 3000, f"{len(self.wanted)} jobs are not answered"
            if not self.answer_batch():
                self.advance_clock()
            self.collect_sent()


@pytest.mark.timeout(600)
def test_answering_workers_finish_all_open_jobs() -> None:
    for seed in range(SEEDS):
        try:
            Run(seed).run()
        except AssertionError as error:
            raise AssertionError(f"{error}; Run({seed}).run()") from error
