"""What clients abandon counts against them for a while."""

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


def test_only_so_many_clients_are_remembered_and_the_worst_stay() -> None:
    abandonment = Abandonment()
    abandonment.add_jobs("worst", 1000, 0.0)
    for number in range(3 * MAX_CLIENTS):
        abandonment.add_jobs(number, 10, 1.0)
    assert len(abandonment) <= MAX_CLIENTS
    assert abandonment.count_jobs("worst", 0.0) == 1000


@pytest.fixture
def crowded() -> Core:
    """One client may have 500 jobs open, because another one has some."""
    core = Core(Limits(max_jobs=1000))
    core.frontend()
    core.worker()
    core.submit(1, ["open"], client="another", budget_ms=600_000)
    return core


def abandon(core: Core, request: int, inputs: int, client: str = "flood") -> list[tuple[int, int, ErrorCode]]:
    """Submit a request and leave it. Return why it was refused."""
    core.submit(request, ["a"] * inputs, client=client)
    leave(core, request)
    return core.failures()


def leave(core: Core, request: int) -> None:
    """Let the client of a request go away."""
    core.handle(b"F1", wire.Cancel(wire.pack_u64([request]), wire.pack_u64([request])))


def submit_from(core: Core, request: int, inputs: int, client: str, address: str) -> None:
    """Submit a request from an address."""
    lengths = wire.pack_u32([1] * inputs)
    asked = wire.Submission(request, "m", Lane.BULK, client, 10_000, Kind.TEXT, lengths, address=address)
    core.handle(b"F1", wire.Submit([asked]), b"a" * inputs)


def test_client_that_abandons_large_requests_is_refused_and_others_are_not(crowded: Core) -> None:
    refused = [abandon(crowded, number, 200) for number in range(2, 12)]
    assert refused[:3] == [[], [], []]
    assert refused[-1] == [(11, -1, ErrorCode.QUOTA)]
    assert abandon(crowded, 20, 200, client="honest") == []


def test_refusal_tells_when_the_client_may_come_back(crowded: Core) -> None:
    for number in (2, 3):
        assert abandon(crowded, number, 450) == []
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


def test_as_much_as_a_client_may_have_open_is_forgiven(crowded: Core) -> None:
    for number in (2, 3):
        assert abandon(crowded, number, 500) == []
    assert abandon(crowded, 4, 500) == [(4, -1, ErrorCode.QUOTA)]


def test_small_requests_of_a_client_that_abandons_are_still_served(crowded: Core) -> None:
    free = round(500 * (1 - MAX_ABANDONED_SHARE))
    crowded.scheduler.state.abandonment.add_jobs("flood", 5000, crowded.now)
    assert abandon(crowded, 50, free + 1) == [(50, -1, ErrorCode.QUOTA)]
    crowded.submit(51, ["a"] * free, client="flood")
    assert crowded.failures() == []


def test_client_alone_may_abandon_what_it_likes() -> None:
    core = Core(Limits(max_jobs=1000))
    core.frontend()
    for number in range(20):
        core.worker()
        core.submit(1000 + number, ["a"], client="flood")
        assert abandon(core, number, 450) == []


def test_keys_own_limit_is_what_its_abandoned_jobs_count_against(crowded: Core) -> None:
    for number, refused in ((2, []), (3, []), (4, [(4, -1, ErrorCode.QUOTA)])):
        crowded.submit(number, ["a"] * 40, client="key", client_jobs=40)
        assert crowded.failures() == refused
        leave(crowded, number)


def test_address_is_bounded_whatever_its_clients_call_themselves(crowded: Core) -> None:
    refused = []
    for number in range(2, 20):
        submit_from(crowded, number, 200, client=f"flood {number}", address="here")
        refused += crowded.failures()
        leave(crowded, number)
    assert len(refused) > 10
    submit_from(crowded, 100, 200, client="honest", address="elsewhere")
    assert crowded.failures() == []


def test_what_the_frontend_ended_by_itself_is_not_abandoned(crowded: Core) -> None:
    for number in range(2, 20):
        crowded.submit(number, ["a"] * 400, client="honest")
        crowded.handle(b"F1", wire.Cancel(wire.pack_u64([number])))
    assert crowded.failures() == []


def test_what_a_frontend_held_when_it_ended_is_nobodys_fault(crowded: Core) -> None:
    crowded.frontend(b"F2")
    crowded.submit(1, ["a"] * 400, b"F2", client="honest")
    crowded.lost(b"F2")
    crowded.submit(2, ["a"] * 400, client="honest")
    assert crowded.failures() == []
