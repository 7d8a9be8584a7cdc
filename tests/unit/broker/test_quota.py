"""Token buckets of clients."""

import pytest

from broker.core import quota
from broker.core.quota import Quotas


def test_client_without_limit_has_no_bucket() -> None:
    quotas = Quotas()
    quotas.charge("a", 10**9, 0, 0.0)
    quotas.correct_charge("a", 1, 2)
    assert quotas.find_wait_s("a", 10**9, 0, 0.0) == 0
    assert len(quotas) == 0


def test_bucket_holds_tokens_of_one_minute() -> None:
    quotas = Quotas()
    assert quotas.find_wait_s("a", 100, 60, 0.0) == 0
    quotas.charge("a", 60, 60, 0.0)
    assert quotas.find_wait_s("a", 1, 60, 0.0) == pytest.approx(1)
    assert quotas.find_wait_s("a", 10, 60, 5.0) == pytest.approx(5)
    assert quotas.find_wait_s("a", 60, 60, 1000.0) == 0


def test_request_above_limit_empties_full_bucket() -> None:
    quotas = Quotas()
    quotas.charge("a", 1, 60, 0.0)
    assert quotas.find_wait_s("a", 600, 60, 0.0) == pytest.approx(1)
    assert quotas.find_wait_s("a", 600, 60, 1.0) == 0
    quotas.charge("a", 600, 60, 1.0)
    assert quotas.find_wait_s("a", 1, 60, 1.0) == pytest.approx(541)


def test_exact_tokens_replace_estimate() -> None:
    quotas = Quotas()
    quotas.charge("a", 30, 60, 0.0)
    quotas.correct_charge("a", 30, 60)
    quotas.correct_charge("b", 30, 60)
    assert quotas.find_wait_s("a", 1, 60, 0.0) == pytest.approx(1)
    quotas.correct_charge("a", 60, 0)
    assert quotas.find_wait_s("a", 60, 60, 0.0) == 0


def test_changed_limit_applies_at_once() -> None:
    quotas = Quotas()
    quotas.charge("a", 0, 600, 0.0)
    assert quotas.find_wait_s("a", 60, 60, 0.0) == 0
    quotas.charge("a", 60, 60, 0.0)
    assert quotas.find_wait_s("a", 1, 60, 0.0) > 0


def test_full_buckets_are_dropped_above_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "MAX_BUCKETS", 3)
    quotas = Quotas()
    for name in "abc":
        quotas.charge(name, 60 if name == "c" else 1, 60, 0.0)
    quotas.charge("d", 1, 60, 30.0)
    assert len(quotas) == 2
    assert quotas.find_wait_s("c", 60, 60, 30.0) > 0
