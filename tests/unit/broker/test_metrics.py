"""The broker's metrics: what is counted, which series exist at zero, when series end."""

import copy
import math
from collections.abc import Callable

import msgspec
import pytest

from broker.core.limits import Limits
from broker.core.metrics import Family, HistogramFamily
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from tests.harness.core import DIMENSION, EPOCH, KEY, Core
from tests.harness.processes import ROOT

Series = dict[tuple[str, ...], float]


def families(core: Core) -> dict[str, Family]:
    """Return all families by name."""
    collected = core.scheduler.collect_metrics()
    found = {family.name: family for family in collected}
    assert len(found) == len(collected)
    return found


def values(core: Core, name: str) -> Series:
    """Return the values of a counter or gauge by labels."""
    return {sample.labels: sample.value for sample in families(core)[name].samples}


def distribution(core: Core, name: str, *labels: str) -> list[float]:
    """Return the count and the sum of a histogram."""
    samples = {sample.labels: sample for sample in families(core)[name].samples}
    return [sum(samples[labels].buckets), samples[labels].value]


def test_series_exist_at_zero() -> None:
    core = Core()
    core.frontend()
    found = families(core)
    assert {sample.value for sample in found["jobs"].samples} == {0}
    assert {sample.labels[0] for sample in found["requests_rejected"].samples} >= {"overloaded", "quota"}
    assert {sample.labels[0] for sample in found["worker_evictions"].samples} >= {"silent", "connection_lost"}
    assert found["batch_jobs"].samples == []
    core.worker()
    found = families(core)
    wanted = [("m", "CPU", lane, "host/CPU/0") for lane in ("interactive", "bulk")]
    histograms, counters = ("batch_jobs", "batch_tokens", "inference_seconds"), ("tokens", "padding_tokens")
    for name in (*histograms, *counters, "micro_batches", "micro_batch_inputs"):
        assert [sample.labels for sample in found[name].samples] == wanted
        assert {sample.value for sample in found[name].samples} == {0}
    assert all(len(sample.labels) == len(family.labels) for family in found.values() for sample in family.samples)
    assert all(family.text for family in found.values())
    assert values(core, "workers") == {("m",): 1}


def test_batch_is_counted_from_wait_to_tokens(core: Core) -> None:
    core.submit(1, ["busy"])
    (busy,) = core.batches()
    core.submit(2, ["a", "bb", "ccc"])
    core.tick(0.004)
    core.answer(busy)
    (batch,) = core.batches()
    assert values(core, "queue_jobs")["m", "interactive"] == 0
    answer = wire.BatchResult(EPOCH, batch[1], DIMENSION, wire.pack_u32([3, 4, 5]), [], 2_000_000, 2, batch[1])
    result = msgspec.structs.replace(answer, padding=3, micro_batches=2, micro_batch_inputs=3)
    core.handle(b"W1", result, bytes(3 * 4 * DIMENSION))
    labels = ("m", "CPU", "interactive", "host/CPU/0")
    assert distribution(core, "queue_seconds", "m", "interactive") == pytest.approx([4, 0.012])
    assert distribution(core, "batch_jobs", *labels) == [2, 4]
    # The first answer had 6 tokens and took 5 µs.
    assert distribution(core, "batch_tokens", *labels) == [2, 18]
    assert distribution(core, "inference_seconds", *labels) == pytest.approx([2, 2.000005])
    assert values(core, "tokens")[labels] == 18
    assert values(core, "padding_tokens")[labels] == 3
    assert (values(core, "micro_batches")[labels], values(core, "micro_batch_inputs")[labels]) == (2, 3)
    assert values(core, "job_dispatches")["m", "interactive"] == 4
    assert values(core, "jobs")[("answered",)] == 4


def test_open_work_is_shown_by_gauges(core: Core) -> None:
    core.submit(1, ["busy"])
    (busy,) = core.batches()
    core.submit(2, ["x" * 40], lane=wire.Lane.INTERACTIVE)
    core.submit(3, ["y" * 40, "z" * 40], lane=wire.Lane.BULK)
    core.batches()
    queue = core.model().queue
    assert values(core, "queue_jobs") == {("m", "interactive"): 1, ("m", "bulk"): 0}
    assert values(core, "queue_tokens")["m", "interactive"] == queue.tokens > 0
    assert values(core, "open_jobs") == {(): 4}
    assert values(core, "worker_leases") == {("m", "CPU", "host/CPU/0"): 2}
    assert values(core, "worker_credits") == {("m", "CPU", "host/CPU/0"): 0}
    open_tokens = core.scheduler.state.ledger.tokens
    speed = core.scheduler.state.pool.sum_tokens_per_s(KEY)
    assert values(core, "expected_wait_seconds")[("m",)] == pytest.approx(open_tokens / speed)
    core.lost(b"W1")
    assert values(core, "expected_wait_seconds")[("m",)] == math.inf
    assert values(core, "queue_suspects") == {("m",): 3}
    assert values(core, "workers") == {("m",): 0}
    assert busy


def test_failed_jobs_are_counted_by_outcome(core: Core) -> None:
    core.submit(1, ["a"], model="other")
    core.submit(2, ["b"])
    (batch,) = core.batches()
    core.handle(b"F1", wire.Cancel(wire.pack_u64([2])))
    core.submit(3, ["c"], budget_ms=10)
    core.tick(0.011)
    core.submit(4, ["d", "e"])
    core.answer(batch)
    (batch,) = core.batches()
    core.answer(batch, failures=[wire.JobFailure(0, ErrorCode.TOO_LONG, "long")])
    assert values(core, "requests_rejected")[("unknown_model",)] == 1
    jobs = values(core, "jobs")
    assert (jobs[("cancelled",)], jobs[("deadline",)], jobs[("too_long",)], jobs[("answered",)]) == (1, 1, 1, 1)


def test_lost_workers_are_counted_by_reason(core: Core) -> None:
    core.submit(1, ["a", "b"])
    core.lost(b"W1")
    core.worker(b"W2")
    core.handle(b"W2", wire.WorkerGoodbye())
    assert values(core, "worker_evictions")[("connection_lost",)] == 1
    assert values(core, "jobs_requeued")[("m",)] == 3
    assert values(core, "workers_joined") == {(): 2}
    assert values(core, "workers_left") == {(): 1}


def fall_silent(core: Core) -> None:
    for _ in range(2):
        core.tick(Limits().liveness_s / 2)
        core.handle(b"F1", wire.FrontendHeartbeat())


def hang(core: Core) -> None:
    for _ in range(int(Limits().lease_s)):
        core.tick(1.0)
        core.handle(b"W1", wire.WorkerHeartbeat(2, 1))
        core.handle(b"F1", wire.FrontendHeartbeat())


def answer_in_another_shape(core: Core) -> None:
    ((_, number, _),) = core.batches()
    core.handle(b"W1", wire.BatchResult(EPOCH, number, DIMENSION, b"", [], 5, 2, number), b"")


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (fall_silent, "silent"),
        (hang, "lease_expired"),
        (lambda core: core.lost(b"W1"), "connection_lost"),
        (answer_in_another_shape, "invalid_result"),
    ],
)
def test_eviction_is_counted_by_its_reason(core: Core, act: Callable[[Core], None], reason: str) -> None:
    core.submit(1, ["a"], budget_ms=60_000)
    act(core)
    counted = values(core, "worker_evictions")
    assert len(counted) == 4
    assert {labels: count for labels, count in counted.items() if count} == {(reason,): 1}
    assert values(core, "workers_left") == {(): 0}


def test_joined_workers_are_up_left_or_evicted(core: Core) -> None:
    core.worker(b"W2")
    core.worker(b"W3", uuid=b"W2")
    core.worker(b"W4")
    core.lost(b"W4")
    joined, left = values(core, "workers_joined")[()], values(core, "workers_left")[()]
    evicted, up = sum(values(core, "worker_evictions").values()), values(core, "workers")[("m",)]
    assert (joined, left, evicted, up) == (4, 1, 1, 2)


def labels_of(core: Core) -> list[str]:
    """Return the values of the label `worker`."""
    return sorted({labels[-1] for labels in values(core, "tokens")})


def join(core: Core, peer: bytes, *, pid: int, host: str = "host", device: str = "CPU") -> None:
    info = wire.ModelInfo("m", "r", DIMENSION, 100)
    uuid = peer.ljust(16, b".")
    core.handle(peer, wire.WorkerHello(1, 1, "test", uuid, 1, host, pid, device, [info], 1000, 10_000, 2))


def test_series_of_a_worker_end_with_it(core: Core) -> None:
    core.worker(b"W2")
    assert labels_of(core) == ["host/CPU/0", "host/CPU/1"]
    core.lost(b"W1")
    assert labels_of(core) == ["host/CPU/1"]
    core.handle(b"W2", wire.WorkerGoodbye())
    assert labels_of(core) == []
    assert values(core, "worker_up") == {}


def test_restarted_workers_keep_their_label(core: Core) -> None:
    join(core, b"W2", pid=2)
    for pid in range(10, 20):
        core.lost(b"W1")
        join(core, b"W1", pid=pid)
        assert labels_of(core) == ["host/CPU/0", "host/CPU/1"]
    worker = core.scheduler.state.pool.workers[b"W1"]
    assert (worker.label, worker.name) == ("host/CPU/0", "host/19")


def test_reconnected_worker_keeps_its_label(core: Core) -> None:
    core.worker(b"W2")
    core.worker(b"W9", uuid=b"W1")
    assert core.scheduler.state.pool.workers[b"W9"].label == "host/CPU/0"


def test_slots_are_counted_per_host_and_device(core: Core) -> None:
    join(core, b"W2", pid=2, host="other")
    join(core, b"W3", pid=3, device="GPU")
    join(core, b"W4", pid=4, device="GPU")
    assert labels_of(core) == ["host/CPU/0", "host/GPU/0", "host/GPU/1", "other/CPU/0"]


def test_all_families_are_documented(core: Core) -> None:
    page = (ROOT / "docs/metrics.md").read_text()
    names = {f"vecmill_{name}" + "_total" * (family.kind == "counter") for name, family in families(core).items()}
    assert {name for name in names if f"`{name}`" not in page} == set()


def test_collected_families_do_not_change_later(core: Core) -> None:
    before = core.scheduler.collect_metrics()
    copied = copy.deepcopy(before)
    core.submit(1, ["a"])
    core.answer(core.batches()[0])
    assert before == copied != core.scheduler.collect_metrics()


def test_value_is_in_its_lowest_bucket() -> None:
    histogram = HistogramFamily("h", "text", ("a",), (1.0, 2.0))
    for value, count in ((0.5, 1), (1.0, 2), (2.0, 2), (2.5, 1)):
        histogram.observe(("x",), value, count)
    (sample,) = histogram.snapshot().samples
    assert (sample.buckets, sample.value) == ((3, 2, 1), 9.0)
