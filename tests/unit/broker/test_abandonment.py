"""Jobs that a client abandoned count against the client's limit for a while."""

import pytest

from broker.core.abandonment import HALF_LIFE_S, MAX_CLIENTS, Abandonment
from broker.core.admission import MAX_ABANDONED_SHARE
from broker.core.limits import Limits
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from broker.wire.protocol import Kind, Lane
from tests.harness.core import Core


def test_abandoned_jobs_fade() -> None:
    abandonment = Abandonment()
    abandonment.add_jobs("a", 100, 10.0)
    abandonment.add_jobs("a", 50, 10.0 + HALF_LIFE_S)
    assert abandonment.count_jobs("a", 10.0 + HALF_LIFE_S) == pytest.approx(100)
    assert abandonment.count_jobs("a", 10.0 + 3 * HALF_LIFE_S) == pytest.approx(25)
    assert abandonment.count_jobs("b", 10.0) == 0
    wait_s = abandonment.find_wait_s("a", 10, 10.0 + HALF_LIFE_S)
    assert abandonment.count_jobs("a", 10.0 + HALF_LIFE_S + wait_s) == pytest.approx(10)
    assert abandonment.find_wait_s("b", 10, 10.0) == 0


def test_remembered_clients_are_bounded_and_worst_stay() -> None:
    abandonment = Abandonment()
    abandonment.add_jobs("worst", 1000, 0.0)
    for number in range(3 * MAX_CLIENTS):
        abandonment.add_jobs(number, 10, 1.0)
    assert len(abandonment) <= MAX_CLIENTS
    assert abandonment.count_jobs("worst", 0.0) == 1000


@pytest.fixture
def crowded() -> Core:
    """Return a broker where one client may have 500 open jobs, because another client has one."""
    core = Core(Limits(max_jobs=1000))
    core.frontend()
    core.worker()
    core.submit(1, ["open"], client="another", budget_ms=600_000)
    return core


def abandon_request(core: Core, request: int, inputs: int, client: str = "flood") -> list[tuple[int, int, ErrorCode]]:
    """Submit a request and disconnect its client. Return the failures."""
    core.submit(request, ["a"] * inputs, client=client)
    disconnect_client(core, request)
    return core.failures()


def disconnect_client(core: Core, request: int) -> None:
    """Cancel a request because its client disconnected."""
    core.handle(b"F1", wire.Cancel(wire.pack_u64([request]), wire.pack_u64([request])))


def submit_from_address(core: Core, request: int, inputs: int, client: str, address: str) -> None:
    """Submit a request of one-letter texts from an address."""
    lengths = wire.pack_u32([1] * inputs)
    submission = wire.Submission(request, "m", Lane.BULK, client, 10_000, Kind.TEXT, lengths, address=address)
    core.handle(b"F1", wire.Submit([submission]), b"a" * inputs)


def test_only_abandoning_client_is_rejected(crowded: Core) -> None:
    rejections = [abandon_request(crowded, number, 200) for number in range(2, 12)]
    assert rejections[:3] == [[], [], []]
    assert rejections[-1] == [(11, -1, ErrorCode.QUOTA)]
    assert abandon_request(crowded, 20, 200, client="honest") == []


def test_rejection_has_reason_and_retry_after(crowded: Core) -> None:
    for number in (2, 3):
        assert abandon_request(crowded, number, 450) == []
    crowded.submit(4, ["a"] * 400, client="flood")
    ((_, message, _),) = crowded.take(wire.Failures)
    (failure,) = message.failures
    assert failure.code == ErrorCode.QUOTA
    assert failure.text == (
        "this client may have 500 inputs open at once, and 400 recently abandoned ones count as open; "
        "wait for answers before you disconnect"
    )
    assert failure.retry_after_ms > 0
    crowded.now += failure.retry_after_ms / 1000
    crowded.submit(5, ["a"] * 400, client="flood")
    assert crowded.failures() == []


def test_abandoned_jobs_up_to_limit_are_forgiven(crowded: Core) -> None:
    for number in (2, 3):
        assert abandon_request(crowded, number, 500) == []
    assert abandon_request(crowded, 4, 500) == [(4, -1, ErrorCode.QUOTA)]


def test_abandoning_client_may_send_small_requests(crowded: Core) -> None:
    free = round(500 * (1 - MAX_ABANDONED_SHARE))
    crowded.scheduler.state.abandonment.add_jobs("flood", 5000, crowded.now)
    assert abandon_request(crowded, 50, free + 1) == [(50, -1, ErrorCode.QUOTA)]
    crowded.submit(51, ["a"] * free, client="flood")
    assert crowded.failures() == []


def test_lone_client_may_abandon_any_number() -> None:
    core = Core(Limits(max_jobs=1000))
    core.frontend()
    for number in range(20):
        core.worker()
        core.submit(1000 + number, ["a"], client="flood")
        assert abandon_request(core, number, 450) == []


def test_abandoned_jobs_count_against_key_limit(crowded: Core) -> None:
    for number, failures in ((2, []), (3, []), (4, [(4, -1, ErrorCode.QUOTA)])):
        crowded.submit(number, ["a"] * 40, client="key", client_jobs=40)
        assert crowded.failures() == failures
        disconnect_client(crowded, number)


def test_address_is_limited_across_client_names(crowded: Core) -> None:
    rejections = []
    for number in range(2, 20):
        submit_from_address(crowded, number, 200, client=f"flood {number}", address="here")
        rejections += crowded.failures()
        disconnect_client(crowded, number)
    assert len(rejections) > 10
    submit_from_address(crowded, 100, 200, client="honest", address="elsewhere")
    assert crowded.failures() == []


def test_cancelled_jobs_do_not_count_as_abandoned(crowded: Core) -> None:
    for number in range(2, 20):
        crowded.submit(number, ["a"] * 400, client="honest")
        crowded.handle(b"F1", wire.Cancel(wire.pack_u64([number])))
    assert crowded.failures() == []


def test_jobs_of_lost_frontend_are_not_abandoned(crowded: Core) -> None:
    crowded.frontend(b"F2")
    crowded.submit(1, ["a"] * 400, b"F2", client="honest")
    crowded.lost(b"F2")
    crowded.submit(2, ["a"] * 400, client="honest")
    assert crowded.failures() == []
