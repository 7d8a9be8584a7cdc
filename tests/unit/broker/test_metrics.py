"""The broker's metrics: what is counted, what exists at zero, what is forgotten."""

import math
from collections.abc import Callable

import pytest

from broker.core.limits import Limits
from broker.core.metrics import MAX_GONE, Histogram
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from tests.harness.core import DIMENSION, EPOCH, Core

Series = dict[tuple[str, ...], float]


def families(core: Core) -> dict[str, wire.Family]:
    """All of them, as a frontend gets them."""
    core.handle(b"F1", wire.FrontendHeartbeat(metrics=True))
    *_, (_, stats, _) = core.take(wire.Stats, b"F1")
    names = [family.name for family in stats.families]
    assert len(names) == len(set(names))
    return {family.name: family for family in stats.families}


def values(core: Core, name: str) -> Series:
    """A counter's or a gauge's values by their labels."""
    return {tuple(sample.labels): sample.value for sample in families(core)[name].samples}


def distribution(core: Core, name: str, *labels: str) -> list[float]:
    """Of a histogram: how often, and the sum."""
    samples = {tuple(sample.labels): sample for sample in families(core)[name].samples}
    return [sum(samples[labels].buckets), samples[labels].value]


def test_they_are_told_to_those_who_ask(core: Core) -> None:
    core.handle(b"F1", wire.FrontendHeartbeat())
    ((_, stats, _),) = core.take(wire.Stats)
    assert stats.families == []
    assert families(core)


def test_they_exist_at_zero() -> None:
    core = Core()
    core.frontend()
    found = families(core)
    assert {sample.value for sample in found["jobs"].samples} == {0}
    assert {sample.labels[0] for sample in found["requests_rejected"].samples} >= {"overloaded", "quota"}
    assert {sample.labels[0] for sample in found["worker_evictions"].samples} >= {"silent", "connection lost"}
    assert found["batch_jobs"].samples == []
    core.worker()
    found = families(core)
    wanted = [["m", "CPU", lane, "host/1"] for lane in ("interactive", "bulk")]
    for name in ("batch_jobs", "batch_tokens", "inference_seconds", "tokens", "padding_tokens"):
        assert [sample.labels for sample in found[name].samples] == wanted
        assert {sample.value for sample in found[name].samples} == {0}
    assert all(len(sample.labels) == len(family.labels) for family in found.values() for sample in family.samples)
    assert all(family.text for family in found.values())
    assert values(core, "workers") == {("m",): 1}


def test_batch_is_counted_from_its_wait_to_its_tokens(core: Core) -> None:
    core.submit(1, ["busy"])
    (busy,) = core.batches()
    core.submit(2, ["a", "bb", "ccc"])
    core.tick(0.004)
    core.answer(busy)
    (batch,) = core.batches()
    assert values(core, "queue_jobs")["m", "interactive"] == 0
    result = wire.BatchResult(
        EPOCH, batch[1], DIMENSION, wire.pack_u32([3, 4, 5]), [], 2_000_000, 2, batch[1], padding=3
    )
    core.handle(b"W1", result, bytes(3 * 4 * DIMENSION))
    labels = ("m", "CPU", "interactive", "host/1")
    assert distribution(core, "queue_seconds", "m", "interactive") == pytest.approx([4, 0.012])
    assert distribution(core, "batch_jobs", *labels) == [2, 4]
    # The first answer told 6 tokens and 5 µs.
    assert distribution(core, "batch_tokens", *labels) == [2, 18]
    assert distribution(core, "inference_seconds", *labels) == pytest.approx([2, 2.000005])
    assert values(core, "tokens")[labels] == 18
    assert values(core, "padding_tokens")[labels] == 3
    assert values(core, "job_dispatches")["m", "interactive"] == 4
    assert values(core, "jobs")[("answered",)] == 4


def test_what_is_open_is_told(core: Core) -> None:
    core.submit(1, ["busy"])
    (busy,) = core.batches()
    core.submit(2, ["x" * 40], lane=wire.Lane.INTERACTIVE)
    core.submit(3, ["y" * 40, "z" * 40], lane=wire.Lane.BULK)
    core.batches()
    queue = core.scheduler.models["m"].queue
    assert values(core, "queue_jobs") == {("m", "interactive"): 1, ("m", "bulk"): 0}
    assert values(core, "queue_tokens")["m", "interactive"] == queue.tokens > 0
    assert values(core, "open_jobs") == {(): 4}
    assert values(core, "worker_leases") == {("m", "CPU", "host/1"): 2}
    assert values(core, "worker_credits") == {("m", "CPU", "host/1"): 0}
    open_tokens = core.scheduler.ledger.tokens
    speed = core.scheduler.pool.tokens_per_s("m")
    assert values(core, "expected_wait_seconds")[("m",)] == pytest.approx(open_tokens / speed)
    core.lost(b"W1")
    assert values(core, "expected_wait_seconds")[("m",)] == math.inf
    assert values(core, "queue_suspects") == {("m",): 3}
    assert values(core, "workers") == {("m",): 0}
    assert busy


def test_ends_of_jobs_and_requests_are_counted_by_why(core: Core) -> None:
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


def test_ends_of_workers_are_counted_by_why(core: Core) -> None:
    core.submit(1, ["a", "b"])
    core.lost(b"W1")
    core.worker(b"W2")
    core.handle(b"W2", wire.WorkerGoodbye())
    assert values(core, "worker_evictions")[("connection lost",)] == 1
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
        (hang, "its batch ran too long"),
        (lambda core: core.lost(b"W1"), "connection lost"),
        (answer_in_another_shape, "answered a batch in another shape"),
    ],
)
def test_eviction_is_counted_by_its_reason(core: Core, act: Callable[[Core], None], reason: str) -> None:
    core.submit(1, ["a"], budget_ms=60_000)
    act(core)
    counted = values(core, "worker_evictions")
    assert len(counted) == 4
    assert {labels: count for labels, count in counted.items() if count} == {(reason,): 1}
    assert values(core, "workers_left") == {(): 0}


def test_workers_that_joined_are_up_or_left_or_were_evicted(core: Core) -> None:
    core.worker(b"W2")
    core.worker(b"W3", uuid=b"W2")
    core.worker(b"W4")
    core.lost(b"W4")
    joined, left = values(core, "workers_joined")[()], values(core, "workers_left")[()]
    evicted, up = sum(values(core, "worker_evictions").values()), values(core, "workers")[("m",)]
    assert (joined, left, evicted, up) == (4, 1, 1, 2)


def test_series_of_workers_that_have_left_are_kept_up_to_a_bound(core: Core) -> None:
    for number in range(MAX_GONE + 5):
        join(core, number)
        core.lost(b"Wn")
    names = {sample.labels[-1] for sample in families(core)["tokens"].samples}
    assert len(names) == MAX_GONE + 1
    assert "host/1" in names
    assert {f"host/{1000 + number}" for number in (0, MAX_GONE + 4)} - names == {"host/1000"}


def test_worker_that_is_back_under_its_name_is_not_forgotten(core: Core) -> None:
    join(core, 0)
    core.lost(b"Wn")
    join(core, 0, peer=b"Wm")
    for number in range(1, MAX_GONE + 5):
        join(core, number)
        core.lost(b"Wn")
    assert "host/1000" in {sample.labels[-1] for sample in families(core)["tokens"].samples}


def join(core: Core, number: int, peer: bytes = b"Wn") -> None:
    """A worker of a name of its own."""
    info = wire.ModelInfo("m", "r", DIMENSION, 100)
    uuid = str(number).encode().ljust(16, peer[-1:])
    core.handle(peer, wire.WorkerHello(1, 1, "test", uuid, 1, "host", 1000 + number, "CPU", [info], 1000, 10_000, 2))


def test_value_is_in_the_first_bucket_that_reaches_it() -> None:
    histogram = Histogram("h", "text", ["a"], (1.0, 2.0))
    histogram.observe(("x",), [0.5, 1.0, 1.5, 2.0, 2.5])
    (sample,) = histogram.family().samples
    assert (sample.buckets, sample.value) == ([2, 2, 1], 7.5)
