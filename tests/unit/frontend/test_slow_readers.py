"""Policy on slow readers, without connections."""

from collections.abc import Callable

import pytest

from frontend.rest.slow_readers import (
    PRESSED_AFTER_S,
    PRESSED_FINISH_S,
    SAMPLES,
    SMALL_BYTES,
    Readers,
    ReadLimits,
    Reason,
)

MB = 1_000_000
STEP_S = 0.25
#: Names of all clients below.
ALL = {"still", "slow", "less slow", "fast", "old", "young", "new", "reads", "stops", "gone"}
LIMITS = ReadLimits(timeout_s=60, min_rate=16_000)

#: Bytes that a client has read after a number of seconds.
BytesRead = Callable[[float], float]


@pytest.fixture
def readers() -> Readers[str]:
    return Readers(LIMITS)


def simulate(
    readers: Readers[str], until_s: float, clients: dict[str, BytesRead], held: int = 10 * MB, rest: int = 10 * MB
) -> dict[str, tuple[Reason, float]]:
    """Check clients from time 0 on. Return why and when each client was ended."""
    ended: dict[str, tuple[Reason, float]] = {}
    for step in range(int(until_s / STEP_S) + 1):
        now = step * STEP_S
        for name in clients.keys() - ended.keys():
            readers.record_state(name, now, taken=int(clients[name](now)), sent=1000, held=held, rest=rest)
        for name, reason in readers.find_slow(now).items():
            ended[name] = (reason, now)
            readers.forget(name)
    return ended


def read_steadily(rate: float) -> BytesRead:
    return lambda now: rate * now


def read_in_bursts(size: int, every_s: float) -> BytesRead:
    return lambda now: size * (now // every_s)


def test_stalled_client_is_ended_after_timeout(readers: Readers[str]) -> None:
    assert simulate(readers, 70, {"still": lambda _: 0}) == {"still": (Reason.STALLED, 60)}


def test_client_that_stops_is_ended_after_timeout(readers: Readers[str]) -> None:
    assert simulate(readers, 200, {"stops": lambda now: MB * min(now, 100)}) == {"stops": (Reason.STALLED, 160)}


def test_stall_of_small_answer_is_ended(readers: Readers[str]) -> None:
    assert simulate(readers, 70, {"still": lambda _: 0}, held=1, rest=1) == {"still": (Reason.STALLED, 60)}


def test_trickling_client_is_ended(readers: Readers[str]) -> None:
    """150 kB every 25 s."""
    ended = simulate(readers, 200, {"trickles": read_in_bursts(150_000, 25)})
    assert ended == {"trickles": (Reason.SLOW, 60)}


def test_initial_burst_counts_for_one_timeout(readers: Readers[str]) -> None:
    """Kernels buffer megabytes before a client reads."""
    ended = simulate(readers, 200, {"trickles": lambda now: 3 * MB * (now > 1) + 6_000 * now})
    reason, at = ended["trickles"]
    assert reason == Reason.SLOW
    assert 60 < at <= 61 + LIMITS.timeout_s * (1 + 1 / SAMPLES)


@pytest.mark.parametrize("rate", [17_000, 1e6, 1e9])
def test_client_above_minimum_rate_stays(readers: Readers[str], rate: float) -> None:
    assert simulate(readers, 600, {"reads": read_steadily(rate)}) == {}


def test_pauses_below_timeout_are_allowed(readers: Readers[str]) -> None:
    assert simulate(readers, 600, {"pauses": read_in_bursts(5 * MB, 50)}) == {}


def test_small_answers_have_no_minimum_rate(readers: Readers[str]) -> None:
    """On a long path some bytes are unacknowledged at every check."""
    assert simulate(readers, 600, {"far": read_steadily(300)}, held=SMALL_BYTES, rest=SMALL_BYTES) == {}


def test_minimum_rate_can_be_disabled() -> None:
    readers: Readers[str] = Readers(LIMITS._replace(min_rate=0))
    assert simulate(readers, 600, {"trickles": read_in_bursts(1, 59)}) == {}


def test_measurement_restarts_when_everything_is_read(readers: Readers[str]) -> None:
    """Then the client waits for the server, which may take long."""
    simulate(readers, 59, {"reads": lambda _: 0})
    readers.record_state("reads", 59, taken=5, sent=0, held=10 * MB, rest=10 * MB)
    assert readers.sum_held(ALL) == 0
    readers.record_state("reads", 61, taken=5, sent=1000, held=10 * MB, rest=10 * MB)
    assert readers.find_slow(100) == {}
    assert readers.choose_slowest(61.5, 100 * MB, ALL) == []


# --- memory is needed -------------------------------------------------------------------------------------------------


def test_slowest_client_is_chosen_first(readers: Readers[str]) -> None:
    slow = {"still": lambda _: 0, "slow": read_steadily(10_000), "less slow": read_steadily(20_000)}
    simulate(readers, 5, slow)
    assert readers.sum_held(ALL) == 30 * MB
    assert readers.choose_slowest(5, 0, ALL) == []
    assert readers.choose_slowest(5, 1, ALL) == ["still"]
    assert readers.choose_slowest(5, 10 * MB + 1, ALL) == ["still", "slow"]
    assert readers.choose_slowest(5, 100 * MB, ALL) == ["still", "slow", "less slow"]


def test_oldest_of_equally_slow_is_chosen_first(readers: Readers[str]) -> None:
    simulate(readers, 2, {"old": lambda _: 0})
    for now in (2.0, 4.0):
        readers.record_state("young", now, taken=0, sent=1, held=MB, rest=MB)
        readers.record_state("old", now, taken=0, sent=1, held=MB, rest=MB)
    assert readers.choose_slowest(4, 2 * MB, ALL) == ["old", "young"]


def test_client_that_soon_finishes_is_not_chosen(readers: Readers[str]) -> None:
    enough = 10 * MB / PRESSED_FINISH_S
    simulate(readers, 5, {"fast": read_steadily(enough * 1.1), "slow": read_steadily(enough * 0.9)})
    assert readers.choose_slowest(5, 100 * MB, ALL) == ["slow"]


@pytest.mark.parametrize(("rest", "ended"), [(4 * MB, ["still"]), (6 * MB, ["still", "reads"])])
def test_rest_decides_speed_and_size_decides_memory(readers: Readers[str], rest: int, ended: list[str]) -> None:
    """The second client reads 0.5 MB/s of an answer of 10 MB."""
    simulate(readers, 5, {"still": lambda _: 0, "reads": read_steadily(MB / 2)}, held=10 * MB, rest=rest)
    assert readers.choose_slowest(5, 10 * MB, ALL) == ["still"]
    assert readers.choose_slowest(5, 20 * MB, ALL) == ended


def test_minimum_rate_applies_until_last_byte(readers: Readers[str]) -> None:
    """Otherwise the last bytes of an answer could keep its memory for hours."""
    assert simulate(readers, 61, {"trickles": read_in_bursts(1, 25)}, rest=1) == {"trickles": (Reason.SLOW, 60)}


def test_only_given_connections_count(readers: Readers[str]) -> None:
    simulate(readers, 5, {"still": lambda _: 0, "slow": read_steadily(1000)})
    assert readers.sum_held({"slow"}) == 10 * MB
    assert readers.choose_slowest(5, 100 * MB, {"slow"}) == ["slow"]


def test_new_client_is_not_chosen(readers: Readers[str]) -> None:
    simulate(readers, PRESSED_AFTER_S - STEP_S, {"new": lambda _: 0})
    assert readers.choose_slowest(PRESSED_AFTER_S - STEP_S, MB, ALL) == []
    assert readers.choose_slowest(PRESSED_AFTER_S, MB, ALL) == ["new"]


def test_kernel_buffers_do_not_count_as_speed(readers: Readers[str]) -> None:
    simulate(readers, 2, {"still": lambda now: 3 * MB * (now > 0)})
    assert readers.choose_slowest(2, MB, ALL) == ["still"]


def test_recent_rate_decides_who_is_slow(readers: Readers[str]) -> None:
    simulate(readers, 20, {"stops": lambda now: 5 * MB * min(now, 18), "slow": read_steadily(1000)})
    assert readers.choose_slowest(20, MB, ALL) == ["stops"]


def test_forgotten_client_holds_no_memory(readers: Readers[str]) -> None:
    simulate(readers, 2, {"gone": lambda _: 0})
    readers.forget("gone")
    readers.forget("gone")
    assert (readers.sum_held(ALL), readers.choose_slowest(2, MB, ALL), readers.find_slow(100)) == (0, [], {})
