"""Which clients read their answers too slowly: the policy alone, by numbers."""

from collections.abc import Callable

import pytest

from frontend.rest.slow_readers import NOTES, PRESSED_AFTER_S, PRESSED_FINISH_S, SMALL, Limits, Readers, Reason

MB = 1_000_000
STEP_S = 0.25
#: The names of all clients below.
ALL = {"still", "slow", "less slow", "fast", "old", "young", "new", "reads", "stops", "gone"}
LIMITS = Limits(timeout_s=60, min_rate=16_000)

#: How much a client has taken after so many seconds.
Taking = Callable[[float], float]


@pytest.fixture
def readers() -> Readers[str]:
    return Readers(LIMITS)


def play(
    readers: Readers[str], until_s: float, clients: dict[str, Taking], held: int = 10 * MB, rest: int = 10 * MB
) -> dict[str, tuple[Reason, float]]:
    """Look at clients from 0 on; who is ended, why, and when."""
    ended: dict[str, tuple[Reason, float]] = {}
    for step in range(int(until_s / STEP_S) + 1):
        now = step * STEP_S
        for name in clients.keys() - ended.keys():
            readers.note(name, now, taken=int(clients[name](now)), sent=1000, held=held, rest=rest)
        for name, reason in readers.too_slow(now).items():
            ended[name] = (reason, now)
            readers.forget(name)
    return ended


def steadily(rate: float) -> Taking:
    return lambda now: rate * now


def in_bursts(size: int, every_s: float) -> Taking:
    return lambda now: size * (now // every_s)


def test_who_takes_nothing_within_the_time_out_is_ended(readers: Readers[str]) -> None:
    assert play(readers, 70, {"still": lambda _: 0}) == {"still": (Reason.STALLED, 60)}


def test_who_stops_is_ended_a_time_out_later(readers: Readers[str]) -> None:
    assert play(readers, 200, {"stops": lambda now: MB * min(now, 100)}) == {"stops": (Reason.STALLED, 160)}


def test_standstill_counts_for_small_answers_too(readers: Readers[str]) -> None:
    assert play(readers, 70, {"still": lambda _: 0}, held=1, rest=1) == {"still": (Reason.STALLED, 60)}


def test_who_takes_a_little_now_and_then_is_ended(readers: Readers[str]) -> None:
    """What the finding H1 did: 150 kB every 25 s."""
    ended = play(readers, 200, {"trickles": in_bursts(150_000, 25)})
    assert ended == {"trickles": (Reason.SLOW, 60)}


def test_what_was_taken_at_once_at_the_start_helps_for_one_time_out_only(readers: Readers[str]) -> None:
    """Buffers of kernels take megabytes before anybody reads."""
    ended = play(readers, 200, {"trickles": lambda now: 3 * MB * (now > 1) + 6_000 * now})
    reason, at = ended["trickles"]
    assert reason == Reason.SLOW
    assert 60 < at <= 61 + LIMITS.timeout_s * (1 + 1 / NOTES)


@pytest.mark.parametrize("rate", [17_000, 1e6, 1e9])
def test_who_is_above_the_rate_stays(readers: Readers[str], rate: float) -> None:
    assert play(readers, 600, {"reads": steadily(rate)}) == {}


def test_pauses_below_the_time_out_are_nothing(readers: Readers[str]) -> None:
    assert play(readers, 600, {"pauses": in_bursts(5 * MB, 50)}) == {}


def test_rate_is_not_asked_of_small_answers(readers: Readers[str]) -> None:
    """A few hundred bytes on a long way: whenever one looks, some have not been answered."""
    assert play(readers, 600, {"far": steadily(300)}, held=SMALL, rest=SMALL) == {}


def test_no_rate_can_be_asked() -> None:
    readers: Readers[str] = Readers(LIMITS._replace(min_rate=0))
    assert play(readers, 600, {"trickles": in_bursts(1, 59)}) == {}


def test_who_has_taken_all_that_was_sent_begins_anew(readers: Readers[str]) -> None:
    """Then it waits for us, however long that takes."""
    play(readers, 59, {"reads": lambda _: 0})
    readers.note("reads", 59, taken=5, sent=0, held=10 * MB, rest=10 * MB)
    assert readers.held(ALL) == 0
    readers.note("reads", 61, taken=5, sent=1000, held=10 * MB, rest=10 * MB)
    assert readers.too_slow(100) == {}
    assert readers.slowest(61.5, 100 * MB, ALL) == []


# --- room is needed --------------------------------------------------------------------------------------------------


def test_slowest_goes_first_and_only_until_there_is_room(readers: Readers[str]) -> None:
    slow = {"still": lambda _: 0, "slow": steadily(10_000), "less slow": steadily(20_000)}
    play(readers, 5, slow)
    assert readers.held(ALL) == 30 * MB
    assert readers.slowest(5, 0, ALL) == []
    assert readers.slowest(5, 1, ALL) == ["still"]
    assert readers.slowest(5, 10 * MB + 1, ALL) == ["still", "slow"]
    assert readers.slowest(5, 100 * MB, ALL) == ["still", "slow", "less slow"]


def test_of_equally_slow_ones_the_oldest_goes_first(readers: Readers[str]) -> None:
    play(readers, 2, {"old": lambda _: 0})
    for now in (2.0, 4.0):
        readers.note("young", now, taken=0, sent=1, held=MB, rest=MB)
        readers.note("old", now, taken=0, sent=1, held=MB, rest=MB)
    assert readers.slowest(4, 2 * MB, ALL) == ["old", "young"]


def test_who_is_about_to_have_it_all_stays(readers: Readers[str]) -> None:
    enough = 10 * MB / PRESSED_FINISH_S
    play(readers, 5, {"fast": steadily(enough * 1.1), "slow": steadily(enough * 0.9)})
    assert readers.slowest(5, 100 * MB, ALL) == ["slow"]


@pytest.mark.parametrize(("rest", "ended"), [(4 * MB, ["still"]), (6 * MB, ["still", "reads"])])
def test_speed_is_judged_by_the_rest_and_room_by_the_whole(readers: Readers[str], rest: int, ended: list[str]) -> None:
    """One takes half a megabyte a second of an answer of 10 MB."""
    play(readers, 5, {"still": lambda _: 0, "reads": steadily(MB / 2)}, held=10 * MB, rest=rest)
    assert readers.slowest(5, 10 * MB, ALL) == ["still"]
    assert readers.slowest(5, 20 * MB, ALL) == ended


def test_rate_is_asked_of_who_holds_much_until_it_has_all(readers: Readers[str]) -> None:
    """Else an answer's last bytes could keep its room for hours."""
    assert play(readers, 61, {"trickles": in_bursts(1, 25)}, rest=1) == {"trickles": (Reason.SLOW, 60)}


def test_only_those_that_are_asked_for_count(readers: Readers[str]) -> None:
    play(readers, 5, {"still": lambda _: 0, "slow": steadily(1000)})
    assert readers.held({"slow"}) == 10 * MB
    assert readers.slowest(5, 100 * MB, {"slow"}) == ["slow"]


def test_who_has_just_begun_stays(readers: Readers[str]) -> None:
    play(readers, PRESSED_AFTER_S - STEP_S, {"new": lambda _: 0})
    assert readers.slowest(PRESSED_AFTER_S - STEP_S, MB, ALL) == []
    assert readers.slowest(PRESSED_AFTER_S, MB, ALL) == ["new"]


def test_what_kernels_took_at_the_start_does_not_make_a_fast_reader(readers: Readers[str]) -> None:
    play(readers, 2, {"still": lambda now: 3 * MB * (now > 0)})
    assert readers.slowest(2, MB, ALL) == ["still"]


def test_who_was_fast_and_stands_still_now_is_slow(readers: Readers[str]) -> None:
    play(readers, 20, {"stops": lambda now: 5 * MB * min(now, 18), "slow": steadily(1000)})
    assert readers.slowest(20, MB, ALL) == ["stops"]


def test_clients_that_have_gone_are_forgotten(readers: Readers[str]) -> None:
    play(readers, 2, {"gone": lambda _: 0})
    readers.forget("gone")
    readers.forget("gone")
    assert (readers.held(ALL), readers.slowest(2, MB, ALL), readers.too_slow(100)) == (0, [], {})
