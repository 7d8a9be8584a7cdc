"""What one call of the scheduler costs, in instructions of the interpreter: a count, and so the same on every machine.

The broker has one thread. A call that costs more the more is open, or that one client can make as dear as it likes,
stops everybody, and keeps the broker from reading the heartbeats of its workers.
"""

import functools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.client_queue import MAX_SORTED
from broker.core.limits import Limits
from broker.core.scheduler import Scheduler
from broker.wire import protocol as wire
from broker.wire.protocol import Kind, Lane
from tests.harness.core import DIMENSION, EPOCH, Core

#: Instructions of a call that only admits, refuses or cancels, and of each input that it looks at, with some room:
#: measured are 2,400 at most, and 19.
CALL, INPUT = 6000, 25
#: The same for an input that is sorted into its bucket, and for one that is dispatched; measured are 25 and 250.
SORTED, DISPATCHED = 40, 400


def count_instructions(call: Callable[[], Any]) -> int:
    """Return how many instructions of Python a call runs."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def make_scheduler(clients: int, requests: int, inputs: int) -> Scheduler:
    """Return a scheduler with a busy worker and so many open requests, of each client as many."""
    core = Core(Limits(max_wait_s=1e9, max_jobs=10**6, max_client_share=1))
    core.frontend()
    core.worker(batch_tokens=100)
    core.submit(10**6, ["keeps the worker busy"] * 4)
    for number in range(requests):
        submit(core.scheduler, number, inputs, f"client {number % clients}")
    return core.scheduler


def submit(scheduler: Scheduler, number: int, inputs: int, client: str, client_jobs: int = 0) -> None:
    """Submit a request of one-letter texts."""
    lengths = wire.pack_u32([1] * inputs)
    asked = wire.Submission(number, "m", Lane.BULK, client, 10**9, Kind.TEXT, lengths, client_jobs=client_jobs)
    scheduler.handle(b"F1", wire.Submit([asked]), 1000.0, [b"a" * inputs])


def cancel(scheduler: Scheduler, number: int) -> None:
    """Cancel a request."""
    scheduler.handle(b"F1", wire.Cancel(wire.pack_u64([number])), 1000.0)


@given(clients=st.integers(1, 300), requests=st.integers(1, 300), inputs=st.integers(1, 64), asked=st.integers(1, 2048))
@settings(max_examples=20, deadline=None)
def test_request_is_admitted_refused_and_cancelled_in_a_time_that_what_is_open_does_not_change(
    clients: int, requests: int, inputs: int, asked: int
) -> None:
    scheduler = make_scheduler(clients, requests, inputs)
    assert count_instructions(lambda: submit(scheduler, 10**7, asked, "new")) <= CALL + INPUT * asked
    assert scheduler.state.ledger.jobs >= asked
    assert count_instructions(lambda: cancel(scheduler, 10**7)) <= CALL
    assert count_instructions(lambda: submit(scheduler, 10**8, asked + 1, "new", client_jobs=asked)) <= CALL
    assert count_instructions(lambda: submit(scheduler, 10**8, asked, "client 0", client_jobs=asked)) <= CALL
    scheduler.check_invariants()
    assert scheduler.count_totals()["requests_rejected"] == 2


@given(requests=st.integers(4, 60), inputs=st.integers(64, 2048), abandoned=st.booleans())
@settings(max_examples=10, deadline=None)
def test_batch_is_dispatched_in_a_time_that_its_jobs_bound(requests: int, inputs: int, abandoned: bool) -> None:
    scheduler = make_scheduler(1, requests, inputs)
    if abandoned:
        for number in range(requests // 2):
            cancel(scheduler, number)
    dispatched = 0
    for batch, lease in list(scheduler.state.pool.workers[b"W1"].leases.items()):
        jobs = len(lease.jobs)
        result = wire.BatchResult(EPOCH, batch, DIMENSION, wire.pack_u32([3] * jobs), [], 5, 2, batch)
        before = scheduler.count_totals()["jobs_dispatched"]
        answer = functools.partial(scheduler.handle, b"W1", result, 1000.1, [bytes(4 * DIMENSION * jobs)])
        cost = count_instructions(answer)
        new = scheduler.count_totals()["jobs_dispatched"] - before
        assert cost <= 2 * CALL + DISPATCHED * (jobs + new) + SORTED * (MAX_SORTED + inputs)
        dispatched += new
    assert dispatched
    scheduler.check_invariants()


@pytest.mark.parametrize("act", ["expire", "submit", "cancel", "heartbeat"])
def test_calls_cost_the_same_however_much_is_open(act: str) -> None:
    def cost(open_requests: int) -> int:
        scheduler = make_scheduler(open_requests, open_requests, 1)
        acts: dict[str, Callable[[], Any]] = {
            "expire": lambda: scheduler.tick(2e6),
            "submit": lambda: submit(scheduler, 10**7, 1, "new"),
            "cancel": lambda: cancel(scheduler, 0),
            "heartbeat": lambda: scheduler.handle(b"W1", wire.WorkerHeartbeat(0, 1), 1000.2),
        }
        scheduler.state.ledger.liveness_s = scheduler.state.pool.liveness_s = scheduler.state.pool.lease_s = 1e9
        return count_instructions(acts[act])

    assert cost(4000) <= 1.1 * cost(1000)
