"""Pace of a batch."""

from frontend.batches.pace import (
    FIRST_DEFERRAL_S,
    FIRST_INPUTS,
    MAX_DEFERRAL_S,
    MAX_PAUSE_S,
    MIN_PAUSE_S,
    Deferrals,
    Pace,
    adapt_part_lines,
)


def fill(pace: Pace, now: float = 0.0) -> int:
    """Send single inputs until the pace allows no more, and return their number."""
    count = 0
    while pace.may_send(1, now):
        pace.begin(1)
        count += 1
    return count


def test_window_grows_with_answers() -> None:
    pace = Pace()
    assert fill(pace) == FIRST_INPUTS
    for _ in range(int(FIRST_INPUTS)):
        pace.end(1, answered=True)
    assert fill(pace) == 2 * FIRST_INPUTS


def test_refusals_at_once_halve_the_window_once() -> None:
    pace = Pace()
    fill(pace)
    for _ in range(10):
        pace.end(1, answered=False)
        assert pace.refuse(2.0, 0.0) == 2.0
    pace.end(int(FIRST_INPUTS) - 10, answered=False)
    assert not pace.may_send(1, 1.9)
    assert fill(pace, 2.0) == FIRST_INPUTS // 2


def test_pauses_are_bounded() -> None:
    assert Pace().refuse(0.0, 1.0) == 1.0 + MIN_PAUSE_S
    assert Pace().refuse(1000.0, 1.0) == 1.0 + MAX_PAUSE_S


def test_line_above_the_window_runs_alone() -> None:
    pace = Pace()
    assert pace.may_send(5000, 0.0)
    pace.begin(5000)
    assert not pace.may_send(1, 0.0)


def test_parts_adapt_to_their_duration() -> None:
    assert adapt_part_lines(128, 0.1) == 256
    assert adapt_part_lines(128, 1.0) == 128
    assert adapt_part_lines(128, 9.0) == 64
    assert adapt_part_lines(16, 9.0) == 16
    assert adapt_part_lines(1024, 0.1) == 1024


def test_deferrals_double_up_to_their_limit() -> None:
    deferrals = Deferrals()
    deferrals.add("a", 0.0)
    assert deferrals.list_deferred(FIRST_DEFERRAL_S - 0.1) == ["a"]
    assert deferrals.list_deferred(FIRST_DEFERRAL_S) == []
    deferrals.add("a", 10.0)
    assert deferrals.list_deferred(10.0 + 2 * FIRST_DEFERRAL_S - 0.1) == ["a"]
    for _ in range(10):
        deferrals.add("a", 20.0)
    assert deferrals.list_deferred(20.0 + MAX_DEFERRAL_S) == []
    deferrals.remove("a")
    deferrals.add("a", 30.0)
    assert deferrals.list_deferred(30.0 + FIRST_DEFERRAL_S) == []


def test_old_deferrals_are_forgotten() -> None:
    deferrals = Deferrals()
    deferrals.add("a", 0.0)
    assert deferrals.list_deferred(1000.0) == []
    deferrals.add("a", 1000.0)
    assert deferrals.list_deferred(1000.0 + FIRST_DEFERRAL_S) == []
