"""Cost of one call of the scheduler, counted in instructions of the interpreter and so the same on every machine.

The broker has one thread. If the cost of a call grew with the number of open jobs, or without a bound with the size of
one client's request, the call would delay all clients and the heartbeats of workers.
"""

import functools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.limits import Limits
from broker.core.scheduler import Scheduler
from broker.wire import protocol as wire
from broker.wire.protocol import Kind, Lane
from tests.harness.core import DIMENSION, EPOCH, Core

#: Instructions of a call that only admits, rejects or cancels, and of each input that the call reads. Measured: at most
#: 2,400, and 19.
CALL, INPUT = 6000, 25
#: Instructions for each input that is dispatched, however many wait. Measured: 250.
DISPATCHED = 400
#: Instructions for each input that is looked up, and the most short inputs that one call looks up. Measured: 240.
LOOKED_UP, MOST_LOOKED_UP = 350, 256


def count_instructions(call: Callable[[], Any]) -> int:
    """Return the number of Python instructions that a call runs."""
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


def make_scheduler(clients: int, requests: int, inputs: int, *, cache: bool = False) -> Scheduler:
    """Return a scheduler with a busy worker and open requests, divided equally among the clients."""
    core = Core(Limits(max_wait_s=1e9, max_jobs=10**6, max_client_share=1), cache=cache)
    core.frontend()
    core.worker(batch_tokens=100)
    core.submit(10**6, ["keeps the worker busy"] * 4)
    for number in range(requests):
        submit_request(core.scheduler, number, inputs, f"client {number % clients}")
    return core.scheduler


def submit_request(scheduler: Scheduler, number: int, inputs: int, client: str, client_jobs: int = 0) -> None:
    """Submit a request of one-letter texts."""
    lengths = wire.pack_u32([1] * inputs)
    submission = wire.Submission(number, "m", Lane.BULK, client, 10**9, Kind.TEXT, lengths, client_jobs=client_jobs)
    scheduler.handle(b"F1", wire.Submit([submission]), 1000.0, [b"a" * inputs])


def cancel_request(scheduler: Scheduler, number: int) -> None:
    """Cancel a request."""
    scheduler.handle(b"F1", wire.Cancel(wire.pack_u64([number])), 1000.0)


@given(
    clients=st.integers(1, 300),
    requests=st.integers(1, 300),
    inputs=st.integers(1, 64),
    new_inputs=st.integers(1, 2048),
)
@settings(max_examples=20, deadline=None)
def test_request_cost_is_independent_of_open_jobs(clients: int, requests: int, inputs: int, new_inputs: int) -> None:
    scheduler = make_scheduler(clients, requests, inputs)
    assert count_instructions(lambda: submit_request(scheduler, 10**7, new_inputs, "new")) <= CALL + INPUT * new_inputs
    assert scheduler.state.ledger.jobs >= new_inputs
    assert count_instructions(lambda: cancel_request(scheduler, 10**7)) <= CALL
    assert (
        count_instructions(lambda: submit_request(scheduler, 10**8, new_inputs + 1, "new", client_jobs=new_inputs))
        <= CALL
    )
    assert (
        count_instructions(lambda: submit_request(scheduler, 10**8, new_inputs, "client 0", client_jobs=new_inputs))
        <= CALL
    )
    scheduler.check_invariants()
    assert scheduler.count_totals()["requests_rejected"] == 2


@given(inputs=st.integers(1, 2048), requests=st.integers(0, 20))
@settings(max_examples=10, deadline=None)
def test_look_ups_of_a_call_are_bounded(inputs: int, requests: int) -> None:
    scheduler = make_scheduler(2, requests, 2048, cache=True)
    most = CALL + MOST_LOOKED_UP * LOOKED_UP
    assert count_instructions(lambda: submit_request(scheduler, 10**7, inputs, "new")) <= most + INPUT * inputs
    assert count_instructions(lambda: scheduler.tick(1000.0)) <= most
    assert count_instructions(lambda: cancel_request(scheduler, 10**7)) <= most
    scheduler.check_invariants()


@given(requests=st.integers(4, 60), inputs=st.integers(64, 2048), abandoned=st.booleans())
@settings(max_examples=10, deadline=None)
def test_dispatch_cost_is_bounded_by_jobs_of_batch(requests: int, inputs: int, abandoned: bool) -> None:
    scheduler = make_scheduler(1, requests, inputs)
    if abandoned:
        for number in range(requests // 2):
            cancel_request(scheduler, number)
    dispatched = 0
    for batch, lease in list(scheduler.state.pool.workers[b"W1"].leases.items()):
        jobs = len(lease.jobs)
        result = wire.BatchResult(EPOCH, batch, DIMENSION, wire.pack_u32([3] * jobs), [], 5, 2, batch)
        before = scheduler.count_totals()["jobs_dispatched"]
        answer = functools.partial(scheduler.handle, b"W1", result, 1000.1, [bytes(4 * DIMENSION * jobs)])
        cost = count_instructions(answer)
        new = scheduler.count_totals()["jobs_dispatched"] - before
        assert cost <= 2 * CALL + DISPATCHED * (jobs + new)
        dispatched += new
    assert dispatched
    scheduler.check_invariants()


@pytest.mark.parametrize("action", ["expire", "submit", "cancel", "heartbeat"])
def test_call_cost_is_independent_of_open_requests(action: str) -> None:
    def measure_cost(open_requests: int) -> int:
        scheduler = make_scheduler(open_requests, open_requests, 1)
        actions: dict[str, Callable[[], Any]] = {
            "expire": lambda: scheduler.tick(2e6),
            "submit": lambda: submit_request(scheduler, 10**7, 1, "new"),
            "cancel": lambda: cancel_request(scheduler, 0),
            "heartbeat": lambda: scheduler.handle(b"W1", wire.WorkerHeartbeat(0, 1), 1000.2),
        }
        scheduler.state.ledger.liveness_s = scheduler.state.pool.liveness_s = scheduler.state.pool.lease_s = 1e9
        return count_instructions(actions[action])

    assert measure_cost(4000) <= 1.1 * measure_cost(1000)
