"""Gauges: values read from the state of the scheduler."""

import math

import pytest

from broker.core.gauges import list_gauges, predict_wait_s
from broker.wire import protocol as wire
from broker.wire.protocol import Lane, ModelInfo
from tests.harness.core import DIMENSION, KEY, Core

Values = dict[tuple[str, ...], float]


def read_gauges(core: Core) -> dict[str, Values]:
    """Return the values of all gauges by name and labels."""
    gauges = list_gauges(core.scheduler.state)
    assert {gauge.kind for gauge in gauges} == {"gauge"}
    return {gauge.name: {sample.labels: sample.value for sample in gauge.samples} for gauge in gauges}


def test_gauges_without_peers_have_no_models() -> None:
    gauges = read_gauges(Core())
    zero = {(): 0}
    assert {name: values for name, values in gauges.items() if values} == dict.fromkeys(
        ("cache_bytes", "open_jobs", "frontends"), zero
    )


def test_gauges_count_queues_workers_and_frontends(core: Core) -> None:
    core.submit(1, ["x" * 100], lane=Lane.BULK)
    core.submit(2, ["y" * 100] * 3, lane=Lane.BULK)
    gauges = read_gauges(core)
    assert gauges["queue_jobs"] == {("m", "interactive"): 0, ("m", "bulk"): 3}
    assert gauges["queue_tokens"]["m", "bulk"] == core.model().queue.tokens > 0
    assert (gauges["open_jobs"], gauges["frontends"], gauges["workers"]) == ({(): 4}, {(): 1}, {("m",): 1})
    assert gauges["queue_suspects"] == {("m",): 0}
    labels = ("m", "CPU", "host/CPU/0")
    for name, value in (("up", 1), ("credits", 1), ("leases", 1), ("streams", 0)):
        assert gauges[f"worker_{name}"] == {labels: value}


def test_worker_gauges_exist_for_each_model() -> None:
    core = Core()
    models = [
        ModelInfo(name, "r", DIMENSION, 100, precision=precision, streams=streams)
        for name, precision, streams in (("a", "f32", 0), ("b", "int8", 4))
    ]
    core.handle(b"W1", wire.WorkerHello(1, 1, "", b"." * 16, 1, "h", 1, "CPU", models, 10, 1000, 3, streams=2))
    assert read_gauges(core)["worker_streams"] == {("a", "CPU", "h/CPU/0"): 2, ("b", "CPU", "h/CPU/0"): 4}
    precisions = read_gauges(core)["worker_precision"]
    assert precisions == {("a", "CPU", "h/CPU/0", "f32"): 1, ("b", "CPU", "h/CPU/0", "int8"): 1}


def test_expected_wait_counts_queued_and_leased_tokens(core: Core) -> None:
    state = core.scheduler.state
    assert predict_wait_s(state, KEY) == 0.0
    core.submit(1, ["x" * 100])
    core.submit(2, ["y" * 100], lane=Lane.BULK)
    assert predict_wait_s(state, KEY) == pytest.approx(state.ledger.tokens / state.pool.sum_tokens_per_s(KEY))
    core.lost(b"W1")
    assert predict_wait_s(state, KEY) == math.inf
