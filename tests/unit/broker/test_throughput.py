"""Throughput of a worker, learned from its batches, and admission by the expected wait."""

import pytest

from broker.core.admission import UNKNOWN_WAIT_S, compute_wait_s
from broker.core.limits import Limits
from broker.core.throughput import PRIOR_FIXED_S, Throughput
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from tests.harness.core import Core


def test_announced_speed_is_used_at_first() -> None:
    assert Throughput(1000, 100).predict_seconds(500) == pytest.approx(0.5 + PRIOR_FIXED_S)
    assert Throughput(1000, 100).tokens_per_s == pytest.approx(1000, rel=0.1)


def test_fixed_and_token_cost_are_learned() -> None:
    speed = Throughput(1000, 100)
    for tokens in [10, 500, 90, 300] * 50:
        speed.record_batch(tokens, 0.02 + tokens / 250)
    assert speed.predict_seconds(200) == pytest.approx(0.02 + 200 / 250, rel=0.01)


def test_equal_batches_give_a_prediction() -> None:
    speed = Throughput(1000, 100)
    for _ in range(500):
        speed.record_batch(100, 0.4)
    assert speed.predict_seconds(100) == pytest.approx(0.4, rel=0.01)
    assert speed.predict_seconds(50) > 0


def test_slower_worker_is_noticed_within_batches() -> None:
    speed = Throughput(1000, 100)
    for _ in range(40):
        speed.record_batch(100, 1.0)
    assert speed.tokens_per_s == pytest.approx(100, rel=0.2)


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_prediction_is_never_negative(seconds: float) -> None:
    speed = Throughput(1, 1)
    for tokens in (1, 1000, 2, 500):
        speed.record_batch(tokens, seconds)
    assert speed.predict_seconds(10) >= 0
    assert speed.tokens_per_s > 0


@pytest.mark.parametrize(
    ("texts", "code"),
    [
        (["a"], None),
        (["a"] * 5, None),
        (["a"] * 6, ErrorCode.QUOTA),
        (["a"] * 11, ErrorCode.INVALID_INPUT),
        (["a" * 1001], ErrorCode.INVALID_INPUT),
        (["a" * 1000], ErrorCode.OVERLOADED),
        (["a" * 70] * 4, None),
        (["a" * 77] * 4, ErrorCode.OVERLOADED),
        (["a" * 90] * 4, ErrorCode.INVALID_INPUT),
    ],
)
def test_request_above_limits_is_rejected(texts: list[str], code: ErrorCode | None) -> None:
    core = Core(Limits(max_jobs=10, max_tokens=100, max_bytes=1000, max_client_share=0.5))
    core.frontend()
    core.worker()
    core.submit(1, ["open"], client="another")
    core.submit(2, texts)
    assert [failure[2] for failure in core.failures()] == ([code] if code else [])


@pytest.mark.parametrize(("max_wait_s", "budget_ms", "rejected"), [(0.5, 9000, True), (9, 500, True), (9, 9000, False)])
def test_request_is_rejected_by_expected_wait(max_wait_s: float, budget_ms: int, rejected: bool) -> None:
    core = Core(Limits(max_wait_s=max_wait_s))
    core.frontend()
    core.worker(tokens_per_s=100)
    core.submit(1, ["a" * 200], client="another")
    core.submit(2, ["b"], budget_ms=budget_ms)
    texts = [message.failures[0].text for _, message, _ in core.take(wire.Failures)]
    assert texts == ["the queue is 0.62 s long; retry later"] * rejected


def test_retry_after_of_full_queue_is_wait() -> None:
    core = Core(Limits(max_jobs=2, max_client_share=1))
    core.frontend()
    core.worker(tokens_per_s=100)
    core.submit(1, ["a" * 200, "b"], client="another")
    core.submit(2, ["c"])
    ((_, message, _),) = core.take(wire.Failures)
    (failure,) = message.failures
    assert (failure.code, failure.text) == (ErrorCode.OVERLOADED, "the queue is full; retry later")
    assert 600 < failure.retry_after_ms < 700


def test_retry_after_defaults_to_a_second() -> None:
    core = Core(Limits(max_jobs=1))
    core.frontend()
    core.worker()
    core.submit(1, ["a"])
    core.lost(b"W1")
    core.submit(2, ["b"])
    ((_, message, _),) = core.take(wire.Failures)
    assert message.failures[0].retry_after_ms == UNKNOWN_WAIT_S * 1000


def test_wait_is_tokens_ahead_by_rate() -> None:
    assert compute_wait_s(500, 100.0) == 5.0
    assert compute_wait_s(500, 0.0) is None
