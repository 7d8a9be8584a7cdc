"""Token buckets of clients."""

import pytest

from broker.core import quota
from broker.core.quota import Quotas


def test_client_without_a_limit_has_no_bucket() -> None:
    quotas = Quotas()
    quotas.charge("a", 10**9, 0, 0.0)
    quotas.correct_charge("a", 1, 2)
    assert quotas.find_wait_s("a", 10**9, 0, 0.0) == 0
    assert len(quotas) == 0


def test_bucket_holds_one_minutes_tokens() -> None:
    quotas = Quotas()
    assert quotas.find_wait_s("a", 100, 60, 0.0) == 0
    quotas.charge("a", 60, 60, 0.0)
    assert quotas.find_wait_s("a", 1, 60, 0.0) == pytest.approx(1)
    assert quotas.find_wait_s("a", 10, 60, 5.0) == pytest.approx(5)
    assert quotas.find_wait_s("a", 60, 60, 1000.0) == 0


def test_request_above_the_limit_waits_for_a_full_bucket_and_leaves_a_debt() -> None:
    quotas = Quotas()
    quotas.charge("a", 1, 60, 0.0)
    assert quotas.find_wait_s("a", 600, 60, 0.0) == pytest.approx(1)
    assert quotas.find_wait_s("a", 600, 60, 1.0) == 0
    quotas.charge("a", 600, 60, 1.0)
    assert quotas.find_wait_s("a", 1, 60, 1.0) == pytest.approx(541)


def test_exact_count_is_settled() -> None:
    quotas = Quotas()
    quotas.charge("a", 30, 60, 0.0)
    quotas.correct_charge("a", 30, 60)
    quotas.correct_charge("b", 30, 60)
    assert quotas.find_wait_s("a", 1, 60, 0.0) == pytest.approx(1)
    quotas.correct_charge("a", 60, 0)
    assert quotas.find_wait_s("a", 60, 60, 0.0) == 0


def test_limit_that_was_changed_holds_at_once() -> None:
    quotas = Quotas()
    quotas.charge("a", 0, 600, 0.0)
    assert quotas.find_wait_s("a", 60, 60, 0.0) == 0
    quotas.charge("a", 60, 60, 0.0)
    assert quotas.find_wait_s("a", 1, 60, 0.0) > 0


def test_full_buckets_are_let_go_when_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "MAX_BUCKETS", 3)
    quotas = Quotas()
    for name in "abc":
        quotas.charge(name, 60 if name == "c" else 1, 60, 0.0)
    quotas.charge("d", 1, 60, 30.0)
    assert len(quotas) == 2
    assert quotas.find_wait_s("c", 60, 60, 30.0) > 0
