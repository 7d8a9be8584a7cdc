"""What is learned of a worker's speed, and who is let in because of it."""

import pytest

from broker.admission import UNKNOWN_WAIT_S, Bounds, Load, expected_wait, refuse
from broker.errors import ErrorCode
from broker.speed import PRIOR_FIXED_S, Speed


def test_worker_is_believed_until_it_is_known() -> None:
    assert Speed(1000, 100).predict(500) == pytest.approx(0.5 + PRIOR_FIXED_S)
    assert Speed(1000, 100).tokens_per_s == pytest.approx(1000, rel=0.1)


def test_line_is_learned() -> None:
    speed = Speed(1000, 100)
    for tokens in [10, 500, 90, 300] * 50:
        speed.learn(tokens, 0.02 + tokens / 250)
    assert speed.predict(200) == pytest.approx(0.02 + 200 / 250, rel=0.01)


def test_batches_of_one_size_still_predict() -> None:
    speed = Speed(1000, 100)
    for _ in range(500):
        speed.learn(100, 0.4)
    assert speed.predict(100) == pytest.approx(0.4, rel=0.01)
    assert speed.predict(50) > 0


def test_slowing_down_is_noticed_within_some_batches() -> None:
    speed = Speed(1000, 100)
    for _ in range(40):
        speed.learn(100, 1.0)
    assert speed.tokens_per_s == pytest.approx(100, rel=0.2)


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_prediction_is_never_negative(seconds: float) -> None:
    speed = Speed(1, 1)
    for tokens in (1, 1000, 2, 500):
        speed.learn(tokens, seconds)
    assert speed.predict(10) >= 0
    assert speed.tokens_per_s > 0


BOUNDS = Bounds(jobs=10, tokens=100, bytes=1000, client_jobs=5, wait_s=3.0)
HELD = Load(1, 1, 1)


@pytest.mark.parametrize(
    ("asked", "client_jobs", "wait_s", "budget_s", "code"),
    [
        (Load(1, 1, 1), 0, 0.0, 9.0, None),
        (Load(1, 1, 1), 5, 0.0, 9.0, ErrorCode.QUOTA),
        (Load(10, 1, 1), 0, 0.0, 9.0, ErrorCode.QUOTA),
        (Load(5, 100, 1), 0, 0.0, 9.0, ErrorCode.OVERLOADED),
        (Load(5, 1, 1000), 0, 0.0, 9.0, ErrorCode.OVERLOADED),
        (Load(1, 1, 1), 0, 3.5, 9.0, ErrorCode.OVERLOADED),
        (Load(1, 1, 1), 0, 2.5, 2.0, ErrorCode.OVERLOADED),
        (Load(1, 1, 1), 0, 2.5, 9.0, None),
        (Load(1, 1, 1), 0, None, 9.0, None),
    ],
)
def test_admission(
    asked: Load, client_jobs: int, wait_s: float | None, budget_s: float, code: ErrorCode | None
) -> None:
    refusal = refuse(asked, HELD, client_jobs, BOUNDS, wait_s, budget_s)
    assert (refusal and refusal.code) == code


def test_jobs_above_the_bound_are_refused() -> None:
    refusal = refuse(Load(2, 1, 1), Load(9, 1, 1), 0, BOUNDS, None, 9.0)
    assert refusal
    assert (refusal.code, refusal.retry_after_s) == (ErrorCode.OVERLOADED, UNKNOWN_WAIT_S)


def test_expected_wait_is_what_is_ahead_by_the_rate() -> None:
    assert expected_wait(500, 100.0) == 5.0
    assert expected_wait(500, 0.0) is None
