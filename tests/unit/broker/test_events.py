"""Recorder of events: reasons of evictions, and the totals that each event changes."""

from collections.abc import Callable

import pytest

from broker.core.events import EventRecorder, EvictionReason
from broker.wire.errors import ErrorCode
from tests.harness.core import KEY, Core, make_request


@pytest.mark.parametrize(
    ("reason", "label", "text", "code", "is_departure"),
    [
        (EvictionReason.SILENT, "silent", "silent", ErrorCode.INTERNAL, False),
        (EvictionReason.LEASE_EXPIRED, "lease_expired", "lease expired", ErrorCode.LEASE_EXPIRED, False),
        (EvictionReason.CONNECTION_LOST, "connection_lost", "connection lost", ErrorCode.INTERNAL, False),
        (EvictionReason.INVALID_RESULT, "invalid_result", "invalid result", ErrorCode.INTERNAL, False),
        (EvictionReason.LEFT, "left", "left", ErrorCode.DRAINING, True),
        (EvictionReason.REPLACED, "replaced", "replaced", ErrorCode.DRAINING, True),
    ],
)
def test_eviction_reason_has_label_text_and_code(
    reason: EvictionReason, label: str, text: str, code: ErrorCode, is_departure: bool
) -> None:
    assert (reason.value, reason.text, reason.code, reason.is_departure) == (label, text, code, is_departure)


def test_series_of_all_evictions_exist_at_zero() -> None:
    samples = EventRecorder().metrics.worker_evictions.snapshot().samples
    evictions = [(reason.value,) for reason in EvictionReason if not reason.is_departure]
    assert sorted(sample.labels for sample in samples) == sorted(evictions)
    assert {sample.value for sample in samples} == {0}


REQUEST = make_request([b"a", b"b", b"c"])
assert REQUEST.tokens
REQUEST.open_jobs = 2


@pytest.mark.parametrize(
    ("record", "changed"),
    [
        (lambda events: events.request_admitted(REQUEST, 1.0), {"jobs_admitted": 3}),
        (lambda events: events.request_rejected(ErrorCode.QUOTA), {"requests_rejected": 1}),
        (lambda events: events.request_repeated(), {"duplicate_requests": 1}),
        (lambda events: events.request_failed(REQUEST, ErrorCode.DEADLINE, 1.0), {"jobs_failed": 2}),
        (lambda events: events.request_cancelled(REQUEST, 1.0), {"jobs_cancelled": 2}),
        (lambda events: events.job_failed(REQUEST.make_job(0), ErrorCode.POISON, 1.0), {"jobs_failed": 1}),
        (lambda events: events.jobs_requeued(KEY, 3), {"jobs_requeued": 3}),
        (lambda events: events.jobs_blocked(2), {"jobs_blocked": 2}),
        (lambda events: events.model_replaced("m"), {"models_replaced": 1}),
        (lambda events: events.peer_refused(), {"peers_refused": 1}),
        (lambda events: events.message_unexpected(), {"messages_without_session": 1}),
        (lambda events: events.message_malformed(), {"malformed_messages": 1}),
        (lambda events: events.result_late(), {"late_answers": 1}),
    ],
)
def test_event_changes_only_its_total(record: Callable[[EventRecorder], None], changed: dict[str, int]) -> None:
    events = EventRecorder()
    record(events)
    assert {name: total for name, total in events.metrics.count_totals().items() if total} == changed


def test_malformed_messages_are_numbered() -> None:
    events = EventRecorder()
    assert [events.message_malformed() for _ in range(3)] == [1, 2, 3]


def test_events_of_worker_and_batch_are_recorded(core: Core) -> None:
    core.submit(1, ["a", "b"])
    (batch,) = core.batches()
    core.fail(batch)
    core.answer(*core.batches())
    core.answer(*core.batches())
    totals = core.scheduler.count_totals()
    assert {name: total for name, total in totals.items() if total and name != "batch_us"} == {
        "jobs_admitted": 2,
        "jobs_dispatched": 4,
        "jobs_requeued": 2,
        "jobs_answered": 2,
        "batches_dispatched": 3,
        "batches_failed": 1,
        "batches_answered": 2,
        "workers_joined": 1,
    }


def test_eviction_is_recorded_for_jobs_and_metrics(core: Core) -> None:
    core.submit(1, ["a"])
    state = core.scheduler.state
    worker = state.pool.workers[b"W1"]
    state.events.worker_evicted(worker, EvictionReason.SILENT, core.now)
    (owner,) = state.ledger.by_uuid
    assert state.events.history.describe_job(owner, 1, 0)[-1] == "1000.000 returned from batch 1: host/1 silent"
    assert state.events.metrics.worker_evictions.get(("silent",)) == 1
    state.events.worker_evicted(worker, EvictionReason.LEFT, core.now)
    assert state.events.metrics.count_totals()["workers_left"] == 1
